"""Slices nobody should write, in the kernel: what is wrong is left out and told, the rest works."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from service_injector import Injector
from service_net import TCP, Ask, ServiceNet, address_of
from service_rows import CLUSTER_IP, ep
from service_worlds import CLUSTER_CIDRS, NODE, SERVICE_CIDRS, make_service, make_slice

from podwire.agents.servicekernel import Ranges
from podwire.objects.discovery import EndpointSlice
from podwire.services.claims import Owner
from podwire.services.evaluate import Packet
from podwire.services.model import CompiledService, compile_service

OWNER = Owner("Service", make_service().key)


def opened(scratch: Path) -> ServiceNet:
    net = ServiceNet(scratch)
    net.open(Ranges(SERVICE_CIDRS, CLUSTER_CIDRS))
    return net


def program(net: ServiceNet, *slices: EndpointSlice) -> CompiledService:
    compiled = compile_service(make_service(), slices, NODE)
    net.program(OWNER, compiled.frontends)
    return compiled


def ends(net: ServiceNet, times: int = 30) -> set[tuple[str, str]]:
    return {(a.verdict, a.host) for a in net.ask([Ask("here-c", CLUSTER_IP, 80)] * times)}


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "255.255.255.255", "010.244.1.2", "x", ""],
)
def test_addresses_that_are_nobodys(scratch: Path, address: str) -> None:
    with opened(scratch) as net:
        bad: dict[str, Any] = {"ip": address, "node": "node-1"}
        compiled = program(net, make_slice(ep("here-a"), bad))
        assert any("cannot be an endpoint" in problem for problem in compiled.problems)
        assert ends(net) == {("answered", "here-a")}
        program(net, make_slice(bad))
        assert ends(net, 1) == {("refused", "")}


def test_foreign_and_unknown_families(scratch: Path) -> None:
    """IPv6 addresses in a slice of IPv4, slices of IPv6 and FQDN beside it."""
    with opened(scratch) as net:
        mixed = make_slice(ep("here-a"), {"ip": "fd00:244:0:1::3"})
        six = make_slice({"ip": "fd00:244:0:1::3"}, name="six")
        names = replace(make_slice(ep("far-a"), name="names"), address_type="FQDN")
        strange = replace(make_slice(ep("far-c"), name="strange"), address_type="IPX")
        compiled = program(net, mixed, six, names, strange)
        assert compiled.problems == (
            "endpointslice ns1/web-1: fd00:244:0:1::3: cannot be an endpoint",
        )
        assert ends(net) == {("answered", "here-a")}


def test_duplicates_across_slices(scratch: Path) -> None:
    with opened(scratch) as net:
        pieces = [make_slice(ep("here-a"), ep("far-a"), name=f"web-{n}") for n in range(5)]
        compiled = program(net, *pieces, make_slice(ep("far-c"), name="web-9"))
        assert len(compiled.frontends[0].backends) == 3
        assert ends(net, 60) == {("answered", host) for host in ("here-a", "far-a", "far-c")}
        # One of the copies goes: the endpoint stays.
        program(net, *pieces[1:])
        assert ends(net, 60) == {("answered", host) for host in ("here-a", "far-a")}


def test_a_thousand_endpoints(scratch: Path) -> None:
    """In ten slices, by connection tracking; then all but one go in one step."""
    addresses = [f"10.244.{n // 250 + 10}.{n % 250 + 1}" for n in range(1000)]
    pieces = [
        make_slice(*({"ip": ip} for ip in addresses[n : n + 100]), name=f"web-{n}")
        for n in range(0, 1000, 100)
    ]
    with opened(scratch) as net, Injector(net) as injector:
        compiled = program(net, *pieces)
        assert len(compiled.frontends[0].backends) == 1000
        client = ip_address(address_of("here-c", 4)).packed
        vip = compiled.frontends[0].key.ip
        results = injector.send(Packet(client, vip, TCP, 80), 8000)
        assert {r.verdict for r in results} == {"dnat"}
        # The chance that one of a thousand is missed eight thousand times is 3 in 10,000 each.
        assert len({r.backend for r in results}) > 990
        program(net, make_slice(ep("here-a")))
        assert ends(net) == {("answered", "here-a")}
        assert net.counters()["endpoint-missing"] == 0
