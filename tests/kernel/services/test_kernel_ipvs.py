"""Services through IPVS, with real packets: the rows every back end is held to, and IPVS's own.

This needs a kernel with ip_vs and the program ipvsadm: `./test --all` runs it in QEMU
(tests/vm/test_vm.py), anywhere else it is skipped.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest
from service_checks import check_inits, check_packets, program, spoken
from service_injector import Injector
from service_net import TCP, UDP, Ask, ServiceNet, address_of, wait
from service_rows import (
    BALANCER,
    CLUSTER_IP,
    GROUPS,
    MIXED,
    NODE_IP,
    NODE_PORT,
    Row,
    Svc,
    balanced,
    ep,
    node_port,
    translate,
    variants,
)
from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS, compiled, make_service, make_slice

from podwire.agents.ipvsbackend import IpvsBackend
from podwire.agents.l2 import L2Kernel
from podwire.agents.servicekernel import FlowCleaner, Ranges
from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import ipvs as kernel
from podwire.kernel import netns, sysctl
from podwire.kernel.requests import AddLink, Address, DeleteLink, Replace, SetLink, Veth
from podwire.kernel.rtnl import Rtnl
from podwire.services import ipvs
from podwire.services.claims import Claims, Owner
from podwire.services.evaluate import Domain, address_ranges
from podwire.services.ipvsplan import Ruleset

RANGES = Ranges(SERVICE_CIDRS, CLUSTER_CIDRS)
WEB = Owner("Service", make_service().key)
HERE_A = {"ip": "10.244.1.2", "node": "node-1"}
FAR_A = {"ip": "10.244.2.2", "node": "node-2"}


@contextlib.contextmanager
def serving(scratch: Path, look_s: float = 30.0) -> Iterator[ServiceNet]:
    """node-1 with IPVS; skips where the kernel has none."""
    try:
        kernel.check()
    except UnsupportedError as error:
        pytest.skip(str(error))
    with ServiceNet(scratch, make_backend=partial(IpvsBackend, look_s=look_s)) as net:
        net.open(RANGES)
        yield net


def serve(net: ServiceNet, svc: Svc, protocol: str = "TCP", version: int = 4) -> None:
    program(net, translate(Row("", (svc,), ()), version, protocol))


def set_web(net: ServiceNet, *endpoints: dict[str, Any], port: int = 8080, **spec: Any) -> None:
    """One Service of TCP, without forgetting anything that was."""
    piece = make_slice(*endpoints, ports=({"name": "http", "port": port},))
    net.program(WEB, compiled(make_service(**spec), piece).frontends)


def hosts(net: ServiceNet, host: str, count: int, dst: str = f"{CLUSTER_IP}:80") -> Counter[str]:
    """Which hosts answer `count` new connections, one after the other."""
    address, _, port = dst.rpartition(":")
    return Counter(net.ask_one(host, address, int(port)).host for _ in range(count))


# --- the rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_rows(scratch: Path, group: str) -> None:
    """Every row in both families and by TCP and UDP; of the four pairs two, in turn."""
    with serving(scratch) as net:
        for number, row in enumerate(GROUPS[group]):
            pairs = list(variants(replace(row, protocols=spoken(row))))
            chosen = pairs if len(pairs) == 2 else [pairs[number % 2], pairs[3 - number % 2]]
            for suffix, variant in chosen:
                program(net, variant)
                check_packets(net, variant, f"{row.name} ({suffix})")


@pytest.mark.parametrize("group", ["cluster-ip", "node-port"])
def test_rows_by_sctp(scratch: Path, group: str) -> None:
    with serving(scratch) as net, Injector(net) as injector:
        for row in GROUPS[group]:
            if "SCTP" in row.protocols:
                for suffix, variant in variants(replace(row, protocols=("SCTP",))):
                    program(net, variant)
                    cases = [case for case in variant.cases if case.origin != "node"]
                    check_inits(injector, variant, cases, f"{row.name} ({suffix})")


def test_an_unserved_port_of_a_balancers_address_is_refused(scratch: Path) -> None:
    """With nftables it is not ours; here the address is the node's, and a program of the node that
    listens on every address would answer."""
    with serving(scratch) as net:
        serve(net, Svc(balanced(), MIXED))
        listener = netns.socket_in(net.hosts["node"].fd, socket.AF_INET, socket.SOCK_STREAM)
        with listener:
            listener.bind(("0.0.0.0", 9999))
            listener.listen()
            assert net.ask_one("outside", BALANCER, 9999).verdict == "refused"
            assert net.ask_one("here-c", CLUSTER_IP, 9999).verdict == "refused"


def test_a_ping_is_answered_at_an_external_address_only(scratch: Path) -> None:
    with serving(scratch) as net:
        serve(net, Svc(balanced(), MIXED))
        assert ping(net, BALANCER)
        assert not ping(net, CLUSTER_IP)


def ping(net: ServiceNet, dst: str) -> bool:
    with netns.entered(net.hosts["outside"].fd):
        done = subprocess.run(["ping", "-n", "-c1", "-W2", dst], capture_output=True, check=False)
    return done.returncode == 0


def test_the_announcing_node_alone_answers_for_a_balancers_address(scratch: Path) -> None:
    """Every node has the address on its device; who asks for a neighbour hears one."""
    with serving(scratch) as net:
        far = netns.create(scratch / "far")
        with Rtnl() as rtnl, Rtnl.in_ns(far) as there:
            rtnl.apply([AddLink(name="up0", kind=Veth(peer="up0", netns=far))])
            for side, host in ((rtnl, "2"), (there, "254")):
                side.apply(
                    [
                        SetLink(device="up0", up=True),
                        Replace(Address("up0", ip_interface(f"192.0.2.{host}/24"))),
                        Replace(Address("up0", ip_interface(f"2001:db8:2::{host}/64"))),
                    ]
                )
        vips = frozenset({ip_address("192.0.2.200"), ip_address("2001:db8:2::200")})
        serve(net, Svc(balanced(ingress=[{"ip": str(vip)} for vip in vips]), MIXED))
        assert not any(neighbour(far, vip) for vip in vips)
        l2 = L2Kernel("up0", (4, 6), delivered=True)
        with contextlib.closing(l2):
            l2.change(frozenset(), vips)
            assert all(neighbour(far, vip) for vip in vips)
            l2.change(vips, frozenset())
            assert not any(neighbour(far, vip) for vip in vips)


def neighbour(far: int, vip: IPv4Address | IPv6Address) -> bool:
    """Whether anybody answers for the address."""
    with netns.entered(far):
        subprocess.run(["ip", "neigh", "flush", "dev", "up0"], check=True)
        family = socket.AF_INET if vip.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(2)
            sock.connect_ex((str(vip), 9))
        done = subprocess.run(
            ["ip", "neigh", "show", str(vip)], capture_output=True, text=True, check=True
        )
    return "lladdr" in done.stdout


# --- schedulers -----------------------------------------------------------------------------------


def _scheduled(name: str) -> dict[str, Any]:
    return {"annotations": {"networking.podwire.dev/ipvs-scheduler": name}}


@pytest.mark.parametrize("version", [4, 6])
def test_round_robin_is_exact(scratch: Path, version: int) -> None:
    with serving(scratch) as net:
        serve(net, Svc({}, ((ep("here-a"), ep("here-b"), ep("far-a")),)), version=version)
        dst = {4: f"{CLUSTER_IP}:80", 6: "fd00:96::1:80"}[version]
        found = hosts(net, "here-c", 30, dst)
    assert found == {"here-a": 10, "here-b": 10, "far-a": 10}


def test_weights_are_exact(scratch: Path) -> None:
    with serving(scratch) as net:
        weights = {address_of("here-a", 4): 3, address_of("far-a", 4): 1}
        serve(net, Svc({}, MIXED, weights=weights))
        assert hosts(net, "here-c", 40) == {"here-a": 30, "far-a": 10}


@pytest.mark.parametrize("name", ["sh", "mh", "dh"])
def test_a_hash_keeps_a_client_where_it_was(scratch: Path, name: str) -> None:
    """And an endpoint that ends, although it is not gone, has no new clients."""
    with serving(scratch) as net:
        endpoints = tuple(ep(host) for host in ("here-a", "here-b", "far-a", "far-c"))
        serve(net, Svc(_scheduled(name), (endpoints,)))
        (first,) = hosts(net, "here-c", 8)
        others = tuple(e for e in endpoints if e["ip"] != address_of(first, 4))
        program_kept(net, Svc(_scheduled(name), (others,)))
        assert first not in hosts(net, "here-c", 8)


def program_kept(net: ServiceNet, svc: Svc) -> None:
    """As `program`, without forgetting."""
    ((service, slices),) = translate(Row("", (svc,), ()), 4, "TCP").build()
    net.program(WEB, compiled(service, *slices).frontends, ("000",))


def test_maglev_spreads_a_clients_connections(scratch: Path) -> None:
    annotations = {"networking.podwire.dev/balancing": "maglev"}
    with serving(scratch) as net:
        serve(net, Svc({"annotations": annotations}, MIXED))
        assert set(hosts(net, "here-c", 30)) == {"here-a", "far-a"}
        ask = Ask("here-c", CLUSTER_IP, 80, TCP, 33333)
        assert len({net.ask([ask])[0].host for _ in range(6)}) == 1


@pytest.mark.parametrize("name", ["lc", "wlc", "sed", "nq"])
def test_every_scheduler_serves(scratch: Path, name: str) -> None:
    with serving(scratch) as net:
        serve(net, Svc(_scheduled(name), MIXED))
        assert f"-s {name}" in kernel.save()
        assert set(hosts(net, "here-c", 6)) <= {"here-a", "far-a"}


# --- endings --------------------------------------------------------------------------------------


@contextlib.contextmanager
def echo(net: ServiceNet, host: str, port: int = 9000) -> Iterator[None]:
    """One connection after the other, each sent back what it sends."""
    listener = netns.socket_in(net.hosts[host].fd, socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address_of(host, 4), port))
    listener.listen()

    opened: list[socket.socket] = []

    def work() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                opened.append(connection)
                with connection:
                    while data := connection.recv(64):
                        connection.send(data)

    thread = threading.Thread(target=work, name="echo")
    thread.start()
    try:
        yield
    finally:
        for sock in (listener, *opened):
            # One whose client was cut off waits for ever.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def connect(net: ServiceNet, host: str = "here-c") -> socket.socket:
    sock = net.socket(Ask(host, CLUSTER_IP, 80))
    sock.settimeout(10)
    sock.connect((CLUSTER_IP, 80))
    return sock


def say(sock: socket.socket) -> None:
    sock.send(b"hello")
    assert sock.recv(64) == b"hello"


def destinations() -> dict[str, int]:
    return ipvs.parse_save(kernel.save())[f"-t {CLUSTER_IP}:80"].destinations


def test_a_long_connection_outlives_its_endpoint(scratch: Path) -> None:
    """The endpoint has weight 0 until the connection has ended, then it is gone."""
    with serving(scratch) as net, echo(net, "here-a"), contextlib.ExitStack() as stack:
        set_web(net, HERE_A, port=9000)
        sock = stack.enter_context(connect(net))
        say(sock)
        set_web(net, FAR_A, port=9000)
        assert destinations() == {"10.244.1.2:9000": 0, "10.244.2.2:9000": 1}
        say(sock)
        assert isinstance(net.backend, IpvsBackend)
        ruleset = net.backend.ruleset
        assert ruleset.drained(kernel.connections()) == ""
        set_web(net, port=9000)
        say(sock)
        assert net.ask_one("here-c", CLUSTER_IP, 80).verdict == "refused"
        stack.close()  # with a reset
        wait(lambda: remove_drained(ruleset) or not destinations(), 60)


def remove_drained(ruleset: Ruleset) -> None:
    kernel.restore(ruleset.drained(kernel.connections()))


def test_the_timer_removes_what_drained(scratch: Path) -> None:
    with serving(scratch, 0.2) as net:
        set_web(net, HERE_A, FAR_A)
        set_web(net, FAR_A)
        assert destinations() == {"10.244.1.2:8080": 0, "10.244.2.2:8080": 1}
        assert select.select([net.backend], [], [], 10)[0]
        assert net.backend.foreign() == []
        assert destinations() == {"10.244.2.2:8080": 1}


def test_a_deleted_service_ends_its_connections(scratch: Path) -> None:
    """Their virtual server is gone, and the address; with nftables they would go on."""
    with serving(scratch) as net, echo(net, "here-a"), contextlib.ExitStack() as stack:
        set_web(net, HERE_A, port=9000)
        sock = stack.enter_context(connect(net))
        say(sock)
        net.program(WEB, ())
        sock.settimeout(1)
        sock.send(b"hello")
        with pytest.raises(OSError):
            sock.recv(64)


def test_udp_leaves_an_endpoint_at_once(scratch: Path) -> None:
    """A sender that keeps its port is answered by another endpoint; one packet may be lost."""
    domain = Domain(address_ranges(SERVICE_CIDRS), address_ranges(CLUSTER_CIDRS))
    with serving(scratch) as net:
        cleaner = FlowCleaner((4, 6), net.claims)
        with contextlib.closing(cleaner), net.socket(Ask("here-c", CLUSTER_IP, 80, UDP)) as sock:
            sock.settimeout(1)
            ports = [{"name": "dns", "port": 80, "protocol": "UDP"}]
            piece = ({"name": "dns", "port": 8080, "protocol": "UDP"},)
            for endpoint, host in ((HERE_A, b"here-a"), (FAR_A, b"far-a")):
                slices = make_slice(endpoint, ports=piece)
                net.program(WEB, compiled(make_service(ports=ports), slices).frontends)
                cleaner.clean(domain)
                assert host in wait(lambda: _answer(sock), 20)


def _answer(sock: socket.socket) -> bytes:
    sock.sendto(b"who", (CLUSTER_IP, 80))
    with contextlib.suppress(TimeoutError):
        return sock.recv(512)
    return b""


# --- others and restarts --------------------------------------------------------------------------


def test_a_restart_loses_nothing(scratch: Path) -> None:
    """Another agent takes over under load: no connection fails, an open one goes on."""
    with serving(scratch) as net, echo(net, "here-a"), contextlib.ExitStack() as stack:
        set_web(net, HERE_A, port=9000)
        net.program(
            Owner("Service", make_service("other").key),
            compiled(
                make_service("other", **{**node_port(), "clusterIP": "10.96.0.2"}),
                make_slice(HERE_A, FAR_A, name="other-1"),
            ).frontends,
        )
        sock = stack.enter_context(connect(net))
        before = kernel.save()
        ended, answers = threading.Event(), Counter[str]()

        def load() -> None:
            while not ended.is_set():
                answers[net.ask_one("here-c", "10.96.0.2", 80).verdict] += 1
                answers[net.ask_one("outside", NODE_IP, NODE_PORT).verdict] += 1

        thread = threading.Thread(target=load, name="load")
        thread.start()
        try:
            for _ in range(3):
                claims = Claims()
                for owner in net.claims.owners:
                    claims.set(owner, net.claims.of(owner))
                backend = IpvsBackend((4, 6), claims)
                assert not backend.open(RANGES)
                backend.mend()
                backend.close()
                say(sock)
        finally:
            ended.set()
            thread.join()
        assert set(answers) == {"answered"}
        assert kernel.save() == before


def test_what_others_break_is_mended(scratch: Path) -> None:
    with serving(scratch, 0.2) as net:
        set_web(net, HERE_A)
        subprocess.run(["nft", "flush", "table", "ip", ipvs.TABLE], check=True)
        wait(lambda: noticed(net))
        net.backend.mend()
        kernel.restore(f"-D -t {CLUSTER_IP}:80\n")
        assert net.ask_one("here-c", CLUSTER_IP, 80).verdict == "refused"
        wait(lambda: noticed(net))
        net.backend.mend()
        assert hosts(net, "here-c", 1) == {"here-a": 1}
        with Rtnl() as rtnl:
            rtnl.apply([DeleteLink(ipvs.DEVICE)])
        wait(lambda: noticed(net))
        kernel.restore("-A -t 192.0.2.1:80 -s rr\n")
        net.backend.mend()
        assert hosts(net, "here-c", 1) == {"here-a": 1}
        assert "-A -t 192.0.2.1:80 -s rr" in kernel.save()
        assert net.backend.foreign() == []


def noticed(net: ServiceNet) -> list[str]:
    return net.backend.foreign() if select.select([net.backend], [], [], 10)[0] else []


def test_what_is_left_without_services(scratch: Path) -> None:
    with serving(scratch) as net:
        serve(net, Svc(balanced(externalTrafficPolicy="Local"), MIXED))
        net.clear()
        assert kernel.save() == ""
        with Rtnl() as rtnl:
            assert not [a for a in rtnl.addresses() if a.device == ipvs.DEVICE]
        assert {name: int(sysctl.read(name)) for name in ipvs.SYSCTLS} == ipvs.SYSCTLS


def test_refusals_are_errors(scratch: Path) -> None:
    with serving(scratch), pytest.raises(KernelError, match="ipvs: No such service"):
        kernel.restore("-D -t 10.96.0.77:80\n-A -t 10.96.0.78:80 -s rr\n")
