"""From what iptables holds to what it should: only the chains that differ are sent. Pure.

    Claims that changed -> groups -> chains -> plan -> text for iptables-restore --noflush

A chain that is named in the text is emptied and written whole, all others stay (KEP-3453). The
transactions of one text are ordered so that no packet passes between them unseen:

    filter   the new verdicts beside the former; what has an endpoint does not meet them
    nat      chains and dispatch
    filter   without the former verdicts

State is what was planned last. When a text was refused or somebody else touched the tables, `mend`
starts from what iptables-save prints instead.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from podwire.services import iptables as ipt
from podwire.services.claims import Claims
from podwire.services.iptables import Chains, Group, Node, Rendered, Table
from podwire.services.model import Frontend, FrontendKey, Network

TABLES: Final[tuple[Table, ...]] = ("filter", "nat")
Tables: TypeAlias = dict[Table, Chains]
"""Chains by table: our own, and of the built-in ones the rules that lead to ours."""
Former: TypeAlias = Mapping[str, str | None]
"""What chains held before; None: there was no such chain."""

_RULE: Final = re.compile(r"-A (\S+) .*-[jg] (\S+)")


class Ruleset:
    """What was planned, and what that makes of the next change."""

    def __init__(self, claims: Claims, versions: Iterable[int]) -> None:
        self._claims = claims
        self._families = {version: _Family(Node(version)) for version in versions}
        self._group_of: dict[FrontendKey, Group] = {}

    def set_ranges(
        self,
        service_cidrs: Iterable[Network],
        cluster_cidrs: Iterable[Network],
        *,
        affinity: bool = True,
    ) -> None:
        """Other ranges, from the next plan on. `affinity`: the kernel has the match `recent`."""
        for version, family in self._families.items():
            family.set_node(Node.of(version, service_cidrs, cluster_cidrs, affinity=affinity))

    def plan(self) -> dict[int, str]:
        """The texts by IP version that lead from the last plan to what should be now."""
        self._take()
        texts = {version: family.plan() for version, family in self._families.items()}
        return {version: text for version, text in texts.items() if text}

    def mend(self, found: Mapping[int, Tables]) -> dict[int, str]:
        """The texts that lead from `found` in the kernel to what should be."""
        self.plan()
        texts = {
            version: render_changes(_every_name(found[version], family.tables), family.tables)
            for version, family in self._families.items()
        }
        return {version: text for version, text in texts.items() if text}

    def tables(self, version: int) -> Tables:
        """Everything as planned last."""
        return self._families[version].tables

    def _take(self) -> None:
        for key in self._claims.take_touched():
            family = self._families.get(4 if len(key.ip) == 4 else 6)
            if family is None:
                continue
            before = self._group_of.pop(key, None)
            if before is not None:
                family.change(before, key, None)
            frontend = self._claims.winner(key)
            if frontend is not None:
                group = self._group_of[key] = ipt.group_of(frontend)
                family.change(group, key, frontend)


class _Family:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._groups: dict[Group, dict[FrontendKey, Frontend]] = {}
        self._rendered: dict[Group, Rendered] = {}
        self._dirty: dict[Group, None] = {}
        self._base_dirty = True
        self.tables: Tables = {table: {} for table in TABLES}

    def set_node(self, node: Node) -> None:
        if node == self._node:
            return
        if (node.cluster_cidrs, node.affinity) != (self._node.cluster_cidrs, self._node.affinity):
            self._dirty = dict.fromkeys(self._groups)
        self._node = node
        self._base_dirty = True

    def change(self, group: Group, key: FrontendKey, frontend: Frontend | None) -> None:
        frontends = self._groups.setdefault(group, {})
        if frontend is None:
            del frontends[key]
        else:
            frontends[key] = frontend
        self._dirty[group] = None

    def plan(self) -> str:
        former: dict[Table, dict[str, str | None]] = {table: {} for table in TABLES}
        for group in self._dirty:
            self._render(group, former)
        self._dirty.clear()
        if self._base_dirty:
            self._render_base(former)
            self._base_dirty = False
        return render_changes(former, self.tables)

    def _render(self, group: Group, former: dict[Table, dict[str, str | None]]) -> None:
        old, new = self._rendered.pop(group, Rendered()), Rendered()
        if self._groups[group]:
            new = ipt.render_group(group, self._groups[group], self._node)
            self._rendered[group] = new
        else:
            del self._groups[group]
        self._exchange("nat", old.nat, new.nat, former["nat"])
        self._exchange("filter", old.filter, new.filter, former["filter"])
        if old.shared != new.shared:
            self._base_dirty = True

    def _render_base(self, former: dict[Table, dict[str, str | None]]) -> None:
        groups = [self._rendered[group] for group in sorted(self._rendered)]
        bases: dict[Table, Chains] = {
            "nat": ipt.render_nat_base(self._node, groups),
            "filter": ipt.render_filter_base(self._node, groups),
        }
        for table, chains in bases.items():
            jumps = {chain: ipt.jump_rule(chain, to) for chain, to in ipt.JUMPS[table].items()}
            self._exchange(table, {}, chains | jumps, former[table])

    def _exchange(
        self, table: Table, was: Chains, will: Chains, former: dict[str, str | None]
    ) -> None:
        """Put `will` in the place of `was`, and note in `former` what was there."""
        chains = self.tables[table]
        for name in was.keys() - will.keys():
            former.setdefault(name, chains.pop(name))
        for name, rules in will.items():
            former.setdefault(name, chains.get(name))
            chains[name] = rules


def _every_name(found: Tables, wanted: Tables) -> dict[Table, Former]:
    return {
        table: {name: found[table].get(name) for name in found[table].keys() | wanted[table].keys()}
        for table in TABLES
    }


# --- text ---------------------------------------------------------------------------------------


def render_changes(former: Mapping[Table, Former], tables: Tables) -> str:
    """The text that makes the chains `former` names what `tables` says; "" where they are."""
    before, after = _filter_steps(former["filter"], tables["filter"])
    return before + _render_table("nat", former["nat"], tables["nat"]) + after


def _filter_steps(former: Former, chains: Chains) -> tuple[str, str]:
    """Before nat and after it: new verdicts early, former ones late.

    An address refuses its other ports only while nat has the ones it serves.
    """
    between = {name: rules for name, rules in former.items() if rules is not None}
    between |= {name: chains[name] for name in former if name in chains}
    if ipt.SERVICES in former:
        between[ipt.SERVICES] = _both(former[ipt.SERVICES] or "", chains.get(ipt.SERVICES, ""))
    if ipt.VIPS in former:
        wanted = set(_lines(chains.get(ipt.VIPS, "")))
        between[ipt.VIPS] = "".join(r for r in _lines(former[ipt.VIPS] or "") if r in wanted)
    then = {name: between.get(name) for name in former}
    return _render_table("filter", former, between), _render_table("filter", then, chains)


def _lines(rules: str) -> list[str]:
    return rules.splitlines(keepends=True)


def _both(former: str, wanted: str) -> str:
    """Rules that hold for what nat had and for what it will have."""
    old, new = _lines(former), _lines(wanted)
    if set(new) <= set(old):
        return former
    kept = set(new)
    return "".join([*new, *(rule for rule in old if rule not in kept)])


def _render_table(table: Table, former: Former, chains: Chains) -> str:
    """One transaction: every chain that differs whole, those that are not wanted deleted."""
    changed = sorted(name for name, rules in former.items() if rules != chains.get(name))
    if not changed:
        return ""
    jumps = [name for name in changed if not ipt.is_ours(name)]
    edited = [name for name in changed if _is_edited(name, former, chains)]
    whole = [name for name in changed if ipt.is_ours(name) and name not in edited]
    gone = [name for name in whole if name not in chains]
    lines = [f"*{table}\n", *(f":{name} - [0:0]\n" for name in whole)]
    lines += [chains[name] for name in whole if name in chains]
    for name in edited:
        lines += _edit(former[name] or "", chains[name])
    for name in jumps:
        lines += _jump_changes(name, former[name] or "", chains.get(name, ""))
    lines += [f"-X {name}\n" for name in gone]
    return "".join([*lines, "COMMIT\n"])


def _is_edited(name: str, former: Former, chains: Chains) -> bool:
    """The order of VIPS is nothing to anybody, so a rule may come and go alone."""
    return name == ipt.VIPS and former[name] is not None and name in chains


def _edit(former: str, wanted: str) -> Iterator[str]:
    old, new = Counter(_lines(former)), Counter(_lines(wanted))
    for rule in (old - new).elements():
        yield f"-D {rule.removeprefix('-A ')}"
    yield from (new - old).elements()


def _jump_changes(chain: str, former: str, wanted: str) -> Iterator[str]:
    """In a built-in chain only our own rules come and go; ours is the first."""
    rules = _lines(former)
    if wanted in rules:
        rules.remove(wanted)
    elif wanted:
        yield f"-I {wanted.removeprefix('-A ')}"
    for rule in rules:
        yield f"-D {rule.removeprefix('-A ')}"


def parse_save(text: str) -> Chains:
    """Our chains in what iptables-save printed; of built-in ones the rules that lead to them."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines(keepends=True):
        if line.startswith(":"):
            name = line[1:].split(" ", 1)[0]
            if ipt.is_ours(name):
                found[name] = []
        elif line.startswith("-A "):
            name = line.split(" ", 2)[1]
            rule = _RULE.match(line)
            if ipt.is_ours(name) or (rule is not None and ipt.is_ours(rule[2])):
                found.setdefault(name, []).append(line)
    if ipt.VIPS in found:
        found[ipt.VIPS].sort()
    return {name: "".join(rules) for name, rules in found.items()}
