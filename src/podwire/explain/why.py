"""Why a connection works or does not, step by step, from the objects alone. Pure.

    name -> address -> programmed on that node? -> frontend -> endpoints -> policies -> rules

The steps are those a packet takes; the last one that is not `ok` is the reason. The same model
the agents compile (`compile_service`), the same rule for who owns an address (`Claims`), the same
meaning (`evaluate`), and the rules the kernel has (`walk`): when packets say something else, that
is a bug of podwire, and `whylive` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal

from podwire.explain.endpoints import Endpoint
from podwire.explain.programmed import agents_follow, wanted_revisions
from podwire.explain.whyendpoints import (
    count_states,
    where_endpoints_are,
    why_no_endpoints,
    why_not_ready,
)
from podwire.explain.whyenforced import judge_targets
from podwire.explain.whyworld import Destination, World, is_among
from podwire.objects.core import Service, ServicePort
from podwire.objects.meta import View
from podwire.services import iptplan
from podwire.services.claims import Claims, Owner
from podwire.services.endpoints import Backend, Unusable, list_candidates, topology_filter
from podwire.services.evaluate import Domain, Outcome, Packet, address_ranges, evaluate
from podwire.services.hostports import compile_host_ports
from podwire.services.iptwalk import CompiledTables
from podwire.services.model import (
    PROTOCOLS,
    CompiledService,
    Frontend,
    FrontendKey,
    compile_service,
    ignored,
)
from podwire.services.plan import Ruleset
from podwire.services.report import NodeReport
from podwire.services.walk import CompiledRuleset

API_VERSION: Final = "podwire.dev/v1alpha1"
Expected = Literal["allowed", "refused", "dropped", "unknown"]
_EXPECTED: Final[Mapping[str, Expected]] = {
    "dnat": "allowed",
    "refuse": "refused",
    "drop": "dropped",
    "pass": "unknown",
}


class Step(View):
    """One step; `ok` False is where it ends, `lines` are details."""

    name: str
    text: str
    ok: bool = True
    lines: tuple[str, ...] = ()


class Explanation(View):
    """What the model says. `expected` is unknown where no Service is concerned: then only a packet
    can tell. `rules` are those of the node's tables, as `chain: rule`."""

    source: str
    destination: str
    protocol: str
    address: str = ""
    port: int = 0
    node: str = ""
    expected: Expected = "unknown"
    reason: str = ""
    steps: tuple[Step, ...] = ()
    endpoints: tuple[str, ...] = ()
    masqueraded: bool = False
    rules: tuple[str, ...] = ()


@dataclass
class _Case:
    """An explanation in the making."""

    world: World
    source: Endpoint
    to: Destination
    node: str
    steps: list[Step] = field(default_factory=list)

    def say(self, name: str, text: str, *, ok: bool = True, lines: Iterable[str] = ()) -> None:
        self.steps.append(Step(name=name, text=text, ok=ok, lines=tuple(lines)))

    @property
    def service(self) -> Service | None:
        return self.world.service(self.to.service) if self.to.service else None


def explain(world: World, source: Endpoint, to: Destination) -> Explanation:
    """Everything the objects tell about a connection from `source` to `to`."""
    node = deciding_node(world, source, to)
    case = _Case(world, source, to, node)
    where = f" on node {source.node}" if source.kind == "Pod" else ""
    case.say("source", f"{source.key} ({_source_address(case)}){where}")
    case.say("name", f"{to.text}: {to.how}")
    if service := case.service:
        _tell_programmed(case, service)
    claims = compile_claims(world, node, to)
    packet = _packet(case)
    domain = domain_of(world, node, claims)
    outcome = evaluate(packet, claims.frontends, domain)
    _tell_frontend(case, claims, packet, outcome)
    _tell_endpoints(case, outcome)
    expected = _after_policies(case, outcome, _EXPECTED[outcome.verdict])
    rules = _walk(case, claims, packet)
    if rules:
        case.say("rules", f"on node {node}", lines=rules)
    return Explanation(
        source=source.key,
        destination=to.text,
        protocol=to.protocol,
        address=str(to.address),
        port=to.port,
        node=node,
        expected=expected,
        reason=_reason(case, outcome, expected),
        steps=tuple(case.steps),
        endpoints=tuple(sorted(map(str, outcome.backends))),
        masqueraded=bool(outcome.masqueraded),
        rules=rules,
    )


