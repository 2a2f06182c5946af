"""Recommendations for a cluster, from flows that were seen or from hints in manifests. Pure.

documents, StaticWorld  ─ workloads, their selectors ─┐
FlowLogDocument         ─ needs_of_flows ─────────────┼─▶ recommend ─▶ manifests, report
hints, entries          ─ needs_of_hints ─────────────┘
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

from podwire.explain.entries import CONTROLLER_POD, promised, selected_by
from podwire.explain.hints import Settings, Spoken, ports_behind, spoken_to
from podwire.explain.reading import convert
from podwire.explain.staticworld import StaticWorld
from podwire.explain.workloads import TEMPLATES, Owner, Talker
from podwire.objects.core import Service
from podwire.objects.documents import Document
from podwire.objects.meta import Key, LabelSelector
from podwire.policy import ports
from podwire.policy.evaluate import Flow, Party
from podwire.policy.flowdocument import API_VERSION, FlowLogDocument
from podwire.policy.flowneeds import DEFAULT_FLOWS, FlowOptions, Known, needs_of_flows
from podwire.policy.model import Direction, NetworkPeer, Peer, PodsPeer, PortRange
from podwire.policy.needs import (
    SYSTEM_NAMESPACES,
    Need,
    Observed,
    Workload,
    WorkloadRef,
    labels_in_common,
    without_passing,
)
from podwire.policy.recommend import (
    CLUSTER_DNS,
    DnsServers,
    Effect,
    Options,
    Recommendation,
    Wanted,
    recommend,
)
from podwire.policy.selector import EVERYTHING, Selector, normalise
from podwire.policy.world import World, make_world

_TESTNET: Final = ip_address("192.0.2.1")
"""Stands for any outsider (RFC 5737)."""
_ANYWHERE: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_PRIVATE: Final = tuple(
    map(ip_network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"))
)


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """What was recommended and how sure it is. `checked` connections stay possible by the policies'
    own word; `denied` and `portless` records of a flow log asked for nothing."""

    source: str
    policies: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    unselected: Mapping[str, str] = {}
    quiet: tuple[str, ...] = ()
    left_open: tuple[str, ...] = ()
    without_default_deny: Mapping[str, str] = {}
    checked: int = 0
    denied: int = 0
    portless: int = 0
    effect: Effect = Effect()
    window: str = ""
    doubts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    api_version: str = API_VERSION
    kind: str = "PolicyRecommendation"


@dataclass(frozen=True)
class Cluster:
    """What is known of it. `complete`: files or an API told of all workloads."""

    static: StaticWorld = field(default_factory=lambda: StaticWorld(World()))
    documents: Sequence[Document] = ()
    namespace: str = "default"
    complete: bool = False

    def workloads(self) -> list[Workload]:
        """By their own selectors, where they have one, else by what all their pods' labels are."""
        selectors = self._selectors()
        return [
            _workload(owner, talkers, selectors.get(owner))
            for owner, talkers in self.static.workloads().items()
        ]

    def _selectors(self) -> dict[Owner, Selector]:
        found: dict[Owner, Selector] = {}
        for document in self.documents:
            spec = document.obj.get("spec")
            raw = spec.get("selector") if isinstance(spec, dict) else None
            if document.kind not in TEMPLATES or not isinstance(raw, dict):
                continue
            if document.kind == "ReplicationController":
                raw = {"matchLabels": raw}
            selector = convert(document, raw, LabelSelector, "spec.selector")
            owner = Owner(document.namespace or self.namespace, document.kind, document.name)
            found[owner] = without_passing(normalise(selector))
        return found

    def dns(self) -> DnsServers:
        """Where a Service kube-dns is known, at its pods' own ports."""
        service = self.static.services.get(Key("kube-system", "kube-dns"))
        if service is None:
            return CLUSTER_DNS
        found = [
            port
            for talker in self.static.talkers
            if selected_by(service, talker.view)
            for port in ports_behind(service, 53, talker.view)
        ]
        return replace(CLUSTER_DNS, ports=ports.of_ranges(found)) if found else CLUSTER_DNS


def _workload(owner: Owner, talkers: Sequence[Talker], own: Selector | None) -> Workload:
    pods = tuple(talker.view for talker in talkers)
    # A selector that does not select the workload's own pods selects nobody here.
    fits = own is not None and own.expressions and all(own.matches(pod.labels) for pod in pods)
    selector = own if fits and own is not None else labels_in_common(pods)
    return Workload(WorkloadRef(*owner), selector, pods)


def spare_system(cluster: Iterable[Workload], chosen: Sequence[str]) -> frozenset[str]:
    """The namespaces policies are made for: those asked for, else all but Kubernetes' own."""
    if chosen:
        return frozenset(chosen)
    return frozenset({workload.ref.namespace for workload in cluster} - SYSTEM_NAMESPACES)


# --- from flows ---------------------------------------------------------------------------------


