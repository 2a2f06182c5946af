"""What ExaBGP and BIRD are told."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from podwire.agents.bgp import (
    parse_state,
    plan_own,
    plan_routes,
    render_config,
    render_relay,
    router_id,
)
from podwire.agents.config import BgpConfig
from podwire.lab.router import render_bird
from podwire.lab.spec import LabSpec, make_nodes
from podwire.services.pools import make_pools

V4, V6 = ip_address("172.30.0.200"), ip_address("fd00:30::200")
INNER = ip_address("172.30.0.190")
OWN = (ip_address("172.30.0.2"), ip_address("fd00:30::2"))
PEERS = (ip_address("172.30.0.254"), ip_address("fd00:30::fe"))


def test_config() -> None:
    text = render_config("node-1", OWN, PEERS[1], BgpConfig(PEERS), Path("/x/exabgp-1.sh"))
    assert text.splitlines() == [
        "process podwire {",
        "\trun /bin/sh /x/exabgp-1.sh;",
        "\tencoder text;",
        "}",
        "neighbor fd00:30::fe {",
        "\trouter-id 172.30.0.2;",
        "\tlocal-address fd00:30::2;",
        "\tlocal-as 64512;",
        "\tpeer-as 64513;",
        "\thold-time 3;",
        "\tfamily { ipv6 unicast; }",
        "\tapi { processes [ podwire ]; neighbor-changes; }",
        "}",
    ]


def test_router_id_without_ipv4() -> None:
    first = router_id("node-1", OWN[1:])
    assert first.version == 4
    assert first == router_id("node-1", ())
    assert first != router_id("node-2", ())


def test_routes() -> None:
    assert plan_routes(frozenset(), frozenset({V6, V4})) == [
        "announce route 172.30.0.200/32 next-hop self",
        "announce route fd00:30::200/128 next-hop self",
    ]
    assert plan_routes(frozenset({V4}), frozenset({V6})) == [
        "withdraw route 172.30.0.200/32 next-hop self",
        "announce route fd00:30::200/128 next-hop self",
    ]
    assert plan_routes(frozenset({V4}), frozenset({V4})) == []


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("neighbor 172.30.0.254 up", True),
        ("neighbor 172.30.0.254 down - peer reset, message (x)", False),
        ("neighbor 172.30.0.254 connected", None),
        ("", None),
    ],
)
def test_states(line: str, state: bool | None) -> None:
    assert parse_state(line) is state


def test_what_a_node_announces() -> None:
    pools = make_pools(["172.30.0.200-172.30.0.250", "fd00:30::200"], ["172.30.0.190"])
    wanted = {V4: None, V6: frozenset({"node-2"}), INNER: None}
    assert plan_own("node-1", wanted, ["node-1", "node-2"], pools) == {V4}
    assert plan_own("node-2", wanted, ["node-1", "node-2"], pools) == {V4, V6}
    assert plan_own("node-1", wanted, ["node-2"], pools) == frozenset()


def test_relay_keeps_its_standard_input() -> None:
    text = render_relay(Path("/x/a.fifo"), Path("/x/a.states"))
    assert text == "exec 3<&0\ncat <&3 >'/x/a.states' &\nexec cat '/x/a.fifo'\n"


def test_bird() -> None:
    spec = LabSpec(nodes=make_nodes(2, ()), load_balancer="bgp", ip_family="dual")
    text = render_bird(spec, spec.bgp_config())
    assert "router id 172.30.0.254;" in text
    assert "neighbor range 172.30.0.0/24 as 64512;" in text
    assert "neighbor range fd00:30::/64 as 64512;" in text
    assert "172.30.0.200/29{32,32}, 172.30.0.208/28{32,32}" in text
    assert "fd00:30::200/122{128,128}" in text
    assert "172.30.0.190" not in text
    assert spec.service_config().bgp == BgpConfig(PEERS)
    assert LabSpec(nodes=make_nodes(1, ())).service_config().bgp is None
