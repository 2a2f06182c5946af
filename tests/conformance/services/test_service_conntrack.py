"""[sig-network] Conntrack, KubeProxy and NoSNAT, under upstream's names (k/k test/e2e/network/):
what becomes of flows, with real packets.

Not here: KubeProxyNFAcct (node ports on localhost are not served), "should be able to preserve UDP
traffic when server pod cycles" with kube-proxy's own restarts (tests/e2e/test_services_churn.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from outsideclient import entering
from serviceslab import (
    CLIENTS,
    NODE_IPS,
    PROXIES,
    Case,
    World,
    pod_body,
    service_world,
)

from podwire.objects import kinds

NAMES = ("web-1", "web-2", "web-3")
UDP_ONLY = [{"name": "udp", "port": 80, "targetPort": 8081, "protocol": "UDP"}]


@pytest.fixture(scope="module", params=PROXIES)
def world(request: pytest.FixtureRequest, tools: Any) -> Iterator[World]:
    yield from service_world(request.param, "flows", tools)


@pytest.fixture
def t(world: World) -> Iterator[Case]:
    with world.test() as case:
        yield case


# --- Conntrack ----------------------------------------------------------------------------------

_SENDER = """
import socket, sys, time, select
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 12345))
s.setblocking(False)
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.005)[0]:
    try:
        s.sendto(b"hostname", (sys.argv[1], int(sys.argv[2])))
    except OSError:
        pass
    try:
        while True:
            print(s.recv(512).decode(), flush=True)
    except OSError:
        pass
"""


class FixedPort:
    """A client that always sends from port 12345, and whoever answered it last."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait_answer_of(self, name: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == name:
                return
        raise AssertionError(f"{name} never answered")


@contextmanager
def sending(t: Case, source: str, address: str, port: int) -> Iterator[FixedPort]:
    """From a node's namespace, or beyond the cluster."""
    words = [*entering(t.lab, source), sys.executable, "-c", _SENDER, address, str(port)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready"
            yield FixedPort(process)
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_udp_when_server_pod_cycles(t: Case, kind: str) -> None:
    """should be able to preserve UDP traffic when server pod cycles for a ClusterIP / NodePort
    service (and client is hostNetwork)"""
    service = t.service(type=kind, ports=UDP_ONLY)
    address, port = service.spec.cluster_ip, 80
    if kind == "NodePort":
        address, port = NODE_IPS["node-1"], service.spec.ports[0].node_port
    source = "node-1" if kind == "ClusterIP" else "outside"
    with sending(t, source, address, port) as client:
        # From no endpoint to the first, from that to the next, and over a time without any.
        t.pods("web-1", nodes=["node-2"])
        client.wait_answer_of("web-1")
        t.pods("web-2", nodes=["node-3"])
        t.delete(kinds.POD, "web-1")
        client.wait_answer_of("web-2")
        t.delete(kinds.POD, "web-2")
        t.pods("web-3", nodes=["node-1"])
        client.wait_answer_of("web-3")


def test_udp_internal_local(t: Case) -> None:
    """should be able to preserve UDP traffic when server pod cycles for a ClusterIP service with
    InternalTrafficPolicy set to Local"""
    service = t.service(ports=UDP_ONLY, internalTrafficPolicy="Local")
    with sending(t, "node-1", service.spec.cluster_ip, 80) as client:
        for name in NAMES[:2]:
            t.pods(name, nodes=["node-1"])
            client.wait_answer_of(name)
            t.delete(kinds.POD, name)


def test_udp_when_unready_endpoints_get_ready(t: Case) -> None:
    """should be able to preserve UDP traffic when initial unready endpoints get ready"""
    unready = {
        "annotations": {"standin.podwire.dev/http-status": "503"},
        "container": {
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1}
        },
    }
    service = t.service(ports=UDP_ONLY)
    with sending(t, "node-2", service.spec.cluster_ip, 80) as client:
        t.create(kinds.POD, pod_body("web-1", "node-1", **unready))
        t.tools.wait(lambda: any(piece.endpoints for piece in t.slices()))
        ready = {"metadata": {"annotations": {"standin.podwire.dev/http-status": "200"}}}
        t.patch(kinds.POD, "web-1", ready)
        client.wait_answer_of("web-1")


