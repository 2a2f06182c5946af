"""Who reaches whom: from a snapshot to questions, and from their answers to one matrix.

    Snapshot -> plan_reach -> Question... -> (live: probes | static: the evaluator)
                                          -> merge -> Reachability -> render

Pure. An answer carries its evidence: `live` for packets that were sent, `static` for a verdict
computed from objects. Both fill the same model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import msgspec

from podwire.errors import UsageError
from podwire.explain.endpoints import Endpoint, Port, Snapshot, common_addresses, list_endpoints
from podwire.explain.probes.wire import NODE, OUTSIDE, Probe, ProbeResult, Protocol, Verdict
from podwire.explain.selectors import select

API_VERSION: Final = "podwire.dev/v1alpha1"
ICMP: Final = Port(0, "ICMP")
Evidence: TypeAlias = Literal["live", "static"]
_PORT: Final = re.compile(r"^(\d{1,5})(?:/(tcp|udp|sctp|http))?$", re.IGNORECASE)


@dataclass(frozen=True)
class ReachOptions:
    """What is asked.

    `ports` (`8080`, `53/udp`, `icmp`) replace the destinations' declared ports; a destination
    without any is pinged. `icmp` adds a ping to every pair. `http` asks TCP ports by HTTP, which
    also tells the source address the peer saw. `per_owner` takes that many pods of each workload,
    0 means all.
    """

    sources: Sequence[str] = ()
    destinations: Sequence[str] = ()
    ports: Sequence[str] = ()
    icmp: bool = False
    http: bool = False
    per_owner: int = 0
    families: frozenset[int] = frozenset({4, 6})
    timeout_s: float = 1.0


EVERYTHING: Final = ReachOptions()


@dataclass(frozen=True)
class Question:
    """Does `source` reach `destination` at `address`, `port`? Both are indices into the plan's."""

    source: int
    destination: int
    address: str
    port: Port


@dataclass(frozen=True)
class ReachPlan:
    sources: tuple[Endpoint, ...]
    destinations: tuple[Endpoint, ...]
    questions: tuple[Question, ...]
    skipped: Mapping[str, str]
    options: ReachOptions = field(default_factory=ReachOptions)

    def probes_by_node(self) -> dict[str, list[tuple[int, Probe]]]:
        """Each node's probes with the question's index; the outside host's go to any one node."""
        by_node: dict[str, list[tuple[int, Probe]]] = defaultdict(list)
        for index, question in enumerate(self.questions):
            by_node[self.sources[question.source].node].append((index, self._probe(question)))
        return dict(by_node)

    def _probe(self, question: Question) -> Probe:
        return Probe(
            source=probe_source(self.sources[question.source]),
            address=question.address,
            port=question.port.number,
            protocol=_protocol(question.port, self.options.http),
            timeout_s=self.options.timeout_s,
        )


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, rename="camel"):
    """One cell: indices into the sources and destinations of the `Reachability`.

    `client` is the source address the destination saw: another one than the source's own means
    that somebody translated it. `peer` is who answered, where that is known.
    """

    source: int
    destination: int
    address: str
    port: Port
    verdict: Verdict
    latency_us: int = 0
    client: str = ""
    peer: str = ""
    detail: str = ""


class PortSpan(msgspec.Struct, frozen=True, omit_defaults=True):
    """Ports `first` to `last`, both included."""

    protocol: str
    first: int
    last: int


