"""The form policies take in nftables: one table per family, maps of numbers, hardly any rules.

    ct established ─▶ accept
    source address ─ egress ─▶ class chain ─┬ destination ─ peers, networks ─▶ group
                                            └ class | group ─ rows ─▶ row
    row . protocol . port ─ ports, ranges, protocols, rests ─▶ outcome ─ outcomes ─▶ return or drop
    the same with destination address, ingress, and the source's group

*Class*: the policies that select a pod in one direction. *Group*: peers no policy here tells apart.
*Row*: what a class says of a group, for all ports; rows are shared by content. *Outcome*: a verdict
with its reason; its element counts. So pods, peers, policies and ports are all elements, which the
kernel commits in some 10 us, and the way of a packet is as long for one policy as for a thousand.

Only `egress` and `ingress` (and `outcomes` that deny) hold verdicts that lead to chains: each
change of such an element has the kernel walk the whole table, so that is kept short; no chain is
reached in more ways than pods are (ADR 13 met the same). One scratch register carries every number:
`meta priority`, whose value for a packet that is being forwarded the kernel has just set itself.

Everything but the base chain belongs to a *generation*, told by the first letter of the names: a
new agent builds another one beside, and one transaction switches. The base chain stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from podwire.kernel import hooks
from podwire.kernel.nfpack import pack_proto_port, pack_u32
from podwire.policy.model import Direction

TABLE: Final = hooks.POLICY_TABLE
BASE_CHAIN: Final = "forward"
FAMILY_NAMES: Final = {4: "ip", 6: "ip6"}
GENERATIONS: Final = ("a", "b", "c")
"""One more than there are families: an agent that died on its way may have switched only one."""

LOCAL: Final = "local"
SELECTED: Final = "selected"
EGRESS: Final = "egress"
INGRESS: Final = "ingress"
PEERS: Final = "peers"
NETWORKS: Final = "networks"
ROWS: Final = "rows"
PORTS: Final = "ports"
RANGES: Final = "ranges"
PROTOCOLS: Final = "protocols"
RESTS: Final = "rests"
OUTCOMES: Final = "outcomes"

LEADING: Final = (EGRESS, INGRESS, OUTCOMES)
"""The maps whose elements lead to chains."""

UNKNOWN_SOURCE: Final = "unknown-source"
MID_STREAM: Final = "mid-stream"
INCOMPLETE: Final = "incomplete"
COUNTERS: Final = (UNKNOWN_SOURCE, MID_STREAM, INCOMPLETE)
"""What was dropped though no policy says so: packets from interfaces of pods with addresses nobody
was admitted with, TCP and SCTP packets of connections nobody knows, and look-ups that found
nothing."""
SCTP_INIT: Final = 1
"""The chunk that opens an association."""

CLASS_SHIFT: Final = 20
MAX_CLASS: Final = (1 << 32 - CLASS_SHIFT) - 1
MAX_GROUP: Final = (1 << CLASS_SHIFT) - 1
_CLASS_MASK: Final = f"0x{MAX_CLASS << CLASS_SHIFT:08x}"

POLICY_LOG: Final = 20567
NAMES_LOG: Final = 20568
"""The nflog groups packets that open connections, and DNS answers, are told to."""
NAMES_QUEUE: Final = 20568
"""Where DNS answers wait, if the kernel can have them wait."""

Number: TypeAlias = int


@dataclass(frozen=True)
class Logging:
    """Packets that are denied are told to an nflog group; `observing` has those that pass.

    `rate` bounds each outcome for itself; the prefix is `log_prefix`'s.
    """

    group: int
    rate: str = "100/second"
    burst: int = 50


def log_prefix(direction: Direction, outcome: Number) -> str:
    return f"podwire-policy {direction} {outcome} "


def parse_log_prefix(text: str) -> tuple[str, Number] | None:
    """(direction, outcome); None for what another program logs."""
    words = text.split()
    if len(words) == 3 and words[0] == "podwire-policy" and words[2].isdigit():
        return words[1], int(words[2])
    return None


# --- bytes --------------------------------------------------------------------------------------


def pack_row_key(class_number: Number, group: Number) -> bytes:
    return pack_u32(class_number << CLASS_SHIFT | group)


def pack_port_key(row: Number, protocol: int, port: int) -> bytes:
    return pack_u32(row) + pack_proto_port(protocol, port)


def pack_range_key(row: Number, protocol: int, port: int) -> bytes:
    """In a map of intervals numbers are in network order: nft turns the packet's before it looks
    them up, since the kernel compares bytes."""
    return row.to_bytes(4, "big") + pack_proto_port(protocol, port)


def pack_protocol_key(row: Number, protocol: int) -> bytes:
    return pack_u32(row) + bytes([protocol, 0, 0, 0])


# --- text ---------------------------------------------------------------------------------------


class Words:
    """The words of one family and generation."""

    def __init__(self, version: int, generation: str) -> None:
        self.version = version
        self.family = FAMILY_NAMES[version]
        self.table = f"{self.family} {TABLE}"
        self.saddr, self.daddr = f"{self.family} saddr", f"{self.family} daddr"
        self.generation = generation

    def name(self, plain: str) -> str:
        return f"{self.generation}-{plain}"

    def ref(self, plain: str) -> str:
        return f"@{self.generation}-{plain}"


def class_chain(number: Number) -> str:
    return f"class-{number}"


def outcome_chain(number: Number) -> str:
    return f"outcome-{number}"


def render_table(version: int) -> str:
    """The table and its base chain; whatever is there stays. An empty base chain lets all pass."""
    hook = next(h for h in hooks.POLICY if h.family == FAMILY_NAMES[version])
    table = f"{hook.family} {hook.table}"
    return f"add table {table}\nadd chain {table} {hook.chain} {{ {hook.render()} }}\n"


def render_generation(words: Words, pod_interfaces: Sequence[str]) -> str:
    """Empty maps and the chains that read them; fails where the generation exists."""
    lines = [f"add counter {words.table} {words.name(name)}" for name in COUNTERS]
    lines += [
        f"add {kind} {words.table} {words.name(name)} {{ {type_} }}"
        for kind, name, type_ in _declarations(words)
    ]
    chains = _chains(words, pod_interfaces)
    lines += [f"add chain {words.table} {words.name(name)}" for name in chains]
    for name, rules in chains.items():
        lines += [f"add rule {words.table} {words.name(name)} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def _declarations(words: Words) -> list[tuple[str, str, str]]:
    number, port = "meta priority", "meta l4proto . th dport"
    return [
        ("set", LOCAL, f"typeof {words.saddr};"),
        ("set", SELECTED, f"typeof {words.saddr};"),
        ("map", EGRESS, f"typeof {words.saddr} : verdict;"),
        ("map", INGRESS, f"typeof {words.daddr} : verdict;"),
        ("map", PEERS, f"typeof {words.saddr} : {number};"),
        ("map", NETWORKS, f"typeof {words.saddr} : {number}; flags interval;"),
        ("map", ROWS, f"typeof {number} : {number};"),
        ("map", PORTS, f"typeof {number} . {port} : {number};"),
        ("map", RANGES, f"typeof {number} . {port} : {number}; flags interval;"),
        ("map", PROTOCOLS, f"typeof {number} . meta l4proto : {number};"),
        ("map", RESTS, f"typeof {number} : {number};"),
        ("map", OUTCOMES, f"typeof {number} : verdict; counter;"),
    ]


def _chains(words: Words, pod_interfaces: Sequence[str]) -> dict[str, list[str]]:
    """Name to rules, those that are led to first."""
    return {**_look_ups(words), "forward": _forward(words, pod_interfaces)}


def _look_ups(words: Words) -> dict[str, list[str]]:
    """From an address to its group, and from a group and a port to an outcome."""
    put, row = "meta priority set", "meta priority"
    ref, name = words.ref, words.name
    port = f"{put} {row} . meta l4proto . th dport map"
    rest = f"goto {name('outcome')}"
    drop = 'counter name "{}" drop'
    return {
        "outcome": [f"{row} vmap {ref(OUTCOMES)}", drop.format(name(INCOMPLETE))],
        "port": [
            f"{port} {ref(PORTS)} {rest}",
            f"{port} {ref(RANGES)} {rest}",
            f"{put} {row} . meta l4proto map {ref(PROTOCOLS)} {rest}",
            f"{put} {row} map {ref(RESTS)} {rest}",
            drop.format(name(INCOMPLETE)),
        ],
        # A group that the class has no row for is treated as group 0, which is everybody else.
        "row": [
            f"{put} {row} map {ref(ROWS)} goto {name('port')}",
            f"{put} {row} & {_CLASS_MASK} {put} {row} map {ref(ROWS)} goto {name('port')}",
            drop.format(name(INCOMPLETE)),
        ],
        "from": [
            f"{put} {words.saddr} map {ref(PEERS)} return",
            f"{put} {words.saddr} map {ref(NETWORKS)} return",
            f"{put} 0",
        ],
        "to": [
            f"{put} {words.daddr} map {ref(PEERS)} return",
            f"{put} {words.daddr} map {ref(NETWORKS)} return",
            f"{put} 0",
        ],
    }


def _forward(words: Words, pod_interfaces: Sequence[str]) -> list[str]:
    put, row = "meta priority set", "meta priority"
    ref, name = words.ref, words.name
    opens_nothing = (
        "tcp flags & (fin | syn | rst | ack) != syn",
        # The first chunk is no INIT, which goes alone (RFC 9260 section 3.3.2).
        f"meta l4proto sctp @th,96,8 != {SCTP_INIT}",
    )
    drop = 'counter name "{}" drop'
    # Nobody's policy: neighbour discovery of pods on a bridge. A router does not pass it on.
    neighbours = ["icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"]
    return [
        "ct state established,related accept",
        *(neighbours if words.version == 6 else []),
        *(
            f'iifname "{interface}" {words.saddr} != {ref(LOCAL)} '
            + drop.format(name(UNKNOWN_SOURCE))
            for interface in pod_interfaces
        ),
        # What is left of a connection whose entry was deleted is new to conntrack, and its
        # other direction may be allowed.
        *(
            f"{matches} {end} {ref(SELECTED)} {drop.format(name(MID_STREAM))}"
            for matches in opens_nothing
            for end in (words.saddr, words.daddr)
        ),
        f"{put} 0",
        f"{words.saddr} vmap {ref(EGRESS)}",
        f"{row} != 0 jump {name('row')}",
        f"{put} 0",
        f"{words.daddr} vmap {ref(INGRESS)}",
        f"{row} != 0 jump {name('row')}",
        f"{put} 0",
    ]


def render_class(words: Words, number: Number, direction: Direction) -> list[str]:
    """The chain that finds the peer's group and adds the class to it."""
    chain = f"{words.table} {words.name(class_chain(number))}"
    peer = words.name("to" if direction == "egress" else "from")
    return [
        f"add chain {chain}",
        f"add rule {chain} jump {peer}",
        f"add rule {chain} meta priority set meta priority | 0x{number << CLASS_SHIFT:08x}",
    ]


