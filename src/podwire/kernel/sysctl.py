"""Network sysctls of a namespace: /proc/sys/net shows each thread those of its own namespace.

Keys are sysctl names (`net.ipv4.ip_forward`); a device's name may itself hold dots, so in a key
with one write the path form (`net/ipv4/conf/eth0.5/forwarding`), as sysctl(8) does.
"""

from __future__ import annotations

from collections.abc import Mapping

from podwire.errors import KernelError
from podwire.kernel import guard, netns


def _path(key: str) -> str:
    path = key if "/" in key else key.replace(".", "/")
    if not path.startswith("net/") or ".." in path.split("/"):
        # Only net.* belongs to a network namespace; anything else would be the machine's.
        raise KernelError(f"sysctl {key}: only net.* may be touched")
    return f"/proc/sys/{path}"


def read(key: str, ns: int | None = None) -> str:
    """The value in the namespace `ns` (None: the calling thread's), without the line end."""
    path = _path(key)
    try:
        with netns.maybe_entered(ns), open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError as e:
        raise KernelError(f"sysctl {key}: cannot read", errno=e.errno or 0) from e


def write(values: Mapping[str, str | int], ns: int | None = None) -> None:
    """Set each key, in order, in the namespace `ns` (None: the calling thread's)."""
    with netns.maybe_entered(ns):
        guard.assert_not_host("sysctl")
        for key, value in values.items():
            try:
                with open(_path(key), "w", encoding="ascii") as file:
                    file.write(str(value))
            except OSError as e:
                raise KernelError(f"sysctl {key} = {value}", errno=e.errno or 0) from e
