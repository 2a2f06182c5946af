"""The ContainerRuntime over crun or runc.

create_and_start: image -> identity, process, config.json -> bundle directory
                  -> pod's pause process (once) -> shim -> crun run -> OciContainer

state_dir/POD_UID/pause.json, shm/, runtime/ (crun's own state)
         /POD_UID/CONTAINER/ config.json container.json shim.json upper work rootfs l/
                             shim.sock pid exit.json runtime.log
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import msgspec

from podwire.errors import ContainerError
from podwire.kernel import guard
from podwire.runtime.containers import ContainerSpec, Image
from podwire.runtime.oci import bundle, inside
from podwire.runtime.oci import probe as probe_module
from podwire.runtime.oci.container import OciContainer, Saved
from podwire.runtime.oci.store import ImageStore

_SHIM: Final = Path(__file__).with_name("shim.py")
_LOG_MAX_BYTES: Final = 10 * 1024 * 1024
_LOG_FILES: Final = 5
_START_TIMEOUT_S: Final = 60.0
# sethostname(2) takes no more; a node's name may be longer.
_MAX_HOSTNAME: Final = 64


class _Pause(msgspec.Struct):
    """`start_time` (field 22 of /proc/PID/stat) tells the process from a later one of its pid."""

    pid: int
    start_time: int


class _Report(msgspec.Struct):
    """What a shim answers."""

    pid: int = 0
    error: str = ""


class OciRuntime:
    """Satisfies `ContainerRuntime`. One per node; `images` may be shared by all nodes."""

    def __init__(self, facts: probe_module.Facts, state_dir: Path, images: ImageStore) -> None:
        self.name: str = facts.flavour
        self.version = facts.version
        self.images = images
        self._facts = facts
        self._dir = state_dir
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @staticmethod
    async def probe(state_dir: Path, images_dir: Path) -> OciRuntime | None:
        """The runtime of this machine; None where neither crun nor runc can be used.

        Call it inside the lab: it may mount cgroup2 there, and never does in the host's namespace.
        """
        guard.assert_not_host_mounts("container runtime")
        facts = await probe_module.probe()
        if facts is None:
            return None
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return OciRuntime(facts, state_dir, ImageStore(images_dir))

    async def find_image(self, reference: str) -> Image | None:
        return self.images.resolve(reference)

    async def list_images(self) -> list[Image]:
        return self.images.images()

    async def create_and_start(self, spec: ContainerSpec) -> OciContainer:
        image = self.images.resolve(spec.image)
        if image is None:
            raise ContainerError(
                f"container {spec.name}: image {spec.image} is not loaded; "
                "use `podwire image load FILE`",
                reason="ErrImageNeverPull",
            )
        container_id = secrets.token_hex(32)
        directory = self._dir / spec.pod_uid / container_id
        self.images.acquire(container_id, image.id)
        try:
            saved = await self._prepare(spec, image, container_id, directory)
            await self._start(spec, directory)
        except BaseException as e:
            self.images.release(container_id)
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            if isinstance(e, OSError):
                raise ContainerError(
                    f"container {spec.name}: {e}", reason="CreateContainerError"
                ) from e
            raise
        return await self._open(directory, saved)

    async def _open(self, directory: Path, saved: Saved) -> OciContainer:
        container = OciContainer(directory, saved, self._facts, self.images.release)
        await container.connect()
        return container

    async def _prepare(
        self, spec: ContainerSpec, image: Image, container_id: str, directory: Path
    ) -> Saved:
        """Write the bundle: everything the shim needs is in `directory`."""
        config = self.images.config(image.id)
        layers = self.images.layer_dirs(image.id)
        identity = inside.identify(spec, config.user, layers)
        self._check_ids(spec, identity)
        args = bundle.process_args(spec, config)
        place = await self._place(spec)
        program = bundle.Program(
            args,
            bundle.environment(spec, config, identity.home),
            spec.working_dir or config.working_dir or "/",
            spec.tty,
        )
        process = bundle.process(spec, identity, program, place)
        config_json = bundle.config_json(spec, process, place)
        for name in ("rootfs", "upper", "work", "scratch", "l"):
            (directory / name).mkdir(parents=True, mode=0o755)
        # The container's root directory is the upper one; its parents stay closed to others.
        directory.chmod(0o711)
        for path in (spec.hosts_path, spec.resolv_conf_path, spec.termination_path):
            path.touch()
        _write_json(directory / "config.json", config_json)
        _write_json(directory / "shim.json", self._shim_spec(spec, container_id, directory, layers))
        saved = Saved(
            id=container_id,
            name=spec.name,
            attempt=spec.attempt,
            pod_uid=spec.pod_uid,
            image_id=image.id,
            log_path=str(spec.log_path),
            started_at=time.time(),
            tty=spec.tty,
            process=process,
        )
        _write_json(directory / "container.json", saved)
        return saved

    def _check_ids(self, spec: ContainerSpec, identity: bundle.Identity) -> None:
        for what, number in (("user", identity.uid), ("group", identity.gid)):
            if not self._facts.maps(number):
                raise ContainerError(
                    f"container {spec.name} of pod {spec.pod_namespace}/{spec.pod_name}: "
                    f"cannot run as {what} {number}: this rootless lab maps no such id; install "
                    "the package uidmap and give this user a range in /etc/subuid, or run as root",
                    reason="CreateContainerConfigError",
                )

    def _shim_spec(
        self, spec: ContainerSpec, container_id: str, directory: Path, layers: list[Path]
    ) -> dict[str, Any]:
        # Mount data is one page, which the full paths of a dozen layers would fill.
        links = directory / "l"
        for number, layer in enumerate(layers):
            (links / str(number)).symlink_to(layer)
        lower = ":".join(f"l/{number}" for number in reversed(range(len(layers)))) or "l"
        run = ["run", "--detach", "--bundle", ".", "--pid-file", "pid"]
        if spec.tty:
            run += ["--console-socket", "console.sock"]
        if self._facts.flavour == "runc" and self._facts.rootless:
            run.append("--no-pivot")
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        root = self._runtime_root(spec.pod_uid)
        return {
            "run": self._facts.command(root, *run, container_id),
            "delete": self._facts.command(root, "delete", "--force", container_id),
            "lower": lower,
            "overlay_options": ",userxattr" if self._facts.rootless else "",
            "tty": spec.tty,
            "stdin": spec.stdin,
            "log_path": str(spec.log_path),
            "log_max_bytes": _LOG_MAX_BYTES,
            "log_files": _LOG_FILES,
            "shared_pid": spec.share_process_namespace,
        }

    def _runtime_root(self, pod_uid: str) -> Path:
        return self._dir / pod_uid / "runtime"

    async def _start(self, spec: ContainerSpec, directory: Path) -> None:
        report = await _ask_shim("run", str(directory))
        if report.error:
            raise ContainerError(
                f"container {spec.name}: failed to start: {report.error}",
                reason="RunContainerError",
            )

    # --- the pod's shared namespaces ---

    async def _place(self, spec: ContainerSpec) -> bundle.Place:
        async with self._locks[spec.pod_uid]:
            pod_dir = self._dir / spec.pod_uid
            shm = pod_dir / "shm"
            if not shm.is_dir():
                shm.mkdir(parents=True)
                shm.chmod(0o1777)
            # crun and runc make it on first use, and two containers may start at once.
            self._runtime_root(spec.pod_uid).mkdir(exist_ok=True, mode=0o700)
            pause = _running_pause(pod_dir)
            if pause is None:
                pause = await self._start_pause(spec, pod_dir)
        return bundle.Place(pause.pid, shm, self._facts.rootless, self._facts.nofile_limit)

    async def _start_pause(self, spec: ContainerSpec, pod_dir: Path) -> _Pause:
        sleep = shutil.which("sleep")
        if sleep is None:
            raise ContainerError("pause: this machine has no program `sleep`; install coreutils")
        request = {
            "netns": str(spec.netns) if spec.netns else "",
            "hostname": spec.hostname[:_MAX_HOSTNAME],
            "pid": spec.share_process_namespace,
            "sleep": sleep,
        }
        report = await _ask_shim("pause", msgspec.json.encode(request).decode())
        if report.error:
            raise ContainerError(
                f"pod {spec.pod_namespace}/{spec.pod_name}: cannot make its namespaces: "
                f"{report.error}",
                reason="FailedCreatePodSandBox",
            )
        pause = _Pause(report.pid, _start_time(report.pid))
        _write_json(pod_dir / "pause.json", pause)
        return pause

    # --- after a restart, and at the end ---

    async def recover(self, pod_uid: str) -> list[OciContainer]:
        found = []
        for path in sorted((self._dir / pod_uid).glob("*/container.json")):
            try:
                saved = msgspec.json.decode(path.read_bytes(), type=Saved)
            except msgspec.MsgspecError:
                continue
            if not (path.parent / "pid").exists():
                # The agent died while the container was being made; nobody was told of it.
                self.images.release(saved.id)
                shutil.rmtree(path.parent, ignore_errors=True)
                continue
            found.append(await self._open(path.parent, saved))
        return found

    async def remove_pod(self, pod_uid: str) -> None:
        pod_dir = self._dir / pod_uid
        if not pod_dir.is_dir():
            return
        for container in await self.recover(pod_uid):
            await container.remove()
        pause = _running_pause(pod_dir)
        if pause is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pause.pid, signal.SIGKILL)
        self._locks.pop(pod_uid, None)
        await asyncio.to_thread(shutil.rmtree, pod_dir, ignore_errors=True)


def _running_pause(pod_dir: Path) -> _Pause | None:
    try:
        pause = msgspec.json.decode((pod_dir / "pause.json").read_bytes(), type=_Pause)
        return pause if _start_time(pause.pid) == pause.start_time else None
    except (OSError, msgspec.MsgspecError):
        return None


def _start_time(pid: int) -> int:
    """Raises `OSError` when there is no such process, and for one that is dead."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(f"process {pid} is dead")
    return int(fields[19])


async def _ask_shim(mode: str, argument: str) -> _Report:
    """Run shim.py until it answers; it goes on by itself in the background."""
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_SHIM), mode, argument),
        stdin=null,
        stdout=pipe,
        stderr=null,
    )
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError as e:
        raise ContainerError(
            "the container did not start in time", reason="RunContainerError"
        ) from e
    try:
        return msgspec.json.decode(output, type=_Report)
    except msgspec.MsgspecError:
        return _Report(error="its supervisor died while starting")


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(msgspec.json.encode(value))
