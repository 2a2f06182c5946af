"""One table of Services and packets; whoever claims to know what Services mean runs it.

    row: Services and slices, and for each packet where it may end

Packets are written as in upstream's packet flow tests (k/k pkg/proxy/nftables/proxier_test.go):
from a host of `service_net`, to an address and port. Where it may end is a list of hosts: `here-a`
sees its client, `here-a*` sees the node instead (masqueraded), `here-a:8081` is another port than
8080.
Everything is written in IPv4 and TCP, and holds in IPv6, UDP and SCTP as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from service_net import ADDRESSES, in_family
from service_worlds import NODE, make_service, make_slice

from podwire.objects.core import Service
from podwire.objects.discovery import EndpointSlice
from podwire.services.endpoints import Backend
from podwire.services.evaluate import Packet, Verdict
from podwire.services.model import PROTOCOLS, NodeView

NODES = {
    **dict.fromkeys(("node", "here-a", "here-b", "here-c"), "node-1"),
    **dict.fromkeys(("far-a", "far-b", "node-2"), "node-2"),
    "far-c": "node-3",
    "outside": None,
}
CLUSTER_IP = "10.96.0.1"
NODE_IP = "172.30.0.2"
BALANCER = "172.30.0.200"
EXTERNAL = "203.0.113.77"
NODE_PORT = 30080
_IPV4 = re.compile(r"\d+\.\d+\.\d+\.\d+(/\d+)?")


def ep(host: str, **flags: Any) -> dict[str, Any]:
    """An endpoint on its host's node; `flags` are conditions and hints of `make_slice`."""
    return {"ip": ADDRESSES[host], "node": NODES[host], **flags}


def ending(host: str, **flags: Any) -> dict[str, Any]:
    return ep(host, ready=False, serving=True, terminating=True, **flags)


@dataclass(frozen=True)
class Svc:
    """A Service with its slices (each some endpoints) and the ports of those slices.

    `odd_ports` are what the second slice has instead.
    """

    spec: Mapping[str, Any] = field(default_factory=dict)
    slices: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    ports: tuple[Mapping[str, Any], ...] = ({"name": "http", "port": 8080},)
    name: str = "web"
    odd_ports: tuple[Mapping[str, Any], ...] = ()
    weights: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Case:
    """One packet and its end. `protocol` "" is the row's."""

    origin: str
    dst: str
    port: int
    verdict: Verdict
    ends: frozenset[tuple[str, int]] = frozenset()
    masqueraded: frozenset[tuple[str, int]] = frozenset()
    protocol: str = ""

    def __str__(self) -> str:
        return f"{self.origin} -> {self.dst}:{self.port}{self.protocol and '/' + self.protocol}"

    def packet(self) -> Packet:
        own = ADDRESSES[self.origin]
        return Packet(
            ip_address(in_family(own, ip_address(self.dst).version)).packed,
            ip_address(self.dst).packed,
            PROTOCOLS[self.protocol],
            self.port,
            sport=40000,
            from_node=self.origin == "node",
        )

    def backends(self, which: Iterable[tuple[str, int]]) -> frozenset[tuple[bytes, int]]:
        version = ip_address(self.dst).version
        return frozenset(
            (ip_address(in_family(ADDRESSES[host], version)).packed, port) for host, port in which
        )


@dataclass(frozen=True)
class Row:
    name: str
    services: tuple[Svc, ...]
    cases: tuple[Case, ...]
    node: NodeView = NODE
    protocols: tuple[str, ...] = ("TCP", "UDP", "SCTP")

    def build(self) -> list[tuple[Service, list[EndpointSlice]]]:
        return [_build(svc) for svc in self.services]

    @property
    def sticky(self) -> bool:
        """A client meets one endpoint again and again."""
        return any(
            svc.spec.get("sessionAffinity") == "ClientIP"
            or "maglev-source" in str(svc.spec.get("annotations"))
            for svc in self.services
        )


def _build(svc: Svc) -> tuple[Service, list[EndpointSlice]]:
    slices = [
        make_slice(
            *(dict(e) for e in endpoints),
            name=f"{svc.name}-{number}",
            ports=svc.odd_ports if number and svc.odd_ports else svc.ports,
            weights=dict(svc.weights) if svc.weights else None,
        )
        for number, endpoints in enumerate(svc.slices)
    ]
    return make_service(svc.name, **svc.spec), slices


