"""`reach --static`: the model `reach --live` fills with packets, filled by computing. Pure.

    StaticReach, or a plan made for packets -> a verdict per question -> Reachability

`allowed` says that policies let a connection through, not that somebody listens; `dropped` is what
a packet meets that they do not. Answers say which policy it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import msgspec

from podwire.explain.endpoints import OUTSIDE_NAME, Endpoint, Port
from podwire.explain.reach import (
    ICMP,
    Allowed,
    Answer,
    PortSpan,
    Question,
    Reachability,
    ReachOptions,
    ReachPlan,
    parse_port,
)
from podwire.explain.selectors import select
from podwire.explain.staticreach import StaticReach
from podwire.explain.staticworld import NOWHERE, Origins
from podwire.explain.workloads import Talker
from podwire.objects.meta import Key
from podwire.policy import intervals, ports
from podwire.policy.connlist import Connection, format_ports
from podwire.policy.evaluate import (
    DEFAULT,
    Decision,
    Flow,
    Judgement,
    Party,
    PolicySet,
    Semantics,
    evaluate,
)
from podwire.policy.intervals import Intervals
from podwire.policy.model import ICMP as ICMP_V4
from podwire.policy.model import ICMPV6, PROTOCOL_NAMES, PROTOCOLS
from podwire.policy.verdicts import RememberingSet
from podwire.policy.world import World


@dataclass(frozen=True)
class Judge:
    """Answers questions about one world."""

    world: World
    policies: PolicySet
    semantics: Semantics = DEFAULT
    origins: Origins = NOWHERE

    def party(self, endpoint: Endpoint, address: str, key: Key | None = None) -> Party:
        ip = ip_address(address) if address else None
        if endpoint.kind == "Node":
            return Party(ip, node=self.world.nodes.get(endpoint.name))
        if endpoint.kind != "Pod":
            return Party(ip)
        pod = self.world.pods.get(key or Key(endpoint.namespace, endpoint.name))
        host = pod is not None and pod.host_network
        return Party(ip, pod, self.world.nodes.get(endpoint.node) if host else None)

    def decide(self, flow: Flow) -> Decision:
        return evaluate(flow, self.policies, self.world, self.semantics)

    def answer(self, question: Question, source: Party, destination: Party) -> Answer:
        flow = Flow(source, destination, _number(question), question.port.number)
        decision = self.decide(flow)
        return Answer(
            source=question.source,
            destination=question.destination,
            address=question.address,
            port=question.port,
            verdict="allowed" if decision.allowed else "dropped",
            detail=tell(decision, self.origins),
        )


def _number(question: Question) -> int:
    if question.port == ICMP:
        return ICMPV6 if ":" in question.address else ICMP_V4
    return PROTOCOLS[question.port.protocol]


def tell(decision: Decision, origins: Origins) -> str:
    """Why a connection is denied, in a few words; "" where it is allowed."""
    return "; ".join(
        _reason(judgement, origins)
        for judgement in (decision.egress, decision.ingress)
        if not judgement.allowed
    )


def _reason(judgement: Judgement, origins: Origins) -> str:
    if judgement.rule is not None:
        return f"{judgement.direction} denied by {origins.tell(judgement.rule)}"
    named = ", ".join(map(str, judgement.isolating))
    return f"{judgement.direction} isolated by {named}"


# --- a running cluster --------------------------------------------------------------------------


def judge_plan(plan: ReachPlan, judge: Judge, connections: Sequence[Allowed] = ()) -> Reachability:
    """The questions packets would ask, answered by policies."""
    answers = []
    for question in plan.questions:
        source, destination = plan.sources[question.source], plan.destinations[question.destination]
        own = _address_like(source, question.address)
        answers.append(
            judge.answer(
                question, judge.party(source, own), judge.party(destination, question.address)
            )
        )
    return Reachability(
        evidence="static",
        sources=plan.sources,
        destinations=plan.destinations,
        answers=tuple(answers),
        skipped=dict(plan.skipped),
        connections=tuple(connections),
    )


def _address_like(endpoint: Endpoint, address: str) -> str:
    """The endpoint's own address of the family."""
    return next((own for own in endpoint.addresses if (":" in own) == (":" in address)), "")


# --- manifests ----------------------------------------------------------------------------------


