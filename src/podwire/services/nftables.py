"""The nftables form of Services: a handful of maps, and one chain per number of backends. Pure.

    prerouting | output -> dispatch -> services: address . protocol . port -> number of a chain
    chains: number      -> goto lb-3
    lb-3                -> endpoints: address . protocol . port . (random 0..2) -> backend
    postrouting         -> masquerade what must come back through this node

A Service costs elements, never chains or rules: the kernel checks every rule of a table when
chains change, which makes kube-proxy's chain per Service and endpoint quadratic. It does so too
when an element with a verdict comes, and walks all verdicts of every map then; so `services` holds
numbers, and the verdicts are in the short maps `chains` and `inner`. Element data is what netlink
carries (registers as bytes), rules and chains are text.

A packet carries the number, then the index drawn or its backend's number, in its priority:
the marks of others stay as they are, and IPv4 forwarding sets the priority anew from the TOS.

    chain                what a connection meets there
    lb-N                 one of N backends at random
    affinity-T-N         the backend this client had within T seconds, else one of N
    maglev-N             the slot of N that hashes to client address and port
    maglev-source-N      the slot of N that hashes to the client's address
    external-CHAIN       marked for masquerade, then CHAIN
    local-CHAIN, local-0 clients in the cluster take the map `internal`, others CHAIN or none
    CHAIN-internal       the same over the second set of backends of a frontend
    refuse               reset or port unreachable

Every choosing chain ends in a counted drop: a miss must not leave with the Service's address.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from podwire.kernel import hooks
from podwire.services.endpoints import Backend
from podwire.services.maglev import fill_table
from podwire.services.model import Frontend, FrontendKey, Network
from podwire.services.weights import spread

TABLE: Final = hooks.SERVICES_TABLE
SERVICES, INTERNAL, ENDPOINTS = "services", "internal", "endpoints"
BACKEND_IDS, BACKENDS_BY_ID, AFFINITY = "backend-ids", "backends-by-id", "affinity"
CHAINS, INNER = "chains", "inner"
VIPS, HAIRPIN, FIREWALLED, ALLOWED = "vips", "hairpin", "firewalled", "allowed"
SERVICE_CIDRS, CLUSTER_CIDRS = "service-cidrs", "cluster-cidrs"
REFUSE, NOBODY_LOCAL = "refuse", "local-0"
COUNTERS: Final = (
    "refused",
    "no-local-endpoints",
    "endpoint-missing",
    "source-ranges",
    "unallocated",
    "invalid",
)
# Where the second set of a frontend's backends begins in the map `endpoints`.
INTERNAL_OFFSET: Final = 1 << 16
_AFFINITY_SIZE: Final = 1 << 18
_MASQUERADE: Final = hooks.SERVICES_MASQUERADE_MARK
# The second set's numbers differ, so that a client's remembered backend never crosses over.
_INTERNAL_ID: Final = 1 << 31

FAMILY_NAMES: Final = {4: "ip", 6: "ip6"}
_KEY = {4: struct.Struct(">4sB3xH2x"), 16: struct.Struct(">16sB3xH2x")}
_BACKEND = {4: struct.Struct(">4sH2x"), 16: struct.Struct(">16sH2x")}
_INDEX = struct.Struct("=I")


# --- bytes ------------------------------------------------------------------------------------


def pack_key(key: FrontendKey) -> bytes:
    """`daddr . l4proto . dport`, every field padded to four bytes."""
    return _KEY[len(key.ip)].pack(*key)


def unpack_key(data: bytes) -> FrontendKey:
    return FrontendKey(*_KEY[len(data) - 8].unpack(data))


def pack_backend(backend: Backend) -> bytes:
    return _BACKEND[len(backend.ip)].pack(backend.ip, backend.port)


def unpack_backend(data: bytes) -> Backend:
    """What the kernel knows of a backend; whether it is local, it does not."""
    return Backend(*_BACKEND[len(data) - 4].unpack(data))


def pack_index(index: int) -> bytes:
    return _INDEX.pack(index)


def unpack_index(data: bytes) -> int:
    return int(_INDEX.unpack(data)[0])


def backend_id(backend: Backend, *, internal: bool) -> int:
    """The number that stands for a backend in the affinity map: the same after every restart."""
    number = zlib.crc32(pack_backend(backend)) & ~_INTERNAL_ID
    return number | (_INTERNAL_ID if internal else 0)


_VARIANTS: Final = ("", "external-", "local-", "-internal")
_KINDS: Final = {"lb": 0x0, "maglev": 0x10, "maglev-source": 0x20}
# 1 bit, 2 of the variant, 17 of the timeout (at most 86,400 s), 12 of the number of backends.
_AFFINITY_CODE: Final = 1 << 31
MAX_AFFINITY_BACKENDS: Final = (1 << 12) - 1


def chain_code(name: str) -> int:
    """The number of a chain, nft's `major:minor`: lb-3 is 1:3, external-lb-3 is 2:3.

    Made from the name alone, so an agent that starts anew understands what it finds.
    """
    if name in (REFUSE, NOBODY_LOCAL):
        return 1 if name == REFUSE else 2
    variant = next((i for i, v in enumerate(_VARIANTS) if v and v in name), 0)
    plain = name.removeprefix(_VARIANTS[1]).removeprefix(_VARIANTS[2]).removesuffix(_VARIANTS[3])
    kind, _, count = plain.rpartition("-")
    if kind.startswith("affinity-"):
        timeout = int(kind.removeprefix("affinity-"))
        return _AFFINITY_CODE | variant << 29 | timeout << 12 | int(count)
    return (_KINDS[kind] + variant + 1) << 16 | int(count)


def format_code(code: int) -> str:
    """As nft prints a priority: two hexadecimal halves."""
    return f"{code >> 16:x}:{code & 0xFFFF:x}"


# --- chains -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendered:
    """How one frontend stands in the maps. `slots` and `internal` are backends by index."""

    verdict: str
    slots: tuple[Backend, ...] = ()
    internal_verdict: str = ""
    internal: tuple[Backend, ...] = ()


def render_frontend(frontend: Frontend, before: Rendered | None = None) -> Rendered:
    """The frontend's verdicts and slots; backends keep their places in `before` where they can."""
    former = before or Rendered("")
    slots = _slots(frontend, frontend.backends, former.slots)
    if frontend.internal is None:
        if not slots:
            return Rendered(REFUSE if frontend.empty == "refuse" else NOBODY_LOCAL)
        chain = _chain(frontend, len(slots))
        return Rendered(f"external-{chain}" if frontend.masquerade else chain, slots)
    internal = _slots(frontend, frontend.internal, former.internal)
    inner = f"{_chain(frontend, len(internal))}-internal" if internal else REFUSE
    if not slots:
        outer = REFUSE if frontend.empty == "refuse" else NOBODY_LOCAL
        return Rendered(outer, (), inner, internal)
    return Rendered(f"local-{_chain(frontend, len(slots))}", slots, inner, internal)