_SNIFFER = """
import socket, sys
vip, pod = sys.argv[1], socket.inet_aton(sys.argv[2])
sniff = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
with socket.create_connection((vip, 80), 5) as s:
    print(s.getsockname()[1], flush=True)
    while True:
        packet = sniff.recv(4096)
        if packet[12:16] == pod:
            print({6: "tcp", 17: "marker"}[packet[9]], flush=True)
            if packet[9] == 17:
                break
    s.sendall(b"GET /hostname HTTP/1.0\\r\\n\\r\\n")
    print(s.recv(4096).split()[1].decode(), flush=True)
"""

# Out of any window, then a datagram on the same way.
_BOOM = """
import socket, struct, sys
source, target, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
def check(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
def segment(checksum):
    return struct.pack("!HHIIBBHHH", 8080, port, 1, 1, 5 << 4, 0x10, 65535, checksum, 0)
pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!HH", 6, 20)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.sendto(segment(check(pseudo + segment(0))), (target, 0))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"marker", (target, 9))
"""


def _pins(t: Case) -> list[str]:
    """Pinned in a mount of the lab's own."""
    words = [*entering(t.lab, ""), "ls", "-1", str(t.lab.paths.pod_pins)]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [f"{t.lab.paths.pod_pins}/{name}" for name in listed.split()]


def in_pod(t: Case, address: str, script: str, *arguments: str) -> list[str]:
    """The words that run a script in the network namespace of the pod with this address."""
    for pin in _pins(t):
        inner = [*entering(t.lab, ""), "nsenter", f"--net={pin}"]
        shown = subprocess.run(
            [*inner, "ip", "-4", "addr"], capture_output=True, text=True, check=False
        )
        if f"inet {address}/" in shown.stdout:
            return [*inner, sys.executable, "-c", script, *arguments]
    raise AssertionError(f"no pod has {address}")


def test_invalid_is_dropped(t: Case) -> None:
    """should drop INVALID conntrack entries [Privileged]: a packet that belongs to no connection
    would reach the client with the pod's own address, which would reset the connection"""
    t.pods("web-1", nodes=["node-2"])
    vip, server = t.service().spec.cluster_ip, t.pod("web-1").status.pod_ip
    (client,) = (p.status.pod_ip for p in t.lab.pods(CLIENTS) if p.metadata.name == "client-1")
    words = in_pod(t, client, _SNIFFER, vip, server)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        subprocess.run(in_pod(t, server, _BOOM, server, client, port), check=True)
        assert process.stdout.read().split() == ["marker", "200"]


# --- KubeProxy, NoSNAT --------------------------------------------------------------------------

_HALF_CLOSER = """
import socket, sys
with socket.create_connection((sys.argv[1], 80)) as s:
    s.sendall(b"GET /hostname HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n")
    while s.recv(4096):
        pass
    print("half closed", flush=True)
    sys.stdin.read()
"""


def test_close_wait(t: Case) -> None:
    """KubeProxy should set TCP CLOSE_WAIT timeout [Privileged]"""
    t.pods("web-1", nodes=["node-2"])
    vip = t.service().spec.cluster_ip
    words = [*entering(t.lab, "node-1"), sys.executable, "-c", _HALF_CLOSER, vip]

    def timeouts() -> list[int]:
        table = t.tools.inside(t.lab, "node-1", "cat", "/proc/net/nf_conntrack")
        lines = [line for line in table.splitlines() if f"dst={vip} " in line]
        return [int(line.split()[4]) for line in lines if " CLOSE_WAIT " in line]

    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            (left_s,) = t.tools.wait(timeouts)
            assert 3540 < left_s <= 3600
        finally:
            process.kill()


@pytest.mark.parametrize("ip", [0, 1], ids=["ipv4", "ipv6"])
def test_no_snat(t: Case, ip: int) -> None:
    """NoSNAT Should be able to send traffic between Pods without SNAT"""
    t.pods(*NAMES)
    ips = {name: t.pod(name).status.pod_ips[ip].ip for name in NAMES}
    for source in NAMES:
        for target in NAMES:
            if target != source:
                assert t.seen_as(source, ips[target], 8080) == ips[source]
