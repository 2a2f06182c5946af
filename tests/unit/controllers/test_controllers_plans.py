"""The smaller plans: replicas, ordinals, jobs, schedules, ranges, taints, owners, events."""

from __future__ import annotations

import datetime as dt
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest

from podwire.client import Change
from podwire.controllers.claims import plan_claims
from podwire.controllers.cronjob import ScheduleError, plan_times
from podwire.controllers.daemonset import (
    FailedBackoff,
    node_of,
    pinned,
    plan_daemon_set,
)
from podwire.controllers.events import EventLimits
from podwire.controllers.garbage import OwnerGraph
from podwire.controllers.nodeipam import CidrSet
from podwire.controllers.nodelife import merge_taints, plan_eviction_s, plan_taints
from podwire.controllers.podcontrol import Expectations
from podwire.controllers.replicaset import plan_replica_set
from podwire.controllers.statefulclaims import stale, wanted_refs
from podwire.controllers.statefulset import plan_stateful_set
from podwire.controllers.views import POD, Pod
from podwire.errors import ExhaustedError
from podwire.objects.apps import DaemonSet, ReplicaSet, StatefulSet
from podwire.objects.core import Node, Taint, Toleration
from podwire.objects.daemons import daemon_template
from podwire.objects.meta import Key, LabelSelector, Object, OwnerReference

NOW = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
READY = [{"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T11:59:55Z"}]


def pod(name: str, *, ready: bool = True, phase: str = "Running", **meta: Any) -> Pod:
    raw = {
        "metadata": {"name": name, "namespace": "ns", "uid": name, **meta},
        "spec": {"nodeName": "n1"},
        "status": {"phase": phase, "conditions": READY if ready else []},
    }
    return msgspec.convert(raw, Pod)


def test_replica_set_counts_creates_and_deletes() -> None:
    rs = msgspec.convert({"spec": {"replicas": 2, "minReadySeconds": 10}}, ReplicaSet)
    plan = plan_replica_set(rs, [pod("a"), pod("b", phase="Failed")], [], NOW)
    assert (plan.create, plan.status["readyReplicas"]) == (1, 1)
    assert plan.status["availableReplicas"] == 0
    assert plan.requeue_s == pytest.approx(5)
    many = [pod("a"), pod("b", ready=False), pod("c")]
    assert [p.metadata.name for p in plan_replica_set(rs, many, many, NOW).delete] == ["b"]


def test_claims() -> None:
    selector = LabelSelector(match_labels={"app": "x"})
    mine, other = pod("a", labels={"app": "x"}), pod("b")
    claims = plan_claims(selector, [mine, other], [pod("c", labels={"app": "x"})], deleting=False)
    assert claims.kept == [mine]
    assert claims.release == [other]
    assert [p.metadata.name for p in claims.adopt] == ["c"]


def test_expectations_end_when_seen() -> None:
    now = [0.0]
    expected = Expectations(lambda: now[0])
    expected.expect_created("o", Key("ns", "a"))
    assert expected.pending_s("o") == 60.0
    expected.observe("o", Change(None, pod("a")))
    assert expected.pending_s("o") is None
    expected.expect_deleted("o", "a")
    now[0] = 61.0
    assert expected.pending_s("o") is None


def stateful(replicas: int = 3, **spec: Any) -> StatefulSet:
    raw = {"metadata": {"name": "db"}, "spec": {"replicas": replicas, **spec}}
    return msgspec.convert(raw, StatefulSet)


def member(i: int, revision: str = "new", **kwargs: Any) -> Pod:
    return pod(f"db-{i}", labels={"controller-revision-hash": revision}, **kwargs)


