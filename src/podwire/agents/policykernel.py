"""Policies in the kernel of one node.

    NodePolicies ─ plan ─▶ PolicyBackend ─ text (chains), bytes (elements) ─▶ table podwire-policy

What was applied is remembered; nothing is listed while it works. An agent that starts leaves what a
former one enforces in force, builds everything anew beside it and switches over in one transaction;
the same mends what somebody else did to the table, and what a refused transaction left half done.
The table and its hooked chain are never deleted: packets that wait in a queue of that chain would
be lost, and for a moment everything would be allowed.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from typing import NamedTuple

from podwire.errors import KernelError
from podwire.kernel import hooks, nft
from podwire.kernel.handle import Handle
from podwire.kernel.nfcounters import NfCounters
from podwire.kernel.nfelements import Change, NfElements, split
from podwire.kernel.nfmonitor import NfMonitor
from podwire.kernel.nfnames import NfNames
from podwire.kernel.nfpack import pack_u32
from podwire.kernel.nft import Nft
from podwire.policy import nftables as nf
from podwire.policy.classes import Outcome
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.plan import Plan, Step, is_whole

_LOG = logging.getLogger(__name__)


class Counted(NamedTuple):
    """Connections (their first packets, and what was sent again) and their bytes."""

    packets: int
    bytes: int


class PolicyBackend(Handle):
    """Errors are `KernelError`; what was enforced before still is, and `mend` is due."""

    def __init__(self, policies: NodePolicies) -> None:
        """In the node's network namespace. The families are those of `policies`."""
        self._policies = policies
        self._families = {v: nf.FAMILY_NAMES[v] for v in policies.versions}
        self._nft = Nft()
        self._elements = NfElements()
        self._counters = NfCounters()
        self._names = NfNames()
        self._monitor = NfMonitor(lambda _family, table: table in (nf.TABLE, hooks.OBSERVE_TABLE))
        self._monitor.ignore(self._elements.port)
        self._kept: Counter[Outcome] = Counter()
        self._kept_bytes: Counter[Outcome] = Counter()
        self._kept_drops: Counter[str] = Counter()
        self.whole = False
        """Whether the kernel has all that was planned; else `mend` is due."""

    # --- changes ----------------------------------------------------------------------------------

    def commit(self) -> Plan:
        """Apply what changed since the last call; what it was."""
        if not self.whole:
            self.mend()
            return Plan()
        plan = self._policies.plan()
        if not plan.empty:
            self.whole = False
            self._apply(plan)
            self.whole = True
            if plan.outcomes:
                self._forget_gone()
        return plan

    def mend(self) -> None:
        """Everything anew, beside whatever is there."""
        self.whole = False
        for version in self._families:
            self._text(nf.render_table(version))
        former = {version: self._active(version) for version in self._families}
        ours = self._policies.generation
        letter = next(each for each in nf.GENERATIONS if each not in former.values())
        for version in self._families:
            self._remove(version, letter)
        plan = self._policies.rebuild(letter)
        for version in self._families:
            words = nf.Words(version, letter)
            self._text(nf.render_generation(words, self._policies.pod_interfaces))
        self._apply(plan)
        for version in self._families:
            self._text(nf.render_switch(nf.Words(version, letter)))
        for version, generation in former.items():
            # What an earlier agent has counted is under numbers of its own.
            if generation == ours:
                self._keep_all(version, generation)
            self._remove(version, *(each for each in nf.GENERATIONS if each != letter))
        self._forget_gone()
        self.whole = True

    def _active(self, version: int) -> str | None:
        """The generation the base chain leads to."""
        rules = self._names.leads_to(self._families[version], nf.TABLE, nf.BASE_CHAIN)
        for generation in nf.GENERATIONS:
            if f"{generation}-{nf.BASE_CHAIN}\0".encode() in rules:
                return generation
        return None

    def _remove(self, version: int, *generations: str) -> None:
        """All objects of generations no base chain leads to."""
        family = self._families[version]
        prefixes = tuple(f"{generation}-" for generation in generations)
        names = self._names.read(family, nf.TABLE)
        chains, sets, maps, counters = (
            [name for name in some if name.startswith(prefixes)] for some in names
        )
        leading = [name for name in maps if name[2:] in nf.LEADING]
        self._elements.apply([Change(family, nf.TABLE, name, flush=True) for name in leading])
        self._text(nf.render_removal(version, chains, sets, maps, counters))

    def _apply(self, plan: Plan) -> None:
        for step in plan.steps:
            self._apply_step(step, plan)

    def _apply_step(self, step: Step, plan: Plan) -> None:
        for text in step.text.values():
            self._text(text)
        for batch in split(step.changes, self._elements.max_batch, is_whole):
            for change in batch:
                if change.delete and change.set.endswith(f"-{nf.OUTCOMES}"):
                    counted = self._counters.read(
                        change.family, change.table, change.set, change.delete
                    )
                    for number, outcome in plan.outcomes.items():
                        if found := counted.get(pack_u32(number)):
                            self._keep(outcome, found.packets, found.bytes)
            self._elements.apply(batch)

    def _text(self, text: str) -> None:
        self._nft.apply(text)
        self.own_text()

    def own_text(self) -> None:
        """Text of ours was committed: the nft program's changes look like anybody's."""
        if not nft.in_process():
            self._monitor.read()

    def remove(self) -> None:
        """Nothing is to be enforced here any more."""
        self.whole = False
        for family in self._families.values():
            try:
                self._nft.delete_table(family, nf.TABLE)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise

    # --- what was counted -------------------------------------------------------------------------

    def outcomes(self) -> dict[Outcome, Counted]:
        """Connections by what became of them, since this agent began. The kernel is asked."""
        packets, octets = Counter(self._kept), Counter(self._kept_bytes)
        name = f"{self._policies.generation}-{nf.OUTCOMES}"
        for family in self._families.values():
            counted = self._counters.read_all(family, nf.TABLE, name)
            for number, outcome in self._policies.outcomes().items():
                if found := counted.get(pack_u32(number)):
                    packets[outcome] += found.packets
                    octets[outcome] += found.bytes
        return {each: Counted(count, octets[each]) for each, count in packets.items()}

    def drops(self) -> dict[str, int]:
        """Packets dropped though no policy says so, by the names in `nftables.COUNTERS`."""
        found = Counter(dict.fromkeys(nf.COUNTERS, 0))
        found.update(self._kept_drops)
        for family in self._families.values():
            named = self._counters.named(family, nf.TABLE)
            for name in nf.COUNTERS:
                found[name] += named.get(f"{self._policies.generation}-{name}", (0, 0))[0]
        return dict(found)

    def _keep(self, outcome: Outcome, packets: int, octets: int) -> None:
        if packets:
            self._kept[outcome] += packets
            self._kept_bytes[outcome] += octets

    def _forget_gone(self) -> None:
        """What is kept names policies that are, or it would grow with all that ever were. Of the
        denials of those that isolated, what is left is that they were."""
        for outcome in list(self._kept):
            named = {outcome.policy} if outcome.policy else {*outcome.isolating}
            standing = {ref for ref in named if ref is not None and self._policies.enforces(ref)}
            if standing == named:
                continue
            packets, octets = self._kept.pop(outcome), self._kept_bytes.pop(outcome)
            if outcome.policy is None:
                isolating = tuple(ref for ref in outcome.isolating if ref in standing)
                self._keep(outcome._replace(isolating=isolating), packets, octets)

    def _keep_all(self, version: int, generation: str) -> None:
        """A generation goes that nobody is led to any more."""
        family = self._families[version]
        counted = self._counters.read_all(family, nf.TABLE, f"{generation}-{nf.OUTCOMES}")
        for number, outcome in self._policies.outcomes().items():
            if found := counted.get(pack_u32(number)):
                self._keep(outcome, found.packets, found.bytes)
        named = self._counters.named(family, nf.TABLE)
        for plain in nf.COUNTERS:
            self._kept_drops[plain] += named.get(f"{generation}-{plain}", (0, 0))[0]

    # --- others -----------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when somebody else may have touched one of the tables."""
        return self._monitor.fileno()

    def foreign(self) -> list[str]:
        """What others did to the table, or to the observing one, since the last call, in words;
        `mend` is due where it was this one."""
        found = self._monitor.read()
        if any(t.lost or any(event.table == nf.TABLE for event in t.events) for t in found):
            self.whole = False
        return [str(transaction) for transaction in found]

    def close(self) -> None:
        """The table stays: what is enforced is, whoever is there to change it."""
        for each in (self._monitor, self._names, self._counters, self._elements, self._nft):
            each.close()
