"""From connections that were seen to what must stay possible. Pure.

    FlowRecords + the world, as far as it is known -> `Wanted` for `recommend`

Pods are found by name, else by the labels they had when they were seen. Only what was allowed
counts; a pod that was only denied has needed nothing so far. What a node says to its own pods needs
no rule. Outsiders are single addresses, unless networks around them are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final

from podwire.objects.meta import Key
from podwire.policy import intervals, ports
from podwire.policy.evaluate import Flow, Party
from podwire.policy.flowlog import End, FlowRecord
from podwire.policy.intervals import Intervals
from podwire.policy.model import (
    LAST_PORT,
    PROTOCOLS,
    Address,
    Direction,
    Network,
    NetworkPeer,
    Peer,
    Policy,
    PortRange,
)
from podwire.policy.needs import Need, Observed, Workload, WorkloadRef, group_by_labels
from podwire.policy.recommend import CLUSTER_DNS, DnsServers, Wanted
from podwire.policy.world import NodeView, PodView, World, make_world, owners_of

_NUMBERS: Final = {**PROTOCOLS, "ICMP": 1, "ICMPv6": 58}


@dataclass(frozen=True)
class FlowOptions:
    """`prefixes`: how wide a network stands for an outsider, per family. `icmp`: leave ICMP open
    too, which no NetworkPolicy can say without opening all ports."""

    prefixes: Mapping[int, int] = field(default_factory=lambda: {4: 32, 6: 128})
    icmp: bool = False


DEFAULT_FLOWS: Final = FlowOptions()


@dataclass(frozen=True)
class Known:
    """What is known beside the flows. `complete`: no other workloads exist."""

    world: World = field(default_factory=World)
    workloads: Sequence[Workload] = ()
    complete: bool = False
    policies: Sequence[Policy] = ()
    dns: DnsServers = CLUSTER_DNS


NOTHING_KNOWN: Final = Known()


@dataclass(frozen=True)
class FromFlows:
    """`denied` records were left out, and `portless` ones, which would open too much."""

    wanted: Wanted
    denied: int = 0
    portless: int = 0


def needs_of_flows(
    records: Iterable[FlowRecord],
    known: Known = NOTHING_KNOWN,
    options: FlowOptions = DEFAULT_FLOWS,
) -> FromFlows:
    seen = list(records)
    reader = _Reader(seen, known, options)
    for record in seen:
        reader.read(record)
    return reader.result()


class _Reader:
    def __init__(self, records: Sequence[FlowRecord], known: Known, options: FlowOptions) -> None:
        self._known = known
        self._options = options
        ends = [end for record in records for end in (record.source, record.destination)]
        self._pods = {**known.world.pods, **_unknown_pods(ends, known.world)}
        self._workloads = {workload.ref: workload for workload in known.workloads}
        self._home: dict[Key, WorkloadRef] = {
            pod.key: workload.ref for workload in known.workloads for pod in workload.pods
        }
        self._adopt()
        nodes = {**_nodes(ends), **known.world.nodes}
        self._world = make_world(
            self._pods.values(), known.world.namespaces, nodes.values(), known.world.names
        )
        self._owners = owners_of(self._world)
        self._needs: dict[tuple[WorkloadRef, Direction, Peer | None], Intervals] = {}
        self._observed: list[Observed] = []
        self._warnings: list[str] = []
        self._networks: set[Network] = set()
        self._denied = self._portless = 0

    def _adopt(self) -> None:
        """Pods nobody told of join the workload whose selector they match, or are one."""
        near: dict[str, list[Workload]] = {}
        for workload in self._known.workloads:
            near.setdefault(workload.ref.namespace, []).append(workload)
        joining: dict[WorkloadRef, list[PodView]] = {}
        strangers = []
        for key, pod in self._pods.items():
            if key in self._home or pod.host_network:
                continue
            home = next((w for w in near.get(key.namespace, ()) if _belongs(pod, w)), None)
            if home is None:
                strangers.append(pod)
            else:
                joining.setdefault(home.ref, []).append(pod)
        for ref, pods in joining.items():
            self._join(self._workloads[ref], pods)
        for workload in group_by_labels(strangers):
            ref = workload.ref
            while ref in self._workloads:
                ref = ref._replace(name=f"{ref.name}-seen")
            self._settle(Workload(ref, workload.selector, workload.pods))

    def _join(self, home: Workload, pods: Sequence[PodView]) -> None:
        """A pod that was seen stands for what the template only promised."""
        kept = tuple(member for member in home.pods if not _is_template(member))
        for member in filter(_is_template, home.pods):
            self._pods.pop(member.key, None)
        self._settle(Workload(home.ref, home.selector, (*kept, *pods)))

    def _settle(self, workload: Workload) -> None:
        self._workloads[workload.ref] = workload
        self._home |= {pod.key: workload.ref for pod in workload.pods}

    # --- records ---

    def read(self, record: FlowRecord) -> None:
        if record.verdict != "allowed":
            self._denied += 1
            return
        protocol = _NUMBERS.get(record.protocol)
        if protocol is None:
            protocol = int(record.protocol) if record.protocol.isdecimal() else 0
        line = _line(protocol, record.port)
        if line is None:
            if not self._options.icmp:
                self._portless += 1
                return
            line = ports.ALL
            self._warnings.append(
                f"{record.source} to {record.destination}: protocol {record.protocol} was seen, "
                "which only a rule without ports allows: all ports are open between them"
            )
        source, destination = self._party(record.source), self._party(record.destination)
        hairpin = source.ip == destination.ip
        flow = Flow(source, destination, protocol, record.port, hairpin)
        text = f"{record.source} to {record.destination}:{record.port}/{record.protocol}"
        self._observed.append(Observed(flow, text, record.count))
        if not _own_node(source, destination):
            self._want(record.source, "egress", record.destination, line)
            self._want(record.destination, "ingress", record.source, line)

    def _want(self, subject: End, direction: Direction, other: End, line: Intervals) -> None:
        workload = self._workload(subject)
        if workload is None:
            return
        key = (workload.ref, direction, self._peer(other, workload))
        self._needs[key] = intervals.union(self._needs.get(key, ()), line)

    def _peer(self, end: End, subject: Workload) -> Peer:
        workload = self._workload(end)
        if workload is not None and not self._on_host(end):
            if not workload.selector.expressions:
                self._warnings.append(
                    f"{workload.ref}: has no labels: {subject.ref} is allowed to talk with every "
                    f"pod of namespace {workload.ref.namespace}"
                )
            return workload.peer
        address = ip_address(end.ip)
        if end.kind != "External":
            self._warnings.append(
                f"{subject.ref}: talks with {end.kind.lower()} {end} ({end.ip}) on a node's "
                "network: a rule has that address, which another node would not match"
            )
            return _single(address)
        return self._network(address)

    def _network(self, address: Address) -> NetworkPeer:
        prefix = self._options.prefixes[address.version]
        network = ip_network(f"{address}/{prefix}", strict=False)
        if prefix == address.max_prefixlen or network in self._networks:
            return NetworkPeer(network)
        self._networks.add(network)
        inside = sorted(
            str(owner.key if isinstance(owner, PodView) else f"node {owner.name}")
            for ip, owner in self._owners.items()
            if ip in network and ip != address
        )
        if inside:
            self._warnings.append(
                f"{network}: stands for {address}, and {len(inside)} addresses of the cluster are "
                f"in it, {inside[0]} first"
            )
        return NetworkPeer(network)

    def _on_host(self, end: End) -> bool:
        return self._pods[Key(end.namespace, end.name)].host_network

    def _workload(self, end: End) -> Workload | None:
        ref = self._home.get(Key(end.namespace, end.name)) if end.kind == "Pod" else None
        return None if ref is None else self._workloads[ref]

    def _party(self, end: End) -> Party:
        address = ip_address(end.ip)
        if end.kind == "Pod":
            return Party(address, self._pods[Key(end.namespace, end.name)])
        if end.kind == "Node":
            return Party(address, None, self._world.nodes[end.name])
        return Party(address)

    def result(self) -> FromFlows:
        needs = [Need(*key, line) for key, line in self._needs.items()]
        if self._portless:
            self._warnings.append(
                f"{self._portless} kinds of connections without ports (ICMP) were seen and will be "
                "denied between isolated pods: a NetworkPolicy allows them only with all ports"
            )
        wanted = Wanted(
            self._world,
            list(self._workloads.values()),
            needs,
            self._observed,
            self._known.dns,
            complete=self._known.complete,
            policies=self._known.policies,
            warnings=self._warnings,
        )
        return FromFlows(wanted, self._denied, self._portless)


def _line(protocol: int, port: int) -> Intervals | None:
    """None for a protocol without ports."""
    if protocol not in PROTOCOLS.values() or not 0 < port <= LAST_PORT:
        return None
    return ports.of_ranges([PortRange(protocol, port, port)])


def _single(address: Address) -> NetworkPeer:
    return NetworkPeer(ip_network(address))


def _belongs(pod: PodView, workload: Workload) -> bool:
    return (
        bool(workload.selector.expressions)
        and pod.key.namespace == workload.ref.namespace
        and workload.selector.matches(pod.labels)
    )


def _is_template(pod: PodView) -> bool:
    """Files' workloads without pods have one called `web[Deployment]`."""
    return "[" in pod.key.name


def _own_node(source: Party, destination: Party) -> bool:
    return any(
        pod is not None and node is not None and pod.node == node.name
        for pod, node in ((source.pod, destination.node), (destination.pod, source.node))
    )


def _unknown_pods(ends: Iterable[End], world: World) -> dict[Key, PodView]:
    """As they were when last seen; no longer there, or of a world nobody told of."""
    found: dict[Key, PodView] = {}
    for end in ends:
        key = Key(end.namespace, end.name)
        if end.kind == "Pod" and key not in world.pods:
            before = found.get(key)
            ips = {*(before.ips if before else ()), ip_address(end.ip)}
            found[key] = PodView(key, dict(end.labels), tuple(sorted(ips, key=str)))
    return found


def _nodes(ends: Iterable[End]) -> dict[str, NodeView]:
    found: dict[str, NodeView] = {}
    for end in ends:
        if end.kind == "Node":
            before = found.get(end.name)
            ips = {*(before.ips if before else ()), ip_address(end.ip)}
            found[end.name] = NodeView(end.name, {}, tuple(sorted(ips, key=str)))
    return found
