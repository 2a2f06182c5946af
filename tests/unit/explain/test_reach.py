"""From objects to questions, and from answers to what people read."""

from __future__ import annotations

import msgspec
import pytest

from podwire.client import Api
from podwire.errors import ApiError, UsageError
from podwire.explain.endpoints import Port, Snapshot, list_endpoints
from podwire.explain.live import probe_plan
from podwire.explain.probes.wire import (
    Identity,
    Probe,
    ProbeRequest,
    ProbeResponse,
    ProbeResult,
    encode,
    parse_identity,
    parse_request,
)
from podwire.explain.reach import Reachability, ReachOptions, merge, parse_port, plan_reach
from podwire.explain.render import (
    build_matrix,
    render_connlist,
    render_dot,
    render_json,
    render_matrix,
    render_mermaid,
    render_summary,
)
from podwire.explain.selectors import select


def asked(snapshot: Snapshot, options: ReachOptions) -> list[str]:
    plan = plan_reach(snapshot, options)
    return [
        f"{plan.sources[q.source].key}>{plan.destinations[q.destination].key} {q.port}"
        for q in plan.questions
    ]


def test_every_pod_asks_every_other_on_its_declared_ports(shop: Snapshot) -> None:
    questions = asked(shop, ReachOptions())
    assert len(questions) == 4 * 4 - 4 + 3  # api has two ports, asked by three others
    assert "shop/web-7d9f-a>shop/api-0 TCP 8080" in questions
    assert "shop/web-7d9f-a>shop/api-0 UDP 53" in questions
    assert "shop/api-0>shop/web-7d9f-a ICMP" in questions  # declares nothing
    assert not any("late" in question for question in questions)
    assert plan_reach(shop).skipped == {"shop/late": "has no address yet"}


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("shop/web-7d9f-a", ["shop/web-7d9f-a"]),
        ("shop/web", ["shop/web-7d9f-a", "shop/web-7d9f-b"]),
        ("web", ["shop/web-7d9f-a", "shop/web-7d9f-b"]),
        ("shop/", ["shop/api-0", "shop/web-7d9f-a", "shop/web-7d9f-b"]),
        ("shop/web-*", ["shop/web-7d9f-a", "shop/web-7d9f-b"]),
        ("app=api", ["shop/api-0"]),
        ("shop/app in (api,web)", ["shop/api-0", "shop/web-7d9f-a", "shop/web-7d9f-b"]),
        ("shop/app!=web", ["shop/api-0"]),
        ("app.kubernetes.io/name=db", ["data/db"]),
        ("!app", ["data/db"]),
        ("*/app=web,pod-template-hash", ["shop/web-7d9f-a", "shop/web-7d9f-b"]),
        ("node-1", ["node/node-1"]),
        ("node/*", ["node/node-1", "node/node-2"]),
        ("outside", ["outside"]),
    ],
)
def test_selectors(shop: Snapshot, selector: str, wanted: list[str]) -> None:
    endpoints, _ = list_endpoints(shop)
    assert [e.key for e in select(endpoints, [selector])] == wanted


@pytest.mark.parametrize("selector", ["", "shop/nobody", "app=nobody", "shop/=x", "node/node-9"])
def test_selectors_that_mean_nobody_are_errors(shop: Snapshot, selector: str) -> None:
    endpoints, _ = list_endpoints(shop)
    with pytest.raises(UsageError, match="selector"):
        select(endpoints, [selector])


def test_ports_are_chosen_or_refused(shop: Snapshot) -> None:
    options = ReachOptions(["web"], ["db"], ports=["80", "53/udp", "icmp"])
    assert [q.split(" ", 1)[1] for q in asked(shop, options)][:3] == ["TCP 80", "UDP 53", "ICMP"]
    assert parse_port("9/sctp") == Port(9, "SCTP")
    for bad in ("0", "70000", "x", "80/quic", ""):
        with pytest.raises(UsageError, match="port"):
            parse_port(bad)


def test_probes_go_to_the_sources_node(shop: Snapshot) -> None:
    plan = plan_reach(shop, ReachOptions(["web", "node-2", "outside"], ["data/db"], http=True))
    by_node = plan.probes_by_node()
    assert {node: [p.source for _, p in probes] for node, probes in by_node.items()} == {
        "node-1": ["shop/web-7d9f-a"],
        "node-2": ["shop/web-7d9f-b", ""],
        "": ["outside"],
    }
    assert by_node["node-1"][0][1] == Probe(
        source="shop/web-7d9f-a", address="10.244.1.4", port=5432, protocol="http"
    )


def reachability(shop: Snapshot, blocked: str = "") -> Reachability:
    plan = plan_reach(shop)
    results = {
        index: ProbeResult(
            verdict="dropped" if blocked and question_is(plan, index, blocked) else "allowed",
            latency_us=100,
        )
        for index in range(len(plan.questions))
    }
    return merge(plan, results, 0.5)


def question_is(plan: object, index: int, pair: str) -> bool:
    question = plan.questions[index]  # type: ignore[attr-defined]
    source = plan.sources[question.source].key  # type: ignore[attr-defined]
    destination = plan.destinations[question.destination].key  # type: ignore[attr-defined]
    return f"{source}>{destination}" == pair


