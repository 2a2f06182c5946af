"""Processes: identity that outlives pid reuse, waiting, memory, titles, passed descriptors.

A pid is reused; a pid with its start time (in clock ticks since boot) within one boot is not. A
pidfd becomes readable when its process ends, so an event loop or `poll` can wait for any process,
child or not.
"""

from __future__ import annotations

import array
import ctypes
import os
import resource
import select
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from podwire.errors import KernelError
from podwire.kernel import libc

_MAX_FDS: Final = 253  # SCM_MAX_FD


class Identity(Struct, frozen=True):
    """One process, for ever: no later process of this or another boot is equal."""

    pid: int
    start_ticks: int
    boot: str


def boot_id() -> str:
    """The kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat_fields(pid: int | str) -> list[str]:
    """/proc/PID/stat from field 3 on; the command's name before it may hold spaces and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise KernelError(f"process {pid}", errno=e.errno or 0) from e
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc(5), field 22)."""
    return int(_stat_fields(pid)[19])


def identity(pid: int) -> Identity:
    """Errors: `KernelError` ENOENT when there is no such process."""
    return Identity(pid, start_ticks(pid), boot_id())


def is_alive(who: Identity) -> bool:
    """Whether exactly this process still runs; a zombie does not."""
    try:
        fields = _stat_fields(who.pid)
    except KernelError:
        return False
    return fields[0] not in "ZX" and int(fields[19]) == who.start_ticks and boot_id() == who.boot


def open_pidfd(who: Identity | int) -> int:
    """A descriptor that becomes readable when the process ends; the caller closes it.

    Errors: `KernelError` ESRCH when it has ended already, also when its pid went to another.
    """
    pid = who if isinstance(who, int) else who.pid
    try:
        fd = os.pidfd_open(pid)
    except OSError as e:
        raise KernelError(f"process {pid}", errno=e.errno or 0) from e
    # The pidfd now pins the pid: what is checked from here on cannot be reused.
    if isinstance(who, Identity) and not is_alive(who):
        os.close(fd)
        raise KernelError(f"process {pid}: ended", errno=3)
    return fd


def wait_ended(pidfd: int, timeout_s: float | None = None) -> bool:
    """Block until the process ends; False when `timeout_s` passed first."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def host_pid(host_proc: int) -> int:
    """This process's pid as the host sees it, from a descriptor of the host's /proc directory.

    Inside a pid namespace getpid() is the inner number; a /proc of the outer one, opened before
    unsharing, still answers with the outer.
    """
    try:
        return int(os.readlink("self", dir_fd=host_proc))
    except OSError as e:
        raise KernelError("pid of this process on the host", errno=e.errno or 0) from e


def pss_kib(pid: int | str = "self") -> int:
    """Proportional set size: memory with shared pages divided among their users."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1])
    except OSError as e:
        raise KernelError(f"memory of process {pid}", errno=e.errno or 0) from e
    return 0


def set_title(title: str) -> None:
    """What `ps` and `top` show for this process, cut to the space its arguments occupy."""
    libc.set_name(title)
    fields = _stat_fields("self")
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: proc(5), fields 48, 49
    if not 0 < start < end:
        return  # hidden from us (ptrace access), and a title is not worth failing for
    space = end - start
    raw = title.encode()[: space - 1]
    ctypes.memmove(start, raw + b"\0" * (space - len(raw)), space)


def raise_nofile(wanted: int = 1_048_576) -> int:
    """Raise the limit of open descriptors as far as allowed, at most to `wanted`; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        goal = wanted
    else:
        goal = hard
        if os.geteuid() == 0:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            except (ValueError, OSError):
                goal = hard  # root of a user namespace may not raise the hard limit
            else:
                return wanted
    if soft != resource.RLIM_INFINITY and soft < goal:
        resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
        return goal
    return soft


def send_fds(sock: socket.socket, message: bytes, fds: Sequence[int]) -> None:
    """Send a non-empty message with descriptors over a unix socket; whole, or `KernelError`."""
    if not message or len(fds) > _MAX_FDS:
        raise KernelError(f"passing {len(fds)} descriptors: 1 byte and {_MAX_FDS} at most")
    try:
        sent = socket.send_fds(sock, [message], list(fds))
        if sent < len(message):
            # Descriptors travel with the first byte; the rest of a stream message follows bare.
            sock.sendall(message[sent:])
    except OSError as e:
        raise KernelError(f"passing {len(fds)} descriptors", errno=e.errno or 0) from e


def recv_fds(sock: socket.socket, size: int, max_fds: int) -> tuple[bytes, list[int]]:
    """Receive a message and its descriptors (close-on-exec); empty at the end of the stream."""
    # Not socket.recv_fds: it drops its flags (until 3.12), so every child would inherit them.
    fds = array.array("i")
    room = socket.CMSG_LEN(max_fds * fds.itemsize)
    try:
        message, controls, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    except OSError as e:
        raise KernelError("receiving descriptors", errno=e.errno or 0) from e
    for level, kind, data in controls:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise KernelError(f"receiving descriptors: more than {max_fds} came, or no room for them")
    return message, list(fds)
