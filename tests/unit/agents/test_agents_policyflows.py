"""Which connections a node would not let be opened any more."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

import pytest

from podwire.agents.policyflows import Denials, FlowCutter
from podwire.kernel.conntrack import Conntrack
from podwire.kernel.flows import Flow, Tuple
from podwire.objects.meta import Key
from podwire.policy.model import PodsPeer, Policy, PolicyRef, PortRange, Rule, Tier
from podwire.policy.selector import Expression, Selector
from podwire.policy.verdicts import Verdicts
from podwire.policy.world import LiveWorld, NodeView, PodView, make_world

WEB, API, AWAY, NODE, VIP = "10.0.0.1", "10.0.0.2", "10.0.1.1", "172.30.0.2", "10.96.0.1"
TCP, UDP, ICMP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP
WORLD = make_world(
    [
        PodView(Key("shop", "web"), {"app": "web"}, (ip_address(WEB),), "here"),
        PodView(Key("shop", "api"), {"app": "api"}, (ip_address(API),), "here"),
        PodView(Key("shop", "away"), {"app": "api"}, (ip_address(AWAY),), "there"),
    ],
    nodes=[NodeView("here", {}, (ip_address(NODE),))],
)
REF = PolicyRef("NetworkPolicy", "shop", "api")
APIS = PodsPeer(Selector((Expression("app", "In", ("api",)),)), "shop")
ONLY_8080 = Policy(
    REF,
    Tier.NETWORK_POLICY,
    APIS,
    (Rule(REF, "ingress", 0, ports=(PortRange(TCP, 8080, 8080),)),),
    (),
    frozenset({"ingress"}),
)


def _flow(src: str, dst: str, protocol: int, port: int, vip: str = "") -> Flow:
    """`vip` is where the client sent it: the rest is connection tracking's."""
    source, target = ip_address(src).packed, ip_address(dst).packed
    orig = Tuple(source, ip_address(vip or dst).packed, 40000, 80 if vip else port, protocol)
    return Flow(orig, Tuple(target, source, port, 40000, protocol))


@pytest.mark.parametrize(
    ("flow", "denied"),
    [
        (_flow(WEB, API, TCP, 8080), False),
        (_flow(WEB, API, TCP, 9090), True),
        (_flow(WEB, API, TCP, 9090, vip=VIP), True),
        (_flow(WEB, API, TCP, 8080, vip=VIP), False),
        (_flow(WEB, API, UDP, 8080), True),
        (_flow(WEB, API, ICMP, 0x800), True),
        (_flow(API, WEB, TCP, 9090), False),
        (_flow(NODE, API, TCP, 9090), False),
        (_flow(WEB, AWAY, TCP, 9090), False),
        (_flow("203.0.113.10", API, TCP, 9090), True),
        (_flow("203.0.113.10", NODE, TCP, 22), False),
        (_flow(API, API, TCP, 9090, vip=VIP), True),
    ],
    ids=[
        "the port that is open",
        "another port",
        "through a Service, the pod's port counts",
        "through a Service, open",
        "another protocol",
        "ICMP has no port",
        "the other direction",
        "the pod's own node",
        "a pod elsewhere is its node's business",
        "from outside",
        "not to a pod",
        "a pod that meets itself through a Service",
    ],
)
def test_what_is_cut(flow: Flow, denied: bool) -> None:
    denials = Denials(Verdicts(WORLD, [ONLY_8080]), "here")
    assert [denials.denies(flow), denials.denies(flow)] == [denied, denied]


def test_without_policies_nothing_is() -> None:
    flow = _flow(WEB, API, TCP, 9090)
    assert not Denials(Verdicts(WORLD, ()), "here").denies(flow)


class _Table(Conntrack):
    """Connection tracking as long as somebody wants it, and what is deleted of it."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        self.flows = list(flows)
        self.deleted: list[Flow] = []

    def dump(self, family: int = socket.AF_UNSPEC, *_: object, **__: object) -> list[Flow]:
        return self.flows if family == socket.AF_INET else []

    def delete_many(self, flows: Iterable[Flow]) -> int:
        some = list(flows)
        self.deleted += some
        return len(some)


def test_a_long_table_is_judged_by_states_that_were() -> None:
    """A policy is widened, then the pod's label moves on, while the table is being looked at: each
    state allows the connection, and the first policy with the last label would not."""
    live = LiveWorld()
    live.set_pod(PodView(Key("shop", "api"), {"app": "api"}, (ip_address(API),), "here"))

    def client(version: str) -> PodView:
        return PodView(Key("shop", "web"), {"v": version}, (ip_address(WEB),), "here")

    def allow(*versions: str) -> Policy:
        peer = PodsPeer(Selector((Expression("v", "In", versions),)), "shop")
        rule = Rule(REF, "ingress", 0, peers=(peer,))
        return Policy(REF, Tier.NETWORK_POLICY, APIS, (rule,), (), frozenset({"ingress"}))

    live.set_pod(client("1"))
    policies = [allow("1")]
    looked = asyncio.Event()

    def verdicts() -> Verdicts:
        looked.set()
        return Verdicts(live.view(), policies, owners=live.owners)

    cutter = FlowCutter("here", [4], verdicts)
    flow = _flow(WEB, API, TCP, 8080)
    table = _Table([*(_flow(AWAY, WEB, TCP, n + 1) for n in range(5000)), flow])

    async def run() -> None:
        cutting = asyncio.ensure_future(cutter._cut(table))
        await looked.wait()
        assert not cutting.done()
        policies[0] = allow("1", "2")
        cutter.changed()
        live.set_pod(client("2"))
        cutter.changed()
        await cutting

    asyncio.run(run())
    assert table.deleted == []