def variants(row: Row) -> Iterator[tuple[str, Row]]:
    """The row in both families and every protocol, with what is appended to its name."""
    for version in (4, 6):
        for protocol in row.protocols:
            yield f"IPv{version} {protocol}", translate(row, version, protocol)


def translate(row: Row, version: int, protocol: str) -> Row:
    services = tuple(
        replace(
            svc,
            spec={
                key: _with_protocol(value, protocol) if key == "ports" else value
                for key, value in _translate({**_DEFAULTS, **svc.spec}, version).items()
            },
            slices=_translate(svc.slices, version),
            ports=tuple(_with_protocol(svc.ports, protocol)),
            odd_ports=tuple(_with_protocol(svc.odd_ports, protocol)),
            weights=_translate(dict(svc.weights), version) if svc.weights else None,
        )
        for svc in row.services
    )
    cases = tuple(
        replace(case, dst=in_family(case.dst, version), protocol=case.protocol or protocol)
        for case in row.cases
    )
    return replace(row, services=services, cases=cases)


_HTTP = {"name": "http", "port": 80, "targetPort": 8080}
_DEFAULTS = {"clusterIP": CLUSTER_IP, "ports": [_HTTP]}


def _with_protocol(ports: Iterable[Mapping[str, Any]], protocol: str) -> list[dict[str, Any]]:
    return [{"protocol": protocol, **port} for port in ports]


def _translate(value: Any, version: int) -> Any:
    if isinstance(value, str):
        return in_family(value, version) if _IPV4.fullmatch(value) else value
    if isinstance(value, Mapping):
        return {_translate(k, version): _translate(v, version) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_translate(item, version) for item in value)
    return value


# --- how cases are written ------------------------------------------------------------------------


def to(origins: str, where: str, ends: str, protocol: str = "") -> tuple[Case, ...]:
    """A connection from each of `origins` may end at each of `ends`."""
    dst, _, port = where.rpartition(":")
    places, hidden = set(), set()
    for word in ends.split():
        host, _, number = word.rstrip("*").partition(":")
        places.add((host, int(number or 8080)))
        if word.endswith("*"):
            hidden.add((host, int(number or 8080)))
    return tuple(
        Case(origin, dst, int(port), "dnat", frozenset(places), frozenset(hidden), protocol)
        for origin in origins.split()
    )


def _other(origins: str, where: str, verdict: Verdict, protocol: str) -> tuple[Case, ...]:
    dst, _, port = where.rpartition(":")
    return tuple(Case(o, dst, int(port), verdict, protocol=protocol) for o in origins.split())


def refused(origins: str, where: str, protocol: str = "") -> tuple[Case, ...]:
    return _other(origins, where, "refuse", protocol)


def dropped(origins: str, where: str, protocol: str = "") -> tuple[Case, ...]:
    return _other(origins, where, "drop", protocol)


def passed(origins: str, where: str, protocol: str = "") -> tuple[Case, ...]:
    """Not our business: the packet goes where it says."""
    return _other(origins, where, "pass", protocol)


VIP = f"{CLUSTER_IP}:80"
NODE_PORT_HERE = f"{NODE_IP}:{NODE_PORT}"
LB = f"{BALANCER}:80"
EXTERNAL_IP = f"{EXTERNAL}:80"
EVERYONE = "here-c far-b node outside node-2"
MIXED = ((ep("here-a"), ep("far-a")),)
FAR = ((ep("far-a"), ep("far-c")),)
NODE_PORTS = [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]


def node_port(**spec: Any) -> dict[str, Any]:
    return {"type": "NodePort", "ports": NODE_PORTS, **spec}


def balanced(**spec: Any) -> dict[str, Any]:
    return {"type": "LoadBalancer", "ports": NODE_PORTS, "ingress": [{"ip": BALANCER}], **spec}


def row(name: str, svc: Svc | tuple[Svc, ...], *cases: tuple[Case, ...], **options: Any) -> Row:
    services = svc if isinstance(svc, tuple) else (svc,)
    return Row(name, services, tuple(c for group in cases for c in group), **options)


# --- the table ------------------------------------------------------------------------------------

