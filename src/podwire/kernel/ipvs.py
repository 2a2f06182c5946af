"""IPVS as text: what `ipvsadm --restore` reads and `ipvsadm --save` prints.

    text -> ipvsadm --restore in the namespace; every line is a request of its own

A line is `-A`, `-E` or `-D` for a virtual server, `-a`, `-e` or `-d` for one of its destinations.
There are no transactions: a line that is refused does not stop the others, and the program ends
with status 0 all the same, so that what it says on stderr is the only sign. Nobody tells when the
tables change. Tried with ipvsadm 1.31 on Linux 6.1.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import guard, netns

ABSENT: Final = "ipvs: ipvsadm is not installed; install the package ipvsadm"
NO_MODULE: Final = (
    "ipvs: this kernel has no IPVS; load the module ip_vs or use --service-proxy nftables"
)
NO_SYSCTLS: Final = (
    "ipvs: net.ipv4.vs.conntrack is missing: the module ip_vs was built without "
    "CONFIG_IP_VS_NFCT, or the lab does not run as root; use --service-proxy nftables"
)
_UNSUPPORTED: Final = "Can't initialize ipvs"
_CONNTRACK: Final = "/proc/sys/net/ipv4/vs/conntrack"
_STDERR_LIMIT: Final = 2000
_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_ERRNO_OF: Final = {
    "No such destination": errno.ENOENT,
    "No such service": errno.ESRCH,
    "Service not defined": errno.ESRCH,
    "Destination already exists": errno.EEXIST,
    "Service already exists": errno.EEXIST,
    "Scheduler or persistence engine not found": errno.ENOENT,
    "Memory allocation problem": errno.ENOMEM,
}


class Counted(NamedTuple):
    """Connections through one destination of one virtual server, both named as in the text."""

    server: str
    destination: str
    active: int
    inactive: int


def check(ns: int | None = None) -> None:
    """`UnsupportedError` with what to do where IPVS cannot be used; loads the module."""
    try:
        save(ns)
    except KernelError as error:
        if _UNSUPPORTED not in (error.stderr or ""):
            raise
        raise UnsupportedError(NO_MODULE, errno=errno.ENOPROTOOPT) from error
    with netns.maybe_entered(ns):
        if not os.path.exists(_CONNTRACK):
            raise UnsupportedError(NO_SYSCTLS, errno=errno.ENOENT)


def restore(text: str, ns: int | None = None) -> None:
    """Make each line's request, in order; those after a refused one are made as well.

    Errors: `KernelError` with all that was refused.
    """
    if text:
        _run(["--restore"], text, ns)


def save(ns: int | None = None) -> str:
    """The tables as lines `-A` and `-a`, with addresses and ports as numbers."""
    return _run(["--save", "--numeric"], "", ns)


def connections(ns: int | None = None) -> list[Counted]:
    """What goes through every destination now."""
    return parse_connections(_run(["--list", "--numeric", "--exact"], "", ns))


_OPTIONS: Final = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service"}


def parse_connections(text: str) -> list[Counted]:
    """`ipvsadm -L -n`: a line for a virtual server, then an arrow for each destination."""
    found: list[Counted] = []
    server = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["FWM"]:
            server = f"-f {words[1]}" + (" -6" if "IPv6" in words[2:3] else "")
        elif words and words[0] in _OPTIONS:
            server = f"{_OPTIONS[words[0]]} {words[1]}"
        elif words[:1] == ["->"] and len(words) == 6 and words[4].isdigit():
            found.append(Counted(server, words[1], int(words[4]), int(words[5])))
    return found


def _run(arguments: Sequence[str], text: str, ns: int | None) -> str:
    program = shutil.which("ipvsadm", path=os.environ.get("PATH", os.defpath) + ":" + _PATH)
    if program is None:
        raise UnsupportedError(ABSENT, errno=errno.ENOENT)
    with netns.maybe_entered(ns):
        guard.assert_not_host("ipvs")
        # The child is a copy of this thread, so it starts in this namespace.
        child = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    with child:
        output, report = child.communicate(text)
    if child.returncode or report.strip():
        raise _error(report, " ".join(["ipvsadm", *arguments]))
    return output


def _error(report: str, command: str) -> KernelError:
    said = list(dict.fromkeys(line.strip() for line in report.splitlines() if line.strip()))
    code = next((code for words, code in _ERRNO_OF.items() if words in report), 0)
    return KernelError(
        f"ipvs: {'; '.join(said) or 'refused'}",
        errno=code,
        command=command,
        stderr=report[:_STDERR_LIMIT],
    )