def recommend_from_flows(
    log: FlowLogDocument,
    cluster: Cluster,
    options: Options,
    flows: FlowOptions = DEFAULT_FLOWS,
) -> tuple[Recommendation, Report]:
    known = Known(
        cluster.static.world,
        cluster.workloads(),
        cluster.complete,
        cluster.static.policies,
        cluster.dns(),
    )
    found = needs_of_flows(log.records, known, flows)
    chosen = spare_system(found.wanted.workloads, sorted(options.namespaces or ()))
    result = recommend(found.wanted, replace(options, namespaces=chosen))
    report = _report("flows", result)
    return result, msgspec.structs.replace(
        report,
        denied=found.denied,
        portless=found.portless,
        window=log.window(),
        doubts=tuple(log.doubts()),
    )


def _report(source: str, result: Recommendation) -> Report:
    return Report(
        source=source,
        policies=tuple(str(policy.ref) for policy in result.policies),
        subjects=tuple(map(str, result.subjects)),
        idle=tuple(map(str, result.idle)),
        unselected={str(ref): why for ref, why in result.unselected.items()},
        quiet=result.quiet,
        left_open=result.left_open,
        without_default_deny=result.open_namespaces,
        checked=result.checked,
        effect=result.effect,
        warnings=result.warnings,
    )


# --- from hints ---------------------------------------------------------------------------------


def recommend_from_hints(
    cluster: Cluster, options: Options, dns: DnsServers | None = None
) -> tuple[Recommendation, Report]:
    """The policies under which all that the manifests hint at works."""
    reader = _Hints(cluster)
    reader.read()
    wanted = Wanted(
        reader.world,
        reader.workloads,
        reader.needs,
        reader.observed,
        dns or cluster.dns(),
        complete=True,
        unsure=reader.unsure(),
        policies=cluster.static.policies,
        warnings=reader.warnings,
    )
    chosen = spare_system(reader.workloads, sorted(options.namespaces or ()))
    result = recommend(wanted, replace(options, namespaces=chosen))
    return result, _report("hints", result)


