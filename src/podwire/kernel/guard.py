"""The promise that the host is never touched, kept in one place.

At import this module remembers the network and mount namespace podwire was started in (a
re-executed process is told by its environment, because by then it already lives elsewhere). Every
effect asks here first; in the remembered namespace the answer is `HostNamespaceError`. Only an
agent started for a real node (`--host-network`) lifts it.

The question is about the calling *thread*: setns(2) moves threads, not processes.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Final

from podwire.errors import HostNamespaceError

ENV_NET: Final = "PODWIRE_HOST_NETNS"
ENV_MNT: Final = "PODWIRE_HOST_MNTNS"


def _inode(kind: str) -> int | None:
    try:
        return os.stat(f"/proc/thread-self/ns/{kind}").st_ino
    except OSError:
        return None


def _remembered(env: str, kind: str) -> int | None:
    told = os.environ.get(env, "")
    return int(told) if told.isdigit() else _inode(kind)


_host_net: int | None = _remembered(ENV_NET, "net")
_host_mnt: int | None = _remembered(ENV_MNT, "mnt")
_host_network_allowed = False


def allow_host_network() -> None:
    """Lift the guard for network effects: this process is the agent of a real node."""
    global _host_network_allowed
    _host_network_allowed = True


def environment() -> dict[str, str]:
    """What a re-executed podwire process needs in its environment to know the host's namespaces."""
    known = {ENV_NET: _host_net, ENV_MNT: _host_mnt}
    return {name: str(inode) for name, inode in known.items() if inode is not None}


def in_host_network() -> bool:
    """Whether the calling thread is in the network namespace podwire was started in.

    Without a usable /proc nobody can tell, and the careful answer is yes.
    """
    current = _inode("net")
    return current is None or current == _host_net


def assert_not_host(what: str = "network change") -> None:
    """Raise `HostNamespaceError` when the calling thread is in the host's network namespace."""
    if not _host_network_allowed and in_host_network():
        raise HostNamespaceError(
            f"{what}: refused in the network namespace podwire was started in; "
            "enter a namespace of the lab first"
        )


def assert_not_host_mounts(what: str = "mount") -> None:
    """Raise `HostNamespaceError` when the calling thread is in the host's mount namespace."""
    current = _inode("mnt")
    if current is None or current == _host_mnt:
        raise HostNamespaceError(
            f"{what}: refused in the mount namespace podwire was started in; "
            "unshare the mount namespace first"
        )


def assert_may_connect(address: str) -> None:
    """Raise `HostNamespaceError` for a connect to anything but loopback in the host's namespace."""
    if not ipaddress.ip_address(address).is_loopback:
        assert_not_host(f"connect to {address}")
