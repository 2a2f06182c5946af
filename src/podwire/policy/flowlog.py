"""Connections that were seen, each kind of them once: who, whom, where, what was said of it. Pure.

    packet the kernel logged + Verdicts -> FlowLog.add -> FlowRecord (count, first, last)

Connections of one source, destination, protocol and port are one record that counts. Memory is
bounded: past `capacity` the one longest unseen is forgotten, and how many were is told, as is how
many packets never came; a report without these two numbers would prove nothing (hubble#460,
cilium#44725: what a ring lost is what a recommendation needed).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from podwire.policy.evaluate import Decision, Flow, Judgement, Party
from podwire.policy.model import PROTOCOL_NAMES
from podwire.policy.verdicts import Verdicts
from podwire.policy.world import World

Verdict: TypeAlias = Literal["allowed", "denied"]
CAPACITY: Final = 20_000
_NOW: Final = -1
"""In a key: of those who have the addresses now; else the epoch they had them in last."""


class Seen(NamedTuple):
    """A connection's first packet on one node: addresses are packed, `port` is the destination's
    own, 0 for ICMP. `passed`: the node's kernel let it go on."""

    src: bytes
    dst: bytes
    protocol: int
    port: int
    passed: bool


class End(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Who an address belonged to when it was seen; an outsider has its address only."""

    ip: str
    kind: Literal["Pod", "Node", "External"] = "External"
    namespace: str = ""
    name: str = ""
    labels: Mapping[str, str] = {}

    def __str__(self) -> str:
        scope = f"{self.namespace}/" if self.namespace else ""
        return f"{scope}{self.name}" if self.name else self.ip


class Said(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One direction's judgement in words: `rule` decided, or `isolating` policies did.

    Of a denial `nearest` is the rule that almost let it through, and `differs` in which fields.
    """

    verdict: Verdict
    reason: str
    rule: str = ""
    isolating: tuple[str, ...] = ()
    nearest: str = ""
    differs: tuple[str, ...] = ()

    def named(self) -> Iterator[str]:
        """The policies and rules it speaks of."""
        yield from filter(None, (self.rule, *self.isolating, self.nearest))


class FlowRecord(msgspec.Struct, omit_defaults=True, rename="camel"):
    """`staged` is what it would be with the staged policies; "" where there are none. Where that is
    another verdict, `staged_by` names what makes it: rules, or policies that isolate.

    Times are seconds since the epoch.
    """

    source: End
    destination: End
    protocol: str
    port: int
    verdict: Verdict
    egress: Said
    ingress: Said
    staged: Verdict | Literal[""] = ""
    staged_by: tuple[str, ...] = ()
    count: int = 0
    first_seen: float = 0.0
    last_seen: float = 0.0

    def named(self) -> Iterator[str]:
        """The policies and rules it speaks of."""
        yield from self.egress.named()
        yield from self.ingress.named()
        yield from self.staged_by


class FlowLog:
    """One node's. A record is judged anew when it is seen after `know` told of another state of
    the world."""

    def __init__(self, node: str, capacity: int = CAPACITY) -> None:
        self._node = node
        self._capacity = capacity
        self._records: dict[tuple[Seen, int], tuple[int, FlowRecord]] = {}
        self._enforced = Verdicts(World(), ())
        self._staged: Verdicts | None = None
        self._epoch = 0
        self.forgotten = 0
        self.disagreed = 0
        """Where the kernel's verdict was not the evaluator's: a change on its way, or a fault."""

    def know(self, enforced: Verdicts, staged: Verdicts | None) -> None:
        """`staged` has the staged policies in force, too; None where there are none."""
        self._enforced, self._staged = enforced, staged
        self._epoch += 1

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> list[FlowRecord]:
        """The longest unseen first."""
        found = [record for _epoch, record in self._records.values()]
        return sorted(found, key=lambda record: record.last_seen)

    def add(self, seen: Seen, now: float) -> FlowRecord:
        epoch, record = self._records.pop((seen, _NOW), (-1, None))
        if record is None:
            record = self._first(seen, now)
        elif epoch != self._epoch:
            fresh = self._judge(seen)
            if _who(fresh) == _who(record):
                fresh.count, fresh.first_seen = record.count, record.first_seen
                record = fresh
            else:
                # The address went to another: what its former owner did stays that one's.
                self._records[seen, epoch] = epoch, record
                record = self._first(seen, now)
        record.count += 1
        record.last_seen = now
        self._records[seen, _NOW] = self._epoch, record
        return record

    def _first(self, seen: Seen, now: float) -> FlowRecord:
        record = self._judge(seen)
        record.first_seen = now
        if len(self._records) >= self._capacity:
            del self._records[next(iter(self._records))]
            self.forgotten += 1
        return record

    def _judge(self, seen: Seen) -> FlowRecord:
        asked = seen[:4]
        flow = self._enforced.flow(*asked)
        decision = self._enforced.decide(flow)
        here, elsewhere = self._split(decision, seen)
        if seen.passed != all(judgement.allowed for judgement in here):
            self.disagreed += 1
        allowed = seen.passed and all(judgement.allowed for judgement in elsewhere)
        record = FlowRecord(
            _end(self._enforced.party(seen.src)),
            _end(self._enforced.party(seen.dst)),
            PROTOCOL_NAMES.get(seen.protocol, str(seen.protocol)),
            seen.port,
            _verdict(allowed),
            self._said(flow, decision.egress),
            self._said(flow, decision.ingress),
        )
        if self._staged is not None:
            staged = self._staged.between(*asked)
            record.staged = _verdict(staged.allowed)
            record.staged_by = tuple(_makers(staged)) if record.staged != record.verdict else ()
        return record

    def _said(self, flow: Flow, judgement: Judgement) -> Said:
        near = None if judgement.allowed else self._enforced.nearest(flow, judgement)
        return Said(
            _verdict(judgement.allowed),
            judgement.reason,
            "" if judgement.rule is None else str(judgement.rule),
            tuple(map(str, judgement.isolating)),
            str(near.rule) if near else "",
            tuple(map(str, near.misses)) if near else (),
        )

    def _split(self, decision: Decision, seen: Seen) -> tuple[list[Judgement], list[Judgement]]:
        """What this node's kernel judges, and what the other end's does."""
        here: list[Judgement] = []
        elsewhere: list[Judgement] = []
        for ip, judgement in ((seen.src, decision.egress), (seen.dst, decision.ingress)):
            pod = self._enforced.party(ip).pod
            own = pod is not None and pod.node == self._node
            (here if own else elsewhere).append(judgement)
        return here, elsewhere


def merge_records(logs: Iterable[Iterable[FlowRecord]]) -> list[FlowRecord]:
    """Of several nodes: the source's and the destination's node both saw a connection that went
    from one to the other, so counts are not added up."""
    merged: dict[tuple[object, ...], FlowRecord] = {}
    for record in (record for log in logs for record in log):
        key = (
            record.source.ip,
            record.destination.ip,
            _who(record),
            record.protocol,
            record.port,
            record.verdict,
        )
        other = merged.get(key)
        if other is not None:
            newer = max(record, other, key=lambda r: r.last_seen)
            record = msgspec.structs.replace(
                newer,
                count=max(record.count, other.count),
                first_seen=min(record.first_seen, other.first_seen),
            )
        merged[key] = record
    return sorted(merged.values(), key=lambda r: r.last_seen)


def _who(record: FlowRecord) -> tuple[tuple[str, str], ...]:
    """Not by labels: they may change."""
    return tuple((end.kind, str(end)) for end in (record.source, record.destination))


def _end(party: Party) -> End:
    if party.pod is not None:
        key = party.pod.key
        return End(str(party.ip), "Pod", key.namespace, key.name, party.pod.labels)
    if party.node is not None:
        return End(str(party.ip), "Node", "", party.node.name)
    return End(str(party.ip))


def _verdict(allowed: bool) -> Verdict:
    return "allowed" if allowed else "denied"


def _makers(decision: Decision) -> Iterator[str]:
    """What decides: of a denial what denies, of an allowance every rule it rests on."""
    for judgement in (decision.egress, decision.ingress):
        if judgement.allowed == decision.allowed:
            if judgement.rule is not None:
                yield str(judgement.rule)
            elif not judgement.allowed:
                yield from map(str, judgement.isolating)
