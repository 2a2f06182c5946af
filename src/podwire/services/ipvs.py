"""The IPVS form of Services: virtual servers as text, and a small nftables table of verdicts. Pure.

    prerouting | output -> dispatch -> frontends: address . protocol . port -> number of a verdict
                             served, external: IPVS balances (external: masqueraded)
                             refuse, nobody: no endpoint
                             local-...: a client in the cluster gets a mark instead
    input | output      IPVS: mark or address, protocol and port -> destination
    postrouting         -> masquerade what must come back through this node

A frontend is a virtual server at its address; where externalTrafficPolicy Local lets clients in the
cluster use every endpoint, a second one hangs on a packet mark. Addresses that are not the node's
own are on the dummy device `podwire-ipvs0`, since IPVS takes only what is delivered here.

Servers and destinations are the text of `ipvsadm --save`, so what stands in the kernel is compared
as text. nftables.py has the same sets for firewall, hairpin and ranges, with the same bytes.
Source: k/k pkg/proxy/ipvs/proxier.go; where this differs from it is in the README.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from podwire.kernel import hooks
from podwire.services import nftables as nf
from podwire.services.endpoints import Backend
from podwire.services.model import PROTOCOLS, Frontend, FrontendKey, Network

TABLE: Final = hooks.IPVS_TABLE
DEVICE: Final = hooks.IPVS_DEVICE
FRONTENDS, MARKS, VERDICTS = "frontends", "marks", "verdicts"
VIPS, ADDRESSES, HAIRPIN = "vips", "addresses", "hairpin"
FIREWALLED, ALLOWED = nf.FIREWALLED, nf.ALLOWED
SERVICE_CIDRS, CLUSTER_CIDRS = nf.SERVICE_CIDRS, nf.CLUSTER_CIDRS
SETS: Final = (FIREWALLED, ALLOWED, MARKS, HAIRPIN, FRONTENDS, VIPS, ADDRESSES)
"""In the order one transaction changes them."""
COUNTERS: Final = ("refused", "no-local-endpoints", "source-ranges", "unallocated", "invalid")

SYSCTLS: Final = {
    # Answers are recognized, and can be masqueraded, only with connection tracking.
    "net.ipv4.vs.conntrack": 1,
    # A client that uses a port again gets a fresh choice; without the second of delay that was
    # in it before Linux 5.9 (k/k#81775).
    "net.ipv4.vs.conn_reuse_mode": 1,
    # Connections to an endpoint that is gone end at once, and clients that kept it choose anew.
    "net.ipv4.vs.expire_nodest_conn": 1,
    "net.ipv4.vs.expire_quiescent_template": 1,
    "net.ipv4.ip_forward": 1,
    # Every node has every cluster IP: none may answer ARP for it or ask in its name (strictARP).
    "net.ipv4.conf.all.arp_ignore": 1,
    "net.ipv4.conf.all.arp_announce": 2,
}

_MASQUERADE: Final = hooks.SERVICES_MASQUERADE_MARK
_TCP: Final = PROTOCOLS["TCP"]
_SERVER_OPTIONS: Final = {_TCP: "-t", PROTOCOLS["UDP"]: "-u", PROTOCOLS["SCTP"]: "--sctp-service"}


# --- virtual servers ----------------------------------------------------------------------------

Name: TypeAlias = str
"""A virtual server as ipvsadm names it: `-t 10.96.0.1:80`, `-f 1342177281 -6`."""


@dataclass
class Server:
    """`options` are scheduler and persistence; destinations are `address:port` to weight.

    `graceful`: a destination that goes keeps its connections until they end.
    """

    options: str
    destinations: dict[str, int] = field(default_factory=dict)
    graceful: bool = True


Servers: TypeAlias = dict[Name, Server]


def format_address(ip: bytes, port: int) -> str:
    if len(ip) == 4:
        return f"{socket.inet_ntoa(ip)}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, ip)}]:{port}"


def server_name(key: FrontendKey) -> Name:
    return f"{_SERVER_OPTIONS[key.protocol]} {format_address(key.ip, key.port)}"


def mark_name(mark: int, version: int) -> Name:
    return f"-f {mark}" + (" -6" if version == 6 else "")


def first_mark(key: FrontendKey) -> int:
    """The mark a frontend begins to look for a free one at: the same after every restart."""
    number = zlib.crc32(nf.pack_key(key))
    return hooks.IPVS_MARK_BASE | number & ~hooks.IPVS_MARK_MASK & 0xFFFFFFFF


def next_mark(mark: int) -> int:
    following = (mark | hooks.IPVS_MARK_MASK) + 1
    return hooks.IPVS_MARK_BASE | following & ~hooks.IPVS_MARK_MASK & 0xFFFFFFFF


def is_our_mark(mark: int) -> bool:
    return mark & hooks.IPVS_MARK_MASK == hooks.IPVS_MARK_BASE


_FLAGS: Final = {"mh": "mh-fallback", "sh": "sh-fallback"}


def render_options(frontend: Frontend) -> str:
    """`-s rr`, with persistence where the Service has affinity.

    Both consistent forms are mh (Maglev): sh would move most clients whenever an endpoint comes or
    goes. The fallback is what finds a client of a draining endpoint another one.
    """
    name = frontend.scheduler
    flags = _FLAGS.get(name, "")
    if not name and frontend.balancing != "random":
        name = "mh"
        flags = "mh-fallback,mh-port" if frontend.balancing == "maglev" else "mh-fallback"
    elif not name:
        name = "wrr" if frontend.weights else "rr"
    persistent = f" -p {frontend.affinity_s}" if frontend.affinity_s else ""
    return f"-s {name}{persistent}" + (f" -b {flags}" if flags else "")


def _mark_options(frontend: Frontend) -> str:
    """A server on a mark does not translate ports when it is persistent (ip_vs_sched_persist takes
    the packet's), so what keeps a client at its endpoint is a hash of its address."""
    if not frontend.affinity_s:
        return render_options(frontend)
    name = frontend.scheduler if frontend.scheduler in _FLAGS else "mh"
    return f"-s {name} -b {_FLAGS[name]}"


def render_servers(frontend: Frontend, mark: int = 0) -> Servers:
    """The frontend's virtual server, and with a mark the one for clients in the cluster. Both are
    there without destinations too: the former ones may have connections."""
    options = render_options(frontend)
    graceful = frontend.key.protocol == _TCP
    servers = {
        server_name(frontend.key): Server(
            options, _destinations(frontend, frontend.backends), graceful
        )
    }
    if mark and frontend.internal is not None:
        version = 4 if len(frontend.key.ip) == 4 else 6
        inner = _destinations(frontend, frontend.internal)
        servers[mark_name(mark, version)] = Server(_mark_options(frontend), inner, graceful)
    return servers


def _destinations(frontend: Frontend, backends: Iterable[Backend]) -> dict[str, int]:
    weights = frontend.weights or {}
    return {format_address(b.ip, b.port): weights.get(b.ip, 1) for b in backends}


# --- text ---------------------------------------------------------------------------------------


def render_save(servers: Servers) -> str:
    """Everything as `ipvsadm --save` prints it, and as `--restore` makes it where nothing is."""
    return "".join(add_server(name, server) for name, server in servers.items())


def add_server(name: Name, server: Server) -> str:
    lines = [f"-A {name} {server.options}\n"]
    lines += [add_destination(name, d, weight) for d, weight in server.destinations.items()]
    return "".join(lines)


def edit_server(name: Name, options: str) -> str:
    return f"-E {name} {options}\n"


def delete_server(name: Name) -> str:
    return f"-D {name}\n"


def add_destination(name: Name, destination: str, weight: int) -> str:
    return f"-a {name} -r {destination} -m -w {weight}\n"


def edit_destination(name: Name, destination: str, weight: int) -> str:
    return f"-e {name} -r {destination} -m -w {weight}\n"


def delete_destination(name: Name, destination: str) -> str:
    return f"-d {name} -r {destination}\n"


def parse_save(text: str) -> Servers:
    """What `ipvsadm --save --numeric` printed. Destinations of other kinds are kept as weight -1,
    so that they differ from any of ours."""
    servers: Servers = {}
    for line in text.splitlines():
        verb, name, rest = split_line(line)
        if verb == "-A":
            servers[name] = Server(rest, graceful=not name.startswith(("-u", "--sctp")))
        elif verb == "-a":
            destination, *words = rest.removeprefix("-r ").split()
            ours = len(words) >= 3 and words[:2] == ["-m", "-w"]
            servers[name].destinations[destination] = int(words[2]) if ours else -1
    return servers


def split_line(line: str) -> tuple[str, Name, str]:
    """`-A`, the server's name, and the rest."""
    words = line.split()
    if len(words) < 3:
        return "", "", ""
    end = 4 if words[1] == "-f" and words[3:4] == ["-6"] else 3
    return words[0], " ".join(words[1:end]), " ".join(words[end:])


# --- verdicts -----------------------------------------------------------------------------------

_OWN: Final = "fib saddr type local"
SERVED, EXTERNAL, REFUSE, NOBODY = "served", "external", "refuse", "nobody"
LOCAL: Final = {outer: f"local-{outer}" for outer in (SERVED, REFUSE, NOBODY)}
VERDICT_NUMBERS: Final = {
    name: number
    for number, name in enumerate((SERVED, EXTERNAL, REFUSE, NOBODY, *LOCAL.values()), 1)
}


def render_verdict(frontend: Frontend) -> str:
    """The chain a new connection to the frontend goes through."""
    if frontend.backends:
        outer = EXTERNAL if frontend.masquerade else SERVED
    else:
        outer = REFUSE if frontend.empty == "refuse" else NOBODY
    return LOCAL[outer] if frontend.internal is not None else outer


def pack_verdict(name: str) -> bytes:
    return nf.pack_index(VERDICT_NUMBERS[name])


def render_base(version: int) -> str:
    """The table without any Service: idempotent, and what is in the maps stays."""
    words = nf.Words(version)
    table = f"{words.family} {TABLE}"
    lines = [f"add table {table}"]
    lines += [f"add counter {table} {name}" for name in COUNTERS]
    lines += [f"add {declaration}" for declaration in _declarations(words, table)]
    chains = _chains(words)
    base = {hook.chain: hook for hook in hooks.IPVS if hook.family == words.family}
    for name in chains:
        header = f" {{ {base[name].render()} }}" if name in base else ""
        lines.append(f"add chain {table} {name}{header}")
    for name, rules in chains.items():
        lines.append(f"flush chain {table} {name}")
        lines += [f"add rule {table} {name} {rule}" for rule in rules]
    lines += [
        f"add element {table} {VERDICTS} {{ {nf.format_code(number)} : goto {name} }}"
        for name, number in VERDICT_NUMBERS.items()
    ]
    return "\n".join(lines) + "\n"


def _declarations(words: nf.Words, table: str) -> list[str]:
    key = words.key
    return [
        f"set {table} {SERVICE_CIDRS} {{ typeof {words.daddr}; flags interval; }}",
        f"set {table} {CLUSTER_CIDRS} {{ typeof {words.saddr}; flags interval; }}",
        f"set {table} {VIPS} {{ typeof {words.daddr}; }}",
        f"set {table} {ADDRESSES} {{ typeof {words.daddr}; }}",
        f"set {table} {HAIRPIN} {{ typeof {words.saddr} . {words.daddr}; }}",
        f"set {table} {FIREWALLED} {{ typeof {key}; }}",
        f"set {table} {ALLOWED} {{ typeof {key} . {words.saddr}; flags interval; }}",
        f"map {table} {FRONTENDS} {{ typeof {key} : meta priority; counter; }}",
        f"map {table} {MARKS} {{ typeof {key} : meta mark; }}",
        f"map {table} {VERDICTS} {{ typeof meta priority : verdict; }}",
    ]


def _chains(words: nf.Words) -> dict[str, list[str]]:
    """Name to rules, those that are jumped to first."""
    return {**_verdicts(words), **_hooked(words)}


def _verdicts(words: nf.Words) -> dict[str, list[str]]:
    """What becomes of a first packet."""
    saddr, daddr, key = words.saddr, words.daddr, words.key
    mark = f"0x{_MASQUERADE:08x}"
    accept = ["meta priority set 0", "accept"]
    return {
        # What refuses the node's own packets goes to their source, which is the cluster IP, too.
        REFUSE: [
            "tcp flags & rst == rst accept",
            'counter name "refused"',
            "meta l4proto tcp reject with tcp reset",
            "reject",
        ],
        NOBODY: ['counter name "no-local-endpoints" drop'],
        # The node's own packets have the cluster IP as their source, since it is an address of the
        # node: nobody else could answer them.
        SERVED: [f"{_OWN} meta mark set meta mark | {mark}", *accept],
        EXTERNAL: [f"meta mark set meta mark | {mark}", *accept],
        # Clients in the cluster are not subject to externalTrafficPolicy.
        "inside": [
            "meta priority set 0",
            f"meta mark set {key} map @{MARKS} accept",
            f"goto {REFUSE}",
        ],
        **{
            chain: [f"{saddr} @{CLUSTER_CIDRS} goto inside", f"{_OWN} goto inside", f"goto {outer}"]
            for outer, chain in LOCAL.items()
        },
        "dispatch": [
            (
                f"{key} @{FIREWALLED} {key} . {saddr} != @{ALLOWED} "
                'counter name "source-ranges" drop'
            ),
            f"meta priority set {key} map @{FRONTENDS} meta priority vmap @{VERDICTS}",
            f"{daddr} @{VIPS} goto {REFUSE}",
            # Delivered here, where a program of the node might listen on every address.
            f"meta l4proto {{ tcp, udp, sctp }} {daddr} @{ADDRESSES} goto {REFUSE}",
            f'{daddr} @{SERVICE_CIDRS} counter name "unallocated" drop',
        ],
    }


def _hooked(words: nf.Words) -> dict[str, list[str]]:
    """The chains of hooks, and what they jump to behind IPVS."""
    saddr, daddr = words.saddr, words.daddr
    mark = f"0x{_MASQUERADE:08x}"
    unmark = f"meta mark set meta mark & 0x{0xFFFFFFFF ^ _MASQUERADE:08x}"
    ours = f"0x{hooks.IPVS_MARK_BASE:08x}"
    return {
        "prerouting": ["jump dispatch"],
        "output": ["jump dispatch"],
        "marked": ["meta mark set 0", f"{_OWN} masquerade fully-random"],
        # IPVS leaves no sign in `ct status`; what it did not translate has none of these marks, and
        # does not leave the node with a Service's address.
        "postrouting": [
            f"meta mark & {mark} == {mark} {unmark} masquerade fully-random",
            f"meta mark & 0x{hooks.IPVS_MARK_MASK:08x} == {ours} jump marked",
            f"{saddr} . {daddr} @{HAIRPIN} masquerade fully-random",
            (
                f"ct original {daddr} @{SERVICE_CIDRS} {saddr} != @{CLUSTER_CIDRS} "
                "masquerade fully-random"
            ),
        ],
        # What conntrack cannot place is not translated: an answer would reach its client with the
        # pod's address and kill the connection (k/k#74839).
        "forward": [
            'ct state invalid counter name "invalid" drop',
            f'ct state untracked {daddr} @{SERVICE_CIDRS} counter name "invalid" drop',
        ],
        "leaving": [
            (
                "meta l4proto { tcp, udp, sctp } ct state { invalid, untracked } "
                f'{daddr} @{SERVICE_CIDRS} counter name "invalid" drop'
            ),
        ],
    }


def render_ranges(
    version: int, service_cidrs: Iterable[Network], cluster_cidrs: Iterable[Network]
) -> str:
    """The two sets of ranges, replaced in one transaction."""
    return nf.render_ranges(version, service_cidrs, cluster_cidrs, TABLE)
