"""Policies in this node's kernel: one table per family, filled by plans.

    NodePolicies.plan -> steps -> text by nft, elements by netlink

Everything but the base chain belongs to a generation. A new agent, or one whose table somebody
touched, builds the other generation beside and switches in one transaction: no packet is judged by
half of anything.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import nft
from podwire.kernel.nfcounters import NfCounters
from podwire.kernel.nfelements import NfElements
from podwire.kernel.nfmonitor import NfMonitor
from podwire.kernel.nft import Nft
from podwire.policy import nftables as nf
from podwire.policy.classes import Outcome
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.plan import Plan, Step, split

_OBJECT: Final = re.compile(r"^\t(chain|set|map|counter) (\S+) \{", re.MULTILINE)


class PolicyKernel:
    def __init__(self, state: NodePolicies) -> None:
        self._state = state
        self._nft = Nft()
        self._elements = NfElements()
        self._counters = NfCounters()
        self._monitor = NfMonitor(lambda _family, table: table == nf.TABLE)
        self._monitor.ignore(self._elements.port)
        self._kept: Counter[Outcome] = Counter()

    def open(self) -> None:
        generations = {}
        for version in self._state.versions:
            self._text(nf.render_table(version))
            generations[version] = self._objects(version)
        used = {
            name[0]
            for objects in generations.values()
            for kind, name in objects
            if kind == "chain" and name[1:2] == "-"
        }
        fresh = "b" if self._state.generation in used and used != {"b"} else "a"
        for version, objects in generations.items():
            stale = [(k, n) for k, n in objects if n.startswith(f"{fresh}-")]
            base = f"{nf.FAMILY_NAMES[version]} {nf.TABLE}"
            if stale:
                self._text(f"flush chain {base} {nf.BASE_CHAIN}\n" + self._removal(version, stale))
            words = nf.Words(version, fresh)
            self._text(nf.render_generation(words, self._state.pod_interfaces))
        self._apply(self._state.rebuild(fresh))
        for version, objects in generations.items():
            old = [
                (k, n) for k, n in objects if n != nf.BASE_CHAIN and not n.startswith(f"{fresh}-")
            ]
            words = nf.Words(version, fresh)
            self._text(nf.render_switch(words) + self._removal(version, old))

    def _objects(self, version: int) -> list[tuple[str, str]]:
        text = self._nft.list_table(nf.FAMILY_NAMES[version], nf.TABLE)
        return [(m[1], m[2]) for m in _OBJECT.finditer(text)]

    @staticmethod
    def _removal(version: int, objects: list[tuple[str, str]]) -> str:
        chains = [n for k, n in objects if k == "chain"]
        sets = [n for k, n in objects if k in ("set", "map")]
        counters = [n for k, n in objects if k == "counter"]
        return nf.render_removal(version, chains, sets, counters)

    def commit(self) -> None:
        self._apply(self._state.plan())

    def mend(self) -> None:
        self.open()

    def remove(self) -> None:
        for version in self._state.versions:
            try:
                self._nft.delete_table(nf.FAMILY_NAMES[version], nf.TABLE)
            except KernelError as error:
                if error.errno != 2:
                    raise

    def _apply(self, plan: Plan) -> None:
        for step in plan.steps:
            self._apply_step(step)

    def _apply_step(self, step: Step) -> None:
        for text in step.text.values():
            self._text(text)
        for batch in split(step.changes, self._elements.max_batch):
            self._elements.apply(batch)

    def _text(self, text: str) -> None:
        self._nft.apply(text)
        if not nft.in_process():
            self._monitor.read()

    def counts(self) -> tuple[dict[Outcome, int], dict[str, int]]:
        counts: Counter[Outcome] = Counter(self._kept)
        dropped: Counter[str] = Counter()
        generation = self._state.generation
        with NfElements() as elements, NfCounters() as counters:
            for version in self._state.versions:
                family = nf.FAMILY_NAMES[version]
                found = elements.dump_counters(family, nf.TABLE, f"{generation}-{nf.OUTCOMES}")
                for key, (packets, _) in found.items():
                    assert isinstance(key, bytes)
                    outcome = self._state.outcome(int.from_bytes(key, "little"))
                    if outcome is not None:
                        counts[outcome] += packets
                for name, (packets, _) in counters.named(family, nf.TABLE).items():
                    dropped[name.partition("-")[2]] += packets
        return dict(counts), dict(dropped)

    def fileno(self) -> int:
        return self._monitor.fileno()

    def foreign(self) -> list[str]:
        return [str(transaction) for transaction in self._monitor.read()]

    def close(self) -> None:
        self._monitor.close()
        self._elements.close()
        self._counters.close()
        self._nft.close()
