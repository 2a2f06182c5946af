"""From one state to the next while connections are opened: none is lost or left untranslated."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from service_injector import Injector
from service_net import TCP, UDP, Ask, Connecting, ServiceNet, address_of, in_family, wait
from service_rows import BALANCER, CLUSTER_IP, NODE_IP, NODE_PORT, NODE_PORTS, ep
from service_worlds import CLUSTER_CIDRS, NODE, SERVICE_CIDRS, make_service, make_slice

from podwire.agents.servicekernel import Ranges
from podwire.errors import KernelError
from podwire.kernel.nfelements import NfElements
from podwire.objects.discovery import EndpointSlice
from podwire.services import nftables as nf
from podwire.services.claims import Owner
from podwire.services.endpoints import Backend
from podwire.services.evaluate import Packet
from podwire.services.model import BALANCING_ANNOTATION, Frontend, NodeView, compile_service

FIRST_PORT, MANY = 9000, 20
PROTOCOLS = ("TCP", "UDP")
MAGLEV = {"annotations": {BALANCING_ANNOTATION: "maglev"}}
OWNER = Owner("Service", make_service().key)


@contextmanager
def services(scratch: Path) -> Iterator[ServiceNet]:
    with ServiceNet(scratch) as net:
        net.open(Ranges(SERVICE_CIDRS, CLUSTER_CIDRS))
        yield net
        for version in (4, 6):
            counters = net.counters(version)
            assert (counters["endpoint-missing"], counters["invalid"]) == (0, 0)


def frontends(
    version: int, slices: Sequence[EndpointSlice], node: NodeView = NODE, **spec: Any
) -> tuple[Frontend, ...]:
    """A NodePort Service on TCP and UDP port 80 with these slices."""
    ports = [
        {**NODE_PORTS[0], "name": name.lower(), "protocol": name, "targetPort": 8080}
        for name in PROTOCOLS
    ]
    service = make_service(
        **{
            "type": "LoadBalancer",
            "clusterIP": in_family(CLUSTER_IP, version),
            "ingress": [{"ip": in_family(BALANCER, version)}],
            "ports": ports,
        }
        | spec
    )
    return compile_service(service, slices, node).frontends


def piece(version: int, *hosts: str, port: int = 8080) -> EndpointSlice:
    endpoints = [{**ep(host), "ip": address_of(host, version)} for host in hosts]
    ports = [{"name": p.lower(), "protocol": p, "port": port} for p in PROTOCOLS]
    return make_slice(*endpoints, name=f"web-{port}", ports=ports)


def asks(version: int, origins: Iterable[str] = ("here-c",), dst: str = CLUSTER_IP) -> list[Ask]:
    port = 80 if dst in (CLUSTER_IP, BALANCER) else NODE_PORT
    return [
        Ask(origin, in_family(dst, version), port, protocol)
        for origin in origins
        for protocol in (TCP, UDP)
    ] * 4


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("spec", [{}, MAGLEV], ids=["random", "maglev"])
def test_endpoints_from_1_to_20_to_1_while_connecting(
    scratch: Path, version: int, spec: dict[str, Any]
) -> None:
    with services(scratch) as net:
        host = net.hosts["far-a"]
        many = range(FIRST_PORT, FIRST_PORT + MANY)
        net.server.serve("far-a", address_of("far-a", version), host.fd, many)

        def have(count: int) -> None:
            slices = [piece(version, "far-a", port=port) for port in many[:count]]
            net.program(OWNER, frontends(version, slices, **spec))

        have(1)
        everywhere = [
            *asks(version),
            *asks(version, ("outside",), NODE_IP),
            *asks(version, ("outside",), BALANCER),
        ]
        with Connecting(net, everywhere) as client:
            for count in (*range(1, MANY + 1), *range(MANY, 0, -1)):
                have(count)
                client.wait_asked(len(everywhere) // 4)
        assert client.failures == []
        assert len(client.answers) > MANY // 2


@pytest.mark.parametrize("version", [4, 6])
def test_policies_switch_while_connecting(scratch: Path, version: int) -> None:
    slices = [piece(version, "here-a", "far-a")]
    with services(scratch) as net:
        net.program(OWNER, frontends(version, slices))
        everywhere = [*asks(version), *asks(version, ("outside", "here-c"), NODE_IP)]
        everywhere += asks(version, ("outside",), BALANCER)
        with Connecting(net, everywhere) as client:
            for _ in range(5):
                for internal in ("Local", "Cluster"):
                    for external in ("Local", "Cluster"):
                        policies = {
                            "internalTrafficPolicy": internal,
                            "externalTrafficPolicy": external,
                        }
                        net.program(OWNER, frontends(version, slices, **policies))
                        client.wait_asked(8)
        assert client.failures == []


@pytest.mark.parametrize("version", [4, 6])
def test_affinity_goes_on_and_off_while_connecting(scratch: Path, version: int) -> None:
    slices = [piece(version, "here-a", "far-a", "far-c")]
    with services(scratch) as net:
        net.program(OWNER, frontends(version, slices))
        with Connecting(net, [*asks(version), *asks(version, ("outside",), NODE_IP)]) as client:
            for _ in range(10):
                for affinity in (sticky(60), {}):
                    net.program(OWNER, frontends(version, slices, **affinity))
                    client.wait_asked(8)
        assert client.failures == []


# --- session affinity ---------------------------------------------------------------------------


def sticky(timeout_s: int) -> dict[str, Any]:
    config = {"clientIP": {"timeoutSeconds": timeout_s}}
    return {"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}


def ends_of(net: ServiceNet, questions: Sequence[Ask]) -> set[str]:
    found = net.ask(questions)
    assert {a.verdict for a in found} == {"answered"}, found
    return {a.host for a in found}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("dst", [CLUSTER_IP, NODE_IP, BALANCER])
def test_a_client_keeps_its_endpoint(scratch: Path, version: int, dst: str) -> None:
    """Also past changes of the others; where its own is gone, another is found at once."""
    hosts = ["here-a", "far-a", "far-b", "far-c"]
    client = asks(version, ("outside",), dst)[:1]
    with services(scratch) as net:
        net.program(OWNER, frontends(version, [piece(version, *hosts)], **sticky(600)))
        (mine,) = ends_of(net, client * 10)
        for other in [host for host in hosts if host != mine]:
            left = [host for host in hosts if host != other]
            net.program(OWNER, frontends(version, [piece(version, *left)], **sticky(600)))
            assert ends_of(net, client * 5) == {mine}
            net.program(OWNER, frontends(version, [piece(version, *hosts)], **sticky(600)))
            assert ends_of(net, client * 5) == {mine}
        left = [host for host in hosts if host != mine]
        net.program(OWNER, frontends(version, [piece(version, *left)], **sticky(600)))
        (next_one,) = ends_of(net, client * 10)
        assert next_one != mine
        net.program(OWNER, frontends(version, [piece(version, *hosts)], **sticky(600)))
        assert ends_of(net, client * 10) == {next_one}


@pytest.mark.parametrize("version", [4, 6])
def test_affinity_ends_with_its_timeout(scratch: Path, version: int) -> None:
    slices = [piece(version, "here-a", "far-a", "far-c")]
    client = asks(version)[:1]
    with services(scratch) as net, NfElements() as elements:
        net.program(OWNER, frontends(version, slices, **sticky(1)))
        seen = set()

        def remembered() -> bool:
            return bool(elements.dump(nf.FAMILY_NAMES[version], nf.TABLE, nf.AFFINITY))

        # Three endpoints: eight times the same by chance is one in 2,187.
        for _ in range(8):
            seen |= ends_of(net, client * 3)
            assert remembered()
            wait(lambda: not remembered())
            if len(seen) > 1:
                break
        assert len(seen) > 1


@pytest.mark.parametrize("version", [4, 6])
def test_clients_of_a_sticky_service_spread(scratch: Path, version: int) -> None:
    """By connection tracking: 200 clients beyond the cluster, each with two connections."""
    slices = [piece(version, "here-a", "far-a", "far-c")]
    with services(scratch) as net, Injector(net) as injector:
        net.program(OWNER, frontends(version, slices, **sticky(600)))
        vip = ip_address(in_family(CLUSTER_IP, version)).packed
        text = {4: "198.51.100.{}", 6: "2001:db8:51::{}"}[version]
        clients = [ip_address(text.format(n)).packed for n in range(1, 201)]
        results = injector.send_all([(Packet(c, vip, TCP, 80), 2) for c in clients])
        shares: Counter[Backend | None] = Counter()
        for pair in results:
            assert len({r.backend for r in pair}) == 1
            shares[pair[0].backend] += 1
        assert len(shares) == 3
        assert min(shares.values()) > 30


# --- weights and maglev --------------------------------------------------------------------------


def shares_of(
    injector: Injector, version: int, count: int = 4000, protocol: int = TCP
) -> Counter[bytes]:
    vip = ip_address(in_family(CLUSTER_IP, version)).packed
    source = ip_address(address_of("here-c", version)).packed
    results = injector.send(Packet(source, vip, protocol, 80), count)
    return Counter(r.backend.ip for r in results if r.backend)


@pytest.mark.parametrize("version", [4, 6])
def test_weights_are_shares(scratch: Path, version: int) -> None:
    weights = {"here-a": 6, "far-a": 3, "far-c": 1}
    by_ip = {address_of(host, version): weight for host, weight in weights.items()}
    whole = make_slice(
        *({**ep(h), "ip": address_of(h, version)} for h in weights),
        ports=[{"name": p.lower(), "protocol": p, "port": 8080} for p in PROTOCOLS],
        weights=by_ip,
    )
    with services(scratch) as net, Injector(net) as injector:
        net.program(OWNER, frontends(version, [whole]))
        found = shares_of(injector, version)
        for text, weight in by_ip.items():
            expected = found.total() * weight / 10
            # Five standard deviations of a binomial: one in two million by chance.
            slack = 5 * (expected * (1 - weight / 10)) ** 0.5
            assert abs(found[ip_address(text).packed] - expected) < slack


def by_port(injector: Injector, version: int, ports: int) -> list[Backend | None]:
    """Where the same connections go: same client, same source ports."""
    vip = ip_address(in_family(CLUSTER_IP, version)).packed
    source = ip_address(address_of("here-c", version)).packed
    injector.rewind()
    return [r.backend for r in injector.send(Packet(source, vip, TCP, 80), ports)]


@pytest.mark.parametrize("version", [4, 6])
def test_maglev_is_the_same_on_every_node_and_moves_little(scratch: Path, version: int) -> None:
    hosts = ["here-a", "here-b", "far-a", "far-b", "far-c"]
    everyone = [piece(version, *hosts)]
    with services(scratch) as net, Injector(net) as injector:
        net.program(OWNER, frontends(version, everyone, **MAGLEV))
        here = by_port(injector, version, 1000)
        assert None not in here
        elsewhere = replace(NODE, name="node-2")
        net.clear()
        net.program(OWNER, frontends(version, everyone, elsewhere, **MAGLEV))
        there = by_port(injector, version, 1000)
        assert there == here
        net.program(OWNER, frontends(version, [piece(version, *hosts[1:])], **MAGLEV))
        fewer = by_port(injector, version, 1000)
        gone = ip_address(address_of(hosts[0], version)).packed
        moved = sum(a != b for a, b in zip(here, fewer, strict=True) if a and a.ip != gone)
        assert all(b and b.ip != gone for b in fewer)
        # A plain modulo would move four in five of those that could stay.
        assert moved < 100


# --- errors and others ---------------------------------------------------------------------------


def nft(*words: str) -> None:
    subprocess.run(["nft", *words], check=True, capture_output=True)


def test_a_foreign_flush_is_told_and_mended(scratch: Path) -> None:
    with services(scratch) as net:
        net.program(OWNER, frontends(4, [piece(4, "here-a", "far-a")]))
        assert net.backend.foreign() == []
        for words in (
            ("flush", "map", "ip", nf.TABLE, nf.SERVICES),
            ("flush", "chain", "ip", nf.TABLE, "lb-2"),
            ("flush", "ruleset"),
        ):
            nft(*words)
            assert net.backend.foreign()
            net.backend.mend()
            assert ends_of(net, asks(4) * 5) == {"here-a", "far-a"}
            assert net.backend.foreign() == []


def test_a_refused_transaction_leaves_the_former_state_at_work(scratch: Path) -> None:
    """Somebody took an element away: the kernel refuses what would delete it again."""
    with services(scratch) as net:
        net.program(OWNER, frontends(4, [piece(4, "here-a", "far-a")]))
        index = f"{CLUSTER_IP} . tcp . 80"
        nft("delete", "element", "ip", nf.TABLE, nf.SERVICES, f"{{ {index} }}")
        with pytest.raises(KernelError, match="services"):
            net.program(OWNER, ())
        # Refused as a whole: what else the transaction held still stands.
        udp = [a for a in asks(4) if a.protocol == UDP]
        assert ends_of(net, udp * 5) == {"here-a", "far-a"}
        assert ends_of(net, asks(4, ("outside",), NODE_IP) * 5) == {"here-a", "far-a"}
        net.claims.set(OWNER, frontends(4, [piece(4, "far-a")]))
        net.backend.mend()
        assert ends_of(net, asks(4)) == {"far-a"}
