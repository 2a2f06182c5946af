"""What nodes tell each other while there are load balancer addresses: who is alive. Pure.

    datagram <-> Heartbeat;   Liveness.hear / answered / candidates(now)

A heartbeat names its sender, what it announces, and how long ago it heard of the others itself: a
node that only one neighbour still hears is alive for all, so nodes with different wires agree.
Times are the receiver's own monotonic seconds; no clocks are compared.

    "pwlb" version:u8 name:u8+bytes announced:u16 x digest[4] heard:u16 x (digest[4] age_ms:u16)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from podwire.services.election import DEAD_AFTER_S, Candidate, State, digest

_MAGIC: Final = b"pwlb\1"
_COUNT: Final = struct.Struct(">H")
_HEARD: Final = struct.Struct(">4sH")
_AGE_MAX_MS: Final = 0xFFFF
# A silent node's kernel is asked before the node is given up.
SUSPECT_AFTER_S: Final = DEAD_AFTER_S / 2


@dataclass(frozen=True)
class Heartbeat:
    """`announced` and the keys of `heard_ms` are digests."""

    node: str
    announced: frozenset[bytes] = frozenset()
    heard_ms: Mapping[bytes, int] = field(default_factory=dict)


def pack_heartbeat(beat: Heartbeat) -> bytes:
    name = beat.node.encode()
    parts = [_MAGIC, bytes([len(name)]), name, _COUNT.pack(len(beat.announced))]
    parts += sorted(beat.announced)
    parts.append(_COUNT.pack(len(beat.heard_ms)))
    parts += [_HEARD.pack(who, min(age, _AGE_MAX_MS)) for who, age in beat.heard_ms.items()]
    return b"".join(parts)


def parse_heartbeat(data: bytes) -> Heartbeat | None:
    """None for what is no heartbeat: the port is open to everybody on the network."""
    try:
        return _parse(data)
    except (struct.error, UnicodeDecodeError, IndexError):
        return None


def _parse(data: bytes) -> Heartbeat | None:
    if not data.startswith(_MAGIC):
        return None
    at = len(_MAGIC) + 1
    end = at + data[at - 1]
    name = data[at:end].decode()
    (count,) = _COUNT.unpack_from(data, end)
    at = end + _COUNT.size
    end = at + 4 * count
    announced = frozenset(data[i : i + 4] for i in range(at, end, 4))
    (heard,) = _COUNT.unpack_from(data, end)
    at = end + _COUNT.size
    if not name or len(data) != at + heard * _HEARD.size:
        return None
    ages: dict[bytes, int] = dict(_HEARD.iter_unpack(data[at:]))
    return Heartbeat(name, announced, ages)


@dataclass
class _Peer:
    heard: float
    """When its agent was heard of, by us or by another."""
    direct: float
    answered: float = float("-inf")
    """When its kernel answered an echo request."""
    held: frozenset[bytes] = frozenset()


class Liveness:
    """What one node knows of the others."""

    def __init__(self) -> None:
        self._peers: dict[str, _Peer] = {}
        self._names: dict[bytes, str] = {}
        self._former: dict[str, tuple[float, _Peer]] = {}

    def expect(self, names: Iterable[str], now: float) -> None:
        """These are the others now. One that is new counts as alive until it was silent for long
        enough: who has just started knows nothing, and must not take what others have."""
        wanted = set(names)
        for name in self._peers.keys() - wanted:
            self._former[name] = (now, self._peers.pop(name))
        for name in wanted - self._peers.keys():
            since, peer = self._former.pop(name, (float("-inf"), _Peer(now, now)))
            # Who left for a moment is not reborn by it; who was away longer had nothing to say.
            self._peers[name] = peer if now - since < DEAD_AFTER_S else _Peer(now, now)
        self._names = {digest(name): name for name in self._peers}

    def restart(self, now: float) -> None:
        """Nobody was listening until now: silence means nothing yet."""
        for peer in self._peers.values():
            peer.heard = max(peer.heard, now)

    def hear(self, beat: Heartbeat, now: float) -> frozenset[bytes]:
        """Take note; returns what the sender announces, or announced last time and no longer."""
        peer = self._peers.get(beat.node)
        if peer is None:
            return frozenset()
        before, peer.held = peer.held, beat.announced
        peer.heard = peer.direct = now
        for who, age_ms in beat.heard_ms.items():
            other = self._peers.get(self._names.get(who, ""))
            if other is not None:
                other.heard = max(other.heard, now - age_ms / 1000)
        return before | beat.announced

    def answered(self, name: str, now: float) -> None:
        if name in self._peers:
            self._peers[name].answered = now

    def state(self, name: str, now: float) -> State:
        peer = self._peers.get(name)
        if peer is None:
            return "dead"
        if now - peer.heard < DEAD_AFTER_S:
            return "alive"
        return "frozen" if now - peer.answered < DEAD_AFTER_S else "dead"

    def suspects(self, now: float) -> list[str]:
        """Those whose kernels are to be asked."""
        return [n for n, peer in self._peers.items() if now - peer.heard >= SUSPECT_AFTER_S]

    def candidates(self, now: float) -> dict[str, Candidate]:
        """The others, by name. Equal results elect equally."""
        found = {}
        for name, peer in self._peers.items():
            state = self.state(name, now)
            held = peer.held if state == "frozen" else frozenset()
            found[name] = Candidate(name, state, held)
        return found

    def heard_ms(self, now: float) -> dict[bytes, int]:
        """What we heard ourselves, for our own heartbeat; hearsay is not passed on."""
        ages = {digest(name): now - peer.direct for name, peer in self._peers.items()}
        return {who: int(age * 1000) for who, age in ages.items() if age < DEAD_AFTER_S}