_CLUSTER_IP_ROWS = (
    row(
        "Services should serve a basic endpoint from pods",
        Svc({}, MIXED),
        to("here-c far-b", VIP, "here-a far-a"),
        to("node outside node-2", VIP, "here-a* far-a*"),
    ),
    row(
        "Services should allow pods to hairpin back to themselves through services",
        Svc({}, ((ep("here-a"),),)),
        to("here-a", VIP, "here-a*"),
        to("here-b", VIP, "here-a"),
    ),
    row(
        "hairpin among others",
        Svc({}, MIXED),
        to("here-a", VIP, "here-a* far-a"),
    ),
    row(
        "Services should serve multiport endpoints from pods",
        Svc(
            {
                "ports": [
                    {"name": "http", "port": 80, "targetPort": 8080},
                    {"name": "admin", "port": 81, "targetPort": "admin", "appProtocol": "http"},
                ]
            },
            MIXED,
            ({"name": "http", "port": 8080}, {"name": "admin", "port": 8081}),
        ),
        to("here-c", VIP, "here-a far-a"),
        to("here-c", f"{CLUSTER_IP}:81", "here-a:8081 far-a:8081"),
        refused("here-c", f"{CLUSTER_IP}:82"),
    ),
    row(
        "Services should serve endpoints on same port and different protocols",
        Svc(
            {
                "ports": [
                    {"name": "a", "port": 80, "protocol": "TCP"},
                    {"name": "b", "port": 80, "protocol": "UDP"},
                ]
            },
            MIXED,
            (
                {"name": "a", "port": 8080, "protocol": "TCP"},
                {"name": "b", "port": 8081, "protocol": "UDP"},
            ),
        ),
        to("here-c", VIP, "here-a far-a", "TCP"),
        to("here-c", VIP, "here-a:8081 far-a:8081", "UDP"),
        protocols=("TCP",),
    ),
    row(
        "named target ports that differ by pod are slices of their own",
        Svc(
            {},
            ((ep("here-a"),), (ep("far-a"),)),
            odd_ports=({"name": "http", "port": 8081},),
        ),
        to("here-c", VIP, "here-a far-a:8081"),
    ),
    row(
        "Services should be rejected when no endpoints exist",
        Svc({}, ()),
        refused(EVERYONE, VIP),
    ),
    row(
        "TestClusterIPReject: a slice without endpoints",
        Svc({}, ((),)),
        refused("here-c node", VIP),
    ),
    row(
        "a live cluster IP refuses ports nobody serves, the range drops addresses nobody has",
        Svc({}, MIXED),
        refused(EVERYONE, f"{CLUSTER_IP}:8080"),
        dropped(EVERYONE, "10.96.0.99:80"),
        passed("here-c outside", "10.244.2.2:8080"),
    ),
    row(
        "Services should implement service.kubernetes.io/service-proxy-name",
        Svc({"labels": {"service.kubernetes.io/service-proxy-name": "foo"}}, MIXED),
        dropped("here-c", VIP),
    ),
    row(
        "Services should implement service.kubernetes.io/headless",
        Svc({"labels": {"service.kubernetes.io/headless": ""}}, MIXED),
        dropped("here-c", VIP),
    ),
    row(
        "a headless Service has no address",
        Svc({"clusterIP": "None"}, MIXED),
        dropped("here-c", VIP),
    ),
    row(
        "an ExternalName is not proxied",
        Svc({"type": "ExternalName", "externalName": "example.com"}, MIXED),
        dropped("here-c", VIP),
    ),
    row(
        "a Service without selector leads outside of the cluster",
        Svc({}, ((ep("outside"),),)),
        to("here-c far-b", VIP, "outside"),
        to("node node-2", VIP, "outside*"),
    ),
    row(
        "endpoints on the node's own network",
        Svc({}, ((ep("node"), ep("node-2")),)),
        to("here-c", VIP, "node node-2"),
        to("node", VIP, "node* node-2*"),
        # What is delivered on this node passes no postrouting: its client stays visible.
        to("outside", VIP, "node node-2*"),
    ),
    row(
        "an address in several slices is one endpoint (KEP-752)",
        Svc({}, ((ep("here-a"), ep("far-a")), (ep("here-a"), ep("far-c")))),
        to("here-c", VIP, "here-a far-a far-c"),
    ),
    row(
        "a slice whose ports have other names gives no endpoint",
        Svc({}, ((ep("here-a"),),), ({"name": "other", "port": 8080},)),
        refused("here-c", VIP),
    ),
)

