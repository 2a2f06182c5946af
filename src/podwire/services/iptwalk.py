"""A packet's walk over iptables rules, match by match: `walk` is the same for nftables. Pure.

    chains (the very text iptables-restore is given) + the node's own addresses -> Walk

It knows nothing of Services: only what each match and target means to the first packet of a
connection. So it can disagree with `evaluate`, and a disagreement is a bug in one of them. Random
choices are followed all at once, each with its share.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Final, TypeAlias

from podwire.services.endpoints import Backend
from podwire.services.evaluate import Packet, within
from podwire.services.iptplan import Tables
from podwire.services.model import PROTOCOL_NAMES


@dataclass(frozen=True)
class Walk:
    """`path` is every rule with a verdict; `shares` is how likely a backend is chosen."""

    verdict: str
    path: tuple[str, ...]
    shares: Mapping[Backend, float] = field(default_factory=dict)
    masqueraded: frozenset[Backend] = frozenset()

    @property
    def backends(self) -> frozenset[Backend]:
        return frozenset(self.shares)


@dataclass(frozen=True)
class _State:
    """A packet in one of the worlds that random choices make; `share` is how likely it is."""

    packet: Packet
    backend: Backend | None = None
    mark: int = 0
    share: float = 1.0
    verdict: str = ""
    path: tuple[str, ...] = ()

    @property
    def destination(self) -> bytes:
        return self.backend.ip if self.backend else self.packet.dst

    @property
    def port(self) -> int:
        return self.backend.port if self.backend else self.packet.dport


_Words: TypeAlias = list[str]
_Match: TypeAlias = tuple[float, _Words]
"""How likely the match holds, and the words that are left of the rule."""


class CompiledTables:
    """One family's tables as they stand in the kernel, on a node with these own addresses."""

    def __init__(self, tables: Tables, local: Collection[bytes]) -> None:
        self._local = local
        self._rules: dict[tuple[str, str], list[_Words]] = {
            (table, chain): [shlex.split(line)[2:] for line in text.splitlines()]
            for table, chains in tables.items()
            for chain, text in chains.items()
        }

    def walk(self, packet: Packet) -> Walk:
        """The first packet of a connection through nat, then filter, then postrouting."""
        hook = "OUTPUT" if packet.from_node else "PREROUTING"
        shares: dict[Backend, float] = {}
        hidden: dict[Backend, bool] = {}
        verdicts: set[str] = set()
        path: tuple[str, ...] = ()
        for translated in self._hook("nat", hook, [_State(packet)]):
            for state in self._hook("filter", self._filter_hook(translated), [translated]):
                if state.verdict or state.backend is None:
                    verdicts.add(state.verdict or "pass")
                    path = path or state.path
                    continue
                verdicts.add("dnat")
                shares[state.backend] = shares.get(state.backend, 0.0) + state.share
                # What is delivered here passes no postrouting, unless it was sent here too.
                stays = state.destination in self._local and not packet.from_node
                leaving = [state] if stays else self._hook("nat", "POSTROUTING", [state])
                for left in leaving:
                    hides = left.verdict == "masquerade"
                    assert hidden.setdefault(state.backend, hides) == hides, left.path
                    path = path or left.path
        (verdict,) = verdicts
        return Walk(verdict, path, shares, frozenset(b for b, hides in hidden.items() if hides))

    def _filter_hook(self, state: _State) -> str:
        if state.packet.from_node:
            return "OUTPUT"
        return "INPUT" if state.destination in self._local else "FORWARD"

    def _hook(self, table: str, hook: str, states: list[_State]) -> list[_State]:
        """The states at the end of the hook; a DNAT or an ACCEPT is no verdict there."""
        ended = []
        for state in states:
            for left in self._chain(table, hook, state):
                done = left.verdict in ("return", "accept", "dnat")
                ended.append(replace(left, verdict="") if done else left)
        return ended

    def _chain(self, table: str, chain: str, state: _State) -> list[_State]:
        """Every way through the chain; states without a verdict go on where it was called."""
        ended: list[_State] = []
        open_states = [state]
        for rule in self._rules.get((table, chain), []):
            after: list[_State] = []
            for current in open_states:
                chance, target = self._match(rule, current)
                if chance < 1.0:
                    after.append(replace(current, share=current.share * (1.0 - chance)))
                if chance > 0.0:
                    taken = replace(current, share=current.share * chance)
                    if target[0] != "RETURN":
                        taken = replace(taken, path=(*taken.path, f"{chain}: {' '.join(rule)}"))
                    for left in self._target(table, target, taken):
                        (ended if left.verdict else after).append(left)
            open_states = after
        called = [replace(s, verdict="") if s.verdict == "return" else s for s in ended]
        return [*called, *open_states]

    # --- matches --------------------------------------------------------------------------------

    def _match(self, rule: _Words, state: _State) -> tuple[float, _Words]:
        """How likely the whole rule matches, and its target's words."""
        chance, words = 1.0, rule
        while words[0] != "-j":
            negated = words[0] == "!"
            if negated:
                words = words[1:]
            holds, words = self._one(words, state, negated)
            chance *= holds
        return chance, words[1:]

    def _one(self, words: _Words, state: _State, negated: bool) -> _Match:
        option, value, rest = words[0], words[1], words[2:]
        if option == "-m":
            return self._module(value, rest, state)
        packet = state.packet
        if option == "-p":
            return float(PROTOCOL_NAMES[packet.protocol].lower() == value), rest
        address = {"-s": packet.src, "-d": state.destination}[option]
        network = ip_network(value)
        holds = within(address, ((network[0].packed, network[-1].packed),))
        return float(holds != negated), rest

    def _module(self, name: str, rest: _Words, state: _State) -> _Match:
        return _MODULES[name](rest, state, self._local)

    # --- targets --------------------------------------------------------------------------------

    def _target(self, table: str, target: _Words, state: _State) -> Iterator[_State]:
        name, *options = target
        if (table, name) in self._rules:
            yield from self._chain(table, name, state)
        elif name == "MARK":
            value, mask = (int(part, 16) for part in options[1].split("/"))
            yield replace(state, mark=state.mark & ~mask ^ value)
        elif name == "DNAT":
            yield replace(state, backend=_parse_backend(options[1]), verdict="dnat")
        else:
            yield replace(state, verdict=_VERDICTS[name])


