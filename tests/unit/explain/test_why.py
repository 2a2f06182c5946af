"""`why` from objects alone: every reason a Service has not to answer, and what the packet adds."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from service_worlds import make_service, make_slice

from podwire.errors import NotFoundError, UsageError
from podwire.explain.endpoints import Snapshot
from podwire.explain.policyfiles import read_policy
from podwire.explain.probes.wire import Probe
from podwire.explain.staticlive import make_static
from podwire.explain.why import Explanation, Step, compile_claims, explain
from podwire.explain.whyendpoints import why_no_endpoints, why_not_ready
from podwire.explain.whylive import Live, choosing_rules, first_packet, judge
from podwire.explain.whyworld import Unanswerable, World, find_destination, find_source
from podwire.kernel.nftrace import TraceHit
from podwire.objects.core import Node, Pod, Service
from podwire.objects.discovery import EndpointSlice
from podwire.objects.documents import Document
from podwire.services.claims import Owner
from podwire.services.report import NodeReport, ServiceReport

CIDRS = {"service_cidrs": ("10.96.0.0/16",), "cluster_cidrs": ("10.244.0.0/16",)}


def pod(
    name: str,
    ip: str = "10.244.1.2",
    *,
    node: str = "node-1",
    namespace: str = "ns1",
    labels: dict[str, str] | None = None,
    ready: bool = True,
    ports: tuple[dict[str, Any], ...] = ({"name": "http", "containerPort": 8080},),
    status: dict[str, Any] | None = None,
    container: dict[str, Any] | None = None,
    **spec: Any,
) -> Pod:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return msgspec.convert(
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"app": "web"} if labels is None else labels,
            },
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "ports": list(ports), **(container or {})}],
                **spec,
            },
            "status": {
                "phase": "Running",
                "podIP": ip,
                "podIPs": [{"ip": ip}] if ip else [],
                "conditions": conditions,
                **(status or {}),
            },
        },
        Pod,
    )


def node(name: str, ip: str, zone: str = "zone-a") -> Node:
    return msgspec.convert(
        {
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {
                "addresses": [{"type": "InternalIP", "address": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        Node,
    )


NODES = (node("node-1", "172.30.0.2"), node("node-2", "172.30.0.3", "zone-b"))
CLIENT = pod("client", "10.244.1.9", labels={"app": "client"})
WEB1 = pod("web-1", "10.244.1.2")
WEB2 = pod("web-2", "10.244.2.2", node="node-2")
E1 = {"ip": "10.244.1.2", "node": "node-1"}
E2 = {"ip": "10.244.2.2", "node": "node-2"}


def labelled(piece: EndpointSlice, service: str = "web") -> EndpointSlice:
    labels = {"kubernetes.io/service-name": service}
    metadata = msgspec.structs.replace(piece.metadata, labels=labels, resource_version="5")
    return msgspec.structs.replace(piece, metadata=metadata)


def versioned(service: Service, version: str = "7", created: str = "2026-01-01") -> Service:
    metadata = msgspec.structs.replace(
        service.metadata, resource_version=version, creation_timestamp=created
    )
    return msgspec.structs.replace(service, metadata=metadata)


def report(name: str = "node-1", revision: int = 7, error: str = "") -> NodeReport:
    one = ServiceReport(namespace="ns1", name="web", revision=revision, error=error)
    return NodeReport(node=name, backend="nftables", services=(one,), **CIDRS)


def world(
    service: Service,
    *endpoints: dict[str, Any],
    pods: tuple[Pod, ...] = (CLIENT, WEB1, WEB2),
    others: tuple[Service, ...] = (),
    reports: dict[str, NodeReport | str] | None = None,
    **piece: Any,
) -> World:
    slices = [labelled(make_slice(*endpoints, **piece))] if endpoints else []
    found = reports or {"node-1": report(), "node-2": report("node-2")}
    return World(Snapshot(pods, NODES), (versioned(service), *others), slices, found)


def ask(where: World, source: str = "ns1/client", to: str = "svc/web", **kw: Any) -> Explanation:
    who = find_source(where, source)
    return explain(where, who, find_destination(where, who, to, kw.get("protocol")))


def step(found: Explanation, name: str) -> Step:
    return next(s for s in found.steps if s.name == name)


def text_of(found: Explanation, name: str) -> str:
    one = step(found, name)
    return "\n".join([one.text, *one.lines])


WEB = make_service(selector={"app": "web"})


def test_an_address_is_the_same_in_another_form() -> None:
    """The API keeps what was written; packets know one form."""
    port = {"name": "http", "port": 80, "nodePort": 30080}
    service = make_service(
        clusterIP="fd00:96:0:0:0:0:0:5",
        ports=[port],
        type="LoadBalancer",
        ingress=[{"ip": "FD00:30::0:200", "ipMode": "VIP"}],
    )
    where = world(service)
    for address, how in (("fd00:96::5", "the cluster IP"), ("fd00:30::200", "the load balancer")):
        to = find_destination(where, find_source(where, "outside"), f"[{address}]:80", None)
        assert (to.service, how in to.how) == (service.key, True)
        assert compile_claims(where, "node-1", to).owners == [Owner("Service", service.key)]


# --- what works ---------------------------------------------------------------------------------


def test_every_step_of_a_connection_that_works() -> None:
    found = ask(world(WEB, E1, E2))
    assert [s.name for s in found.steps] == [
        "source",
        "name",
        "programmed",
        "frontend",
        "endpoints",
        "rules",
    ]
    assert all(s.ok for s in found.steps)
    assert (found.expected, found.node, found.address, found.port) == (
        "allowed",
        "node-1",
        "10.96.0.1",
        80,
    )
    assert found.endpoints == ("10.244.1.2:8080", "10.244.2.2:8080")
    assert "pod ns1/web-2 on node-2" in text_of(found, "endpoints")
    assert found.rules[0] == "prerouting: jump dispatch"
    assert found.rules[-1].startswith("lb-2: meta priority set numgen random mod 2 dnat")


def test_rules_are_those_that_match_and_no_others() -> None:
    found = ask(world(WEB, E1), to="svc/web:81")
    assert found.rules[1] == "dispatch: ip daddr @vips goto refuse"


def test_a_node_sends_by_its_own_hook_and_is_hidden() -> None:
    found = ask(world(WEB, E1), source="node/node-1", to="svc/ns1/web")
    assert found.rules[0] == "output: jump dispatch"
    assert found.masqueraded


def test_outside_comes_in_at_the_node_it_names() -> None:
    service = make_service(
        selector={"app": "web"},
        type="NodePort",
        ports=[{"name": "http", "port": 80, "nodePort": 30080}],
    )
    found = ask(world(service, E1), source="outside", to="node/node-2:30080")
    assert (found.node, found.expected) == ("node-2", "allowed")
    assert "a node port of service ns1/web on node node-2" in text_of(found, "name")


def test_a_workload_is_its_first_pod() -> None:
    owned = {"ownerReferences": [{"kind": "StatefulSet", "name": "web", "controller": True}]}
    raw = msgspec.to_builtins(WEB1)
    raw["metadata"] |= owned
    web = msgspec.convert(raw, Pod)
    found = ask(world(WEB, E1, pods=(CLIENT, web)), to="ns1/web:8080")
    assert "the address of pod ns1/web-1" in text_of(found, "name")
    with pytest.raises(NotFoundError, match="ask for svc/NS/NAME, NS/POD"):
        ask(world(WEB, E1), to="ns1/nosuch:80")


def test_outside_uses_what_is_for_the_outside() -> None:
    balanced = make_service(
        selector={"app": "web"},
        type="LoadBalancer",
        ports=[{"name": "http", "port": 80, "nodePort": 30080}],
        ingress=[{"ip": "172.30.0.200"}],
    )
    found = ask(world(balanced, E1), source="outside", to="svc/ns1/web")
    assert "has the load balancer address 172.30.0.200" in text_of(found, "name")
    pending = make_service(
        selector={"app": "web"}, type="NodePort", ports=[{"port": 80, "nodePort": 30080}]
    )
    with pytest.raises(UsageError, match="from outside ask for node/NAME:30080"):
        ask(world(pending, E1), source="outside", to="svc/ns1/web")
    with pytest.raises(UsageError, match="none: it has no node port"):
        ask(world(WEB, E1), source="outside", to="svc/ns1/web")


def test_affinity_weights_and_hints_are_told() -> None:
    service = make_service(selector={"app": "web"}, sessionAffinity="ClientIP")
    found = ask(world(service, E1, E2, weights={"10.244.1.2": 3}))
    assert "10800 s (affinity)" in text_of(found, "endpoints")
    assert "weight 3" in text_of(found, "endpoints")
    hinted = ask(world(WEB, E1 | {"zones": ["zone-a"]}, E2 | {"zones": ["zone-b"]}))
    assert "topology hints (PreferSameZone) leave out 1" in text_of(hinted, "endpoints")
    assert hinted.endpoints == ("10.244.1.2:8080",)


def test_terminating_endpoints_serve_while_there_is_no_other() -> None:
    ending = {"ready": False, "serving": True, "terminating": True}
    found = ask(world(WEB, E1 | ending, E2 | {"ready": False}))
    assert "terminating and still serve" in text_of(found, "endpoints")


# --- what does not ------------------------------------------------------------------------------

SELECTOR = make_service(selector={"app": "weg"})
NAMED = make_service(
    selector={"app": "web"}, ports=[{"name": "http", "port": 80, "targetPort": "htpp"}]
)
LOCAL = make_service(selector={"app": "web"}, internalTrafficPolicy="Local")
RANGED = make_service(
    selector={"app": "web"},
    type="LoadBalancer",
    ingress=[{"ip": "172.30.0.200"}],
    loadBalancerSourceRanges=["192.0.2.0/24"],
)
UNREADY = {"ready": False}
RUNNING = {"containerStatuses": [{"name": "c", "state": {"running": {}}, "started": True}]}
PROBED = {"readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}}}


@pytest.mark.parametrize(
    ("where", "to", "expected", "name", "words"),
    [
        (
            world(SELECTOR),
            "svc/web",
            "refused",
            "endpoints",
            (
                "selector app=weg matches no pod in namespace ns1\n"
                "nearest is pod ns1/web-1: it has app=web instead of weg"
            ),
        ),
        (
            world(WEB, pods=(CLIENT, pod("w", namespace="ns2"))),
            "svc/web",
            "refused",
            "endpoints",
            "pod ns2/w has these labels, but a Service selects in its own namespace only",
        ),
        (
            world(
                WEB,
                E1 | UNREADY,
                pods=(CLIENT, pod("web-1", ready=False, status=RUNNING, container=PROBED)),
            ),
            "svc/web",
            "refused",
            "endpoints",
            "pod ns1/web-1: is not Ready: container c: readiness probe GET :8080/ready fails",
        ),
        (
            world(NAMED, pods=(CLIENT, WEB1)),
            "svc/web",
            "refused",
            "endpoints",
            "targetPort 'htpp' (TCP) names no containerPort of pod ns1/web-1; it has http 8080/TCP",
        ),
        (
            world(WEB),
            "svc/web",
            "refused",
            "endpoints",
            "Ready, but not in the EndpointSlices",
        ),
        (
            world(make_service()),
            "svc/web",
            "refused",
            "endpoints",
            "no selector and nobody wrote an EndpointSlice",
        ),
        (
            world(LOCAL, E2),
            "svc/web",
            "dropped",
            "endpoints",
            (
                "internalTrafficPolicy is Local, and node node-1 has no endpoint; "
                "there are 1 on node-2"
            ),
        ),
        (
            world(RANGED, E1),
            "172.30.0.200:80",
            "dropped",
            "frontend",
            "open to 192.0.2.0-192.0.2.255\n10.244.1.9 is in none of them",
        ),
        (
            world(WEB, E1),
            "svc/web:81",
            "refused",
            "frontend",
            "TCP 10.96.0.1:81: no Service port there\nservice ns1/web has the ports http 80/TCP",
        ),
        (
            world(WEB, E1),
            "10.96.0.77:80",
            "dropped",
            "frontend",
            "no Service has this address",
        ),
        (
            world(make_service(labels={"service.kubernetes.io/service-proxy-name": "mine"}), E1),
            "svc/web",
            "dropped",
            "frontend",
            "served by another proxy (mine)",
        ),
        (
            world(WEB, E1, reports={"node-1": report(revision=6)}),
            "svc/web",
            "allowed",
            "programmed",
            "node node-1 is behind: it has 6, the newest is 7",
        ),
        (
            world(WEB, E1, reports={"node-1": report(error="no memory")}),
            "svc/web",
            "allowed",
            "programmed",
            "the kernel refused the newest state: no memory",
        ),
        (
            world(WEB, E1, reports={"node-1": NodeReport(node="node-1", **CIDRS)}),
            "svc/web",
            "allowed",
            "programmed",
            "has not programmed the Service yet",
        ),
    ],
)
def test_reasons(where: World, to: str, expected: str, name: str, words: str) -> None:
    found = ask(where, to=to)
    assert found.expected == expected
    assert words in text_of(found, name)
    assert not step(found, name).ok
    assert found.reason


def test_a_node_that_cannot_be_asked_leaves_the_question_open() -> None:
    found = ask(world(WEB, E1, reports={"node-1": "cannot be asked: x"}))
    assert step(found, "programmed").ok
    assert "unknown" in text_of(found, "programmed")


def test_another_back_end_means_the_same_by_rules_of_its_own() -> None:
    other = msgspec.structs.replace(report(), backend="iptables")
    found = ask(world(WEB, E1, reports={"node-1": other}))
    assert found.expected == "allowed"
    assert any("-j DNAT --to-destination 10.244.1.2:8080" in rule for rule in found.rules)
    refused = ask(world(WEB, E1, reports={"node-1": other}), to="svc/web:81")
    assert refused.expected == "refused"
    assert "REJECT" in refused.rules[-1]


def _with_policy(where: World, rule: str, nodes: frozenset[str]) -> World:
    """A NetworkPolicy for the endpoints with one ingress rule, enforced on `nodes`."""
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "ns1"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": rule}}}]}],
        },
    }
    policy = read_policy(Document("p", document))
    static = make_static(where.snapshot, where.services, [policy])
    return dataclasses.replace(where, static=static, enforcing=nodes)


def test_policies_are_asked_behind_the_choice_of_an_endpoint() -> None:
    everywhere = frozenset({"node-1", "node-2"})
    found = ask(_with_policy(world(WEB, E1, E2), "client", everywhere))
    assert (found.expected, step(found, "policies").ok) == ("allowed", True)
    assert "ingress: NetworkPolicy ns1/p spec.ingress[0]" in text_of(found, "policies")
    found = ask(_with_policy(world(WEB, E1, E2), "other", everywhere))
    assert (found.expected, step(found, "policies").ok) == ("dropped", False)
    told = text_of(found, "policies")
    assert told.startswith("deny it\ningress of ns1/web-1: isolated by NetworkPolicy ns1/p")
    assert "podSelector: wants app=other, is app=client" in told
    assert found.reason.startswith("policies deny it; ingress of ns1/web-1")


def test_policies_deny_only_where_they_are_enforced() -> None:
    found = ask(_with_policy(world(WEB, E1, E2), "other", frozenset({"node-2"})))
    assert found.expected == "allowed"
    assert "deny 1 of 2 endpoints" in text_of(found, "policies")
    assert "denied but not enforced: ns1/web-1" in text_of(found, "policies")
    found = ask(_with_policy(world(WEB, E1), "other", frozenset({"node-1"})), to="10.244.1.2:8080")
    assert found.expected == "dropped"


def test_another_service_has_the_address() -> None:
    lb: dict[str, Any] = {"type": "LoadBalancer", "ingress": [{"ip": "172.30.0.200"}]}
    mine = make_service(selector={"app": "web"}, **lb)
    older = versioned(make_service("older", clusterIP="10.96.0.2", **lb), created="2025-01-01")
    found = ask(world(mine, E1, others=(older,)), to="172.30.0.200:80")
    assert "is the LoadBalancer of service ns1/older" in text_of(found, "frontend")


def test_a_pod_is_reached_without_any_service() -> None:
    found = ask(world(WEB, E1), to="web-2:9999")
    assert found.expected == "unknown"
    assert "pod ns1/web-2 declares 8080" in text_of(found, "frontend")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"clusterIP": "None"}, "is headless"),
        ({"type": "ExternalName", "externalName": "example.com"}, "alias in DNS for example.com"),
        ({"clusterIP": "fd00:96::1"}, "no cluster IP of a family"),
    ],
)
def test_what_has_no_packet_is_answered_in_words(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(Unanswerable, match=words):
        ask(world(make_service(**spec)))


@pytest.mark.parametrize(
    ("to", "error", "words"),
    [
        ("svc/nope", NotFoundError, 'services "nope" not found in namespace ns1'),
        ("svc/other/web", NotFoundError, "there is ns1/web"),
        ("svc/web:dns", UsageError, "has no port dns; it has http 80/TCP"),
        ("10.96.0.1", UsageError, "needs a port"),
        ("node/nope:80", NotFoundError, 'nodes "nope" not found'),
        ("web:80", NotFoundError, "the Service is svc/ns1/web"),
        ("web-1:99999", UsageError, "between 1 and 65535"),
    ],
)
def test_bad_destinations(to: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ask(world(WEB, E1), to=to)


def test_a_source_that_sends_nothing() -> None:
    ended = pod("job", status={"phase": "Succeeded"})
    with pytest.raises(Unanswerable, match="has ended"):
        find_source(world(WEB, pods=(ended,)), "ns1/job")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pod("p"), ""),
        (pod("p", node="", ip=""), "is not scheduled"),
        (pod("p", status={"phase": "Failed"}), "has ended (Failed)"),
        (pod("p", ip=""), "has no address yet"),
        (
            pod(
                "p",
                ready=False,
                status={
                    "containerStatuses": [
                        {"name": "c", "state": {"waiting": {"reason": "ErrImagePull"}}}
                    ]
                },
            ),
            "container c waits: ErrImagePull",
        ),
        (
            pod(
                "p",
                ready=False,
                status={
                    "containerStatuses": [{"name": "c", "state": {"running": {}}, "started": False}]
                },
                container={"startupProbe": {"tcpSocket": {"port": 80}}},
            ),
            "startup probe tcp :80 not passed",
        ),
    ],
)
def test_why_a_pod_is_no_endpoint(given: Pod, words: str) -> None:
    found = why_not_ready(given)
    assert (words in found) if words else found == ""


def test_many_unready_pods_are_cut_short() -> None:
    pods = [pod(f"w-{n}", ready=False) for n in range(6)]
    found = why_no_endpoints(WEB, None, [], pods)
    assert len(found) == 4
    assert found[-1] == "and 3 more pods"


def test_a_port_of_a_sidecar_is_a_name_too() -> None:
    """KEP-753: the slices are behind, the name is right."""
    ports = [{"name": "http", "containerPort": 8080}]
    sidecar = {"name": "s", "restartPolicy": "Always", "ports": ports}
    given = pod("w", ports=(), initContainers=[sidecar])
    (reason,) = why_no_endpoints(WEB, WEB.spec.ports[0], [], [given])
    assert "not in the EndpointSlices" in reason


# --- model and packet ---------------------------------------------------------------------------

ALLOWED = ask(world(WEB, E1, E2))
REFUSED = ask(world(SELECTOR))
RULES = ALLOWED.rules
SOME = {"a": "refused", "b": "allowed"}


@pytest.mark.parametrize(
    ("model", "live", "agreement", "allowed"),
    [
        (ALLOWED, Live(verdict="allowed", rules=RULES, trace=("x",)), "agrees", True),
        (ALLOWED, Live(verdict="allowed", rules=RULES[:-1], trace=("x",)), "bug", True),
        (ALLOWED, Live(verdict="allowed"), "agrees", True),
        (ALLOWED, Live(verdict="refused", direct={"a": "refused"}), "endpoint", False),
        (
            ALLOWED,
            Live(verdict="refused", direct={"a": "refused", "b": "allowed"}),
            "endpoint",
            False,
        ),
        (ALLOWED, Live(verdict="dropped", direct={"a": "allowed"}), "bug", False),
        (ALLOWED, Live(verdict="error", detail="no"), "untested", True),
        (ALLOWED, None, "untested", True),
        (REFUSED, Live(verdict="refused"), "agrees", False),
        (REFUSED, Live(verdict="rejected"), "agrees", False),
        (REFUSED, Live(verdict="allowed"), "bug", True),
        (REFUSED, Live(verdict="dropped"), "bug", False),
        (
            msgspec.structs.replace(ALLOWED, protocol="udp"),
            Live(verdict="dropped"),
            "endpoint",
            False,
        ),
        (
            msgspec.structs.replace(ALLOWED, source="outside"),
            Live(verdict="rejected", detail="net unreachable"),
            "unreached",
            False,
        ),
        (
            ask(world(WEB, E1, reports={"node-1": report(revision=6)})),
            Live(verdict="refused"),
            "agrees",
            False,
        ),
    ],
)
def test_judgement(model: Explanation, live: Live | None, agreement: str, allowed: bool) -> None:
    found = judge(model, live)
    assert (found.agreement, found.allowed) == (agreement, allowed)
    assert found.summary


def test_a_trace_is_read_as_the_model_speaks() -> None:
    def hit(chain: str, rule: str, packet: int = 1, handle: int = 4) -> TraceHit:
        return TraceHit("ip", "podwire-services", chain, "rule", packet, "", handle, rule)

    hits = [
        hit("prerouting", "jump dispatch"),
        hit("dispatch", "x"),
        hit("dispatch", "", handle=0),
        hit("postrouting", "y"),
        hit("prerouting", "later", packet=2),
    ]
    assert choosing_rules(first_packet(hits)) == ("prerouting: jump dispatch", "dispatch: x")
    assert first_packet([]) == []


def test_source_ports_are_part_of_probes() -> None:
    assert Probe(address="10.0.0.1", source_port=61000).source_port == 61000