def _slots(
    frontend: Frontend, backends: Sequence[Backend], before: Sequence[Backend]
) -> tuple[Backend, ...]:
    if not backends:
        return ()
    if frontend.balancing != "random" and not frontend.affinity_s:
        return tuple(fill_table(backends, frontend.weights))
    chosen = spread(backends, frontend.weights)
    if frontend.affinity_s:
        del chosen[MAX_AFFINITY_BACKENDS:]
    return keep_slots(chosen, before)


def keep_slots(wanted: Sequence[Backend], before: Sequence[Backend]) -> tuple[Backend, ...]:
    """`wanted` in an order that moves as few as possible from their index in `before`.

    One endpoint more is one element more; one less moves the last into the gap.
    """
    if not before:
        return tuple(wanted)
    # What the kernel was read from does not know who is local: address and port identify.
    waiting: dict[tuple[bytes, int], list[Backend]] = {}
    for backend in wanted:
        waiting.setdefault(backend[:2], []).append(backend)
    slots: list[Backend | None] = []
    for backend in before[: len(wanted)]:
        same = waiting.get(backend[:2])
        slots.append(same.pop() if same else None)
    fresh = iter([b for same in waiting.values() for b in same])
    filled = [next(fresh) if slot is None else slot for slot in slots]
    return (*filled, *fresh)


def _chain(frontend: Frontend, count: int) -> str:
    if frontend.affinity_s:
        return f"affinity-{frontend.affinity_s}-{count}"
    return f"{'lb' if frontend.balancing == 'random' else frontend.balancing}-{count}"


# --- text -------------------------------------------------------------------------------------