_ENDING = (
    row(
        "unready endpoints are not used",
        Svc({}, ((ep("here-a", ready=False), ep("far-a")),)),
        to("here-c", VIP, "far-a"),
    ),
    row(
        "Services should be able to connect to terminating and unready endpoints if "
        "PublishNotReadyAddresses is true",
        # The controller writes ready for all of them.
        Svc(
            {"publishNotReadyAddresses": True},
            ((ep("here-a", ready=True, serving=False, terminating=True), ep("far-a")),),
        ),
        to("here-c", VIP, "here-a far-a"),
    ),
    row(
        "Services should not be able to connect to terminating and unready endpoints if "
        "PublishNotReadyAddresses is false",
        Svc({}, ((ep("here-a", ready=False, serving=False, terminating=True),),)),
        refused("here-c node outside", VIP),
    ),
    row(
        "Services should fallback to terminating endpoints when there are no ready endpoints with "
        "internalTrafficPolicy=Cluster",
        Svc({}, ((ending("here-a"), ending("far-a"), ep("far-c", ready=False)),)),
        to("here-c", VIP, "here-a far-a"),
    ),
    row(
        "Services should fallback to local terminating endpoints when there are no ready endpoints "
        "with internalTrafficPolicy=Local",
        Svc({"internalTrafficPolicy": "Local"}, ((ending("here-a"), ep("far-a")),)),
        to("here-c", VIP, "here-a"),
        to("node", VIP, "here-a*"),
    ),
    row(
        "Services should fallback to terminating endpoints when there are no ready endpoints with "
        "externallTrafficPolicy=Cluster",
        Svc(node_port(), ((ending("here-a"), ending("far-a")),)),
        to("here-c outside", NODE_PORT_HERE, "here-a* far-a*"),
    ),
    row(
        "Services should fallback to local terminating endpoints when there are no ready endpoints "
        "with externalTrafficPolicy=Local",
        Svc(node_port(externalTrafficPolicy="Local"), ((ending("here-a"), ep("far-a")),)),
        to("outside", NODE_PORT_HERE, "here-a"),
        to("here-c", NODE_PORT_HERE, "far-a"),
    ),
    row(
        "ready endpoints go before those that end",
        Svc({}, ((ending("here-a"), ep("far-a")),)),
        to("here-c", VIP, "far-a"),
    ),
)

_INTERNAL = (
    row(
        "Services should respect internalTrafficPolicy=Local Pod to Pod",
        Svc({"internalTrafficPolicy": "Local"}, MIXED),
        to("here-c far-b", VIP, "here-a"),
        to("node outside node-2", VIP, "here-a*"),
        to("here-a", VIP, "here-a*"),
    ),
    row(
        "internalTrafficPolicy=Local without an endpoint here drops",
        Svc({"internalTrafficPolicy": "Local"}, FAR),
        dropped(EVERYONE, VIP),
        refused("here-c", f"{CLUSTER_IP}:81"),
    ),
    row(
        "internalTrafficPolicy=Local with no endpoint anywhere refuses",
        Svc({"internalTrafficPolicy": "Local"}, ()),
        refused(EVERYONE, VIP),
    ),
    row(
        "Services should respect internalTrafficPolicy=Local Pod and Node, to Pod "
        "(hostNetwork: true)",
        Svc({"internalTrafficPolicy": "Local"}, ((ep("node"), ep("node-2")),)),
        to("here-c", VIP, "node"),
        to("node", VIP, "node*"),
    ),
    row(
        "internalTrafficPolicy=Local says nothing about node ports",
        Svc(node_port(internalTrafficPolicy="Local"), FAR),
        dropped("here-c", VIP),
        to("here-c outside", NODE_PORT_HERE, "far-a* far-c*"),
    ),
)

