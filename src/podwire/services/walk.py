"""A packet's walk over the compiled ruleset: rule by rule, element by element. Pure.

    rules (the very text nft is given) + elements (the very bytes netlink carries) -> Walk

It knows nothing of Services: only what each nft expression means. So it can disagree with
`evaluate`, and a disagreement is a bug in one of them. Random choices are followed all at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from podwire.kernel.hooks import SERVICES_MASQUERADE_MARK
from podwire.kernel.nfpack import Data, Key
from podwire.services import nftables as nf
from podwire.services.endpoints import Backend
from podwire.services.evaluate import Packet, within
from podwire.services.model import FrontendKey, Network
from podwire.services.ranges import Ranges

_NUMGEN: Final = re.compile(r"numgen random mod (\d+)(?: offset (\d+))?")
_JHASH: Final = re.compile(r"jhash .* mod (\d+) seed 0x1(?: offset (\d+))?")
Sets = Mapping[str, Mapping[Key, Data]]


@dataclass(frozen=True)
class Walk:
    """`path` is every rule that matched, as `chain: rule`; `backends` where it may end."""

    verdict: str
    path: tuple[str, ...]
    backends: frozenset[Backend] = frozenset()
    masqueraded: frozenset[Backend] = frozenset()


@dataclass
class _State:
    packet: Packet
    mark: int = 0
    number: int = 0
    path: list[str] = field(default_factory=list)


class _WalkEndError(Exception):
    """A terminal statement was reached."""

    def __init__(self, verdict: str, backends: frozenset[Backend] = frozenset()) -> None:
        super().__init__(verdict)
        self.verdict = verdict
        self.backends = backends


class _MismatchError(Exception):
    """The rest of this rule does not apply."""


class CompiledRuleset:
    """One family's chains and sets as they stand in the kernel."""

    def __init__(
        self,
        version: int,
        sets: Sets,
        service_cidrs: tuple[Network, ...],
        cluster_cidrs: tuple[Network, ...],
        chains: Iterable[str],
        node_addresses: frozenset[bytes] = frozenset(),
    ) -> None:
        self._words = nf.Words(version)
        self._sets = sets
        self._base = _parse_base(nf.render_base(version))
        self._ranges: dict[str, Ranges] = {
            nf.SERVICE_CIDRS: _pairs(service_cidrs, version),
            nf.CLUSTER_CIDRS: _pairs(cluster_cidrs, version),
        }
        self._version = version
        self._node_addresses = node_addresses
        outer = [nf.REFUSE, nf.NOBODY_LOCAL]
        self._chains = {
            nf.CHAINS: {
                nf.chain_code(n): n for n in (*chains, *outer) if not n.endswith("-internal")
            },
            nf.INNER: {nf.chain_code(n): n for n in (*chains, nf.REFUSE) if _inner(n)},
        }

    def walk(self, packet: Packet) -> Walk:
        """The first packet of a connection through prerouting or output, then postrouting."""
        state = _State(packet)
        hook = "output" if packet.from_node else "prerouting"
        try:
            self._chain(hook, state)
        except _WalkEndError as done:
            if not done.backends:
                return Walk(done.verdict, tuple(state.path))
            hidden = frozenset(b for b in done.backends if self._is_masqueraded(b, state))
            return Walk("dnat", tuple(state.path), done.backends, hidden)
        return Walk("pass", tuple(state.path))

    def check_chain(self, chain: str, base: bytes) -> None:
        """Every index the choosing chain can draw for the frontend `base` has a backend."""
        for rule in self.rules(chain):
            for name, indexes in _drawn(rule):
                for index in indexes:
                    data = self._sets[name].get(base + nf.pack_index(index))
                    assert isinstance(data, bytes), f"{chain}: index {index} misses"

    def rules(self, chain: str) -> list[str]:
        return self._base.get(chain) or nf.render_chain(chain, self._version)

    def _chain(self, name: str, state: _State) -> None:
        for rule in self.rules(name):
            try:
                self._rule(name, rule, state)
            except _MismatchError:
                continue

    def _rule(self, chain: str, rule: str, state: _State) -> None:
        """Expressions from left to right; `_MismatchError` where one does not hold."""
        rest = rule
        while rest:
            for pattern, act in self._expressions():
                found = pattern.match(rest)
                if found:
                    rest = rest[found.end() :].lstrip()
                    so_far = len(state.path)
                    if not rest:
                        state.path.append(f"{chain}: {rule}")
                    try:
                        act(found, state)
                    except _MismatchError:
                        del state.path[so_far:]  # a look-up that finds nothing is no match
                        raise
                    break
            else:
                raise AssertionError(f"{rest!r}: no meaning is known for this")

    def _expressions(self) -> Iterator[tuple[re.Pattern[str], _Act]]:
        words = self._words
        key, saddr, daddr = (re.escape(w) for w in (words.key, words.saddr, words.daddr))
        client = re.escape(words.client)
        compiled = _cached_patterns(key, saddr, daddr, client)
        acts: tuple[_Act, ...] = (
            self._not_allowed,
            self._firewalled,
            self._number,
            self._vmap,
            self._remembered,
            self._mark_by_index,
            self._draw,
            self._dnat_by_mark,
            self._dnat,
            self._source_in,
            self._destination_in,
            self._from_here,
            self._set_mark,
            lambda found, state: self._go(found[1], state),
            lambda found, state: self._chain(found[1], state),
            lambda found, state: None,
            self._protocol,
            lambda found, state: _end("refuse"),
            lambda found, state: _end("drop"),
            lambda found, state: None,
        )
        return zip(compiled, acts, strict=True)

    # --- what expressions mean --------------------------------------------------------------------

    def _key(self, packet: Packet) -> bytes:
        return nf.pack_key(FrontendKey(packet.dst, packet.protocol, packet.dport))

    def _firewalled(self, found: re.Match[str], state: _State) -> None:
        _require(self._key(state.packet) in self._sets[nf.FIREWALLED])

    def _not_allowed(self, found: re.Match[str], state: _State) -> None:
        base, src = self._key(state.packet), state.packet.src
        for pair in self._sets[nf.ALLOWED]:
            low, high = pair
            assert isinstance(low, bytes)
            assert isinstance(high, bytes)
            if low[: len(base)] == base and low[len(base) :] <= src <= high[len(base) :]:
                raise _MismatchError

    def _number(self, found: re.Match[str], state: _State) -> None:
        data = self._sets[found[1]].get(self._key(state.packet))
        _require(isinstance(data, bytes))
        assert isinstance(data, bytes)
        state.number = nf.unpack_index(data)

    def _vmap(self, found: re.Match[str], state: _State) -> None:
        chain = self._chains[found[1]].get(state.number)
        _require(chain is not None)
        assert chain is not None
        self._go(chain, state)

    def _go(self, chain: str, state: _State) -> None:
        """`goto`: what comes after in this chain is not seen any more."""
        self._chain(chain, state)
        raise _WalkEndError("pass")

    def _remembered(self, found: re.Match[str], state: _State) -> None:
        raise _MismatchError  # a walk is a client's first: nothing is remembered yet

    def _mark_by_index(self, found: re.Match[str], state: _State) -> None:
        """Affinity: every backend there is a number for may be chosen."""
        base = self._key(state.packet)
        self._chosen = [
            self._sets[nf.BACKEND_IDS].get(base + nf.pack_index(index))
            for index in _indexes(found["index"])
        ]
        _require(None not in self._chosen)

    def _draw(self, found: re.Match[str], state: _State) -> None:
        self._drawn = _indexes(found["index"])

    def _dnat_by_mark(self, found: re.Match[str], state: _State) -> None:
        base = self._key(state.packet)
        backends = set()
        for number in self._chosen:
            assert isinstance(number, bytes)
            data = self._sets[nf.BACKENDS_BY_ID].get(base + number)
            _require(isinstance(data, bytes))
            assert isinstance(data, bytes)
            backends.add(nf.unpack_backend(data))
        raise _WalkEndError("dnat", frozenset(backends))

    def _dnat(self, found: re.Match[str], state: _State) -> None:
        base = self._key(state.packet)
        backends = set()
        for index in self._drawn:
            data = self._sets[nf.ENDPOINTS].get(base + nf.pack_index(index))
            _require(isinstance(data, bytes))
            assert isinstance(data, bytes)
            backends.add(nf.unpack_backend(data))
        raise _WalkEndError("dnat", frozenset(backends))

    def _source_in(self, found: re.Match[str], state: _State) -> None:
        _require(within(state.packet.src, self._ranges[found[1]]))

    def _destination_in(self, found: re.Match[str], state: _State) -> None:
        name, ip = found[1], state.packet.dst
        ranges = self._ranges.get(name)
        _require(within(ip, ranges) if ranges is not None else ip in self._sets[name])

    def _from_here(self, found: re.Match[str], state: _State) -> None:
        _require(state.packet.from_node)

    def _set_mark(self, found: re.Match[str], state: _State) -> None:
        state.mark |= int(found[1], 16)

    def _protocol(self, found: re.Match[str], state: _State) -> None:
        _require(state.packet.protocol == 6)

    # --- postrouting ----------------------------------------------------------------------------

    def _is_masqueraded(self, backend: Backend, state: _State) -> bool:
        """The postrouting chain, for a packet that was translated to `backend`."""
        packet = state.packet
        if backend.ip in self._node_addresses and not packet.from_node:
            return False  # delivered here: it passes no postrouting
        meaning = {
            "meta mark &": bool(state.mark & SERVICES_MASQUERADE_MARK),
            f"ct status dnat {self._words.saddr} . {self._words.daddr} @{nf.HAIRPIN}": (
                packet.src + backend.ip in self._sets[nf.HAIRPIN]
            ),
            "ct status dnat fib saddr type local": packet.from_node,
            "ct status dnat ct original": within(packet.dst, self._ranges[nf.SERVICE_CIDRS])
            and not within(packet.src, self._ranges[nf.CLUSTER_CIDRS]),
        }
        rules = self.rules("postrouting")
        assert len(rules) == len(meaning), "a rule of postrouting has no meaning here"
        return any(
            holds and any(rule.startswith(start) for rule in rules)
            for start, holds in meaning.items()
        )