class _Hints:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._static = cluster.static
        self.workloads = cluster.workloads()
        world = cluster.static.world
        pods = [*world.pods.values(), CONTROLLER_POD]
        self.world = make_world(pods, world.namespaces, world.nodes.values(), world.names)
        self._by_owner = {workload.ref: workload for workload in self.workloads}
        self.needs: list[Need] = []
        self.observed: list[Observed] = []
        self.warnings: list[str] = []

    def read(self) -> None:
        settings = Settings.of(self._cluster.documents, self._cluster.namespace)
        read = {talker.origin: talker.owner for talker in self._static.talkers}
        for document in self._cluster.documents:
            owner = read.get(document.origin)
            if owner is None or owner.name == "" or document.kind not in {*TEMPLATES, "Pod"}:
                continue
            workload = self._by_owner[WorkloadRef(*owner)]
            texts = settings.texts(document)
            for spoken in spoken_to(texts, owner.namespace, self._static.services):
                self._spoken(workload, spoken)
        self._entries()

    def unsure(self) -> frozenset[tuple[WorkloadRef, Direction]]:
        """Settings tell of some calls only: others are in the program. Whom a Service leads to is
        there to be called; whom none leads to is not."""
        found: set[tuple[WorkloadRef, Direction]] = {(w.ref, "egress") for w in self.workloads}
        services = self._static.services.values()
        for talker in self._static.talkers:
            if any(selected_by(service, talker.view) for service in services):
                found.add((WorkloadRef(*talker.owner), "ingress"))
        return frozenset(found)

    def _spoken(self, source: Workload, spoken: Spoken) -> None:
        if spoken.problem:
            self.warnings.append(f"{source.ref}: {spoken.problem}")
        elif spoken.outside:
            self._outside(source, spoken)
        elif spoken.service is not None:
            self._inside(source, spoken, spoken.service)

    def _inside(self, source: Workload, spoken: Spoken, service: Service) -> None:
        named = [t for t in self._static.talkers if selected_by(service, t.view)]
        if not named:
            self.warnings.append(
                f"{source.ref}: {spoken.hint.where} names Service {service.key}, which selects "
                "no pod"
            )
        for talker in named:
            destination = self._by_owner[WorkloadRef(*talker.owner)]
            if destination.ref == source.ref and spoken.hint.whole and not spoken.hint.port:
                continue  # its own name
            ranges = list(self._ports(service, spoken, talker))
            if not ranges:
                self.warnings.append(
                    f"{source.ref}: {spoken.hint.where} names a port of Service {service.key} "
                    f"that {talker} does not have"
                )
                continue
            self._connect(source, destination, ranges)

    def _ports(self, service: Service, spoken: Spoken, talker: Talker) -> Iterator[PortRange]:
        """A headless Service's clients use the pods' own ports, whatever it lists."""
        listed = {port.port for port in service.spec.ports}
        if spoken.port is not None and spoken.port not in listed:
            yield PortRange(6, spoken.port, spoken.port)
        else:
            yield from ports_behind(service, spoken.port, talker.view)

    def _connect(
        self, source: Workload, destination: Workload, ranges: Sequence[PortRange]
    ) -> None:
        line = ports.of_ranges(ranges)
        for peer in self._peers(destination, source):
            self.needs.append(Need(source.ref, "egress", peer, line))
        for peer in self._peers(source, destination):
            self.needs.append(Need(destination.ref, "ingress", peer, line))
        for one in source.pods:
            for other in destination.pods:
                if one.key != other.key:
                    self._observe(Party(None, one), Party(None, other), ranges, source, destination)

    def _observe(
        self,
        source: Party,
        destination: Party,
        ranges: Sequence[PortRange],
        one: object,
        other: Workload,
    ) -> None:
        """hostNetwork pods are their nodes, whose addresses files need not have."""
        if any(p.pod is not None and p.pod.host_network for p in (source, destination)):
            return
        name = one.ref if isinstance(one, Workload) else one
        for each in ranges:
            flow = Flow(source, destination, each.protocol, each.first)
            self.observed.append(Observed(flow, f"{name} to {other.ref}:{each.first}"))

    def _peers(self, other: Workload, subject: Workload) -> list[Peer]:
        if not any(pod.host_network for pod in other.pods):
            if not other.selector.expressions:
                self.warnings.append(
                    f"{other.ref}: has no labels: {subject.ref} is allowed to talk with every pod "
                    f"of namespace {other.ref.namespace}"
                )
            return [other.peer]
        addresses = [ip for node in self.world.nodes.values() for ip in node.ips]
        self.warnings.append(
            f"{subject.ref}: talks with hostNetwork pods of {other.ref}: the rule has "
            + ("the addresses of all nodes" if addresses else "every address, for no node is known")
        )
        networks = [ip_network(ip) for ip in addresses] or _ANYWHERE
        return [NetworkPeer(network) for network in networks]

    def _outside(self, source: Workload, spoken: Spoken) -> None:
        """A NetworkPolicy knows no names: all outsiders are meant then, at that port."""
        where = f"{spoken.outside}:{spoken.outside_port}" if spoken.outside_port else spoken.outside
        line = (
            ports.of_ranges([PortRange(6, spoken.outside_port, spoken.outside_port)])
            if spoken.outside_port
            else ports.ALL
        )
        try:
            networks = [NetworkPeer(ip_network(spoken.outside))]
        except ValueError:
            networks = [NetworkPeer(_ANYWHERE[0], _PRIVATE), NetworkPeer(_ANYWHERE[1])]
            self.warnings.append(
                f"{source.ref}: {spoken.hint.where} names {where}: a NetworkPolicy knows no names, "
                "so every address outside private networks is open at that port (a "
                "ClusterNetworkPolicy has domainNames)"
            )
        self.needs += [Need(source.ref, "egress", network, line) for network in networks]

    # --- who comes in ---

    def _entries(self) -> None:
        """Ingress and Gateway controllers are pods of who knows which namespace; balancers and node
        ports may bring anybody."""
        asked = promised(self._static.entries, self._static.services, self._static.talkers)
        for talker in self._static.talkers:
            ranges = sorted(asked.get(talker.view.key, ()))
            if ranges:
                self._enter(talker, ranges, PodsPeer(namespaces=EVERYTHING), CONTROLLER_POD.key)
        for service in self._static.services.values():
            if service.spec.type in ("NodePort", "LoadBalancer"):
                for talker in self._static.talkers:
                    if selected_by(service, talker.view):
                        found = list(ports_behind(service, None, talker.view))
                        if found:
                            self._enter(talker, found, None, None)

    def _enter(
        self, talker: Talker, ranges: Sequence[PortRange], peer: Peer | None, by: Key | None
    ) -> None:
        destination = self._by_owner[WorkloadRef(*talker.owner)]
        self.needs.append(Need(destination.ref, "ingress", peer, ports.of_ranges(ranges)))
        source = Party(_TESTNET) if by is None else Party(None, self.world.pods[by])
        name = "an ingress controller" if by else "the outside"
        self._observe(source, Party(None, talker.view), ranges, name, destination)


# --- words --------------------------------------------------------------------------------------


def summary(report: Report) -> Iterator[str]:
    """What a person is to know before applying it."""
    yield f"{len(report.policies)} policies for {len(report.subjects)} workloads"
    effect = report.effect
    if effect.pairs:
        share = 100 * effect.closed / effect.pairs
        yield (
            f"pod x pod: {effect.closed} of {effect.pairs} pairs become denied ({share:.0f} %), "
            f"{effect.narrowed} of {effect.open_after} open ones are open at fewer ports"
        )
    kind = "seen" if report.source == "flows" else "hinted"
    yield f"checked: all {report.checked} {kind} connections stay allowed"
    if report.denied:
        yield f"{report.denied} kinds of connections were denied when they were seen: left out"
    if report.window:
        yield f"seen: {report.window}"
    for doubt in report.doubts:
        yield f"doubt: {doubt}"
    for ref in report.idle:
        yield f"idle, left alone: {ref} (--include-idle isolates it)"
    for name, why in report.unselected.items():
        yield f"not selected: {name}: {why}"
    for namespace, why in report.without_default_deny.items():
        yield f"no default deny in {namespace}: {why}"
    for text in report.quiet:
        yield f"closed, for nothing was {kind}: {text}"
    for text in report.left_open:
        yield f"left open, for nothing was {kind}: {text} (--close-quiet closes it)"
