"""iptables rules as text: what `iptables-restore --noflush` reads, as kube-proxy writes it.

    text -> iptables-restore or ip6tables-restore in the namespace; each *table is one transaction

With --noflush a line `:CHAIN - [0:0]` makes a chain of our own or empties it, and built-in chains
keep what others put there. The programs come in two variants, nft
(rules live in nf_tables) and legacy (x_tables); the one the machine uses by default is taken when
it works, so that podwire's rules are where other programs look. `variant` tells which, the feature
`iptables` whether any does.

Tried with iptables 1.8.9 on Linux 6.18 (each loads in tests/kernel/test_kernel_iptables.py):
statistic, recent, conntrack, comment, mark, addrtype, multiport, set (needs an ipset to name),
limit; targets MARK, DNAT, MASQUERADE and SNAT --random-fully, REDIRECT, REJECT, CONNMARK, TPROXY.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import guard, netns

Family: TypeAlias = Literal[4, 6]
Variant: TypeAlias = Literal["nft", "legacy"]

ABSENT: Final = "iptables: iptables-restore is not installed; install the package iptables"
_WAIT_S: Final = 5  # for the lock the legacy programs share
_STDERR_LIMIT: Final = 2000
# Services of Debian and others have a PATH without /usr/sbin.
_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_FLAVOURS: Final = ("", "-nft", "-legacy")

# One rule of each kind Services cannot do without; then what session affinity needs.
PROBE: Final = """*nat
:PODWIRE-PROBE - [0:0]
-A PODWIRE-PROBE -m comment --comment probe -m statistic --mode random --probability 0.5 -j RETURN
-A PODWIRE-PROBE -p tcp -m tcp --dport 1 -j DNAT --to-destination 127.0.0.1:2
-A PODWIRE-PROBE -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
COMMIT
"""
RECENT_PROBE: Final = """*nat
:PODWIRE-PROBE - [0:0]
-A PODWIRE-PROBE -m recent --rcheck --seconds 1 --reap --name PODWIRE-PROBE -j RETURN
COMMIT
"""
_PROBE_GONE: Final = "*nat\n:PODWIRE-PROBE - [0:0]\n-X PODWIRE-PROBE\nCOMMIT\n"


def _program(family: Family, flavour: str, verb: str) -> str | None:
    name = f"ip{'6' if family == 6 else ''}tables{flavour}-{verb}"
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":" + _PATH)


def _found(family: Family, verb: Literal["restore", "save"], flavour: str) -> str:
    program = _program(family, flavour, verb)
    if program is None:
        raise UnsupportedError(ABSENT, errno=errno.ENOENT)
    return program


def variant(flavour: str = "") -> Variant | None:
    """Which variant the default programs are; None when there are none."""
    program = _program(4, flavour, "restore")
    if program is None:
        return None
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return "nft" if "nf_tables" in done.stdout else "legacy"


def working_flavour() -> str | None:
    """Which programs ("", "-nft", "-legacy" behind the name) load rules here; None: none do.

    Tries for real, in a chain nothing leads to and that is gone afterwards. The default comes
    first.
    """
    return next((f for f in _FLAVOURS if _loads(PROBE, 4, f) and _loads(PROBE, 6, f)), None)


def has_recent(flavour: str = "") -> bool:
    """Whether the match `recent` is there, by which a client keeps its backend."""
    return _loads(RECENT_PROBE, 4, flavour) and _loads(RECENT_PROBE, 6, flavour)


def _loads(text: str, family: Family, flavour: str) -> bool:
    if family == 6:
        text = text.replace("127.0.0.1:2", "[::1]:2")
    try:
        restore(text + _PROBE_GONE, family, flavour=flavour)
    except KernelError:
        return False
    return True


def restore(
    text: str,
    family: Family = 4,
    ns: int | None = None,
    *,
    flavour: str = "",
    started: Callable[[int], None] | None = None,
) -> None:
    """Commit the text, table by table, in the namespace `ns` (None: the calling thread's).

    `started` gets the process number of the program before that is given the text: its netlink
    port has the same number, so that a monitor can tell our changes from others'.

    Errors: `KernelError` with the line that failed and the program's stderr; tables committed
    before it stay. `UnsupportedError` where the program is missing.
    """
    if not text.strip():
        return
    program = _found(family, "restore", flavour)
    _run([program, "--noflush", "-w", str(_WAIT_S)], text, ns, started)


def save(table: str, family: Family = 4, ns: int | None = None, *, flavour: str = "") -> str:
    """The table as iptables-save prints it: for tests and diagnostics."""
    return _run([_found(family, "save", flavour), "-t", table], "", ns)


def _run(
    command: list[str],
    text: str,
    ns: int | None,
    started: Callable[[int], None] | None = None,
) -> str:
    with netns.maybe_entered(ns):
        guard.assert_not_host("iptables")
        # The child is a copy of this thread, so it starts in this namespace.
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    with child:
        if started is not None:
            started(child.pid)
        output, report = child.communicate(text)
    if child.returncode:
        raise _error(text, report, " ".join([os.path.basename(command[0]), *command[1:]]))
    return output


_LINE: Final = re.compile(r"\bline:? (\d+)\b")
_PREFIX: Final = re.compile(r"^(?:ip6?tables[\w-]*(?: v\S+ \(\w+\))?: ?)+")
_ERRNO_OF: Final = {
    **{os.strerror(code): code for code in errno.errorcode},
    "No chain/target/match by that name": errno.ENOENT,
    "does a matching rule exist in that chain?": errno.ENOENT,
    "does not exist": errno.ENOENT,
}


def _error(text: str, report: str, command: str) -> KernelError:
    found = _LINE.search(report)
    number = int(found[1]) if found else 0
    lines = text.splitlines()
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    where = f"line {number}: {line[:200]!r}: " if number else ""
    code = next((code for words, code in _ERRNO_OF.items() if words in report), 0)
    return KernelError(
        f"iptables: {where}{_reason(report)}",
        errno=code,
        command=command,
        stderr=report[:_STDERR_LIMIT],
    )


def _reason(report: str) -> str:
    """The program's first words that are neither its name nor the line's number."""
    for line in report.splitlines():
        words = re.sub(r"^line \d+(?: failed)?(?:: )?", "", _PREFIX.sub("", line)).strip()
        if words and not words.startswith("Error occurred at line"):
            return words.rstrip(".")
    return "refused"
