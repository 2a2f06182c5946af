"""iptables in memory: `iptables.restore` and `save`, for rules as iptables-save prints them.

Chains and rules are kept; a rule is only read as far as its target. Chains that rules jump to, or
that have rules, cannot be deleted; chains that are missing cannot be used.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Final, TypeAlias

from podwire.errors import KernelError
from podwire.kernel.iptables import Family

Chains: TypeAlias = dict[str, list[str]]
Tables: TypeAlias = dict[tuple[Family, str], Chains]

_BUILT_IN: Final = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
_VERDICTS: Final = frozenset({"ACCEPT", "DROP", "RETURN", "REJECT"})
_NAT: Final = frozenset({"DNAT", "SNAT", "MASQUERADE", "REDIRECT"})
_MARKS: Final = frozenset({"MARK", "CONNMARK", "TPROXY", "NOTRACK", "CT", "TCPMSS"})
_LOGS: Final = frozenset({"LOG", "NFLOG", "TRACE"})
_TARGETS: Final = _VERDICTS | _NAT | _MARKS | _LOGS
_TARGET: Final = re.compile(r"-[jg] (\S+)")


def save(tables: Tables, table: str, family: Family) -> str:
    """As iptables-save prints, without its comments."""
    chains = tables.get((family, table)) or _empty(table)
    return "\n".join(_lines(table, chains)) + "\n"


def _lines(table: str, chains: Chains) -> Iterator[str]:
    yield f"*{table}"
    for name in chains:
        yield f":{name} {'ACCEPT' if name in _BUILT_IN[table] else '-'} [0:0]"
    for name, rules in chains.items():
        for rule in rules:
            yield f"-A {name} {rule}"
    yield "COMMIT"


def _empty(table: str) -> Chains:
    return {name: [] for name in _BUILT_IN[table]}


def restore(tables: Tables, text: str, family: Family) -> None:
    """Commit table by table, with --noflush."""
    table, chains, begun = "", {}, 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("*"):
            table, begun = line[1:], number
            if table not in _BUILT_IN:
                raise _failure(number, line, errno.ENOENT)
            held = tables.get((family, table)) or _empty(table)
            chains = {name: list(rules) for name, rules in held.items()}
        elif not begun:
            raise _failure(number, line, 0)
        elif line == "COMMIT":
            tables[family, table], begun = chains, 0
        else:
            _perform(chains, table, line, number)
    if begun:
        raise KernelError(f"iptables: COMMIT expected at line {len(text.splitlines()) + 1}")


def _perform(chains: Chains, table: str, line: str, number: int) -> None:
    if line.startswith(":"):
        name = line[1:].split()[0]
        if name not in _BUILT_IN[table]:
            chains[name] = []
        return
    verb, name, *rest = line.split(maxsplit=2)
    rule = rest[0] if rest else ""
    if verb == "-N":
        if name in chains:
            raise _failure(number, line, errno.EEXIST)
        chains[name] = []
        return
    if name not in chains:
        raise _failure(number, line, errno.ENOENT)
    if verb in ("-A", "-I"):
        target = _TARGET.search(rule)
        if target and target[1] not in chains and target[1] not in _TARGETS:
            raise _failure(number, line, errno.ENOENT)
        chains[name].insert(0 if verb == "-I" else len(chains[name]), rule)
    elif verb == "-D":
        if rule not in chains[name]:
            raise _failure(number, line, errno.ENOENT)
        chains[name].remove(rule)
    elif verb == "-F":
        chains[name].clear()
    elif verb == "-X":
        if chains[name] or _is_used(chains, name):
            raise _failure(number, line, errno.EBUSY)
        del chains[name]
    else:
        raise KernelError(f"iptables: line {number}: {line!r}: the fake does not know this command")


def _is_used(chains: Chains, name: str) -> bool:
    targets = (_TARGET.search(rule) for rules in chains.values() for rule in rules)
    return any(target is not None and target[1] == name for target in targets)


def _failure(number: int, line: str, code: int) -> KernelError:
    return KernelError(f"iptables: line {number}: {line!r}", errno=code)