class Words:
    """The words of one family."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.family = FAMILY_NAMES[version]
        self.daddr = f"{self.family} daddr"
        self.saddr = f"{self.family} saddr"
        self.type = f"ipv{version}_addr"
        self.key = f"{self.daddr} . meta l4proto . th dport"
        self.dnat = f"dnat {self.family} to"
        self.client = f"{self.saddr} . {self.key}"
        self.client_type = self.client
        if version == 6:
            # nft 1.0.6 cannot remember data under a key of more than 16 bytes (its netlink
            # linearizer asserts), so two 32-bit hashes stand for 40 bytes. A type made of jhash
            # crashes `nft list`; numgen has the same size.
            whole = f"jhash {self.client} mod 4294967295"
            self.client = f"{whole} seed 0x1 . {whole} seed 0x2"
            self.client_type = "numgen random mod 2 . numgen random mod 2"


def render_chain(name: str, version: int) -> list[str]:
    """The rules of one chain, by its name; what it jumps to is `needed_chains`'s."""
    words = Words(version)
    if name.startswith("external-"):
        inner = name.removeprefix("external-")
        return [f"meta mark set meta mark | 0x{_MASQUERADE:08x}", f"goto {inner}"]
    if name.startswith("local-"):
        return _local_rules(name.removeprefix("local-"), words)
    internal = name.endswith("-internal")
    kind, _, count = name.removesuffix("-internal").rpartition("-")
    offset = f" offset {INTERNAL_OFFSET}" if internal else ""
    miss = 'counter name "endpoint-missing" drop'
    if kind.startswith("affinity-"):
        timeout = int(kind.removeprefix("affinity-"))
        return [*_affinity_rules(timeout, f"mod {count}{offset}", words), miss]
    index = {
        "lb": f"numgen random mod {count}",
        "maglev": f"jhash {words.saddr} . th sport mod {count} seed 0x1",
        "maglev-source": f"jhash {words.saddr} mod {count} seed 0x1",
    }[kind]
    lookup = f"{words.dnat} {words.key} . meta priority map @{ENDPOINTS}"
    return [f"meta priority set {index}{offset} {lookup}", miss]


def needed_chains(verdict: str) -> list[str]:
    """The chains a verdict needs that are not part of the base text, innermost first."""
    if verdict in (REFUSE, NOBODY_LOCAL):
        return []
    for prefix in ("external-", "local-"):
        if verdict.startswith(prefix):
            return [verdict.removeprefix(prefix), verdict]
    return [verdict]


def _local_rules(inner: str, words: Words) -> list[str]:
    """Clients in the cluster are not subject to externalTrafficPolicy (KEP-1669, k/k proxier)."""
    inside = f"meta priority set {words.key} map @{INTERNAL} meta priority vmap @{INNER}"
    rules = [
        f"{words.saddr} @{CLUSTER_CIDRS} {inside}",
        f"fib saddr type local {inside}",
    ]
    if inner == "0":
        return [*rules, 'counter name "no-local-endpoints" drop']
    return [*rules, f"goto {inner}"]


def _affinity_rules(timeout_s: int, choice: str, words: Words) -> list[str]:
    """A client's backend by its number: look it up, or choose and remember.

    `update` refreshes the time but keeps old data, so what points at a backend that is gone is
    deleted before another is remembered.
    """
    client = words.client
    remember = f"update @{AFFINITY} {{ {client} timeout {timeout_s}s : meta priority }}"
    lookup = f"{words.dnat} {words.key} . meta priority map @{BACKENDS_BY_ID}"
    return [
        f"meta priority set {client} map @{AFFINITY} {remember} {lookup}",
        f"delete @{AFFINITY} {{ {client} : meta priority }}",
        f"meta priority set {words.key} . numgen random {choice} map @{BACKEND_IDS}",
        remember,
        lookup,
    ]


def render_base(version: int) -> str:
    """The table without any Service: idempotent, and what is in the maps stays."""
    words = Words(version)
    table = f"{words.family} {TABLE}"
    lines = [f"add table {table}"]
    lines += [f"add counter {table} {name}" for name in COUNTERS]
    lines += [f"add {declaration}" for declaration in _declarations(words, table)]
    chains = _base_chains(words)
    base = {hook.chain: hook for hook in hooks.SERVICES if hook.family == words.family}
    for name in chains:
        header = f" {{ {base[name].render()} }}" if name in base else ""
        lines.append(f"add chain {table} {name}{header}")
    for name, rules in chains.items():
        lines.append(f"flush chain {table} {name}")
        lines += [f"add rule {table} {name} {rule}" for rule in rules]
    lines += _numbered(table, (REFUSE, NOBODY_LOCAL))
    lines += _numbered(table, (REFUSE,), INNER)
    return "\n".join(lines) + "\n"


def _numbered(table: str, names: Iterable[str], where: str = CHAINS) -> list[str]:
    """The chains' elements. Those behind `local-` are apart: a map that leads to the chain which
    asks it would be a loop."""
    return [
        f"add element {table} {where} {{ {format_code(chain_code(name))} : goto {name} }}"
        for name in names
    ]