_NODE_PORT_ROWS = (
    row(
        "Services should be able to create a functioning NodePort service",
        Svc(node_port(), MIXED),
        to("here-c far-b node outside", NODE_PORT_HERE, "here-a* far-a*"),
        to("here-c", VIP, "here-a far-a"),
    ),
    row(
        "TestNodePortReject",
        Svc(node_port(), ()),
        refused(EVERYONE, NODE_PORT_HERE),
        refused("here-c", VIP),
    ),
    row(
        "Services should support externalTrafficPolicy=Local for type=NodePort",
        Svc(node_port(externalTrafficPolicy="Local"), MIXED),
        to("outside node-2", NODE_PORT_HERE, "here-a"),
        to("here-c far-b", NODE_PORT_HERE, "here-a far-a"),
        to("node", NODE_PORT_HERE, "here-a* far-a*"),
        to("here-a", NODE_PORT_HERE, "here-a* far-a"),
        to("here-c", VIP, "here-a far-a"),
    ),
    row(
        "externalTrafficPolicy=Local without an endpoint here drops from outside",
        Svc(node_port(externalTrafficPolicy="Local"), FAR),
        dropped("outside node-2", NODE_PORT_HERE),
        to("here-c far-b", NODE_PORT_HERE, "far-a far-c"),
        to("node", NODE_PORT_HERE, "far-a* far-c*"),
        to("here-c", VIP, "far-a far-c"),
    ),
    row(
        "externalTrafficPolicy=Local with no endpoint anywhere refuses",
        Svc(node_port(externalTrafficPolicy="Local"), ()),
        refused(EVERYONE, NODE_PORT_HERE),
    ),
    row(
        "both policies Local",
        Svc(node_port(externalTrafficPolicy="Local", internalTrafficPolicy="Local"), MIXED),
        to("here-c", VIP, "here-a"),
        to("outside", NODE_PORT_HERE, "here-a"),
        # Not subject to externalTrafficPolicy, and not a cluster IP.
        to("here-c", NODE_PORT_HERE, "here-a far-a"),
    ),
    row(
        "Services should be able to update service type to NodePort listening on same port number "
        "but different protocols",
        Svc(
            {
                "type": "NodePort",
                "ports": [
                    {"name": "a", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT},
                    {"name": "b", "port": 80, "protocol": "UDP", "nodePort": NODE_PORT},
                ],
            },
            MIXED,
            (
                {"name": "a", "port": 8080, "protocol": "TCP"},
                {"name": "b", "port": 8081, "protocol": "UDP"},
            ),
        ),
        to("outside", NODE_PORT_HERE, "here-a* far-a*", "TCP"),
        to("outside", NODE_PORT_HERE, "here-a:8081* far-a:8081*", "UDP"),
        protocols=("TCP",),
    ),
    row(
        "a node's other ports and another node's are not ours",
        Svc(node_port(), MIXED),
        passed("here-c outside", f"{NODE_IP}:8080"),
        passed("here-c", "172.30.0.3:8080"),
    ),
    row(
        "a node port leads to a pod of the node's network",
        Svc(node_port(), ((ep("node"),),)),
        to("outside here-c", NODE_PORT_HERE, "node"),
    ),
)

