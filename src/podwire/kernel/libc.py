"""The system calls Python 3.11 does not offer, through ctypes; failures become `KernelError`.

Every function acts on the calling thread or process exactly as the system call of its name does.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import guard

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def _check(result: int, what: str) -> None:
    if result < 0:
        raise KernelError(what, errno=ctypes.get_errno())


@functools.cache
def _flag_names(flags: int) -> str:
    names = [name for name, bit in globals().items() if name.startswith("CLONE_") and flags & bit]
    return "|".join(names) or hex(flags)


def unshare(flags: int) -> None:
    """Give the calling thread fresh namespaces; NEWPID takes effect for its next child."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare {_flag_names(flags)}")


def setns(fd: int, kind: int = 0) -> None:
    """Move the calling thread into the namespace behind `fd`; `kind` 0 accepts any."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), f"setns {_flag_names(kind)} fd {fd}")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """`mount(2)`; refused in the mount namespace podwire was started in."""
    guard.assert_not_host_mounts()
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        flags,
        data.encode() or None,
    )
    if result < 0:
        raise KernelError(f"mount {source} on {target}", errno=ctypes.get_errno())


def umount2(target: str, flags: int = 0) -> None:
    guard.assert_not_host_mounts()
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), f"umount {target}")


def set_pdeathsig(signal: int) -> None:
    """Have the kernel send `signal` to this process when the *thread* that forked it ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl PDEATHSIG")


def set_name(name: str) -> None:
    """The thread's `comm`: what `ps -o comm` and `top` show, 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0), "prctl SET_NAME")


def sethostname(name: str) -> None:
    """Call it only after `unshare(CLONE_NEWUTS)`."""
    raw = name.encode()
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), f"sethostname {name}")