def deciding_node(world: World, source: Endpoint, to: Destination) -> str:
    """Whose rules the first packet meets: the sender's node; from outside, the one that has the
    address or announces it, else any that is Ready (the network decides which of them gets it)."""
    if source.node:
        return source.node
    address = str(to.address)
    for node in world.nodes:
        if address in node.internal_ips:
            return node.metadata.name
    for name, report in sorted(world.reports.items()):
        if isinstance(report, NodeReport) and address in report.announced:
            return name
    pod = world.pod_at(address)
    if pod is not None:
        return pod.spec.node_name
    ready = [node.metadata.name for node in world.nodes if node.ready]
    return min(ready, default="")


def _source_address(case: _Case) -> str:
    version = case.to.address.version
    return next((a for a in case.source.addresses if ip_address(a).version == version), "")


def _packet(case: _Case) -> Packet:
    source = case.source
    text = _source_address(case)
    return Packet(
        ip_address(text).packed if text else case.to.address.packed,
        case.to.address.packed,
        PROTOCOLS[case.to.protocol.upper()],
        case.to.port,
        from_node=source.kind == "Node" or source.host_network,
    )


# --- what the node has --------------------------------------------------------------------------


def compile_claims(world: World, node: str, to: Destination) -> Claims:
    """Everybody on `node` who wants the address, with the ranks agents give them."""
    claims = Claims()
    view = world.view(node)
    address = str(to.address)
    at_node = any(address in n.internal_ips for n in world.nodes)
    for service in world.services:
        if not agents_follow(service) or not _wants(service, address, at_node):
            continue
        compiled = compile_service(service, world.slices_of(service.key), view)
        rank = ("0", service.metadata.creation_timestamp or "", *service.key)
        claims.set(Owner("Service", service.key), compiled.frontends, rank)
    for pod in world.snapshot.pods:
        if pod.spec.node_name == node:
            claims.set(Owner("Pod", pod.key), compile_host_ports(pod, view), ("1", *pod.key))
    return claims


def _wants(service: Service, address: str, at_node: bool) -> bool:
    spec = service.spec
    return (
        is_among(address, spec.cluster_ips or [spec.cluster_ip])
        or is_among(address, spec.external_ips)
        or is_among(address, (i.ip for i in service.status.load_balancer.ingress))
        or (at_node and spec.type in ("NodePort", "LoadBalancer"))
    )


def domain_of(world: World, node: str, claims: Claims) -> Domain:
    service_cidrs, cluster_cidrs = world.ranges(node)
    vips = frozenset(f.key.ip for f in claims.frontends.values() if f.exclusive)
    own = frozenset(address.packed for address in world.view(node).addresses)
    return Domain(address_ranges(service_cidrs), address_ranges(cluster_cidrs), vips, own)


def _tell_programmed(case: _Case, service: Service) -> None:
    """Whether the node has what this explanation is made from."""
    report = case.world.reports.get(case.node)
    if not agents_follow(service) or ignored(service):
        return
    if not isinstance(report, NodeReport):
        why = report or "was not asked"
        case.say("programmed", f"node {case.node}: {why}; whether it is programmed is unknown")
        return
    wanted = wanted_revisions([service], case.world.slices_of(service.key))[service.key]
    found = report.find(service.key)
    if found is None:
        case.say("programmed", f"node {case.node} has not programmed the Service yet", ok=False)
    elif found.error:
        text = f"node {case.node}: the kernel refused the newest state: {found.error}"
        case.say("programmed", text, ok=False)
    elif found.revision < wanted:
        text = f"node {case.node} is behind: it has {found.revision}, the newest is {wanted}"
        case.say("programmed", text, ok=False)
    else:
        case.say("programmed", f"node {case.node} has the newest state (at {found.revision})")


# --- frontend -----------------------------------------------------------------------------------


