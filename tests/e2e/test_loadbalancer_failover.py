"""A load balancer's address when its node dies, half or whole, under connections from outside."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from balancerlab import NODES, addresses, apply, balancer, wire, workload
from outsideclient import client, drum, longest_gap_s, run_in

from podwire.lab import Lab
from podwire.objects import kinds

MOVED_WITHIN_S = 1.0


class World:
    def __init__(self, lab: Lab, tools: Any) -> None:
        self.lab, self.tools = lab, tools
        self.vips = addresses(lab, tools, "web")

    def owners(self, vip: str) -> list[str]:
        """The nodes whose kernels would answer for the address."""
        family = "-6" if ":" in vip else "-4"
        shown = {n: run_in(self.lab, n, "ip", family, "neigh", "show", "proxy") for n in NODES}
        return [name for name, text in shown.items() if f"{vip} dev eth0" in text]

    def owner(self, vip: str) -> str:
        (name,) = self.tools.wait(lambda: self.owners(vip))
        return str(name)

    def pid(self, node: str) -> int:
        return int(self.tools.pids(self.lab)[f"agent-{node}"])


@pytest.fixture(scope="module")
def lab(tools: Any) -> Iterator[Lab]:
    with Lab("lbfail", nodes=3, ip_family="dual") as lab:
        families = {"ipFamilyPolicy": "RequireDualStack"}
        service = balancer("web", externalTrafficPolicy="Local", **families)
        apply(lab, workload("DaemonSet", "web"), service)
        yield lab


@pytest.fixture
def world(lab: Lab, tools: Any) -> Iterator[World]:
    world = World(lab, tools)
    with client(lab) as outside:
        for vip in world.vips:
            tools.wait(lambda vip=vip: len(world.owners(vip)) == 1)
            tools.wait(lambda vip=vip: outside.get(vip))
    yield world
    for node in NODES:
        wire(world.lab, node, "up")
    lab.wait_ready()


@pytest.mark.parametrize("version", [4, 6])
def test_a_node_that_dies(world: World, version: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Its agent killed and its cable out: another answers within a second; it comes back healed."""
    (vip,) = [v for v in world.vips if (":" in v) == (version == 6)]
    owner = world.owner(vip)
    with drum(world.lab, vip) as beating:
        beating.flow(20)
        os.kill(world.pid(owner), signal.SIGKILL)
        wire(world.lab, owner, "down")
        world.tools.wait(lambda: set(world.owners(vip)) - {owner})
        beating.flow(50)
        gap = longest_gap_s(beating.stop())
    with capsys.disabled():
        print(f"\n  IPv{version} load balancer moved from a dead node in {gap * 1000:.0f} ms")
    assert gap < MOVED_WITHIN_S

    # Cut off it thinks that it is alone, and answers whom it cannot reach; healed there is one.
    world.tools.wait(lambda: len(world.owners(vip)) == 2)
    with drum(world.lab, vip) as beating:
        beating.flow(10)
        wire(world.lab, owner, "up")
        world.tools.wait(lambda: world.owners(vip) == [owner])
        beating.flow(50)
        gap = longest_gap_s(beating.stop())
    with capsys.disabled():
        print(f"  and back again with a gap of {gap * 1000:.0f} ms")
    assert gap < MOVED_WITHIN_S


def test_an_agent_that_is_restarted(world: World) -> None:
    """Nothing moves and nothing is lost, though the only endpoint allowed is on that node."""
    vip = world.vips[0]
    owner = world.owner(vip)
    pid = world.pid(owner)
    with drum(world.lab, vip, timeout_s=1.0) as beating:
        beating.flow(10)
        os.kill(pid, signal.SIGKILL)
        world.tools.wait(lambda: world.pid(owner) not in (0, pid))
        beating.flow(100)
        beats = beating.stop()
    assert [beat for beat in beats if not beat.answered] == []
    assert world.owners(vip) == [owner]


def test_an_agent_that_is_silent_for_long(world: World) -> None:
    """Its kernel goes on forwarding, and the others, whom that kernel answers, leave it alone."""
    vip = world.vips[0]
    owner = world.owner(vip)
    pid = world.pid(owner)
    others = {node: world.pid(node) for node in NODES if node != owner}
    with drum(world.lab, vip, timeout_s=1.0) as beating:
        beating.flow(10)
        os.kill(pid, signal.SIGSTOP)
        try:
            # Far longer than a silent node is given: two seconds of connections.
            beating.flow(200)
            assert world.owners(vip) == [owner]
            # Frozen and now dead as well: it is found out like any other.
            wire(world.lab, owner, "down")
            world.tools.wait(lambda: set(world.owners(vip)) - {owner})
            beating.flow(20)
        finally:
            os.kill(pid, signal.SIGCONT)
        beats = beating.stop()
    assert all(beat.answered for beat in beats[:200])
    assert {node: world.pid(node) for node in others} == others


def test_a_node_that_is_excluded(world: World) -> None:
    """Upstream's label takes the addresses from a node, and gives them back."""
    vip = world.vips[0]
    owner = world.owner(vip)

    def exclude(value: str | None) -> None:
        name = "node.kubernetes.io/exclude-from-external-load-balancers"
        body = {"metadata": {"labels": {name: value}}}
        world.lab.call(lambda api: api.patch(kinds.NODE, owner, body))

    exclude("")
    world.tools.wait(lambda: len(set(world.owners(vip)) - {owner}) == 1)
    exclude(None)
    world.tools.wait(lambda: world.owners(vip) == [owner])
    with client(world.lab) as outside:
        seen = json.loads(outside.get(vip, path="/"))
        assert seen["node"] == owner


def test_online_boutique_from_outside(shared: Any, tools: Any) -> None:
    """An application as it is published: its LoadBalancer answers a browser beyond the cluster."""
    with Lab("lbshop", nodes=2) as lab:
        lab.apply(shared / "samples" / "online-boutique" / "kubernetes-manifests.yaml")
        service = lab.call(lambda api: api.get(kinds.SERVICE, "frontend-external", "default"))
        (ingress,) = service.status.load_balancer.ingress
        shown = tools.kubectl(lab, "get", "service", "frontend-external")
        assert ingress.ip in shown
        with client(lab) as outside:
            assert outside.get(ingress.ip).startswith("frontend-")
