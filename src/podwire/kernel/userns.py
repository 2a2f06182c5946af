"""Fresh namespaces for anyone: as root directly, else as the root of a user namespace of one's own.

An ordinary user may map exactly one id (user_namespaces(7)): files belong to it or to nobody, and
setgroups(2) is off for good. More ids need newuidmap and subordinate ranges, which podwire does
without.
"""

from __future__ import annotations

import os
from typing import Final

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import libc

_MAPS: Final = (("setgroups", "deny"), ("uid_map", "0 {uid} 1"), ("gid_map", "0 {gid} 1"))


def unshare_as_root(flags: int, *, force_user: bool = False) -> bool:
    """Unshare `flags`, in a new user namespace unless privileged; True when one was made.

    With a new mount namespace all mounts become private, so nothing propagates back. The process
    must have one thread. Errors: `UnsupportedError` when the machine forbids user namespaces.
    """
    user = force_user or os.geteuid() != 0
    if not user:
        libc.unshare(flags)
    else:
        _unshare_user(flags)
    if flags & libc.CLONE_NEWNS:
        libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    return user


def _unshare_user(flags: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    try:
        libc.unshare(flags | libc.CLONE_NEWUSER)
    except KernelError as e:
        raise UnsupportedError(
            "user namespaces are not allowed here; run as root, or see "
            "kernel.unprivileged_userns_clone, user.max_user_namespaces and AppArmor",
            errno=e.errno,
        ) from e
    for name, text in _MAPS:
        try:
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text.format(uid=uid, gid=gid))
        except OSError as e:
            raise KernelError(f"user namespace: {name}", errno=e.errno or 0) from e
