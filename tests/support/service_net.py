"""A node, its pods and the world around it, in namespaces of the test's own, with real packets.

    the test's namespace = node-1 172.30.0.2                 fabric, one namespace
      here-a 10.244.1.2 ─veth─┐                      ┌─veth─ far-a 10.244.2.2   far-b 10.244.2.3
      here-b 10.244.1.3 ─veth─┼─ routes, Services ───┤─veth─ far-c 10.244.3.2
      here-c 10.244.1.4 ─veth─┘   eth0               ├─veth─ node-2 172.30.0.3
                                                     └─veth─ outside 203.0.113.10 and .200

IPv6 likewise: 10.244.N.M is fd00:244:0:N::M, 172.30.0.N is fd00:30::N, 203.0.113.N is
2001:db8:113::N. What comes from the fabric's hosts goes to node-1 whatever its destination, so an
answer passes the node that translated the question. Every host serves TCP and UDP on the ports of
`PORTS` and says who it is and whom it saw.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, NamedTuple

from podwire.agents.backends import BackendFactory
from podwire.agents.nftablesbackend import NftablesBackend
from podwire.agents.servicekernel import Ranges
from podwire.kernel import hooks, netns, sysctl
from podwire.kernel.conntrack import Conntrack
from podwire.kernel.nft import Nft
from podwire.kernel.requests import (
    Add,
    AddLink,
    Address,
    Neighbour,
    Request,
    Route,
    Rule,
    SetLink,
    Veth,
)
from podwire.kernel.rtnl import Rtnl
from podwire.services.claims import Claims, Owner
from podwire.services.model import PROTOCOLS

HERE = {"here-a": "10.244.1.2", "here-b": "10.244.1.3", "here-c": "10.244.1.4"}
AWAY = {
    "far-a": "10.244.2.2",
    "far-b": "10.244.2.3",
    "far-c": "10.244.3.2",
    "node-2": "172.30.0.3",
    "outside": "203.0.113.10",
    "outside-2": "203.0.113.200",
}
NODE_1 = "172.30.0.2"
# What `service_worlds.NODE` is called as a source of packets.
ADDRESSES = {"node": NODE_1, **HERE, **AWAY}
PORTS = (8080, 8081)
ONE_WAY = b"one-way"
TCP, UDP, SCTP = PROTOCOLS["TCP"], PROTOCOLS["UDP"], PROTOCOLS["SCTP"]
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}

_TABLES = {"nftables": hooks.SERVICES_TABLE, "ipvs": hooks.IPVS_TABLE}
_MAC = "02:00:00:00:00:01"
_GATEWAY = {4: "169.254.1.1", 6: "fe80::1"}
_TO_NODE = 100
_RST = struct.pack("ii", 1, 0)
_NETWORKS = {
    "10.96.0.0/16": "fd00:96::/112",
    "10.244.0.0/16": "fd00:244::/56",
    "203.0.113.0/24": "2001:db8:113::/64",
    "203.0.113.0/25": "2001:db8:113::/121",
    "172.30.0.0/24": "fd00:30::/64",
}


def in_family(text: str, version: int) -> str:
    """An address or network of the plan above in a family."""
    if version == 4 or not text[:1].isdigit():
        return text
    if text in _NETWORKS:
        return _NETWORKS[text]
    a, b, c, d = text.split(".")
    if (a, b) == ("10", "244"):
        return f"fd00:244:0:{c}::{d}"
    prefix = {"10.96": "fd00:96::", "172.30": "fd00:30::", "203.0": "2001:db8:113::"}[f"{a}.{b}"]
    return f"{prefix}{d}" if c in ("0", "113") else f"{prefix}{c}:{d}"


def address_of(host: str, version: int) -> str:
    return in_family(ADDRESSES[host], version)


class Answer(NamedTuple):
    """What became of one new connection: `host` answered and saw `client`, or `verdict` is why not.

    Verdicts: answered, refused, dropped, unreachable.
    """

    verdict: str
    host: str = ""
    port: int = 0
    client: str = ""
    source: str = ""


@dataclass(frozen=True)
class Ask:
    """One new connection from a host; `sport` 0 lets the kernel choose."""

    host: str
    dst: str
    port: int
    protocol: int = TCP
    sport: int = 0


@dataclass
class Host:
    fd: int
    addresses: list[str] = field(default_factory=list)


class ServiceNet:
    """Everything above, and the Services' back end of node-1. Close it to end the servers."""

    def __init__(
        self,
        scratch: Path,
        *,
        pods: Iterable[str] = HERE,
        make_backend: BackendFactory = NftablesBackend,
    ) -> None:
        self.hosts: dict[str, Host] = {}
        self.claims = Claims()
        self._scratch = scratch
        self._stack = contextlib.ExitStack()
        self._build(pods)
        self.backend = make_backend((4, 6), self.claims)
        self._stack.callback(self.backend.close)
        self.conntrack = Conntrack()
        self._stack.callback(self.conntrack.close)
        self.server = Server()
        self._stack.callback(self.server.stop)
        for name, host in self.hosts.items():
            for text in host.addresses:
                self.server.serve(name, text, host.fd)

    def __enter__(self) -> ServiceNet:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, ranges: Ranges) -> None:
        if not self.backend.open(ranges):
            self.backend.mend()

    def program(self, owner: Owner, frontends: Iterable[Any], rank: tuple[str, ...] = ()) -> None:
        """What the agent does for one owner, without the API."""
        self.claims.set(owner, frontends, rank)
        self.backend.commit()

    def clear(self) -> None:
        """No Services, and no memory of former connections."""
        for owner in self.claims.owners:
            self.claims.set(owner, ())
        self.backend.commit()
        for family in (socket.AF_INET, socket.AF_INET6):
            self.conntrack.delete_many(self.conntrack.dump(family))

    def counters(self, version: int = 4) -> Counter[str]:
        """Packets of the table's named counters."""
        with Nft() as nft:
            text = nft.list_table({4: "ip", 6: "ip6"}[version], _TABLES[self.backend.name])
        found: Counter[str] = Counter()
        name = ""
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["counter"] and words[-1:] == ["{"]:
                name = words[1].strip('"')
            elif words[:1] == ["packets"] and name:
                found[name], name = int(words[1]), ""
        return found

    # --- wires ------------------------------------------------------------------------------------

    def _build(self, pods: Iterable[str]) -> None:
        node = netns.current()
        self._stack.callback(os.close, node)
        self.fabric = fabric = self._create("fabric")
        self.hosts["node"] = Host(node)
        for fd in (node, fabric):
            self._sysctls(fd)
        with Rtnl() as rtnl:
            rtnl.apply([SetLink(device="lo", up=True)])
        with Rtnl.in_ns(fabric) as rtnl:
            rtnl.apply([SetLink(device="lo", up=True)])
            self._join(rtnl, "node", node, [NODE_1], link="eth0")
            others: dict[str, list[str]] = {}
            for name, text in AWAY.items():
                others.setdefault(name.removesuffix("-2") if "outside" in name else name, [])
                others["outside" if "outside" in name else name].append(text)
            for name, texts in others.items():
                fd = self._create(name)
                self.hosts[name] = Host(fd)
                self._join(rtnl, name, fd, texts)
                rtnl.apply(self._through_node(name))
            rtnl.apply(
                Add(Route(destination=ip_network(n), type="blackhole", metric=99))
                for n in ("0.0.0.0/0", "::/0")
            )
        with Rtnl() as rtnl:
            for name in pods:
                fd = self._create(name)
                self.hosts[name] = Host(fd)
                self._join(rtnl, name, fd, [HERE[name]])

    def swallow(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        """These lead to a host that never says anything, where there is no better route."""
        fd = self._create("sink")
        near = "v-sink"
        with Rtnl() as rtnl:
            rtnl.apply(
                [
                    AddLink(name=near, kind=Veth(peer="eth0", mac=_MAC, netns=fd), mac=_MAC),
                    SetLink(device=near, link_local=False),
                    SetLink(device=near, up=True),
                    *(Add(Neighbour(near, ip_address(g), _MAC)) for g in _GATEWAY.values()),
                ]
            )
            with Rtnl.in_ns(fd) as far:
                far.apply(
                    [SetLink(device="eth0", link_local=False), SetLink(device="eth0", up=True)]
                )
            for network in networks:
                via = ip_address(_GATEWAY[network.version])
                rtnl.apply([Add(Route(destination=network, via=via, device=near, onlink=True))])

    def _create(self, name: str) -> int:
        fd = netns.create(self._scratch / name)
        self._stack.callback(os.close, fd)
        return fd

    @staticmethod
    def _sysctls(fd: int) -> None:
        values = {
            "net/ipv4/ip_forward": 1,
            "net/ipv6/conf/all/forwarding": 1,
            "net/ipv4/conf/all/rp_filter": 0,
            "net/ipv4/conf/default/rp_filter": 0,
            # A refusal is an ICMP message; every one of them is to be seen.
            "net/ipv4/icmp_ratelimit": 0,
            "net/ipv6/icmp/ratelimit": 0,
        }
        sysctl.write(values, fd)

    def _join(
        self, rtnl: Rtnl, name: str, fd: int, texts: Sequence[str], link: str = "eth0"
    ) -> None:
        """A routed veth: the near side has routes to the far side's addresses, and nothing else."""
        near = f"v-{name}"
        every = [in_family(text, version) for text in texts for version in (4, 6)]
        self.hosts[name].addresses = every
        rtnl.apply(
            [
                AddLink(name=near, kind=Veth(peer=link, mac=_MAC, netns=fd), mac=_MAC),
                SetLink(device=near, link_local=False),
                SetLink(device=near, up=True),
                *(_route_to(near, text) for text in every),
                *(Add(Neighbour(near, ip_address(text), _MAC)) for text in every),
            ]
        )
        with Rtnl.in_ns(fd) as far:
            far.apply(_far_side(link, every))
        sysctl.write({f"net/ipv4/conf/{link}/rp_filter": 0}, fd)

    def _through_node(self, name: str) -> list[Request]:
        requests: list[Request] = []
        for version in (4, 6):
            requests.append(
                Add(
                    Rule(
                        priority=10,
                        table=_TO_NODE,
                        input_device=f"v-{name}",
                        family=4 if version == 4 else 6,
                    )
                )
            )
            requests.append(
                Add(
                    Route(
                        destination=ip_network({4: "0.0.0.0/0", 6: "::/0"}[version]),
                        via=ip_address(in_family(NODE_1, version)),
                        device="v-node",
                        onlink=True,
                        table=_TO_NODE,
                    ),
                    exist_ok=True,
                )
            )
        return requests

    # --- packets ----------------------------------------------------------------------------------

    def socket(self, ask: Ask) -> socket.socket:
        """A socket in the host's namespace, bound to the host's address."""
        family = socket.AF_INET6 if ":" in ask.dst else socket.AF_INET
        host = "outside" if ask.host == "outside-2" else ask.host
        sock = netns.socket_in(self.hosts[host].fd, family, KINDS[ask.protocol])
        sock.setblocking(False)
        if ask.protocol == TCP:
            # Not for UDP, where it would have two sockets share one port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        sock.bind((address_of(ask.host, 6 if ":" in ask.dst else 4), ask.sport))
        return sock

    def ask(self, asks: Sequence[Ask], *, patience_s: float = 5.0) -> list[Answer]:
        """All of them at once, in order of `asks`; what has no answer in time is dropped."""
        talk = _Talk(self, asks)
        return talk.run(patience_s)

    def ask_one(self, host: str, dst: str, port: int, protocol: int = TCP) -> Answer:
        return self.ask([Ask(host, dst, port, protocol)])[0]


def _route_to(device: str, text: str) -> Add:
    interface = ip_interface(text)
    return Add(Route(destination=ip_network(interface), device=device))


def _far_side(link: str, every: Sequence[str]) -> list[Request]:
    requests: list[Request] = [
        SetLink(device="lo", up=True),
        SetLink(device=link, link_local=False),
        SetLink(device=link, up=True),
        *(Add(Address(link, ip_interface(text))) for text in every),
    ]
    for version, gateway in _GATEWAY.items():
        via = ip_address(gateway)
        everywhere = ip_network({4: "0.0.0.0/0", 6: "::/0"}[version])
        requests += [
            Add(Route(destination=everywhere, via=via, device=link, onlink=True)),
            Add(Neighbour(link, via, _MAC)),
        ]
    return requests


class _Talk:
    """Many connections at once in one epoll set."""

    def __init__(self, net: ServiceNet, asks: Sequence[Ask]) -> None:
        self._net = net
        self._asks = asks
        self._answers: list[Answer | None] = [None] * len(asks)
        self._sources = [""] * len(asks)

    def run(self, patience_s: float) -> list[Answer]:
        with select.epoll() as epoll:
            waiting: dict[int, tuple[int, socket.socket]] = {}
            for index, ask in enumerate(self._asks):
                sock = self._net.socket(ask)
                try:
                    self._begin(index, ask, sock)
                except OSError as error:
                    self._fail(index, error)
                    sock.close()
                    continue
                waiting[sock.fileno()] = index, sock
                epoll.register(sock, select.EPOLLIN)
            deadline = time.monotonic() + patience_s
            while waiting and (left := deadline - time.monotonic()) > 0:
                for fd, _ in epoll.poll(left):
                    index, sock = waiting.pop(fd)
                    epoll.unregister(fd)
                    with sock:
                        self._finish(index, sock)
            for _, sock in waiting.values():
                sock.close()
        return [
            answer or Answer("dropped", source=source)
            for answer, source in zip(self._answers, self._sources, strict=True)
        ]

    def _begin(self, index: int, ask: Ask, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            sock.connect((ask.dst, ask.port))
        self._sources[index] = sock.getsockname()[0]
        if ask.protocol == UDP:
            # A node's own packet that a rule drops is "not permitted"; a refusal still follows.
            with contextlib.suppress(PermissionError):
                sock.send(b"who")

    def _finish(self, index: int, sock: socket.socket) -> None:
        try:
            data = sock.recv(512)
            said = json.loads(data)
        except OSError as error:
            self._fail(index, error)
        except ValueError:
            self._answers[index] = Answer("refused", source=self._sources[index])
        else:
            self._answers[index] = Answer("answered", *said, source=self._sources[index])

    def _fail(self, index: int, error: OSError) -> None:
        refused = error.errno in (errno.ECONNREFUSED, errno.ECONNRESET)
        verdict = "refused" if refused else "unreachable"
        self._answers[index] = Answer(verdict, source=self._sources[index])


class Server:
    """All servers of all hosts: one thread, one epoll set."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, tuple[str, socket.socket]] = {}
        self._lock = threading.Lock()
        self._end, far = os.pipe()
        self._far = far
        self._epoll.register(self._end, select.EPOLLIN)
        self._turn = os.eventfd(0)
        self._turned = threading.Semaphore(0)
        self._epoll.register(self._turn, select.EPOLLIN)
        self.received: Counter[tuple[str, int]] = Counter()
        self._thread = threading.Thread(target=self._run, name="servers", daemon=True)
        self._thread.start()

    def serve(self, name: str, text: str, fd: int, ports: Iterable[int] = PORTS) -> None:
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        for port in ports:
            for kind in KINDS.values():
                sock = netns.socket_in(fd, family, kind)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((text, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen(4096)
                sock.setblocking(False)
                with self._lock:
                    self._sockets[sock.fileno()] = name, sock
                self._epoll.register(sock, select.EPOLLIN)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._end:
                    return
                if fd == self._turn:
                    os.eventfd_read(fd)
                    self._turned.release()
                    continue
                with self._lock:
                    found = self._sockets.get(fd)
                if found is not None:
                    self._answer(*found)

    def _answer(self, name: str, sock: socket.socket) -> None:
        port = sock.getsockname()[1]
        with contextlib.suppress(OSError):
            while True:
                if sock.type == socket.SOCK_STREAM:
                    connection, peer = sock.accept()
                    with connection:
                        connection.send(json.dumps([name, port, peer[0]]).encode())
                    continue
                data, peer = sock.recvfrom(512)
                if data.startswith(ONE_WAY):
                    self.received[name, port] += 1
                else:
                    sock.sendto(json.dumps([name, port, peer[0]]).encode(), peer)

    def settle(self) -> None:
        """Return when all datagrams that had arrived are in `received`: the thread may be late."""
        while True:
            os.eventfd_write(self._turn, 1)
            # Between two turns of its loop the thread holds nothing it has not counted.
            assert self._turned.acquire(timeout=10)
            if not any(_waiting(sock) for _, sock in self._sockets.values()):
                return

    def stop(self) -> None:
        os.write(self._far, b"x")
        self._thread.join()
        for _, sock in self._sockets.values():
            sock.close()
        self._epoll.close()
        os.close(self._turn)
        os.close(self._end)
        os.close(self._far)


def _waiting(sock: socket.socket) -> int:
    """The size of the datagram that is next."""
    if sock.type != socket.SOCK_DGRAM:
        return 0
    found = fcntl.ioctl(sock, termios.FIONREAD, bytes(4))
    return int.from_bytes(found, sys.byteorder)


def wait(condition: Any, timeout_s: float = 10.0) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not true after {timeout_s:g} s: {found!r}"
        time.sleep(0.005)


class Sender:
    """Somebody who sends datagrams from one and the same port, never listens and never stops."""

    def __init__(self, net: ServiceNet, ask: Ask, pause_s: float = 0.0005) -> None:
        self._ask, self._pause_s = ask, pause_s
        self._socket = net.socket(ask)
        self._socket.setblocking(True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="one-way")
        self.sent = 0

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            # Refusals come back as errors of the next call; this sender does not mind.
            with contextlib.suppress(OSError):
                self._socket.sendto(ONE_WAY, (self._ask.dst, self._ask.port))
            self.sent += 1
            self._ended.wait(self._pause_s)

    def wait_sent(self, count: int) -> None:
        """Return when so many more were sent."""
        goal = self.sent + count
        wait(lambda: self.sent >= goal)


class Connecting:
    """Somebody who opens new connections as fast as possible; what was not answered is kept."""

    def __init__(self, net: ServiceNet, asks: Sequence[Ask]) -> None:
        self._net, self._asks = net, asks
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connecting")
        self.answers: Counter[tuple[str, int]] = Counter()
        self.failures: list[Answer] = []
        self.error: BaseException | None = None

    def __enter__(self) -> Connecting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                for answer in self._net.ask(self._asks, patience_s=3.0):
                    if answer.verdict == "answered":
                        self.answers[answer.host, answer.port] += 1
                    else:
                        self.failures.append(answer)
        except BaseException as error:
            self.error = error

    @property
    def total(self) -> int:
        return self.answers.total() + len(self.failures)

    def wait_asked(self, count: int) -> None:
        """Return when so many more have ended."""
        goal = self.total + count
        wait(lambda: self.total >= goal or self.error, timeout_s=30.0)
