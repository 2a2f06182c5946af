"""Recommended policies leave open what was seen, isolate nobody by accident, and close the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.errors import RecommendationError
from podwire.objects.meta import JsonObject, Key
from podwire.policy import ports
from podwire.policy.evaluate import Flow, Party, PolicySet, evaluate, selects
from podwire.policy.flowlog import End, FlowRecord, Said, Verdict
from podwire.policy.flowneeds import FlowOptions, Known, needs_of_flows
from podwire.policy.model import Direction, PodsPeer, PortRange
from podwire.policy.needs import (
    Need,
    Observed,
    Workload,
    WorkloadRef,
    group_by_labels,
    select_labels,
)
from podwire.policy.recommend import (
    CLUSTER_DNS,
    Options,
    Recommendation,
    Wanted,
    check,
    read_back,
    recommend,
)
from podwire.policy.world import NodeView, PodView, World, make_world

NODE = NodeView("n1", {}, (ip_address("172.30.0.2"),))


def _pod(name: str, last: int, namespace: str = "shop", **labels: str) -> PodView:
    return PodView(Key(namespace, name), labels, (ip_address(f"10.0.0.{last}"),), "n1")


WEB = _pod("web-7d4-x", 1, app="web", **{"pod-template-hash": "7d4"})
DB = _pod("db-0", 2, app="db", **{"statefulset.kubernetes.io/pod-name": "db-0"})
BATCH = _pod("batch-x", 3, app="batch")
OTHER = _pod("other-x", 4, "far", app="other")
PODS = {pod.key: pod for pod in (WEB, DB, BATCH, OTHER)}
WORLD = make_world(PODS.values(), nodes=[NODE])
KNOWN = Known(WORLD, group_by_labels(PODS.values()), complete=True)


def _end(owner: PodView | NodeView | str) -> End:
    if isinstance(owner, str):
        return End(owner)
    if isinstance(owner, NodeView):
        return End(str(owner.ips[0]), "Node", "", owner.name)
    return End(str(owner.ips[0]), "Pod", owner.key.namespace, owner.key.name, owner.labels)


def _record(
    source: PodView | NodeView | str,
    destination: PodView | NodeView | str,
    port: int = 80,
    protocol: str = "TCP",
    verdict: Verdict = "allowed",
) -> FlowRecord:
    said = Said(verdict, "")
    return FlowRecord(_end(source), _end(destination), protocol, port, verdict, said, said)


def _from(
    *records: FlowRecord, known: Known = KNOWN, options: Options | None = None, **flows: object
) -> Recommendation:
    found = needs_of_flows(records, known, FlowOptions(**flows))  # type: ignore[arg-type]
    return recommend(found.wanted, options or Options())


def _manifest(found: Recommendation, name: str) -> JsonObject:
    return next(m for m in found.manifests if m["metadata"]["name"] == name)


def _opens(found: Recommendation, source: PodView | str, destination: PodView, port: int) -> bool:
    client = Party(ip_address(source)) if isinstance(source, str) else Party(source.ips[0], source)
    flow = Flow(client, Party(destination.ips[0], destination), 6, port)
    return evaluate(flow, PolicySet(found.policies), WORLD).allowed


# --- from flows ---------------------------------------------------------------------------------


def test_a_flow_gives_both_ends_a_policy() -> None:
    found = _from(_record(WEB, DB, 5432), _record(WEB, DB, 5433), _record(WEB, DB, 53, "UDP"))
    assert [m["metadata"]["name"] for m in found.manifests] == ["db", "web"]
    db = _manifest(found, "db")["spec"]
    assert db["podSelector"] == {"matchLabels": {"app": "db"}}
    assert db["policyTypes"] == ["Ingress", "Egress"]
    assert db["ingress"] == [
        {
            "from": [{"podSelector": {"matchLabels": {"app": "web"}}}],
            "ports": [
                {"protocol": "TCP", "port": 5432, "endPort": 5433},
                {"protocol": "UDP", "port": 53},
            ],
        }
    ]
    dns = {
        "to": [
            {
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": "kube-system"}
                },
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }
        ],
        "ports": [{"protocol": "TCP", "port": 53}, {"protocol": "UDP", "port": 53}],
    }
    assert db["egress"] == [dns]
    assert dns in _manifest(found, "web")["spec"]["egress"]
    assert _opens(found, WEB, DB, 5432)
    assert not _opens(found, WEB, DB, 5434)
    assert not _opens(found, BATCH, DB, 5432)
    assert found.checked == 3


def test_idle_pods_are_left_alone_and_named() -> None:
    found = _from(_record(WEB, DB))
    assert [str(ref) for ref in found.idle] == ["far/other[Pod]", "shop/batch[Pod]"]
    assert not any(selects(p.subject, BATCH, WORLD) for p in found.policies)
    assert "batch" in found.open_namespaces["shop"]
    assert found.quiet == ("shop/db[Pod] egress", "shop/web[Pod] ingress")


def test_idle_pods_are_isolated_on_purpose() -> None:
    found = _from(_record(WEB, DB), options=Options(include_idle=True))
    assert found.idle == ()
    assert _manifest(found, "default-deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    assert not _opens(found, WEB, BATCH, 80)


def test_default_deny_where_nobody_is_idle() -> None:
    found = _from(_record(WEB, DB), _record(BATCH, OTHER, 8080))
    assert [
        m["metadata"]["namespace"]
        for m in found.manifests
        if m["metadata"]["name"] == "default-deny"
    ] == ["far", "shop"]
    (rule,) = _manifest(found, "other")["spec"]["ingress"]
    assert rule["from"] == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
            "podSelector": {"matchLabels": {"app": "batch"}},
        }
    ]


def test_without_the_other_pods_no_default_deny() -> None:
    found = _from(_record(WEB, DB), known=Known())
    assert [m["metadata"]["name"] for m in found.manifests] == ["db", "web"]
    assert found.open_namespaces == {"shop": "nobody knows which other pods it has"}
    assert found.idle == ()


def test_one_direction_first() -> None:
    found = _from(_record(WEB, DB), options=Options(directions=("ingress",)))
    assert {tuple(m["spec"]["policyTypes"]) for m in found.manifests} == {("Ingress",)}
    assert all("egress" not in m["spec"] for m in found.manifests)


def test_outsiders_are_addresses_or_networks_around_them() -> None:
    flows = [_record("203.0.113.7", WEB), _record("203.0.113.6", WEB), _record("2001:db8::1", WEB)]
    (rule,) = _manifest(_from(*flows), "web")["spec"]["ingress"]
    blocks = [peer["ipBlock"]["cidr"] for peer in rule["from"]]
    assert blocks == ["203.0.113.6/31", "2001:db8::1/128"]
    wide = _from(*flows, prefixes={4: 24, 6: 64})
    (rule,) = _manifest(wide, "web")["spec"]["ingress"]
    assert [p["ipBlock"]["cidr"] for p in rule["from"]] == ["203.0.113.0/24", "2001:db8::/64"]
    assert wide.warnings == ()
    reckless = _from(_record("10.0.0.77", WEB), prefixes={4: 24, 6: 64})
    assert "addresses of the cluster are in it" in reckless.warnings[0]


def test_nodes_are_addresses_with_a_warning_and_own_nodes_need_nothing() -> None:
    far = NodeView("n2", {}, (ip_address("172.30.0.3"),))
    known = replace(KNOWN, world=make_world(PODS.values(), nodes=[NODE, far]))
    found = _from(_record(far, WEB), _record(NODE, DB), known=known)
    (rule,) = _manifest(found, "web")["spec"]["ingress"]
    assert rule["from"] == [{"ipBlock": {"cidr": "172.30.0.3/32"}}]
    assert "talks with node n2 (172.30.0.3)" in found.warnings[0]
    assert "shop/db[Pod]" in map(str, found.idle)


def test_icmp_is_left_out_or_opens_all_ports() -> None:
    ping = _record(WEB, DB, 0, "1")
    found = _from(ping, _record(WEB, DB, 80))
    assert found.checked == 1
    assert "without ports (ICMP)" in found.warnings[0]
    (rule,) = _manifest(_from(ping, icmp=True), "db")["spec"]["ingress"]
    assert "ports" not in rule


def test_denied_flows_ask_for_nothing() -> None:
    found = needs_of_flows([_record(WEB, DB, verdict="denied")], KNOWN)
    assert (found.denied, found.wanted.needs) == (1, [])
    assert recommend(found.wanted).manifests == ()


def test_a_pod_that_meets_itself_through_a_service_may_go_on() -> None:
    found = _from(_record(WEB, WEB, 8080))
    assert _manifest(found, "web")["spec"]["ingress"][0]["from"] == [
        {"podSelector": {"matchLabels": {"app": "web"}}}
    ]


def test_labels_that_would_select_idle_pods_are_narrowed() -> None:
    front = _pod("a", 5, app="web", tier="front")
    idle = _pod("b", 6, app="web", tier="back")
    loose = Workload(
        WorkloadRef("shop", "Deployment", "a"), select_labels({"app": "web"}), (front,)
    )
    rest = Workload(
        WorkloadRef("shop", "Deployment", "b"), select_labels({"tier": "back"}), (idle,)
    )
    known = Known(make_world([front, idle]), [loose, rest], complete=True)
    found = _from(_record("203.0.113.7", front), known=known)
    (manifest,) = found.manifests
    assert manifest["spec"]["podSelector"] == {"matchLabels": {"app": "web", "tier": "front"}}
    twin = replace(idle, labels=front.labels)
    known = Known(make_world([front, twin]), [loose, replace(rest, pods=(twin,))], complete=True)
    found = _from(_record("203.0.113.7", front), known=known)
    assert found.manifests == ()
    assert "labels would select pods" in found.unselected[loose.ref]


def test_pods_without_labels_are_told() -> None:
    bare = _pod("bare", 9)
    known = Known(make_world([bare, WEB]), group_by_labels([bare, WEB]), complete=True)
    found = _from(_record(bare, WEB), known=known)
    assert [str(ref) for ref in found.unselected] == ["shop/bare[Pod]"]
    assert "cannot be selected" in found.open_namespaces["shop"]
    assert any("every pod of namespace shop" in text for text in found.warnings)


def test_pods_of_flows_join_the_workload_of_the_files() -> None:
    template = PodView(Key("shop", "web[Deployment]"), {"app": "web"})
    home = Workload(
        WorkloadRef("shop", "Deployment", "web"), select_labels({"app": "web"}), (template,)
    )
    known = Known(make_world([template]), [home], complete=True)
    found = needs_of_flows([_record("203.0.113.7", WEB)], known)
    (joined,) = found.wanted.workloads
    assert (joined.ref, [pod.key for pod in joined.pods]) == (home.ref, [WEB.key])
    assert set(found.wanted.world.pods) == {WEB.key}


def test_dns_servers_answer_everybody() -> None:
    dns = _pod("coredns-x", 8, "kube-system", **{"k8s-app": "kube-dns"})
    known = Known(make_world([dns, WEB]), group_by_labels([dns, WEB]), complete=True)
    found = _from(_record(WEB, dns, 53, "UDP"), known=known)
    rules = _manifest(found, "kube-dns")["spec"]["ingress"]
    assert {"from": [{"namespaceSelector": {}}], "ports": [
        {"protocol": "TCP", "port": 53}, {"protocol": "UDP", "port": 53}
    ]} in rules  # fmt: skip


def test_the_effect_is_counted_in_pairs() -> None:
    effect = _from(_record(WEB, DB), _record(BATCH, OTHER)).effect
    assert (effect.pairs, effect.open_before, effect.open_after, effect.narrowed) == (12, 12, 2, 2)
    assert effect.closed == 10


def test_a_recommendation_that_denies_what_was_seen_is_an_error() -> None:
    found = _from(_record(WEB, DB))
    flow = Flow(Party(WEB.ips[0], WEB), Party(DB.ips[0], DB), 6, 81)
    with pytest.raises(RecommendationError, match=r"would deny web to db:81$"):
        check(found.policies, [Observed(flow, "web to db:81")], WORLD)
    subject = WorkloadRef("shop", "Pod", "db")
    wanted = Wanted(
        WORLD, KNOWN.workloads, [Need(subject, "egress", None, ports.ALL)],
        [Observed(flow, "web to db:81")],
    )  # fmt: skip
    with pytest.raises(RecommendationError):
        recommend(wanted)


def test_staged_recommendations_enforce_nothing_yet() -> None:
    found = _from(_record(WEB, DB), options=Options(staged=True))
    annotations = {
        m["metadata"]["annotations"]["policy.podwire.dev/stage"] for m in found.manifests
    }
    assert annotations == {"true"}


def test_names_tell_kinds_apart_only_where_they_must() -> None:
    both = [
        replace(w, ref=WorkloadRef("shop", kind, "x"))
        for kind, w in zip(("Deployment", "Job"), KNOWN.workloads[1:3], strict=True)
    ]
    needs = [Need(w.ref, "ingress", None, ports.of_ranges([PortRange(6, 80, 80)])) for w in both]
    found = recommend(Wanted(WORLD, both, needs))
    names = [m["metadata"]["name"] for m in found.manifests]
    assert names == ["default-deny", "x-deployment", "x-job"]


# --- random worlds ------------------------------------------------------------------------------

_LABELS = st.dictionaries(
    st.sampled_from(["app", "tier", "pod-template-hash"]), st.sampled_from("ab"), max_size=3
)


@st.composite
def _worlds(draw: st.DrawFn) -> World:
    """hostNetwork pods too: flow logs know them as their nodes."""
    pods = [
        PodView(
            Key(draw(st.sampled_from(["x", "y", "kube-system"])), f"p{i}"),
            draw(_LABELS),
            NODE.ips if draw(st.integers(0, 5)) == 0 else (ip_address(f"10.0.0.{i + 1}"),),
            draw(st.sampled_from(["n1", "n2", ""])),
        )
        for i in range(draw(st.integers(1, 6)))
    ]
    marked = [replace(pod, host_network=pod.ips == NODE.ips) for pod in pods]
    return make_world(marked, nodes=[NODE, NodeView("n2", {}, (ip_address("172.30.0.3"),))])


@st.composite
def _cases(draw: st.DrawFn) -> tuple[World, list[FlowRecord]]:
    world = draw(_worlds())
    owners: Sequence[PodView | NodeView | str] = [
        *(pod for pod in world.pods.values() if not pod.host_network),
        *world.nodes.values(),
        "203.0.113.7",
        "10.0.0.99",
    ]
    end = st.sampled_from(owners)
    record = st.builds(
        _record,
        end,
        end,
        st.sampled_from([1, 53, 80, 81, 65535]),
        st.sampled_from(["TCP", "UDP", "SCTP"]),
        st.sampled_from(["allowed", "allowed", "denied"]),
    )
    return world, draw(st.lists(record, max_size=8))


@given(
    _cases(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([("egress", "ingress"), ("ingress",)]),
    st.sampled_from([{4: 32, 6: 128}, {4: 24, 6: 64}, {4: 0, 6: 0}]),
)
def test_what_was_seen_stays_possible_and_idle_pods_stay_free(
    case: tuple[World, list[FlowRecord]],
    told: bool,
    include_idle: bool,
    directions: tuple[Direction, ...],
    prefixes: dict[int, int],
) -> None:
    world, records = case
    known = Known(world, group_by_labels(world.pods.values()), True) if told else Known()
    found = needs_of_flows(records, known, FlowOptions(prefixes))
    result = recommend(found.wanted, Options(directions, include_idle))
    policies = PolicySet(result.policies)
    assert all(
        evaluate(each.flow, policies, found.wanted.world).allowed for each in found.wanted.observed
    )
    busy = {
        Key(end.namespace, end.name)
        for r in records
        if r.verdict == "allowed"
        for end in (r.source, r.destination)
    }
    if told and not include_idle:
        groups = [w for w in known.workloads if not any(p.key in busy for p in w.pods)]
        for pod in (pod for group in groups for pod in group.pods):
            assert not any(selects(p.subject, pod, world) for p in result.policies)
    for manifest, policy in zip(result.manifests, result.policies, strict=True):
        assert read_back(manifest) == policy
        assert "pod-template-hash" not in str(manifest)


def test_the_default_dns_servers_are_kube_dns() -> None:
    assert isinstance(CLUSTER_DNS.peer, PodsPeer)
    assert str(CLUSTER_DNS.peer.pods) == "k8s-app=kube-dns"