_BALANCER_ROWS = (
    row(
        "LoadBalancer: every node takes packets for its address",
        Svc(balanced(), MIXED),
        to("here-c far-b node outside", LB, "here-a* far-a*"),
        to("outside", NODE_PORT_HERE, "here-a* far-a*"),
        to("here-c", VIP, "here-a far-a"),
    ),
    row(
        "TestLoadBalancerReject",
        Svc(balanced(), ()),
        refused(EVERYONE, LB),
    ),
    row(
        "TestOnlyLocalLoadBalancing",
        Svc(balanced(externalTrafficPolicy="Local", healthCheckNodePort=30099), MIXED),
        to("outside node-2", LB, "here-a"),
        to("here-c far-b", LB, "here-a far-a"),
        to("node", LB, "here-a* far-a*"),
    ),
    row(
        "externalTrafficPolicy=Local and no endpoint here: pods still reach the balancer's address",
        Svc(balanced(externalTrafficPolicy="Local", healthCheckNodePort=30099), FAR),
        dropped("outside", LB),
        to("here-c", LB, "far-a far-c"),
        to("node", LB, "far-a* far-c*"),
    ),
    row(
        "TestLoadBalancerIngressRouteTypeProxy: the balancer must see the packet",
        Svc(balanced(ingress=[{"ip": BALANCER, "ipMode": "Proxy"}]), MIXED),
        passed("here-c outside", LB),
        to("outside", NODE_PORT_HERE, "here-a* far-a*"),
    ),
    row(
        "ipMode VIP said aloud, and a hostname beside it",
        Svc(
            balanced(ingress=[{"hostname": "lb.example.com"}, {"ip": BALANCER, "ipMode": "VIP"}]),
            MIXED,
        ),
        to("outside", LB, "here-a* far-a*"),
    ),
    row(
        "LoadBalancers should only allow access from service loadbalancer source ranges",
        Svc(balanced(loadBalancerSourceRanges=["203.0.113.0/25"]), MIXED),
        to("outside", LB, "here-a* far-a*"),
        dropped("outside-2 here-c node far-b", LB),
        # The ranges are the balancer's address's alone.
        to("outside-2", NODE_PORT_HERE, "here-a* far-a*"),
        to("here-c", VIP, "here-a far-a"),
    ),
    row(
        "source ranges that allow the node allow what comes from the address itself",
        Svc(balanced(loadBalancerSourceRanges=["172.30.0.0/24", "10.244.0.0/16"]), MIXED),
        to("node here-c node-2", LB, "here-a* far-a*"),
        dropped("outside", LB),
    ),
    row(
        "source ranges and externalTrafficPolicy=Local",
        Svc(
            balanced(
                externalTrafficPolicy="Local",
                loadBalancerSourceRanges=["203.0.113.0/25", "10.244.0.0/16"],
            ),
            MIXED,
        ),
        to("outside", LB, "here-a"),
        dropped("outside-2", LB),
        to("here-c", LB, "here-a far-a"),
    ),
    row(
        "source ranges and no endpoints: dropped before refused",
        Svc(balanced(loadBalancerSourceRanges=["203.0.113.0/25"]), ()),
        refused("outside", LB),
        dropped("outside-2", LB),
    ),
    row(
        "LoadBalancer without node ports (KEP-1864)",
        Svc(
            balanced(
                allocateLoadBalancerNodePorts=False,
                ports=[{"name": "http", "port": 80, "targetPort": 8080}],
                loadBalancerClass="example.com/class",
                loadBalancerIP=BALANCER,
            ),
            MIXED,
        ),
        to("outside", LB, "here-a* far-a*"),
        passed("outside", f"{NODE_IP}:{NODE_PORT}"),
    ),
    row(
        "Services should be possible to connect to a service via ExternalIP when the external IP "
        "is not assigned to a node",
        Svc({"externalIPs": [EXTERNAL]}, MIXED),
        to("here-c far-b node outside", EXTERNAL_IP, "here-a* far-a*"),
    ),
    row(
        "TestOnlyLocalExternalIPs",
        Svc({**node_port(externalTrafficPolicy="Local"), "externalIPs": [EXTERNAL]}, MIXED),
        to("outside", EXTERNAL_IP, "here-a"),
        to("here-c", EXTERNAL_IP, "here-a far-a"),
    ),
    row(
        "TestExternalIPsReject",
        Svc({"externalIPs": [EXTERNAL]}, ()),
        refused("here-c outside", EXTERNAL_IP),
    ),
    row(
        "externalIPs are not served unless asked for (KEP-5707)",
        Svc({"externalIPs": [EXTERNAL]}, MIXED),
        passed("here-c outside", EXTERNAL_IP),
        to("here-c", VIP, "here-a far-a"),
        node=replace(NODE, external_ips=False),
    ),
)


def _hinted(*parts: tuple[str, list[str], list[str]]) -> tuple[tuple[dict[str, Any], ...], ...]:
    return (tuple(ep(host, zones=zones, nodes=nodes) for host, zones, nodes in parts),)


_TOPOLOGY = (
    row(
        "Traffic Distribution should route traffic to an endpoint in the same zone when using "
        "PreferSameZone",
        Svc(
            {"trafficDistribution": "PreferSameZone"},
            _hinted(("here-a", ["zone-a"], []), ("far-a", ["zone-b"], [])),
        ),
        to("here-c", VIP, "here-a"),
    ),
    row(
        "Traffic Distribution should route traffic to an endpoint on the same node when using "
        "PreferSameNode",
        Svc(
            {"trafficDistribution": "PreferSameNode"},
            _hinted(("here-a", ["zone-a"], ["node-1"]), ("far-a", ["zone-a"], ["node-2"])),
        ),
        to("here-c", VIP, "here-a"),
    ),
    row(
        "PreferSameNode falls back to the zone when the node has none",
        Svc(
            {"trafficDistribution": "PreferSameNode"},
            _hinted(("far-a", ["zone-a"], ["node-2"]), ("far-c", ["zone-b"], ["node-3"])),
        ),
        to("here-c", VIP, "far-a"),
    ),
    row(
        "hints are ignored when an endpoint has none",
        Svc({}, ((ep("here-a", zones=["zone-a"]), ep("far-a")),)),
        to("here-c", VIP, "here-a far-a"),
    ),
    row(
        "hints are ignored when none is for us",
        Svc({}, _hinted(("here-a", ["zone-b"], []), ("far-a", ["zone-b"], []))),
        to("here-c", VIP, "here-a far-a"),
    ),
    row(
        "policies Local go before hints",
        Svc(
            node_port(internalTrafficPolicy="Local", externalTrafficPolicy="Local"),
            _hinted(("here-a", ["zone-b"], []), ("far-a", ["zone-a"], [])),
        ),
        to("here-c", VIP, "here-a"),
        to("outside", NODE_PORT_HERE, "here-a"),
        to("here-c", NODE_PORT_HERE, "far-a"),
    ),
)