def test_matrix_of_pods_and_of_workloads(shop: Snapshot) -> None:
    reach = reachability(shop, blocked="shop/web-7d9f-b>shop/api-0")
    assert render_matrix(build_matrix(reach, "pod")) == (
        "                 data/db  shop/api-0  shop/web-7d9f-a  shop/web-7d9f-b\n"
        "data/db          -        ok          ok               ok\n"
        "shop/api-0       ok       -           ok               ok\n"
        "shop/web-7d9f-a  ok       ok          -                ok\n"
        "shop/web-7d9f-b  ok       drop        ok               -\n"
    )
    assert render_matrix(build_matrix(reach, "owner"), width=40) == (
        "                       [1]  [2]     [3]\n"
        "data/db[Pod]           -    ok      ok\n"
        "shop/api[StatefulSet]  ok   -       ok\n"
        "shop/web[Deployment]   ok   2/4 ok  ok\n"
        "\n"
        "[1] data/db[Pod]\n[2] shop/api[StatefulSet]\n[3] shop/web[Deployment]\n"
    )


def test_connlist_names_pods_only_where_they_differ(shop: Snapshot) -> None:
    reach = reachability(shop, blocked="shop/web-7d9f-b>shop/api-0")
    assert render_connlist(reach).splitlines() == [
        "data/db[Pod] => shop/api[StatefulSet] : TCP 8080,UDP 53",
        "data/db[Pod] => shop/web[Deployment] : ICMP",
        "shop/api[StatefulSet] => data/db[Pod] : TCP 5432",
        "shop/api[StatefulSet] => shop/web[Deployment] : ICMP",
        "shop/web-7d9f-a[Pod] => shop/api-0[Pod] : TCP 8080,UDP 53",
        "shop/web[Deployment] => data/db[Pod] : TCP 5432",
        "shop/web[Deployment] => shop/web[Deployment] : ICMP",
    ]


def test_graphs_and_json_and_summary(shop: Snapshot) -> None:
    reach = reachability(shop)
    mermaid, dot = render_mermaid(reach), render_dot(reach)
    assert '  subgraph s1["shop"]\n    n1["api (StatefulSet)"]\n' in mermaid
    assert '  n2 -->|"TCP 8080,UDP 53"| n1\n' in mermaid
    assert '  n2 -> n1 [label="TCP 8080,UDP 53"];\n' in dot
    assert dot.count("{") == dot.count("}")
    document = render_json(reach)
    assert b'"apiVersion": "podwire.dev/v1alpha1"' in document
    assert msgspec.json.decode(document, type=Reachability) == reach
    assert render_summary(reach) == (
        "15 of 15 allowed in 0.5 s (median 100 us); 1 pods cannot talk yet"
    )


def test_replicas_can_be_sampled(shop: Snapshot) -> None:
    plan = plan_reach(shop, ReachOptions(per_owner=1))
    assert [e.key for e in plan.sources] == ["data/db", "shop/api-0", "shop/web-7d9f-a"]


class FakeApi(Api):
    """Answers probes from a function; `broken` nodes answer with an error."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.sent: dict[str, int] = {}

    async def request(self, method: str, path: str, **kwargs: object) -> bytes:  # type: ignore[override]
        node = path.split("/")[4]
        if node == self.broken:
            raise ApiError("error trying to reach the node", code=503)
        request = parse_request(kwargs["body"])  # type: ignore[arg-type]
        self.sent[node] = self.sent.get(node, 0) + len(request.probes)
        results = tuple(ProbeResult(verdict="allowed", client="10.9.9.9") for _ in request.probes)
        return encode(ProbeResponse(results=results, elapsed_s=0.0))


async def test_a_node_that_is_gone_spoils_only_its_own_answers(shop: Snapshot) -> None:
    plan = plan_reach(shop, ReachOptions(["web", "outside"], ["data/db", "shop/api-0"]))
    api, seen = FakeApi(broken="node-2"), []
    reach = await probe_plan(api, plan, lambda done, total: seen.append((done, total)))
    assert reach.verdicts() == {"allowed": 6, "error": 3}
    assert "node node-2: cannot be asked" in reach.find("shop/web-7d9f-b", "data/db")[0].detail
    assert seen[-1] == (9, 9)
    assert len(reach.translated()) == 6


@pytest.mark.parametrize(
    ("client", "wanted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1:99", "10.0.0.1"),
        ("[fd00::1]:99", "fd00::1"),
        ("fd00::1", "fd00::1"),
        ("[::ffff:10.0.0.1]:99", "10.0.0.1"),
        ("nonsense", ""),
    ],
)
def test_identity_of_a_stand_in(client: str, wanted: str) -> None:
    body = msgspec.json.encode({"namespace": "a", "pod": "b", "node": "n", "client": client})
    assert parse_identity(body) == Identity("a", "b", "n", wanted)
    assert parse_identity(body).peer == "a/b"


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"pod": 7, "client": []}', b"\xff"])
def test_anything_else_has_no_identity(body: bytes) -> None:
    assert parse_identity(body) == Identity()


@pytest.mark.parametrize(
    "probe",
    [
        Probe(address="nowhere", port=80),
        Probe(address="10.0.0.1", port=0),
        Probe(address="10.0.0.1", port=70000),
        Probe(address="10.0.0.1", port=80, timeout_s=0),
        Probe(address="10.0.0.1", port=80, source_address="fd00::1"),
        Probe(address="10.0.0.1", port=80, protocol="http", path="/ HTTP/1.1\r\nX: y"),
    ],
)
def test_bad_probes_are_refused(probe: Probe) -> None:
    with pytest.raises(UsageError, match="probe 0"):
        parse_request(encode(ProbeRequest(probes=(probe,))))
    with pytest.raises(UsageError):
        parse_request(b"{")
