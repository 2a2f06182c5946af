"""What staged policies would do to the flows that were seen, and what nobody saw."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec
import pytest

from podwire.errors import UsageError
from podwire.objects.meta import Key
from podwire.policy.flowdocument import FlowLogDocument, duration, merge_documents, read_flow_log
from podwire.policy.flowlog import End, FlowLog, FlowRecord, Said, Seen
from podwire.policy.model import PodsPeer, Policy, PolicyRef, Rule, Tier
from podwire.policy.selector import Expression, Selector
from podwire.policy.staging import (
    COLUMNS,
    is_staged,
    report_staged,
    rows,
    stage_namespaces,
    summary,
    with_stage,
)
from podwire.policy.verdicts import Verdicts
from podwire.policy.world import PodView, make_world

A, B, OUT = "10.0.0.1", "10.0.0.2", "203.0.113.10"
REF = PolicyRef("NetworkPolicy", "shop", "only-a")
ONLY_A = Policy(
    REF,
    Tier.NETWORK_POLICY,
    PodsPeer(Selector((Expression("app", "In", ("b",)),)), "shop"),
    (
        Rule(
            REF,
            "ingress",
            0,
            peers=(PodsPeer(Selector((Expression("app", "In", ("a",)),)), "shop"),),
        ),
    ),
    (),
    frozenset({"ingress"}),
    staged=True,
)
WORLD = make_world(
    [
        PodView(Key("shop", "a"), {"app": "a"}, (ip_address(A),), "n"),
        PodView(Key("shop", "b"), {"app": "b"}, (ip_address(B),), "n"),
    ]
)


def _log(*policies: Policy) -> FlowLog:
    log = FlowLog("n")
    log.know(Verdicts(WORLD, policies), Verdicts(WORLD, policies, staged=True))
    return log


def _seen(src: str, dst: str, port: int = 80, *, passed: bool = True) -> Seen:
    return Seen(ip_address(src).packed, ip_address(dst).packed, 6, port, passed)


def _document(log: FlowLog, **said: object) -> FlowLogDocument:
    known = {"nodes": ("n1",), "since": 0.0, "until": 3600.0, "lost": 0, "forgotten": 0}
    return FlowLogDocument(records=tuple(log.records()), **{**known, **said})  # type: ignore[arg-type]


def test_flows_that_would_be_denied_are_named_with_who_denies() -> None:
    log = _log(ONLY_A)
    log.add(_seen(A, B), 10.0)
    log.add(_seen(OUT, B), 20.0)
    log.add(_seen(OUT, B), 70.0)
    report = report_staged(_document(log))
    (flow,) = report.flows
    assert (flow.change, flow.source, flow.destination) == ("newly denied", OUT, "shop/b")
    assert (flow.count, flow.first_seen, flow.last_seen) == (2, 20.0, 70.0)
    assert flow.by == (str(REF),)
    assert (report.unchanged, report.unjudged, report.doubts) == (1, 0, ())
    (row,) = rows(report)
    assert len(row) == len(COLUMNS)
    assert list(summary(report)) == [
        "1 of 2 kinds of connections would newly be denied, 0 newly allowed",
        "watched by 1 nodes: 1970-01-01T00:00:00Z to 1970-01-01T01:00:00Z (1h)",
        "nothing was lost, every node answered",
    ]


def test_flows_that_would_be_allowed_are_named_with_the_rule() -> None:
    """A staged rule opens what an enforced policy closes."""
    deny = Policy(
        PolicyRef("NetworkPolicy", "shop", "deny"),
        Tier.NETWORK_POLICY,
        PodsPeer(namespace="shop"),
        isolates=frozenset({"ingress"}),
    )
    log = _log(deny, ONLY_A)
    log.add(_seen(A, B, passed=False), 1.0)
    (flow,) = report_staged(_document(log)).flows
    assert (flow.change, flow.by) == ("newly allowed", (f"{REF} spec.ingress[0]",))


def test_what_was_not_seen_is_told() -> None:
    log = _log(ONLY_A)
    log.add(_seen(A, B), 10.0)
    told = summary(report_staged(_document(log, lost=3, forgotten=4, silent={"n2": "no route"})))
    assert list(told)[2:] == [
        "3 packets were lost before they were read",
        "4 records were forgotten to make room",
        "node n2 did not answer: no route",
    ]
    untold = report_staged(FlowLogDocument(records=tuple(log.records())))
    assert untold.doubts == ("the flow log does not say what it lost",)


def test_flows_from_before_staging_are_not_judged() -> None:
    record = FlowRecord(
        End(A), End(B), "TCP", 80, "allowed", Said("allowed", ""), Said("allowed", "")
    )
    report = report_staged(FlowLogDocument(records=(record,)))
    assert (report.unjudged, report.unchanged, report.flows) == (1, 0, ())
    assert any("before anything was staged" in line for line in summary(report))


# --- documents ----------------------------------------------------------------------------------


def test_documents_of_nodes_become_one() -> None:
    one, two = _log(), _log()
    one.add(_seen(A, B), 10.0)
    two.add(_seen(A, B), 11.0)
    merged = merge_documents(
        [
            _document(one, since=5.0, until=60.0, lost=1),
            _document(two, nodes=("n2",), since=9.0, until=50.0, lost=2),
        ],
        {"n3": "gone"},
    )
    assert (merged.nodes, merged.silent) == (("n1", "n2"), {"n3": "gone"})
    assert (merged.since, merged.until, merged.lost, len(merged.records)) == (9.0, 50.0, 3, 1)
    unknown = merge_documents([merged, FlowLogDocument()])
    assert unknown.lost is None


def test_documents_and_lists_of_records_are_read() -> None:
    log = _log()
    log.add(_seen(A, B), 10.0)
    document = _document(log)
    assert read_flow_log(msgspec.json.encode(document), "f") == document
    bare = read_flow_log(msgspec.json.encode(document.records), "f")
    assert (bare.records, bare.lost, bare.first_seen) == (document.records, None, 10.0)


@pytest.mark.parametrize("text", ["{", '{"kind": "Pod"}', '{"records": [{"port": "x"}]}'])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^f: .*not a flow log"):
        read_flow_log(text, "f")


def test_durations_have_two_units() -> None:
    said = [duration(length) for length in (0.25, 59, 3600, 3661, 90_000)]
    assert said == ["0.2s", "59s", "1h", "1h1m", "1d1h"]


# --- which policies -----------------------------------------------------------------------------


def test_a_namespace_stages_its_network_policies_only() -> None:
    near = Policy(PolicyRef("NetworkPolicy", "shop", "x"), Tier.NETWORK_POLICY, PodsPeer())
    far = Policy(PolicyRef("NetworkPolicy", "other", "x"), Tier.NETWORK_POLICY, PodsPeer())
    cluster = Policy(PolicyRef("ClusterNetworkPolicy", "", "x"), Tier.ADMIN, PodsPeer())
    found = stage_namespaces([near, far, cluster], {"shop", ""})
    assert [policy.staged for policy in found] == [True, False, False]


def test_staging_a_manifest_keeps_what_it_says() -> None:
    obj = {"kind": "NetworkPolicy", "metadata": {"name": "x", "annotations": {"a": "b"}}}
    staged = with_stage(obj)
    assert is_staged(staged["metadata"]["annotations"])
    assert staged["metadata"]["annotations"]["a"] == "b"
    assert not is_staged(obj["metadata"]["annotations"])  # type: ignore[index,arg-type]
    assert is_staged(with_stage({"kind": "x", "metadata": None})["metadata"]["annotations"])
