"""What was seen is counted, judged by what is in force, and forgotten no further than told."""

from __future__ import annotations

from ipaddress import ip_address

from podwire.objects.meta import Key
from podwire.policy.flowlog import FlowLog, Seen, merge_records
from podwire.policy.model import PodsPeer, Policy, PolicyRef, Rule, Tier
from podwire.policy.selector import Expression, Selector
from podwire.policy.verdicts import Verdicts
from podwire.policy.world import NodeView, PodView, make_world

A, B, N, OUT = ("10.0.0.1", "10.0.0.2", "172.30.0.2", "203.0.113.10")
WORLD = make_world(
    [
        PodView(Key("shop", "a"), {"app": "a"}, (ip_address(A),), "n"),
        PodView(Key("shop", "b"), {"app": "b"}, (ip_address(B),), "n"),
    ],
    nodes=[NodeView("n", {}, (ip_address(N),))],
)
REF = PolicyRef("NetworkPolicy", "shop", "only-a")
FROM_A = Rule(
    REF, "ingress", 0, peers=(PodsPeer(Selector((Expression("app", "In", ("a",)),)), "shop"),)
)
ONLY_A = Policy(
    REF, Tier.NETWORK_POLICY, PodsPeer(namespace="shop"), (FROM_A,), (), frozenset({"ingress"})
)


def _seen(src: str, dst: str, port: int = 80, *, passed: bool = True) -> Seen:
    return Seen(ip_address(src).packed, ip_address(dst).packed, 6, port, passed)


def _log(staged: bool = False, capacity: int = 10) -> FlowLog:
    log = FlowLog("n", capacity)
    bare, with_policy = Verdicts(WORLD, ()), Verdicts(WORLD, [ONLY_A])
    log.know(bare if staged else with_policy, with_policy if staged else None)
    return log


def test_records_count_and_say_why() -> None:
    log = _log()
    log.add(_seen(A, B), 1.0)
    record = log.add(_seen(A, B), 2.0)
    assert (record.count, record.first_seen, record.last_seen) == (2, 1.0, 2.0)
    assert (str(record.source), str(record.destination)) == ("shop/a", "shop/b")
    assert record.ingress.rule == "NetworkPolicy shop/only-a spec.ingress[0]"
    assert (record.protocol, record.port, record.verdict) == ("TCP", 80, "allowed")
    denied = log.add(_seen(OUT, B, passed=False), 3.0)
    assert (denied.ingress.reason, denied.ingress.isolating) == ("isolated", (str(REF),))
    assert (denied.source.kind, str(denied.source)) == ("External", OUT)
    assert log.disagreed == 0


def test_the_kernel_and_the_evaluator_are_compared() -> None:
    log = _log()
    log.add(_seen(OUT, B, passed=True), 1.0)
    assert log.disagreed == 1


def test_staged_policies_are_judged_beside() -> None:
    log = _log(staged=True)
    assert log.add(_seen(A, B), 1.0).staged == "allowed"
    record = log.add(_seen(OUT, B), 1.0)
    assert (record.verdict, record.staged) == ("allowed", "denied")
    log.know(Verdicts(WORLD, ()), None)
    assert log.add(_seen(OUT, B), 2.0).staged == ""


def test_the_longest_unseen_is_forgotten_and_counted() -> None:
    log = _log(capacity=2)
    for port, now in ((1, 1.0), (2, 2.0), (1, 3.0), (3, 4.0)):
        log.add(_seen(A, B, port), now)
    assert [record.port for record in log.records()] == [1, 3]
    assert log.forgotten == 1


def test_two_nodes_saw_one_connection() -> None:
    one, two = _log(), _log()
    for now in (1.0, 2.0):
        one.add(_seen(A, B), now)
    two.add(_seen(A, B), 1.5)
    (record,) = merge_records([one.records(), two.records()])
    assert (record.count, record.first_seen, record.last_seen) == (2, 1.0, 2.0)


def test_the_other_end_has_its_say_without_being_here() -> None:
    """The source's node lets it go; what the destination's node does is known all the same."""
    log = FlowLog("another")
    log.know(Verdicts(WORLD, [ONLY_A]), None)
    record = log.add(_seen(OUT, B, passed=True), 1.0)
    assert (record.verdict, log.disagreed) == ("denied", 0)


def test_an_address_that_goes_to_another_pod_takes_no_record_along() -> None:
    """What a job did stays known as the job's when its address is somebody else's."""
    log = _log()
    log.add(_seen(A, B), 1.0)
    later = PodView(Key("shop", "later"), {"app": "a"}, (ip_address(A),), "n")
    world = make_world([later, WORLD.pods[Key("shop", "b")]])
    log.know(Verdicts(world, [ONLY_A]), None)
    record = log.add(_seen(A, B), 2.0)
    assert (str(record.source), record.count, record.first_seen) == ("shop/later", 1, 2.0)
    assert [(str(r.source), r.count) for r in log.records()] == [("shop/a", 1), ("shop/later", 1)]
    assert [str(r.source) for r in merge_records([log.records()])] == ["shop/a", "shop/later"]
    labelled = PodView(Key("shop", "later"), {"app": "c"}, (ip_address(A),), "n")
    world = make_world([labelled, WORLD.pods[Key("shop", "b")]])
    log.know(Verdicts(world, ()), None)
    assert log.add(_seen(A, B), 3.0).count == 2, "with other labels it is the same pod"
