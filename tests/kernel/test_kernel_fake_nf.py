"""The fake's netfilter and the kernel's do the same: each scenario runs on both."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from podwire.errors import KernelError
from podwire.kernel.effects import Effects, KernelEffects
from podwire.kernel.fake import FakeKernel
from podwire.kernel.nfelements import ACCEPT, DROP, Change, Goto, Key

TABLE = """
table ip podwire-x {
  chain a {
  }
  chain b { }
  map v { typeof ip daddr . th dport : verdict; }
  map d { typeof ip daddr . th dport : ip daddr; counter; }
  set i { type ipv4_addr; flags interval; }
}
add set ip podwire-x s { type ipv4_addr; counter; }
add chain ip podwire-x c
"""
A, B = b"\x0a\0\0\1\0\x50\0\0", b"\x0a\0\0\2\0\x50\0\0"
V, D, S, IV = (("ip", "podwire-x", name) for name in "vdsi")


def span(first: int, last: int) -> Key:
    return bytes([10, 0, 0, first]), bytes([10, 0, 0, last])


SCENARIOS: dict[str, list[str | list[Change]]] = {
    "add": [[Change(*V, add=[(A, Goto("a")), (B, DROP)]), Change(*D, add=[(A, b"\x0a\0\0\5")])]],
    "add twice": [[Change(*V, add=[(A, Goto("a"))])], [Change(*V, add=[(A, Goto("a"))])]],
    "add other data": [[Change(*V, add=[(A, Goto("a"))])], [Change(*V, add=[(A, ACCEPT)])]],
    "replace": [
        [Change(*V, add=[(A, Goto("a")), (B, DROP)])],
        [Change(*V, delete=[A], add=[(A, Goto("b"))])],
    ],
    "delete missing": [[Change(*V, add=[(A, Goto("a"))])], [Change(*V, delete=[A, B])]],
    "all or nothing": [[Change(*D, add=[(A, b"\0\0\0\1")]), Change(*V, add=[(A, Goto("nope"))])]],
    "chain by command": [[Change(*V, add=[(A, Goto("c"))])]],
    "flush": [[Change(*V, add=[(A, ACCEPT)])], [Change(*V, flush=True, add=[(B, ACCEPT)])]],
    "no set": [[Change("ip", "podwire-x", "nope", add=[(A, None)])]],
    "no table": [[Change("ip6", "podwire-x", "v", delete=[A])]],
    "nothing": [[]],
    "nothing for a missing set": [[Change("ip", "podwire-x", "nope")]],
    "plain set": [[Change(*S, add=[(b"\x0a\0\0\1", None)])]],
    "intervals": [[Change(*IV, add=[(span(1, 5), None), (span(6, 9), None)])]],
    "overlap": [
        [Change(*IV, add=[(span(1, 5), None)])],
        [Change(*IV, add=[(span(4, 9), None)])],
        [Change(*IV, delete=[span(2, 5)])],
    ],
    "interval deleted": [
        [Change(*IV, add=[(span(1, 5), None), (span(7, 9), None)])],
        [Change(*IV, delete=[span(1, 5)], add=[(span(1, 6), None)])],
    ],
    "set flushed by text": [[Change(*V, add=[(A, ACCEPT)])], "flush map ip podwire-x v\n"],
    "set deleted by text": [[Change(*V, add=[(A, ACCEPT)])], "delete map ip podwire-x v\n"],
    "table replaced": [
        [Change(*V, add=[(A, ACCEPT)])],
        "add table ip podwire-x\ndelete table ip podwire-x\n" + TABLE,
        [Change(*D, add=[(A, b"\0\0\0\1")])],
    ],
}


def both(scenario: Callable[[Effects], Any]) -> None:
    pretended = scenario(FakeKernel())
    assert pretended == scenario(KernelEffects())


@pytest.mark.parametrize("name", SCENARIOS)
def test_elements(name: str) -> None:
    def scenario(effects: Effects) -> Any:
        effects.nft(TABLE)
        outcome: list[Any] = []
        with effects.elements() as elements:
            for step in SCENARIOS[name]:
                before = elements.generation()
                try:
                    effects.nft(step) if isinstance(step, str) else elements.apply(step)
                    outcome.append(elements.generation() - before)
                except KernelError as e:
                    outcome.append((errno.errorcode[e.errno], str(e)))
            for where in (V, D, S, IV):
                try:
                    outcome.append(dict(sorted(elements.dump(*where).items())))
                    outcome.append(dict(sorted(elements.dump_counters(*where).items())))
                except KernelError as e:
                    outcome.append(str(e))
        return outcome

    both(scenario)


def test_too_large() -> None:
    def scenario(effects: Effects) -> Any:
        effects.nft(TABLE)
        with effects.elements() as elements:
            elements.max_batch = 100
            many = [(bytes([10, 0, 0, n]), None) for n in range(50)]
            with pytest.raises(KernelError) as caught:
                elements.apply([Change(*S, add=many)])
            return caught.value.errno, elements.dump(*S)

    both(scenario)
