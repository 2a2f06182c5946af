"""Bringing a lab up and down from outside: sockets on the host, then the holder in its own world.

`up` is idempotent: a lab that runs is reconciled with what was asked, one that died is built again
from its state. `down` ends the holder, and with it, by the kernel's own hand, every process,
namespace and mount of the lab; then the folder goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from podwire.agents.config import ServiceProxy
from podwire.errors import (
    KernelError,
    LabError,
    LabExistsError,
    LabNotFoundError,
    UnsupportedError,
    UsageError,
)
from podwire.kernel import features, guard, proc
from podwire.kernel.files import remove_tree
from podwire.lab import kubeconfig, router, wire
from podwire.lab.holder import HolderArguments, HolderRecord, write_spec
from podwire.lab.paths import LabPaths, run_root
from podwire.lab.spec import DEFAULT_NAME, LabSpec, PublishSpec, check

Progress = Callable[[str], None]

_START_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 5.0
# What a second `up` may not change in a running lab.
_FIXED = (
    "network",
    "overlay",
    "ip_family",
    "pod_cidrs",
    "service_cidrs",
    "node_cidrs",
    "node_mask",
    "mtu",
    "hairpin_mode",
    "service_proxy",
    "network_policy",
    "denied_flows",
    "non_masquerade_cidrs",
    "load_balancer_pools",
    "internal_load_balancer_pools",
    "load_balancer",
    "max_pods",
    "probe_delays",
    "dns",
    "node_local_dns",
    "outside_zone",
    "state_dir",
)


def labs() -> list[str]:
    """Names of the labs that have a folder, running or not."""
    root = run_root()
    if not root.exists():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / "lab.json").exists())


def holder_of(paths: LabPaths) -> proc.Identity | None:
    """The running holder of a lab, or None."""
    try:
        record = msgspec.json.decode(paths.holder.read_bytes(), type=HolderRecord)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return record.identity if proc.is_alive(record.identity) else None


def running(name: str) -> bool:
    return holder_of(LabPaths.of(name)) is not None


def choose(name: str | None) -> str:
    """The lab a command means: named, `$PODWIRE_LAB`, the only (running) one, or `podwire`."""
    chosen = name or os.environ.get("PODWIRE_LAB")
    if chosen:
        return chosen
    known = labs()
    for candidates in ([lab for lab in known if running(lab)], known):
        if len(candidates) == 1:
            return candidates[0]
    return DEFAULT_NAME


def require_running(name: str) -> LabPaths:
    paths = LabPaths.of(name)
    if holder_of(paths) is None:
        known = [lab for lab in labs() if running(lab)]
        hint = f"running labs: {', '.join(known)}" if known else "start one with `podwire up`"
        raise LabNotFoundError(f"lab {name}: is not running; {hint}")
    return paths


@contextlib.contextmanager
def _locked(paths: LabPaths) -> Iterator[Path]:
    """One `up` or `down` of a lab at a time; yields the lock file, which lies beside the folder.

    Whoever holds the lock may remove the file, so one that was opened must still be the one that is
    there.
    """
    paths.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = paths.root.parent / f".{paths.root.name}.lock"
    while True:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LabExistsError(
                    f"lab {paths.root.name}: another up or down of it is running; wait for it"
                ) from error
            if lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                yield lock
                return


def read_spec(paths: LabPaths) -> LabSpec | None:
    return _decode_spec(paths.spec) if paths.spec.exists() else None


def _decode_spec(path: Path) -> LabSpec:
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabSpec)
    except msgspec.MsgspecError as error:
        raise LabError(f"{path}: is damaged: {error}; remove it with down") from error


def remembered(name: str, state_dir: str) -> LabSpec | None:
    """The lab's specification of the last time: from its folder, else from its kept state."""
    found = read_spec(LabPaths.of(name))
    if found is None and state_dir and (kept := Path(state_dir) / "lab.json").exists():
        found = _decode_spec(kept)
        return msgspec.structs.replace(found, name=name)
    return found


