"""Load balancers by BGP: the router's kernel has one route per address, with a hop per node."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from balancerlab import apply, balancer, wire, workload
from outsideclient import client, drum, run_in

from podwire.agents import bgp
from podwire.errors import UsageError
from podwire.lab import Lab

INTERNAL = {"networking.podwire.dev/load-balancer": "internal"}
OBJECTS = [
    workload("DaemonSet", "web"),
    balancer("web", ipFamilyPolicy="RequireDualStack"),
    workload("Deployment", "one", nodeName="node-2"),
    balancer("one", loadBalancerIP="172.30.0.240", externalTrafficPolicy="Local"),
    balancer("inner", app="web", annotations=INTERNAL),
]
ALL = ["172.30.0.2", "172.30.0.3", "172.30.0.4"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if shutil.which("bird", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        pytest.skip("bird is not installed: apt-get install bird2")
    try:
        bgp.find_exabgp()
    except UsageError as error:
        pytest.skip(str(error))
    with Lab("lbbgp", nodes=3, ip_family="dual", load_balancer="bgp") as lab:
        apply(lab, *OBJECTS)
        yield lab


def hops(lab: Lab, address: str) -> list[str]:
    """The next hops of the router's route to an address."""
    family = "-6" if ":" in address else "-4"
    text = run_in(lab, "router", "ip", family, "route", "show", address)
    return sorted(re.findall(r"via (\S+)", text))


def test_a_hop_per_node_that_may_carry_it(lab: Lab, tools: Any) -> None:
    tools.wait(lambda: hops(lab, "172.30.0.200") == ALL)
    tools.wait(lambda: hops(lab, "fd00:30::200") == ["fd00:30::2", "fd00:30::3", "fd00:30::4"])
    tools.wait(lambda: hops(lab, "172.30.0.240") == ["172.30.0.3"])
    assert hops(lab, "172.30.0.190") == []
    with client(lab) as outside:
        # Connections are spread over the nodes; policy Local keeps the client's address.
        seen = {outside.get("172.30.0.200", path="/clientip").split(":")[0] for _ in range(40)}
        assert seen == set(ALL)
        assert outside.get("172.30.0.240", path="/clientip").startswith("203.0.113.10")
        assert outside.get("fd00:30::200")
        assert outside.ask("172.30.0.190", timeout_s=0.3)[1]
    # Nobody answers for it on the segment.
    assert run_in(lab, "node-1", "ip", "neigh", "show", "proxy") == ""


def test_a_killed_agent_is_out_at_once_and_comes_back(lab: Lab, tools: Any) -> None:
    tools.wait(lambda: hops(lab, "172.30.0.200") == ALL)
    pid = tools.pids(lab)["agent-node-1"]
    with drum(lab, "172.30.0.200", timeout_s=1.0) as beating:
        beating.flow(10)
        os.kill(pid, signal.SIGKILL)
        # The route is replaced by one without the node, long before a hold time is over.
        tools.wait(lambda: hops(lab, "172.30.0.200") != ALL, 2.0)
        tools.wait(lambda: tools.pids(lab)["agent-node-1"] not in (0, pid))
        tools.wait(lambda: hops(lab, "172.30.0.200") == ALL)
        beating.flow(20)
        beats = beating.stop()
    # A flow on its way is moved to another node by the changed hash, at worst reset; a new one
    # always finds a node.
    assert sum(not beat.answered for beat in beats) <= 1


def test_a_dead_node_is_out_with_the_hold_time(lab: Lab, tools: Any) -> None:
    tools.wait(lambda: hops(lab, "172.30.0.200") == ALL)
    wire(lab, "node-2", "down")
    tools.wait(lambda: hops(lab, "172.30.0.200") == ["172.30.0.2", "172.30.0.4"], 5.0)
    wire(lab, "node-2", "up")
    tools.wait(lambda: hops(lab, "172.30.0.200") == ALL)


def test_withdrawn_with_the_service(lab: Lab, tools: Any) -> None:
    tools.wait(lambda: hops(lab, "172.30.0.240") == ["172.30.0.3"])
    tools.kubectl(lab, "scale", "deployment/one", "--replicas=0")
    # Without an endpoint anywhere every node refuses.
    tools.wait(lambda: hops(lab, "172.30.0.240") == ALL)
    tools.kubectl(lab, "delete", "service", "one")
    tools.wait(lambda: hops(lab, "172.30.0.240") == [])


def test_the_router_comes_back(lab: Lab, tools: Any) -> None:
    pid = tools.pids(lab)["router"]
    os.kill(pid, signal.SIGKILL)
    tools.wait(lambda: tools.pids(lab)["router"] not in (0, pid))
    tools.wait(lambda: hops(lab, "172.30.0.200") == ALL, 60.0)


def test_only_our_pools_are_learnt(lab: Lab) -> None:
    """A node that announces the world is not believed."""
    config = (lab.paths.root / "bird.conf").read_text()
    assert "import where net ~ [ 172.30.0.200/29{32,32}," in config
    assert "172.30.0.190" not in config
