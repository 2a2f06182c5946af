"""ContainerSpec + image configuration + what this lab may do -> the OCI runtime's config.json.
Pure.

What a lab leaves out, and why: no cgroup (the lab's own is not delegated, so limits are not set),
no user namespace (a rootless lab already lives in one), no devices beyond the runtime's default
ones.

Source: runtime-spec config.md and config-linux.md; Docker's default capabilities and masked paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from podwire.errors import ContainerError
from podwire.runtime.containers import ContainerSpec, Mount
from podwire.runtime.oci.store import ImageConfig

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_CAPABILITIES: Final = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
]
ALL_CAPABILITIES: Final = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]
_MASKED: Final = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
_READ_ONLY: Final = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_NOFILE: Final = 65536


@dataclass(frozen=True)
class Identity:
    """The user a container runs as, names already looked up in the image."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True)
class Place:
    """What the lab gives one container: `pause_pid` holds the pod's namespaces."""

    pause_pid: int
    shm_dir: Path
    rootless: bool
    nofile_limit: int = _NOFILE


def process_args(spec: ContainerSpec, image: ImageConfig) -> list[str]:
    """Kubernetes' rules for command and args; raises when nothing is left to run."""
    entrypoint, cmd = image.entrypoint or [], image.cmd or []
    if spec.command:
        args = [*spec.command, *spec.args]
    elif spec.args:
        args = [*entrypoint, *spec.args]
    else:
        args = [*entrypoint, *cmd]
    if not args:
        raise ContainerError(
            f"container {spec.name}: no command specified, neither by the image {spec.image} "
            "nor in the pod",
            reason="CreateContainerError",
        )
    return args


def environment(spec: ContainerSpec, image: ImageConfig, home: str) -> dict[str, str]:
    """Later wins: defaults, the image's, the pod's."""
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": spec.hostname, "HOME": home}
    if spec.tty:
        env["TERM"] = "xterm"
    for entry in image.env or []:
        name, _, value = entry.partition("=")
        env[name] = value
    return env | dict(spec.env)


def capabilities(spec: ContainerSpec) -> list[str]:
    """The bounding set, in the OCI's spelling."""
    if spec.privileged:
        return [f"CAP_{name}" for name in ALL_CAPABILITIES]
    add, drop = _plain(spec.capabilities_add), _plain(spec.capabilities_drop)
    chosen = set(ALL_CAPABILITIES if "ALL" in add else DEFAULT_CAPABILITIES)
    chosen = (set() if "ALL" in drop else chosen - drop) | (add & set(ALL_CAPABILITIES))
    unknown = (add | drop) - set(ALL_CAPABILITIES) - {"ALL"}
    if unknown:
        raise ContainerError(
            f"container {spec.name}: unknown capability {sorted(unknown)[0]}",
            reason="CreateContainerError",
        )
    return [f"CAP_{name}" for name in ALL_CAPABILITIES if name in chosen]


def _plain(names: Sequence[str]) -> set[str]:
    return {name.upper().removeprefix("CAP_") for name in names}


@dataclass(frozen=True)
class Program:
    """What is started: a container's own program, or one executed in it."""

    args: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    tty: bool = False


def process(
    spec: ContainerSpec, identity: Identity, program: Program, place: Place
) -> dict[str, Any]:
    """The `process` object: of a container, and of an exec into it."""
    bounding = capabilities(spec)
    # Only root gets them at once; another user may gain them from a set-uid program.
    own = bounding if identity.uid == 0 else []
    limit = min(_NOFILE, place.nofile_limit)
    return {
        "terminal": program.tty,
        "user": _user(identity, rootless=place.rootless),
        "args": list(program.args),
        "env": [f"{name}={value}" for name, value in program.env.items()],
        "cwd": program.cwd,
        "capabilities": {"bounding": bounding, "effective": own, "permitted": own},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": limit, "soft": limit}],
        "noNewPrivileges": not spec.allow_privilege_escalation and not spec.privileged,
    }