def _tell_frontend(case: _Case, claims: Claims, packet: Packet, outcome: Outcome) -> None:
    key = FrontendKey(packet.dst, packet.protocol, packet.dport)
    service = case.service
    if outcome.frontend is None:
        _tell_no_frontend(case, key, outcome)
        return
    frontend = outcome.frontend
    text = f"{key} is the {frontend.role} of {_owner_words(frontend)}"
    if frontend.port_name:
        text += f", port {frontend.port_name}"
    other = service is not None and frontend.service != service.key
    lines = []
    if other and service is not None:
        lines.append(f"service {service.key} asked for it too; the older one has it")
    if frontend.ranges is not None:
        lines.append(f"open to {', '.join(_range_words(frontend))}")
    if outcome.verdict == "drop" and outcome.reason.startswith("source"):
        lines.append(f"{_source_address(case)} is in none of them")
    problems = _problems(case)
    case.say(
        "frontend",
        text,
        ok=not (outcome.verdict == "drop" and outcome.reason.startswith("source")),
        lines=[*lines, *problems],
    )


def _owner_words(frontend: Frontend) -> str:
    kind = "pod" if frontend.role == "HostPort" else "service"
    return f"{kind} {frontend.service}"


def _range_words(frontend: Frontend) -> list[str]:
    return [f"{ip_address(low)}-{ip_address(high)}" for low, high in frontend.ranges or ()] or [
        "nobody"
    ]


def _compiled(case: _Case, service: Service) -> CompiledService:
    view = case.world.view(case.node)
    return compile_service(service, case.world.slices_of(service.key), view)


def _problems(case: _Case) -> tuple[str, ...]:
    return _compiled(case, case.service).problems if case.service is not None else ()


def _tell_no_frontend(case: _Case, key: FrontendKey, outcome: Outcome) -> None:
    service = case.service
    if service is not None and (why := ignored(service)):
        case.say("frontend", f"service {service.key}: {why}", ok=False)
        return
    if service is None and outcome.verdict == "pass":
        text = f"{key} is nobody's Service address: the packet is routed as it is"
        case.say("frontend", text, lines=_pod_lines(case))
        return
    lines = list(_problems(case))
    if service is not None:
        there = [f"{p.name or '-'} {p.port}/{p.protocol}" for p in service.spec.ports]
        if not any(_is_port(p, key) for p in service.spec.ports):
            lines.append(f"service {service.key} has the ports {', '.join(there)}")
    text = f"{key}: {outcome.reason}"
    case.say("frontend", text, ok=outcome.verdict == "pass" and not lines, lines=lines)


def _is_port(port: ServicePort, key: FrontendKey) -> bool:
    return key.port in (port.port, port.node_port) and PROTOCOLS.get(port.protocol) == key.protocol


def _pod_lines(case: _Case) -> list[str]:
    pod = next((p for p in case.world.snapshot.pods if p.key == case.to.pod), None)
    if pod is None:
        return []
    declared = [
        str(p.container_port)
        for c in pod.spec.containers
        for p in c.ports
        if p.protocol.lower() == case.to.protocol
    ]
    lines = [f"pod {pod.key} {why}"] if (why := why_not_ready(pod)) else []
    if str(case.to.port) not in declared:
        lines.append(f"pod {pod.key} declares {', '.join(declared) or 'no port'}")
    return lines


# --- endpoints ----------------------------------------------------------------------------------


def _tell_endpoints(case: _Case, outcome: Outcome) -> None:
    frontend = outcome.frontend
    if frontend is None or (outcome.verdict == "drop" and outcome.reason.startswith("source")):
        return
    owner = case.world.service(frontend.service)
    if not outcome.backends:
        case.say("endpoints", outcome.reason, ok=False, lines=_none_lines(case, frontend, owner))
        return
    weights = frontend.weights or {}
    lines = [
        _backend_line(case, backend, weights.get(backend.ip, 1), backend in outcome.masqueraded)
        for backend in sorted(outcome.backends)
    ]
    notes = [outcome.reason] if outcome.reason else []
    if frontend.affinity_s:
        notes.append(f"a client keeps its endpoint for {frontend.affinity_s} s (affinity)")
    if frontend.balancing != "random":
        notes.append(f"chosen by {frontend.balancing}")
    if owner is not None:
        notes += _choice_notes(case, frontend, owner)
    text = f"one of {len(lines)}" + (f" ({'; '.join(notes)})" if notes else "")
    case.say("endpoints", text, lines=lines)


def _backend_line(case: _Case, backend: Backend, weight: int, hidden: bool) -> str:
    pod = case.world.pod_at(str(ip_address(backend.ip)))
    words = [str(backend)]
    if pod is not None:
        words.append(f"pod {pod.key} on {pod.spec.node_name}")
    if weight != 1:
        words.append(f"weight {weight}")
    if hidden:
        words.append(f"sees node {case.node}'s address")
    return ", ".join(words)