@pytest.mark.parametrize(
    ("obj", "pods", "create", "delete"),
    [
        (stateful(), [], [0], []),
        (stateful(), [member(0, ready=False)], [], []),
        (stateful(), [member(0)], [1], []),
        (stateful(podManagementPolicy="Parallel"), [], [0, 1, 2], []),
        (stateful(1), [member(0), member(1), member(2)], [], ["db-2"]),
        (stateful(2, ordinals={"start": 5}), [], [5], []),
        (stateful(2), [member(0, "old"), member(1, "old")], [], ["db-1"]),
        (stateful(2), [member(0, "old"), member(1, ready=False)], [], []),
        (stateful(2), [member(0, "old"), member(1)], [], ["db-0"]),
        (stateful(1, updateStrategy={"type": "OnDelete"}), [member(0, "old")], [], []),
        (stateful(1), [member(0, phase="Failed", ready=False)], [], ["db-0"]),
    ],
)
def test_stateful_moves(
    obj: StatefulSet, pods: list[Pod], create: list[int], delete: list[str]
) -> None:
    plan = plan_stateful_set(obj, pods, "old", "new", NOW)
    assert [c.ordinal for c in plan.create] == create
    assert [p.metadata.name for p in plan.delete] == delete


@pytest.mark.parametrize(
    ("deleted", "scaled", "condemned", "owners"),
    [
        ("Retain", "Retain", True, ["other"]),
        ("Delete", "Retain", False, ["other", "db"]),
        ("Delete", "Retain", True, ["other", "db"]),
        ("Retain", "Delete", False, ["other"]),
        ("Retain", "Delete", True, ["other", "db-0"]),
        ("Delete", "Delete", False, ["other", "db"]),
        ("Delete", "Delete", True, ["other", "db-0"]),
    ],
)
def test_claims_are_owned_as_the_policy_says(
    deleted: str, scaled: str, condemned: bool, owners: list[str]
) -> None:
    policy = {"whenDeleted": deleted, "whenScaled": scaled}
    obj = stateful(persistentVolumeClaimRetentionPolicy=policy)
    obj = msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, uid="db"))
    before = [OwnerReference(name=name, uid=name) for name in ("other", "db", "db-0")]
    refs = wanted_refs(obj, member(0), before, condemned=condemned)
    assert [ref["uid"] for ref in refs] == owners
    foreign = [OwnerReference(name="x", uid="x", controller=True)]
    assert [r["uid"] for r in wanted_refs(obj, member(0), foreign, condemned=True)] == ["x"]


def test_a_claim_of_an_earlier_pod_is_stale() -> None:
    claim = msgspec.convert(
        {"metadata": {"ownerReferences": [{"kind": "Pod", "name": "db-0", "uid": "1"}]}}, Object
    )
    assert stale(claim, "db-0")
    assert stale(claim, "db-0", "2")
    assert not stale(claim, "db-0", "1")


def test_failed_daemon_pods_are_replaced_ever_later() -> None:
    ds = msgspec.convert({"metadata": {"name": "d"}}, DaemonSet)
    node = msgspec.convert({"metadata": {"name": "n1"}}, Node)
    plan = plan_daemon_set(ds, [pod("d-1", phase="Failed", ready=False)], [node], "new", NOW)
    assert [(name, p.metadata.name) for name, p in plan.failed] == [("n1", "d-1")]
    assert (plan.create, plan.delete) == ([], [])
    backoff, key, now = FailedBackoff(), ("u", 1, "n1"), NOW
    for wait_s in (1, 2, 4, 8):
        assert backoff.due_in_s(key, now) == 0
        assert backoff.due_in_s(key, now) == wait_s
        now += dt.timedelta(seconds=wait_s)
    assert backoff.due_in_s(("u", 2, "n1"), now) == 0
    now += dt.timedelta(hours=1)
    assert backoff.due_in_s(key, now) == 0
    assert backoff.due_in_s(key, now) == 1
    backoff.forget("u")
    assert backoff.due_in_s(key, now) == 0