_STICKY = {
    "sessionAffinity": "ClientIP",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
}
_BALANCING = (
    row(
        "Services should have session affinity work for service with type clusterIP",
        Svc(_STICKY, MIXED),
        to("here-c far-b", VIP, "here-a far-a"),
        to("node outside", VIP, "here-a* far-a*"),
        to("here-a", VIP, "here-a* far-a"),
    ),
    row(
        "Services should have session affinity work for NodePort service",
        Svc(node_port(**_STICKY), MIXED),
        to("here-c outside", NODE_PORT_HERE, "here-a* far-a*"),
        to("here-b", VIP, "here-a far-a"),
    ),
    row(
        "session affinity and externalTrafficPolicy=Local (k/k#55429)",
        Svc(balanced(**_STICKY, externalTrafficPolicy="Local"), MIXED),
        to("outside", LB, "here-a"),
        to("here-c", LB, "here-a far-a"),
        to("outside", NODE_PORT_HERE, "here-a"),
    ),
    row(
        "session affinity and no endpoints",
        Svc(_STICKY, ()),
        refused("here-c", VIP),
    ),
    row(
        "maglev",
        Svc({"annotations": {"networking.podwire.dev/balancing": "maglev"}}, MIXED),
        to("here-c", VIP, "here-a far-a"),
        to("outside", VIP, "here-a* far-a*"),
    ),
    row(
        "maglev-source",
        Svc({"annotations": {"networking.podwire.dev/balancing": "maglev-source"}}, MIXED),
        to("here-c", VIP, "here-a far-a"),
    ),
    row(
        "weights",
        Svc({}, MIXED, weights={ADDRESSES["here-a"]: 3, ADDRESSES["far-a"]: 1}),
        to("here-c", VIP, "here-a far-a"),
    ),
)

_SEVERAL = (
    row(
        "several Services, each its own endpoints",
        (
            Svc({}, ((ep("here-a"),),)),
            Svc({"clusterIP": "10.96.0.2"}, ((ep("far-a"),),), name="b"),
            Svc({"clusterIP": "10.96.0.3"}, (), name="c"),
        ),
        to("here-c", VIP, "here-a"),
        to("here-c", "10.96.0.2:80", "far-a"),
        refused("here-c", "10.96.0.3:80"),
    ),
    row(
        "two Services want one external address: the older has it",
        (
            Svc(balanced(), ((ep("here-a"),),)),
            Svc(
                balanced(
                    clusterIP="10.96.0.2",
                    ports=[{**NODE_PORTS[0], "nodePort": NODE_PORT + 1}],
                ),
                ((ep("far-a"),),),
                name="younger",
            ),
        ),
        to("outside", LB, "here-a*"),
        to("outside", f"{NODE_IP}:{NODE_PORT + 1}", "far-a*"),
    ),
)

GROUPS: dict[str, tuple[Row, ...]] = {
    "cluster-ip": _CLUSTER_IP_ROWS,
    "ending": _ENDING,
    "internal-policy": _INTERNAL,
    "node-port": _NODE_PORT_ROWS,
    "balancer": _BALANCER_ROWS,
    "topology": _TOPOLOGY,
    "balancing": _BALANCING,
    "several": _SEVERAL,
}
ROWS = tuple(row for rows in GROUPS.values() for row in rows)


def backends_of(found: Iterable[Backend]) -> frozenset[tuple[bytes, int]]:
    return frozenset((b.ip, b.port) for b in found)
