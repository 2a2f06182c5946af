"""Impaired links between two nodes: down, loss, rate, delay.

All nodes share one bridge in the lab's namespace, so a link between two of them is a pair of ports:

    down, loss   a rule in the bridge's forward chain, for both directions
    rate, delay  a queue on each port, for frames that come from the other port (marked by
                 `meta priority` in the forward chain, which selects the htb class)

Rendered whole for every change (the pairs are few) and applied in one nft transaction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from podwire.errors import UsageError
from podwire.kernel import hooks, nft, tc
from podwire.lab.spec import NodeSpec

Pair = frozenset[str]
# htb handle of every impaired port; class minors are the far node's number.
_HTB_MAJOR = 1
_RATE = re.compile(r"(\d+(?:\.\d+)?)(bit|kbit|mbit|gbit)")
_DELAY = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Impairment:
    """What is wrong with a link; the default is nothing."""

    down: bool = False
    loss_percent: float = 0.0
    rate_bit: float = 0.0
    delay_s: float = 0.0

    @property
    def queued(self) -> bool:
        return bool(self.rate_bit or self.delay_s)


def parse_impairment(words: list[str] | tuple[str, ...]) -> Impairment:
    """`up`, `down`, `loss 5%`, `rate 10mbit`, `delay 50ms`, or several of the last three."""
    if list(words) == ["up"]:
        return Impairment()
    if list(words) == ["down"]:
        return Impairment(down=True)
    values: dict[str, float] = {}
    if not words or len(words) % 2:
        raise UsageError(_usage(words))
    for what, value in zip(words[::2], words[1::2], strict=True):
        if what == "loss" and (match := re.fullmatch(r"(\d+(?:\.\d+)?)%?", value)):
            values["loss_percent"] = float(match[1])
        elif what == "rate" and (match := _RATE.fullmatch(value)):
            values["rate_bit"] = float(match[1]) * _UNITS[match[2]]
        elif what == "delay" and (match := _DELAY.fullmatch(value)):
            values["delay_s"] = float(match[1]) * _SECONDS[match[2]]
        else:
            raise UsageError(_usage(words))
    if not 0 <= values.get("loss_percent", 0) <= 100:
        raise UsageError("link: loss is between 0% and 100%")
    return Impairment(
        loss_percent=values.get("loss_percent", 0.0),
        rate_bit=values.get("rate_bit", 0.0),
        delay_s=values.get("delay_s", 0.0),
    )


def _usage(words: list[str] | tuple[str, ...]) -> str:
    return (
        f"link {' '.join(words)!r}: expected up, down, loss PERCENT%, rate N(k|m|g)bit "
        "or delay N(us|ms|s)"
    )


@dataclass
class Impairments:
    """The impaired pairs of a lab; lives in the holder."""

    _pairs: dict[Pair, tuple[NodeSpec, NodeSpec, Impairment]] = field(default_factory=dict)

    def describe(self) -> list[dict[str, object]]:
        return [{"a": a.name, "b": b.name, **vars(what)} for a, b, what in self._pairs.values()]

    def change(self, a: NodeSpec, b: NodeSpec, words: list[str]) -> None:
        impairment = parse_impairment(words)
        if a == b:
            raise UsageError(f"link: {a.name} has no link to itself")
        before = dict(self._pairs)
        if impairment == Impairment():
            self._pairs.pop(frozenset((a.name, b.name)), None)
        else:
            self._pairs[frozenset((a.name, b.name))] = (a, b, impairment)
        try:
            self._apply((a, b))
        except Exception:
            # All or nothing: what the kernel cannot do must not be half done.
            self._pairs = before
            self._apply((a, b))
            raise

    def _apply(self, touched: tuple[NodeSpec, NodeSpec]) -> None:
        nft.apply(render(list(self._pairs.values())))
        for node in touched:
            self._queue(node)

    def _queue(self, node: NodeSpec) -> None:
        """The htb tree on the node's port: one class per impaired far node."""
        port = f"n{node.number}"
        classes = [
            _queue_class(other, what)
            for a, b, what in self._pairs.values()
            for end, other in ((a, b), (b, a))
            if end == node and what.queued
        ]
        tc.delete(port)
        if classes:
            tc.apply(port, classes)


def _queue_class(far: NodeSpec, what: Impairment) -> tc.Class:
    """Frames from `far`, held back; the delay is netem's, the rate the class' own."""
    leaf = tc.Netem(delay_ms=what.delay_s * 1000) if what.delay_s else None
    rate = round(what.rate_bit) if what.rate_bit else tc.UNLIMITED_BIT
    return tc.Class(minor=far.number, rate_bit=rate, leaf=leaf)


def render(pairs: list[tuple[NodeSpec, NodeSpec, Impairment]]) -> str:
    """The impairment table; replaced as a whole, in one transaction."""
    hook = hooks.IMPAIR
    lines = [
        f"table {hook.family} {hook.table}",
        f"delete table {hook.family} {hook.table}",
    ]
    if not pairs:
        return "\n".join(lines) + "\n"
    lines += [f"table {hook.family} {hook.table} {{", f"\tchain {hook.chain} {{"]
    lines.append(f"\t\t{hook.render()}")
    for a, b, what in pairs:
        for near, far in ((a, b), (b, a)):
            match = f'iifname "n{near.number}" oifname "n{far.number}"'
            if what.down:
                lines.append(f"\t\t{match} counter drop")
            if threshold := round(what.loss_percent * 100):
                # nft refuses `< 10000`: nothing mod 10000 is that large.
                some = f"numgen random mod 10000 < {threshold} " if threshold < 10000 else ""
                lines.append(f"\t\t{match} {some}counter drop")
            if what.queued:
                lines.append(f"\t\t{match} meta priority set {_HTB_MAJOR}:{near.number:x}")
    lines += ["\t}", "}"]
    return "\n".join(lines) + "\n"
