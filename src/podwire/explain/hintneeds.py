"""Hints in manifests -> what must stay possible. Pure.

    Cluster: workloads by their selectors, Services, settings -> HintReader -> needs, observed

Each hint becomes an egress need of who speaks, an ingress need of who is spoken to, and connections
that the recommendation is checked against. Entries become ingress needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Final

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
from podwire.policy.model import Direction, NetworkPeer, Peer, PodsPeer, PortRange
from podwire.policy.needs import (
    Need,
    Observed,
    Workload,
    WorkloadRef,
    labels_in_common,
    without_passing,
)
from podwire.policy.recommend import CLUSTER_DNS, DnsServers
from podwire.policy.selector import EVERYTHING, Selector, normalise
from podwire.policy.world import World, make_world

_TESTNET: Final = ip_address("192.0.2.1")
"""Stands for any outsider (RFC 5737)."""
_ANYWHERE: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_PRIVATE: Final = tuple(
    map(ip_network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"))
)


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


class HintReader:
    """After `read`: what must stay possible, of whom, and what settings got wrong."""

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
        owners = {talker.view.key: talker.owner for talker in self._static.talkers}
        for document in self._cluster.documents:
            owner = owners.get(key) if (key := self._key(document)) is not None else None
            if owner is None:
                continue
            workload = self._by_owner[WorkloadRef(*owner)]
            texts = settings.texts(document)
            for spoken in spoken_to(texts, owner.namespace, self._static.services):
                self._spoken(workload, spoken)
        self._entries()

    def _key(self, document: Document) -> Key | None:
        """What `Gathered` calls the pod of the document; where pods are there, too, they count."""
        namespace = document.namespace or self._cluster.namespace
        if document.kind == "Pod":
            generated = (document.obj.get("metadata") or {}).get("generateName", "")
            return Key(namespace, document.name or f"{generated}x")
        if document.kind in TEMPLATES:
            return Key(namespace, f"{document.name}[{document.kind}]")
        return None

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