def _choice_notes(case: _Case, frontend: Frontend, owner: Service) -> list[str]:
    """Who was left out, and by what."""
    slices = case.world.slices_of(owner.key)
    version = case.to.address.version
    port = _port_of(owner, frontend)
    name = (port.name, port.protocol) if port is not None else ("", "")
    view = case.world.view(case.node)
    candidates = list_candidates(slices, version, view.name, Unusable()).get(name, [])
    states = count_states(c.endpoint for c in candidates)
    left = len(candidates) - len({*frontend.backends, *(frontend.internal or ())})
    if left <= 0:
        return []
    policy = owner.spec.internal_traffic_policy if frontend.role == "ClusterIP" else ""
    ready = [c for c in candidates if c.endpoint.ready]
    _, topology = topology_filter(ready, view.name, view.zone)
    if policy == "Local":
        return [f"internalTrafficPolicy Local leaves out {left}"]
    if topology and len(ready) > len(frontend.backends):
        return [f"topology hints ({topology}) leave out {len(ready) - len(frontend.backends)}"]
    if not ready:
        return ["none is ready; these are terminating and still serve"]
    words = ", ".join(f"{n} {state}" for state, n in states.items() if state != "ready")
    return [f"{words} left out"] if words else []


def _port_of(service: Service, frontend: Frontend) -> ServicePort | None:
    return next(
        (
            p
            for p in service.spec.ports
            if p.name == frontend.port_name and PROTOCOLS.get(p.protocol) == frontend.key.protocol
        ),
        None,
    )


def _none_lines(case: _Case, frontend: Frontend, owner: Service | None) -> Sequence[str]:
    if owner is None:
        return ()
    slices = case.world.slices_of(owner.key)
    if frontend.empty == "drop":
        which = "internal" if frontend.role == "ClusterIP" else "external"
        return (
            (
                f"{which}TrafficPolicy is Local, and node {case.node} has no endpoint; "
                f"there are {where_endpoints_are(slices)}"
            ),
        )
    port = _port_of(owner, frontend)
    return why_no_endpoints(owner, port, slices, case.world.snapshot.pods)


def _after_policies(case: _Case, outcome: Outcome, expected: Expected) -> Expected:
    """Policies meet the packet behind the choice of an endpoint; they drop what they deny."""
    if expected in ("refused", "dropped"):
        return expected
    targets = [(ip_address(b.ip), b.port) for b in outcome.backends]
    if outcome.verdict == "pass":
        targets = [(case.to.address, case.to.port)]
    found = judge_targets(case.world, case.source, case.to, targets)
    if found is None:
        return expected
    case.say("policies", found.text, ok=not found.denied, lines=found.lines)
    return "dropped" if found.denied == found.asked else expected


# --- rules and verdict --------------------------------------------------------------------------


def _backend(case: _Case) -> str:
    report = case.world.reports.get(case.node)
    return report.backend if isinstance(report, NodeReport) else ""


def _walk(case: _Case, claims: Claims, packet: Packet) -> tuple[str, ...]:
    """The rules such a packet matches, where the node's back end has rules."""
    version = case.to.address.version
    ranges = case.world.ranges(case.node)
    if _backend(case) == "iptables":
        chains = iptplan.Ruleset(claims, (version,))
        chains.set_ranges(*ranges)
        chains.plan()
        own = {address.packed for address in case.world.view(case.node).addresses}
        return CompiledTables(chains.tables(version), own).walk(packet).path
    if _backend(case) not in ("", "nftables"):
        return ()
    ruleset = Ruleset(claims)
    ruleset.plan()
    sets = {name: found for (v, name), found in ruleset.elements().items() if v == version}
    return CompiledRuleset(version, sets, *ranges, ruleset.chains()[version]).walk(packet).path


def _reason(case: _Case, outcome: Outcome, expected: Expected) -> str:
    broken = [step for step in case.steps if not step.ok]
    if not broken:
        return outcome.reason
    last = broken[-1]
    text = f"policies {last.text}" if last.name == "policies" else last.text
    lines = [line.strip() for line in last.lines[:2]]
    return "; ".join([text, *lines]) if expected != "allowed" else text