def up(spec: LabSpec, progress: Progress = lambda _: None) -> bool:
    """Make the lab run as `spec` says; True when it was built, False when it ran already."""
    check(spec)
    if spec.outside_zone:
        # Imported late: the reader of zone files is not needed for labs that give none.
        from podwire.lab.outsidezone import read_zone_file

        read_zone_file(spec.outside_zone)
    router.check_programs(spec)
    paths = LabPaths.of(spec.name)
    with _locked(paths):
        if holder_of(paths) is not None:
            _reconcile(paths, spec)
            return False
        _preflight()
        fresh = not paths.root.exists()
        try:
            paths.create()
            _clear_leftovers(paths)
            if spec.state_dir:
                _make_state(spec)
            _launch(paths, spec, progress)
        except BaseException:
            _undo(paths, fresh)
            raise
        return True


def _make_state(spec: LabSpec) -> None:
    """The folder the store is kept in; two running labs would write one database."""
    for name in labs():
        other = read_spec(LabPaths.of(name)) if name != spec.name and running(name) else None
        if other is not None and other.state_dir == spec.state_dir:
            raise LabExistsError(f"--state {spec.state_dir}: is in use by the running lab {name}")
    try:
        Path(spec.state_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"--state {spec.state_dir}: {error.strerror}") from error


def _undo(paths: LabPaths, fresh: bool) -> None:
    """No half of a lab is left; the folder of one that ran before keeps what it kept."""
    identity = holder_of(paths)
    if identity is not None:
        _kill(identity, paths.root.name)
    if fresh and paths.root.exists():
        remove_tree(paths.root)


def _preflight() -> None:
    """Say plainly what this machine cannot do, before anything is made."""
    if os.geteuid() != 0 and not _user_namespaces_allowed():
        raise UsageError(
            "podwire needs root or unprivileged user namespaces, and this machine refuses both: "
            "run as root, or enable them (sysctl kernel.unprivileged_userns_clone=1 on Debian, "
            "kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)"
        )


def _user_namespaces_allowed() -> bool:
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "true"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def _clear_leftovers(paths: LabPaths) -> None:
    """Sockets of a lab that was killed would answer nobody."""
    for leftover in (paths.control_socket, paths.api_socket, paths.holder):
        leftover.unlink(missing_ok=True)
    for leftover in paths.root.glob("nodes/*/*.sock"):
        leftover.unlink(missing_ok=True)


_SERVICE_PROXY_NEEDS: dict[ServiceProxy, str] = {"iptables": "iptables", "ipvs": "ipvs"}


def _check_kernel(spec: LabSpec) -> None:
    """Before anything is built: an agent could only say so in its log."""
    needed = [_SERVICE_PROXY_NEEDS.get(spec.service_proxy)]
    if spec.network == "kubenet" and spec.network_policy == "enforce":
        needed.append("br_netfilter")
    wanted = [name for name in needed if name is not None]
    missing = features.probe().missing() if wanted else {}
    for name in wanted:
        if name in missing:
            raise UnsupportedError(f"lab {spec.name}: {missing[name]}")


def _launch(paths: LabPaths, spec: LabSpec, progress: Progress) -> None:
    _check_kernel(spec)
    write_spec(paths, spec)
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(_listen("127.0.0.1", _api_port(paths, spec)))
        port: int = api.getsockname()[1]
        (paths.state(spec.state_dir) / "api-port").write_text(str(port))
        published: dict[int, socket.socket] = {}
        opened: list[PublishSpec] = []
        for entry in spec.publish:
            sock = stack.enter_context(_listen(entry.host, entry.port))
            # Port 0 lets the kernel choose; what it chose is what status must say.
            opened.append(msgspec.structs.replace(entry, port=sock.getsockname()[1]))
            published[opened[-1].port] = sock
        write_spec(paths, msgspec.structs.replace(spec, publish=tuple(opened)))
        control = stack.enter_context(socket.socket(socket.AF_UNIX))
        control.bind(str(paths.control_socket))
        control.listen(64)
        read_end, write_end = os.pipe()
        arguments = HolderArguments(
            root=str(paths.root),
            control_fd=control.fileno(),
            api_fd=api.fileno(),
            progress_fd=write_end,
            publish_fds={str(p): sock.fileno() for p, sock in published.items()},
        )
        inherited = [arguments.control_fd, arguments.api_fd, write_end]
        inherited += arguments.publish_fds.values()
        with (paths.logs / "holder.log").open("ab") as log:
            starter = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from podwire.lab.holder import main; main()",
                    msgspec.json.encode(arguments).decode(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=os.environ | guard.environment(),
                pass_fds=inherited,
                start_new_session=True,
            )
        os.close(write_end)
        try:
            # Keys and kubeconfig are made while the holder imports; so is what will speak to the
            # API server, which is a quarter of a second of a command line's life.
            from podwire.apiserver.pki import ensure_pki

            pki = ensure_pki(
                paths.state(spec.state_dir) / "pki", addresses=_certificate_hosts(spec)
            )
            kubeconfig.write(paths.kubeconfig, kubeconfig.render(spec.name, port, pki))
            importlib.import_module("podwire.lab.lab")
            _wait_started(read_end, paths, progress)
        finally:
            os.close(read_end)
            starter.wait()


