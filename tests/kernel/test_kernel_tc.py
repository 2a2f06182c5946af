"""Queueing is set, replaced and removed; what the kernel lacks is named."""

from __future__ import annotations

import pytest

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import features, tc
from podwire.kernel.requests import AddLink, Veth
from podwire.kernel.rtnl import Rtnl

SLOW = tc.Class(minor=0x10, leaf=tc.Tbf(rate_bit=1_000_000))
FAR = tc.Class(minor=0x11, leaf=tc.Netem(delay_ms=10, loss_percent=1))


def make_link() -> None:
    with Rtnl() as rtnl:
        rtnl.apply([AddLink(name="a", kind=Veth(peer="b"), up=True)])


def test_classes_with_a_rate() -> None:
    make_link()
    tc.delete("a")
    tc.apply("a", [SLOW])
    assert "tbf" in tc.show("a")
    assert "rate 1Mbit" in tc.show("a")
    tc.apply("a", [])
    assert "tbf" not in tc.show("a")
    tc.delete("a")
    tc.delete("a")
    assert "htb" not in tc.show("a")


def test_netem_works_or_is_named() -> None:
    make_link()
    if features.probe().netem:
        tc.apply("a", [FAR])
        assert "netem" in tc.show("a")
    else:
        with pytest.raises(UnsupportedError, match="sch_netem"):
            tc.apply("a", [FAR])
        assert "htb" not in tc.show("a")


def test_a_missing_device_is_an_error() -> None:
    with pytest.raises(KernelError, match="nowhere"):
        tc.apply("nowhere", [SLOW])


def test_probe_agrees_with_trying() -> None:
    found = features.probe()
    assert found.netns
    assert found.veth
    assert found.nft_nat
    make_link()
    try:
        tc.apply("a", [FAR])
    except UnsupportedError:
        assert not found.netem
        assert "sch_netem" in found.missing()["netem"]
    else:
        assert found.netem


@pytest.mark.stays_on_host
def test_probe_from_the_host_leaves_it_alone() -> None:
    found = features.probe()
    assert set(features.EXPLAIN) == set(found.__struct_fields__)
    assert set(found.missing()) == {n for n in found.__struct_fields__ if not getattr(found, n)}