def _user(identity: Identity, *, rootless: bool) -> dict[str, Any]:
    user: dict[str, Any] = {"uid": identity.uid, "gid": identity.gid}
    # setgroups(2) is denied in a user namespace an ordinary user made.
    if identity.groups and not rootless:
        user["additionalGids"] = list(identity.groups)
    return user


def config_json(
    spec: ContainerSpec, process_object: dict[str, Any], place: Place
) -> dict[str, Any]:
    """The whole config.json; the root file system is `rootfs` beside it."""
    linux: dict[str, Any] = {"namespaces": _namespaces(spec, place)}
    if spec.sysctls:
        linux["sysctl"] = _sysctls(spec)
    if not spec.privileged:
        linux |= {"maskedPaths": _MASKED, "readonlyPaths": _READ_ONLY}
    return {
        "ociVersion": "1.0.2",
        "process": process_object,
        "root": {"path": "rootfs", "readonly": spec.read_only_rootfs},
        "mounts": [*_system_mounts(spec, place), *_pod_mounts(spec)],
        "linux": linux,
        "annotations": dict(spec.annotations),
    }


def _namespaces(spec: ContainerSpec, place: Place) -> list[dict[str, str]]:
    held = f"/proc/{place.pause_pid}/ns"
    found = [
        {"type": "mount"},
        {"type": "ipc", "path": f"{held}/ipc"},
        {"type": "uts", "path": f"{held}/uts"},
        {"type": "pid", "path": f"{held}/pid"} if spec.share_process_namespace else {"type": "pid"},
    ]
    if spec.netns is not None:
        found.append({"type": "network", "path": str(spec.netns)})
    return found


def _sysctls(spec: ContainerSpec) -> dict[str, str]:
    for name, _ in spec.sysctls:
        if name.startswith("net.") and spec.netns is None:
            raise ContainerError(
                f"container {spec.name}: sysctl {name} is not allowed with hostNetwork",
                reason="SysctlForbidden",
            )
    return dict(spec.sysctls)


def _system_mounts(spec: ContainerSpec, place: Place) -> list[dict[str, Any]]:
    nothing = ["nosuid", "noexec", "nodev"]
    devpts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    # Group tty (5) is not mapped in a rootless lab.
    if not place.rootless:
        devpts.append("gid=5")
    rows: list[tuple[str, str, str, list[str]]] = [
        ("/proc", "proc", "proc", nothing),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", devpts),
        ("/dev/mqueue", "mqueue", "mqueue", nothing),
        ("/sys", "sysfs", "sysfs", [*nothing, "rw" if spec.privileged else "ro"]),
        ("/dev/shm", "bind", str(place.shm_dir), ["rbind", "rw", "nosuid", "nodev", "noexec"]),
    ]
    return [
        {"destination": destination, "type": kind, "source": source, "options": options}
        for destination, kind, source, options in rows
    ]


def _pod_mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    files = [
        Mount("/etc/hosts", spec.hosts_path),
        Mount("/etc/resolv.conf", spec.resolv_conf_path),
        Mount(spec.termination_message_path, spec.termination_path),
    ]
    taken = {mount.destination for mount in spec.mounts}
    # A path below another must be mounted after it.
    volumes = sorted(spec.mounts, key=lambda mount: mount.destination.count("/"))
    return [_mount(m) for m in [*(f for f in files if f.destination not in taken), *volumes]]


def _mount(mount: Mount) -> dict[str, Any]:
    access = "ro" if mount.read_only else "rw"
    if mount.source is None:
        options = ["nosuid", "nodev", "mode=1777", access]
        if mount.size_bytes is not None:
            options.append(f"size={mount.size_bytes}")
        source, kind = "tmpfs", "tmpfs"
    else:
        options = ["rbind" if mount.recursive else "bind", "rprivate", access]
        source, kind = str(mount.source), "bind"
    return {"destination": mount.destination, "type": kind, "source": source, "options": options}