def _declarations(words: Words, table: str) -> list[str]:
    key = words.key
    # What leads to `dnat` is declared by `type`. With `typeof` nft 1.0.6 takes the expressions of
    # the data for matches: `tcp dport` makes every rule that names the map one for TCP alone, `th
    # dport` makes it refuse the rule ("conflicting protocols").
    backend = f"{words.type} . inet_service"
    choice = f"{words.type} . inet_proto . inet_service . classid : {backend}"
    index = "numgen random mod 65535"
    return [
        f"set {table} {SERVICE_CIDRS} {{ typeof {words.daddr}; flags interval; }}",
        f"set {table} {CLUSTER_CIDRS} {{ typeof {words.saddr}; flags interval; }}",
        f"set {table} {VIPS} {{ typeof {words.daddr}; }}",
        f"set {table} {HAIRPIN} {{ typeof {words.saddr} . {words.daddr}; }}",
        f"set {table} {FIREWALLED} {{ typeof {key}; }}",
        f"set {table} {ALLOWED} {{ typeof {key} . {words.saddr}; flags interval; }}",
        f"map {table} {SERVICES} {{ typeof {key} : meta priority; counter; }}",
        f"map {table} {INTERNAL} {{ typeof {key} : meta priority; }}",
        f"map {table} {CHAINS} {{ typeof meta priority : verdict; }}",
        f"map {table} {INNER} {{ typeof meta priority : verdict; }}",
        f"map {table} {ENDPOINTS} {{ type {choice}; counter; }}",
        f"map {table} {BACKEND_IDS} {{ typeof {key} . {index} : meta priority; }}",
        f"map {table} {BACKENDS_BY_ID} {{ type {choice}; counter; }}",
        (
            f"map {table} {AFFINITY} {{ typeof {words.client_type} : meta priority; "
            f"flags dynamic,timeout; size {_AFFINITY_SIZE}; }}"
        ),
    ]


def _base_chains(words: Words) -> dict[str, list[str]]:
    """Name to rules, those that are jumped to first."""
    mark = f"0x{_MASQUERADE:08x}"
    unmark = f"meta mark set meta mark & 0x{0xFFFFFFFF ^ _MASQUERADE:08x}"
    return {
        REFUSE: ['counter name "refused"', "meta l4proto tcp reject with tcp reset", "reject"],
        NOBODY_LOCAL: _local_rules("0", words),
        "dispatch": [
            (
                f"{words.key} @{FIREWALLED} {words.key} . {words.saddr} != @{ALLOWED} "
                'counter name "source-ranges" drop'
            ),
            f"meta priority set {words.key} map @{SERVICES} meta priority vmap @{CHAINS}",
            f"{words.daddr} @{VIPS} goto {REFUSE}",
            f'{words.daddr} @{SERVICE_CIDRS} counter name "unallocated" drop',
        ],
        "prerouting": ["jump dispatch"],
        "output": ["jump dispatch"],
        "postrouting": [
            f"meta mark & {mark} == {mark} ct status dnat {unmark} masquerade fully-random",
            f"ct status dnat {words.saddr} . {words.daddr} @{HAIRPIN} masquerade fully-random",
            "ct status dnat fib saddr type local masquerade fully-random",
            (
                f"ct status dnat ct original {words.daddr} @{SERVICE_CIDRS} "
                f"{words.saddr} != @{CLUSTER_CIDRS} masquerade fully-random"
            ),
        ],
        # What conntrack cannot place is not translated: an answer would reach its client with the
        # pod's address and kill the connection (k/k#74839).
        "forward": [
            'ct state invalid counter name "invalid" drop',
            f'ct state untracked {words.daddr} @{SERVICE_CIDRS} counter name "invalid" drop',
        ],
        "leaving": [
            (
                f"ct state {{ invalid, untracked }} {words.daddr} @{SERVICE_CIDRS} "
                'counter name "invalid" drop'
            ),
        ],
    }


def render_ranges(
    version: int,
    service_cidrs: Iterable[Network],
    cluster_cidrs: Iterable[Network],
    table: str = TABLE,
) -> str:
    """The two sets of ranges, replaced in one transaction."""
    table = f"{FAMILY_NAMES[version]} {table}"
    lines = []
    for name, networks in ((SERVICE_CIDRS, service_cidrs), (CLUSTER_CIDRS, cluster_cidrs)):
        lines.append(f"flush set {table} {name}")
        mine = ", ".join(sorted(str(n) for n in networks if n.version == version))
        if mine:
            lines.append(f"add element {table} {name} {{ {mine} }}")
    return "\n".join(lines) + "\n"


def render_chains(names: Iterable[str], version: int) -> str:
    """Chains by name, made or remade."""
    table = f"{FAMILY_NAMES[version]} {TABLE}"
    lines = []
    for name in names:
        lines += [f"add chain {table} {name}", f"flush chain {table} {name}"]
        lines += [f"add rule {table} {name} {rule}" for rule in render_chain(name, version)]
        lines += _numbered(table, (name,), INNER if name.endswith("-internal") else CHAINS)
    return "\n".join(lines) + "\n" if lines else ""