_Act = Callable[["re.Match[str]", _State], None]


def _cached_patterns(key: str, saddr: str, daddr: str, client: str) -> tuple[re.Pattern[str], ...]:
    """In the order of the acts in `_expressions`; the longest forms first."""
    texts = (
        rf"{key} \. {saddr} != @{nf.ALLOWED}",
        rf"{key} @{nf.FIREWALLED}",
        rf"meta priority set {key} map @(\S+)",
        r"meta priority vmap @(\S+)",
        rf"(?:meta priority set {client} map|update|delete) @{nf.AFFINITY}[^}}]*(?:}}.*)?$",
        rf"meta priority set {key} \. (?P<index>.+) map @{nf.BACKEND_IDS}",
        r"meta priority set (?P<index>(?:numgen random|jhash) .+?) (?=dnat )",
        rf"dnat \S+ to {key} \. meta priority map @{nf.BACKENDS_BY_ID}",
        rf"dnat \S+ to {key} \. meta priority map @{nf.ENDPOINTS}",
        rf"{saddr} @(\S+)",
        rf"{daddr} @(\S+)",
        r"fib saddr type local",
        r"meta mark set meta mark \| 0x([0-9a-f]+)",
        r"goto (\S+)",
        r"jump (\S+)",
        r'counter name "\S+"',
        r"meta l4proto tcp",
        r"reject(?: with tcp reset)?",
        r"drop",
        r"$",
    )
    return tuple(re.compile(text) for text in texts)