def _certificate_hosts(spec: LabSpec) -> list[str]:
    return [str(spec.api_address), *(str(network[1]) for network in spec.service_networks())]


def _api_port(paths: LabPaths, spec: LabSpec) -> int:
    """The port of the last time, so that a kubeconfig outlives the lab; 0 chooses one."""
    try:
        return int((paths.state(spec.state_dir) / "api-port").read_text())
    except (OSError, ValueError):
        return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        if port and error.errno == 98:
            raise LabError(f"port {host}:{port}: is in use by another program") from error
        raise LabError(f"port {host}:{port}: {error.strerror}") from error
    sock.listen(1024)
    return sock


def _wait_started(read_end: int, paths: LabPaths, progress: Progress) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    text = ""
    with selectors.DefaultSelector() as selector:
        selector.register(read_end, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(deadline - time.monotonic()):
                break
            part = os.read(read_end, 4096).decode()
            text += part
            *lines, text = text.split("\n")
            for line in lines:
                if line.startswith("error "):
                    raise LabError(f"lab {paths.root.name}: {line[6:]}")
                if line == "started":
                    return
                progress(line)
            if not part:
                break
    tail = (paths.logs / "holder.log").read_text(errors="replace").strip().splitlines()[-3:]
    raise LabError(
        f"lab {paths.root.name}: did not start; the holder's log ends with: " + " | ".join(tail)
    )


def _reconcile(paths: LabPaths, spec: LabSpec) -> None:
    """Bring a running lab to `spec`: nodes and published ports are added, the rest is fixed."""
    current = read_spec(paths)
    if current is None:
        raise LabError(f"lab {spec.name}: runs, but {paths.spec} is missing; take it down first")
    for name in _FIXED:
        asked, have = getattr(spec, name), getattr(current, name)
        if asked != have:
            raise LabExistsError(
                f"lab {spec.name}: runs with {name.replace('_', '-')} {have or 'default'}, "
                f"not {asked or 'default'}; take it down first, or name another lab"
            )
    for node in spec.nodes:
        if current.node(node.name) is None:
            wire.call(paths.control_socket, {"op": "node-add", "node": msgspec.to_builtins(node)})
    for entry in spec.publish:
        if entry not in current.publish:
            publish(paths, entry)


def publish(paths: LabPaths, entry: PublishSpec) -> int:
    """Open a port on the host for a running lab and hand it in; returns the port."""
    with _listen(entry.host, entry.port) as sock:
        port: int = sock.getsockname()[1]
        opened = msgspec.structs.replace(entry, port=port)
        message = {"op": "publish", "publish": msgspec.to_builtins(opened)}
        wire.call(paths.control_socket, message, sock.fileno())
        return port


def down(name: str) -> bool:
    """End the lab and remove its folder; False when there was none. Kept state stays."""
    paths = LabPaths.of(name)
    with _locked(paths) as lock:
        found = paths.root.exists()
        if found:
            identity = holder_of(paths)
            if identity is not None:
                _kill(identity, name)
            remove_tree(paths.root)
        lock.unlink(missing_ok=True)
    return found


def _kill(identity: proc.Identity, name: str) -> None:
    try:
        pidfd = proc.open_pidfd(identity)
    except KernelError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        # pid 1 is reaped only after every process of its namespace is.
        if not proc.wait_ended(pidfd, _END_TIMEOUT_S):
            raise LabError(f"lab {name}: pid {identity.pid} does not end")
    finally:
        os.close(pidfd)
