"""Bands of addresses and ports, and what a write that fails gives back."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

import pytest

from podwire.apiserver.service_addresses import (
    NODE_PORTS,
    Address,
    Reservation,
    ServiceAddresses,
    address_band,
    port_band,
)
from podwire.errors import AddressError, ExhaustedError
from podwire.objects.meta import Key

OWNER = Key("default", "a")


def nothing_exists(address: Address) -> bool:
    return False


@pytest.mark.parametrize(
    ("cidr", "band"),
    [
        ("/12", 256),
        ("/16", 256),
        ("/20", 256),
        ("/22", 64),
        ("/24", 16),
        ("/26", 16),
        ("/27", 16),
        ("/28", 0),
        ("/30", 0),
    ],
)
def test_address_bands(cidr: str, band: int) -> None:
    assert address_band(ip_network(f"10.0.0.0{cidr}").num_addresses) == band


@pytest.mark.parametrize(
    ("size", "band"), [(len(NODE_PORTS), 86), (16, 0), (17, 16), (512, 16), (1024, 32), (9000, 128)]
)
def test_port_bands(size: int, band: int) -> None:
    assert port_band(size) == band


def given(cidr: str, count: int) -> list[str]:
    pool = ServiceAddresses()
    ranges = [pool.range_of(ip_network(cidr))]
    out = []
    for _ in range(count):
        reservation = Reservation()
        out.append(str(pool.allocate(ranges, nothing_exists, OWNER, reservation)))
        reservation.keep()
    return out


def test_the_lower_band_is_for_when_the_upper_is_full() -> None:
    # 30 addresses: 1-16 are the users', 17-30 go first.
    assert given("10.0.0.0/27", 30) == [
        f"10.0.0.{last}" for last in (*range(17, 31), *range(1, 17))
    ]
    with pytest.raises(ExhaustedError, match="range is full"):
        given("10.0.0.0/27", 31)


def test_every_address_of_small_and_wide_ranges() -> None:
    assert given("10.0.0.0/30", 2) == ["10.0.0.1", "10.0.0.2"]
    assert given("fd00::/126", 3) == ["fd00::1", "fd00::2", "fd00::3"]
    assert given("fd00::/64", 2) == ["fd00::101", "fd00::102"]
    for cidr in ("10.0.0.0/31", "10.0.0.0/32", "fd00::/128"):
        with pytest.raises(ExhaustedError):
            given(cidr, 1)


def test_an_address_is_not_used_again_at_once() -> None:
    pool = ServiceAddresses()
    ranges = [pool.range_of(IPv4Network("10.0.0.0/24"))]
    seen = []
    for _ in range(300):
        reservation = Reservation()
        address = pool.allocate(ranges, nothing_exists, OWNER, reservation)
        pool.release(address, OWNER, reservation)
        reservation.keep()
        seen.append(address)
    upper = 254 - 16
    assert len(set(seen)) == upper
    assert seen[upper] == seen[0], "only after all others"


def test_ten_thousand_cost_no_more_each_than_the_first() -> None:
    """Counted in looks at an address, not in time."""
    pool, looks = ServiceAddresses(), 0

    def look(address: Address) -> bool:
        nonlocal looks
        looks += 1
        return False

    ranges = [pool.range_of(IPv4Network("10.0.0.0/16"))]
    for _ in range(10_000):
        reservation = Reservation()
        pool.allocate(ranges, look, OWNER, reservation)
        reservation.keep()
    assert looks == 10_000


def test_what_is_not_kept_was_never_taken() -> None:
    pool = ServiceAddresses()
    ranges = [pool.range_of(IPv4Network("10.0.0.0/28"))]
    first = Reservation()
    taken = pool.allocate(ranges, nothing_exists, OWNER, first)
    port = pool.allocate_port(OWNER, first)
    undo = first.keep()
    second = Reservation()
    pool.release(taken, OWNER, second)
    pool.release_port(port, OWNER, second)
    pool.take(IPv4Address("10.0.0.9"), ranges, nothing_exists, OWNER, second)
    second.revert()
    assert pool.addresses.by == {taken: OWNER}
    assert pool.ports.by == {port: OWNER}
    undo()
    assert (pool.addresses.by, pool.ports.by) == ({}, {})


def test_refusals() -> None:
    pool = ServiceAddresses()
    ranges = [pool.range_of(IPv4Network("10.0.0.0/28")), pool.range_of(IPv6Network("fd00::/124"))]
    reservation = Reservation()

    def take(text: str, *, exists: bool = False) -> None:
        address = IPv4Address(text)
        pool.take(address, ranges, lambda _: exists, OWNER, reservation)

    for outside in ("10.0.0.0", "10.0.0.15", "10.0.1.1"):
        with pytest.raises(AddressError, match="does not match the current range"):
            take(outside)
    take("10.0.0.1")
    with pytest.raises(AddressError, match="provided IP is already allocated"):
        take("10.0.0.1")
    with pytest.raises(AddressError, match="provided IP is already allocated"):
        take("10.0.0.2", exists=True)
    pool.release(IPv4Address("10.0.0.1"), Key("default", "b"), reservation)
    assert IPv4Address("10.0.0.1") in pool.addresses.by, "only its owner gives it back"


def test_node_ports_of_both_bands() -> None:
    pool, out = ServiceAddresses(), []
    for _ in NODE_PORTS:
        reservation = Reservation()
        out.append(pool.allocate_port(OWNER, reservation))
        reservation.keep()
    assert out[0] == 30086
    assert out[-1] == 30085
    assert sorted(out) == list(NODE_PORTS)
    with pytest.raises(ExhaustedError, match="range is full"):
        pool.allocate_port(OWNER, Reservation())