def _inner(chain: str) -> bool:
    return chain.endswith("-internal") or chain == nf.REFUSE


def _parse_base(text: str) -> dict[str, list[str]]:
    chains: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.split(maxsplit=5)
        if words[:2] == ["add", "chain"]:
            chains[words[4]] = []
        elif words[:2] == ["add", "rule"]:
            chains[words[4]].append(words[5])
    return chains


def _pairs(networks: tuple[Network, ...], version: int) -> Ranges:
    return tuple((n[0].packed, n[-1].packed) for n in networks if n.version == version)


def _indexes(text: str) -> range:
    found = _NUMGEN.fullmatch(text) or _JHASH.fullmatch(text)
    assert found, text
    offset = int(found[2] or 0)
    return range(offset, offset + int(found[1]))


def _drawn(rule: str) -> Iterator[tuple[str, range]]:
    """(map, indexes) of the look-ups of a rule whose index is drawn."""
    for pattern, name in (
        (r"meta priority set (numgen random .+?|jhash .+?) dnat .* map @endpoints", nf.ENDPOINTS),
        (r"meta priority set .*(numgen random .+) map @backend-ids", nf.BACKEND_IDS),
    ):
        if found := re.fullmatch(pattern, rule):
            yield name, _indexes(found[1])


def _require(condition: bool) -> None:
    if not condition:
        raise _MismatchError


def _end(verdict: str) -> None:
    raise _WalkEndError(verdict)