class Allowed(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All that is allowed from one to another, whether somebody listens or not.

    `source` and `destination` are in np-guard's words, `text` too. `other` is true where protocols
    without ports are allowed as well: ICMP.
    """

    source: str
    destination: str
    text: str
    ports: tuple[PortSpan, ...] = ()
    other: bool = False


class Reachability(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, rename="camel"):
    """The document `podwire reach -o json` prints."""

    api_version: str = API_VERSION
    kind: str = "Reachability"
    evidence: Evidence = "live"
    sources: tuple[Endpoint, ...]
    destinations: tuple[Endpoint, ...]
    answers: tuple[Answer, ...]
    skipped: dict[str, str] = {}
    elapsed_s: float = 0.0
    connections: tuple[Allowed, ...] = ()
    """Of computed ones: nobody can ask all ports and addresses by packets."""

    @property
    def all_allowed(self) -> bool:
        return all(answer.verdict == "allowed" for answer in self.answers)

    def verdicts(self) -> dict[Verdict, int]:
        counts: dict[Verdict, int] = {}
        for answer in self.answers:
            counts[answer.verdict] = counts.get(answer.verdict, 0) + 1
        return counts

    def find(self, source: str, destination: str, port: int = 0) -> list[Answer]:
        """The answers from and to the endpoints of these keys (`ns/pod`); port 0 means all."""
        return [
            answer
            for answer in self.answers
            if self.sources[answer.source].key == source
            and self.destinations[answer.destination].key == destination
            and port in (0, answer.port.number)
        ]

    def translated(self) -> list[Answer]:
        """Answers whose destination saw an address that is not the source's."""
        return [a for a in self.answers if a.client and a.client not in self._own(a)]

    def _own(self, answer: Answer) -> tuple[str, ...]:
        return self.sources[answer.source].addresses


def parse_port(text: str) -> Port:
    """`8080`, `8080/udp`, `icmp`; raises `UsageError`."""
    if text.strip().lower() == "icmp":
        return ICMP
    match = _PORT.match(text.strip())
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise UsageError(f"port {text!r}: write PORT, PORT/tcp, PORT/udp, PORT/sctp or icmp")
    protocol = (match[2] or "tcp").upper()
    return Port(int(match[1]), "TCP" if protocol == "HTTP" else protocol)


def probe_source(endpoint: Endpoint) -> str:
    """How a node's agent is told whose namespace to ask from; hostNetwork pods use the node's."""
    if endpoint.kind == "Outside":
        return OUTSIDE
    if endpoint.kind == "Node" or endpoint.host_network:
        return NODE
    return endpoint.key


def plan_reach(snapshot: Snapshot, options: ReachOptions = EVERYTHING) -> ReachPlan:
    """The questions to ask, in the order of sources, destinations, ports.

    A pair of one and the same endpoint is left out: it would test the loopback. Raises
    `UsageError` for selectors that match nothing and for bad ports.
    """
    endpoints, skipped = list_endpoints(snapshot)
    sources = _sample(select(endpoints, options.sources), options.per_owner)
    destinations = _sample(select(endpoints, options.destinations), options.per_owner)
    asked = tuple(parse_port(text) for text in options.ports)
    questions = [
        Question(i, j, address, port)
        for i, source in enumerate(sources)
        for j, destination in enumerate(destinations)
        if source.key != destination.key
        for own, address in common_addresses(source, destination)
        if own != address and (6 if ":" in address else 4) in options.families
        for port in _ports(destination, asked, options.icmp)
    ]
    return ReachPlan(tuple(sources), tuple(destinations), tuple(questions), skipped, options)


def _sample(endpoints: Iterable[Endpoint], per_owner: int) -> list[Endpoint]:
    taken: dict[str, int] = {}
    sample = []
    for endpoint in endpoints:
        taken[endpoint.group] = taken.get(endpoint.group, 0) + 1
        if not per_owner or taken[endpoint.group] <= per_owner:
            sample.append(endpoint)
    return sample


def _ports(destination: Endpoint, asked: tuple[Port, ...], icmp: bool) -> tuple[Port, ...]:
    ports = asked or destination.ports or (ICMP,)
    return (*ports, ICMP) if icmp and ICMP not in ports else ports


def _protocol(port: Port, http: bool) -> Protocol:
    protocols: dict[str, Protocol] = {"UDP": "udp", "SCTP": "sctp", "ICMP": "icmp"}
    return protocols.get(port.protocol, "http" if http else "tcp")


def merge(
    plan: ReachPlan, results: Mapping[int, ProbeResult], elapsed_s: float = 0.0
) -> Reachability:
    """The matrix; a question nobody answered is an `error`, never silently absent."""
    unanswered = ProbeResult(verdict="error", detail="no answer from the source's node")
    return Reachability(
        evidence="live",
        sources=plan.sources,
        destinations=plan.destinations,
        answers=tuple(
            _answer(question, results.get(index, unanswered))
            for index, question in enumerate(plan.questions)
        ),
        skipped=dict(plan.skipped),
        elapsed_s=elapsed_s,
    )


def _answer(question: Question, result: ProbeResult) -> Answer:
    return Answer(
        source=question.source,
        destination=question.destination,
        address=question.address,
        port=question.port,
        verdict=result.verdict,
        latency_us=result.latency_us,
        client=result.client,
        peer=result.peer,
        detail=result.detail,
    )