def reach_static(
    static: StaticReach, options: ReachOptions, *, whole: bool = True, pairs: bool = True
) -> Reachability:
    """With `pairs` every workload with every other at the declared ports, or those asked for; with
    `whole` also all connections there are, and why others are not."""
    listed = list_talkers(static.static.talkers)
    everybody = [endpoint for endpoint, _ in listed] + [Endpoint(kind="Outside", name=OUTSIDE_NAME)]
    keys = {endpoint.key: key for endpoint, key in listed}
    sources = _chosen(everybody, options.sources)
    destinations = _chosen(everybody, options.destinations)
    judge = Judge(
        static.reach.world,
        RememberingSet(static.static.policies),
        static.reach.semantics,
        static.static.origins,
    )
    version = static.reach.version

    def party(endpoint: Endpoint) -> Party:
        own = next((a for a in endpoint.addresses if ip_address(a).version == version), "")
        return judge.party(endpoint, own, keys[endpoint.key])

    # Pods of one group are answered alike, so a large matrix is mostly copying.
    known: dict[tuple[int, int, Port], Answer] = {}
    groups = static.reach.group_of

    def answer(question: Question, source: Endpoint, destination: Endpoint) -> Answer:
        alike = groups[keys[source.key]], groups[keys[destination.key]], question.port
        found = known.get(alike)
        if found is None:
            opened = static.reach.ports(*alike[:2])
            if whole and not _is_open(opened, question.port):
                found = judge.answer(question, party(source), party(destination))
            else:
                found = _brief(question, opened)
            known[alike] = found
        return msgspec.structs.replace(
            found, source=question.source, destination=question.destination
        )

    asked = tuple(parse_port(text) for text in options.ports)
    answers = tuple(
        answer(Question(i, j, "", port), source, destination)
        for i, source in enumerate(sources if pairs else ())
        for j, destination in enumerate(destinations)
        if source.key != destination.key and source.kind == destination.kind == "Pod"
        if keys[source.key] in groups and keys[destination.key] in groups
        for port in (asked or destination.ports or (ICMP,))
    )
    return Reachability(
        evidence="static",
        sources=tuple(sources),
        destinations=tuple(destinations),
        answers=answers,
        connections=tuple(map(describe, chosen_connections(static, options))) if whole else (),
    )


def _brief(question: Question, opened: Intervals) -> Answer:
    """Without the reason, which takes longer to find than the verdict."""
    return Answer(
        source=question.source,
        destination=question.destination,
        address=question.address,
        port=question.port,
        verdict="allowed" if _is_open(opened, question.port) else "dropped",
    )


def _is_open(opened: Intervals, port: Port) -> bool:
    number = ports.OTHER if port == ICMP else ports.point(PROTOCOLS[port.protocol], port.number)
    return intervals.contains(opened, number)


def list_talkers(talkers: Iterable[Talker]) -> list[tuple[Endpoint, Key]]:
    """As the explainers see them, with the key policies know them by."""
    found = [(_endpoint(talker), talker.view.key) for talker in talkers]
    return sorted(found, key=lambda pair: (pair[0].namespace, pair[0].name))


def _endpoint(talker: Talker) -> Endpoint:
    view, owner = talker.view, talker.owner
    bare = owner.kind == "Pod" and owner.name == view.key.name
    return Endpoint(
        kind="Pod",
        name=view.key.name,
        namespace=view.key.namespace,
        node=view.node,
        addresses=tuple(map(str, view.ips)),
        owner="" if bare else f"{owner.kind}/{owner.name}",
        labels=view.labels,
        ports=talker.ports,
        host_network=view.host_network,
    )


def _chosen(everybody: Sequence[Endpoint], texts: Sequence[str]) -> list[Endpoint]:
    """No selectors mean every pod: files hold what somebody chose to look at."""
    return select(everybody, texts) if texts else [e for e in everybody if e.kind == "Pod"]


def chosen_connections(static: StaticReach, options: ReachOptions) -> Iterable[Connection]:
    """Those from and to the chosen ones; with no selectors all, the outside too."""
    if not options.sources and not options.destinations:
        return static.connections()
    from_, to = _labels(static, options.sources), _labels(static, options.destinations)
    return (
        connection
        for connection in static.connections()
        if _is_in(connection.source, from_) and _is_in(connection.destination, to)
    )


def _labels(static: StaticReach, texts: Sequence[str]) -> frozenset[str] | None:
    if not texts:
        return None
    listed = list_talkers(static.static.talkers)
    everybody = [endpoint for endpoint, _ in listed] + [Endpoint(kind="Outside", name=OUTSIDE_NAME)]
    names: set[str] = set()
    for endpoint in select(everybody, texts):
        names |= {endpoint.group, f"{endpoint.key}[Pod]"}
    return frozenset(names)


def _is_in(label: str, chosen: frozenset[str] | None) -> bool:
    if chosen is None:
        return True
    return label in chosen or (label.endswith("[External]") and OUTSIDE_NAME in chosen)


def describe(connection: Connection) -> Allowed:
    """A connection as JSON has it."""
    return Allowed(
        source=connection.source,
        destination=connection.destination,
        text=format_ports(connection.ports),
        ports=tuple(
            PortSpan(PROTOCOL_NAMES[span.protocol], span.first, span.last)
            for span in ports.to_ranges(connection.ports)
        ),
        other=intervals.contains(connection.ports, ports.OTHER),
    )