_VERDICTS: Final = {
    "RETURN": "return",
    "ACCEPT": "accept",
    "DROP": "drop",
    "REJECT": "refuse",
    "MASQUERADE": "masquerade",
}


def _parse_backend(text: str) -> Backend:
    ip, _, port = text.rpartition(":")
    return Backend(ip_address(ip.strip("[]")).packed, int(port))


_Module: TypeAlias = Callable[[_Words, _State, Collection[bytes]], _Match]


def _comment(words: _Words, _state: _State, _local: Collection[bytes]) -> _Match:
    assert words[0] == "--comment"
    return 1.0, words[2:]


def _port(words: _Words, state: _State, _local: Collection[bytes]) -> _Match:
    assert words[0] == "--dport"
    return float(state.port == int(words[1])), words[2:]


def _statistic(words: _Words, _state: _State, _local: Collection[bytes]) -> _Match:
    assert words[:3] == ["--mode", "random", "--probability"]
    return float(words[3]), words[4:]


def _recent(words: _Words, _state: _State, _local: Collection[bytes]) -> _Match:
    """A walk is a client's first: nothing is remembered yet, everything may be."""
    end = words.index("--rsource") + 1
    return float(words[0] == "--set"), words[end:]


def _mark(words: _Words, state: _State, _local: Collection[bytes]) -> _Match:
    negated = words[0] == "!"
    words = words[negated:]
    assert words[0] == "--mark"
    value, mask = (int(part, 16) for part in words[1].split("/"))
    return float((state.mark & mask == value) != negated), words[2:]


def _address_type(words: _Words, state: _State, local: Collection[bytes]) -> _Match:
    assert words[1] == "LOCAL"
    if words[0] == "--dst-type":
        return float(state.destination in local), words[2:]
    assert words[0] == "--src-type"
    return float(state.packet.from_node or state.packet.src in local), words[2:]


def _conntrack(words: _Words, state: _State, _local: Collection[bytes]) -> _Match:
    """A first packet is NEW; DNAT says that it was translated."""
    assert words[0] == "--ctstate"
    holds = {"NEW": True, "INVALID": False, "DNAT": state.backend is not None}[words[1]]
    return float(holds), words[2:]


_MODULES: Final[dict[str, _Module]] = {
    "comment": _comment,
    "tcp": _port,
    "udp": _port,
    "sctp": _port,
    "statistic": _statistic,
    "recent": _recent,
    "mark": _mark,
    "addrtype": _address_type,
    "conntrack": _conntrack,
}