def render_outcome(
    words: Words, number: Number, direction: Direction, logging: Logging
) -> list[str]:
    """The chain of a denial that is logged."""
    chain = f"{words.table} {words.name(outcome_chain(number))}"
    log = f'log prefix "{log_prefix(direction, number)}" group {logging.group}'
    return [
        f"add chain {chain}",
        f"add rule {chain} limit rate {logging.rate} burst {logging.burst} packets {log}",
        f"add rule {chain} drop",
    ]


def render_delete_chains(words: Words, plain: Iterable[str]) -> list[str]:
    lines = []
    for name in plain:
        chain = f"{words.table} {words.name(name)}"
        lines += [f"flush chain {chain}", f"delete chain {chain}"]
    return lines


def render_switch(words: Words) -> str:
    """From this transaction on the base chain leads to this generation."""
    chain = f"{words.table} {BASE_CHAIN}"
    return f"flush chain {chain}\nadd rule {chain} jump {words.name('forward')}\n"


def render_removal(
    version: int,
    chains: Iterable[str],
    sets: Iterable[str],
    maps: Iterable[str],
    counters: Iterable[str],
) -> str:
    """Delete these objects, by their full names. Elements that lead to one of the chains must be
    gone."""
    table = f"{FAMILY_NAMES[version]} {TABLE}"
    chains = list(chains)
    lines = [f"flush chain {table} {name}" for name in chains]
    for noun, names in (("set", sets), ("map", maps), ("chain", chains), ("counter", counters)):
        lines += [f"delete {noun} {table} {name}" for name in names]
    return "\n".join(lines) + "\n" if lines else ""
