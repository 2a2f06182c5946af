"""Network namespaces: made, pinned to a file, entered and left, and sockets opened inside.

A namespace lives as long as something refers to it: a process, a file descriptor, or a bind mount
of /proc/thread-self/ns/net on a file (the *pin*; what `ip netns` and every container runtime do).

setns(2) and unshare(2) move the calling thread only. Therefore nothing in here may be awaited:
between entering and leaving a namespace the event loop would run other tasks in the wrong one. What
has to last is a socket (or an `Rtnl`): it keeps the namespace it was opened in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import libc

_SELF: Final = "/proc/thread-self/ns/net"
_O_NS: Final = os.O_RDONLY | os.O_CLOEXEC


def current() -> int:
    """A new descriptor of the calling thread's network namespace; the caller closes it."""
    return os.open(_SELF, _O_NS)


def inode(fd: int | None = None) -> int:
    """The identity of a namespace (`fd`, or the calling thread's): what `lsns` prints."""
    return os.stat(_SELF if fd is None else fd).st_ino


def open_pin(pin: Path) -> int:
    """A new descriptor of a pinned namespace; the caller closes it.

    Errors: `KernelError` when the file is missing or is not (or no longer) a pinned namespace.
    """
    try:
        fd = os.open(pin, _O_NS)
    except OSError as e:
        raise KernelError(f"network namespace {pin}: cannot open", errno=e.errno or 0) from e
    # An unmounted pin is an ordinary empty file on the tmpfs of the lab, not on nsfs.
    if os.fstat(fd).st_dev != os.stat(_SELF).st_dev:
        os.close(fd)
        raise KernelError(f"network namespace {pin}: the file is not a pinned namespace")
    return fd


@contextlib.contextmanager
def creating(pin: Path | None) -> Iterator[int]:
    """Make a namespace, run the body inside it, and return the thread to where it was.

    Yields the new namespace's descriptor, which the caller owns when the body succeeds. When the
    body raises, the pin and the descriptor are gone again. Never await in the body.
    """
    with contextlib.ExitStack() as leave, contextlib.ExitStack() as undo:
        former = current()
        leave.callback(os.close, former)
        libc.unshare(libc.CLONE_NEWNET)
        leave.callback(_return_to, former)
        fd = current()
        undo.callback(os.close, fd)
        if pin is not None:
            _pin(pin)
            undo.callback(delete, pin)
        yield fd
        undo.pop_all()


def create(pin: Path) -> int:
    """Make a namespace pinned at `pin` and return its descriptor, which the caller closes."""
    with creating(pin) as fd:
        return fd


def _pin(pin: Path) -> None:
    try:
        os.close(os.open(pin, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError as e:
        raise KernelError(f"network namespace {pin}: the pin exists", errno=e.errno or 0) from e
    except OSError as e:
        raise KernelError(f"network namespace {pin}: cannot pin", errno=e.errno or 0) from e
    try:
        libc.mount(_SELF, str(pin), flags=libc.MS_BIND)
    except KernelError:
        os.unlink(pin)
        raise


def _return_to(former: int) -> None:
    # A thread lost in a foreign namespace would do everything that follows in the wrong place.
    try:
        libc.setns(former, libc.CLONE_NEWNET)
    except KernelError as e:
        raise SystemExit(f"cannot return to the former network namespace: {e}") from e


def delete(pin: Path) -> None:
    """Remove a pin; the namespace ends with its last process and descriptor. Idempotent."""
    if not pin.exists():
        return
    try:
        libc.umount2(str(pin), libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
    except KernelError as e:
        # EINVAL: nothing is mounted here, so a plain file is all that is left of the pin.
        if e.errno != errno.EINVAL:
            raise
    try:
        pin.unlink(missing_ok=True)
    except OSError as e:
        raise KernelError(f"network namespace {pin}: cannot remove", errno=e.errno or 0) from e


@contextlib.contextmanager
def entered(fd: int) -> Iterator[None]:
    """Run the body with the calling thread inside the namespace `fd`. Never await in the body."""
    former = current()
    try:
        libc.setns(fd, libc.CLONE_NEWNET)
        try:
            yield
        finally:
            _return_to(former)
    finally:
        os.close(former)


def maybe_entered(ns: int | None) -> contextlib.AbstractContextManager[None]:
    """`entered(ns)`, or nothing when `ns` is None: the calling thread's namespace is meant."""
    return contextlib.nullcontext() if ns is None else entered(ns)


def socket_in(
    fd: int, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0
) -> socket.socket:
    """A socket that lives in the namespace `fd`, usable from any other afterwards."""
    with entered(fd):
        return socket.socket(family, kind, proto)