def test_daemon_pods_are_pinned_and_tolerate() -> None:
    template = pinned(daemon_template({"spec": {"hostNetwork": True}}), "n7")
    keys = {t["key"] for t in template["spec"]["tolerations"]}
    assert "node.kubernetes.io/network-unavailable" in keys
    assert node_of(msgspec.convert({"spec": template["spec"]}, Pod)) == "n7"


def test_cron_times() -> None:
    since = NOW - dt.timedelta(hours=2)
    times = plan_times("*/5 * * * *", None, since, NOW + dt.timedelta(seconds=30))
    assert times.due == NOW
    assert times.next == NOW + dt.timedelta(minutes=5)
    assert plan_times("@daily", None, NOW, NOW).due is None
    zoned = plan_times("0 9 * * *", "Asia/Tokyo", since, NOW)
    assert zoned.next == dt.datetime(2024, 1, 2, 0, tzinfo=dt.UTC)
    with pytest.raises(ScheduleError):
        plan_times("every now and then", None, since, NOW)


def test_ranges_are_not_given_out_again_at_once() -> None:
    cidrs = CidrSet(ip_network("10.0.0.0/22"), 24)
    first = cidrs.allocate()
    cidrs.release(first)
    rest = [str(cidrs.allocate()) for _ in range(4)]
    assert rest == ["10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24", "10.0.0.0/24"]
    with pytest.raises(ExhaustedError):
        cidrs.allocate()
    six = CidrSet(ip_network("fd00:244::/56"), 64)
    six.occupy(ip_network("fd00:244::/64"))
    assert str(six.allocate()) == "fd00:244:0:1::/64"


@pytest.mark.parametrize(
    ("status", "taints"),
    [
        ("True", set()),
        (
            "False",
            {
                ("node.kubernetes.io/not-ready", "NoSchedule"),
                ("node.kubernetes.io/not-ready", "NoExecute"),
            },
        ),
        (
            "Unknown",
            {
                ("node.kubernetes.io/unreachable", "NoSchedule"),
                ("node.kubernetes.io/unreachable", "NoExecute"),
            },
        ),
    ],
)
def test_taints_follow_ready(status: str, taints: set[tuple[str, str]]) -> None:
    raw = {"status": {"conditions": [{"type": "Ready", "status": status}]}}
    wanted = plan_taints(msgspec.convert(raw, Node))
    assert set(wanted) == taints
    mine = {"key": "mine", "effect": "NoSchedule"}
    assert mine in merge_taints([mine], wanted, NOW)


def test_eviction_takes_the_shortest_toleration() -> None:
    taint = Taint(key="k", effect="NoExecute")
    forever = Toleration(key="k", operator="Exists")
    soon = Toleration(key="k", operator="Exists", toleration_seconds=3)
    assert plan_eviction_s([taint], []) == 0
    assert plan_eviction_s([taint], [forever]) is None
    assert plan_eviction_s([taint], [forever, soon]) == 3
    assert plan_eviction_s([], []) is None


def test_owner_graph_tells_who_is_concerned() -> None:
    graph = OwnerGraph()
    owner = pod("o")
    child = pod("c", ownerReferences=[{"name": "o", "uid": "o", "blockOwnerDeletion": True}])
    assert graph.apply(POD, Change(None, child)) == {"c"}
    assert graph.apply(POD, Change(None, owner)) == set()
    going = pod("o", deletionTimestamp="2024-01-01T12:00:00Z", finalizers=["foregroundDeletion"])
    assert graph.apply(POD, Change(owner, going)) == {"o"}
    assert graph.apply(POD, Change(child, None)) == {"o"}
    assert graph.apply(POD, Change(None, child)) == {"c"}
    assert graph.apply(POD, Change(going, None)) == {"c"}


def test_events_are_combined_then_dropped() -> None:
    limits = EventLimits()
    said = [limits.evaluate("c", "u", "Normal", "R", f"m{i}", 0.0) for i in range(30)]
    assert said[9] == "m9"
    assert said[10] == "(combined from similar events): m10"
    assert said[25:] == [None] * 5
