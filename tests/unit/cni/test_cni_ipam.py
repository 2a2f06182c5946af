"""Leases: next-fit, rest after release, boot ids, crashes; and never two sandboxes, one address."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from podwire.cni.ipam import LeaseStore
from podwire.errors import AddressError, ExhaustedError

SMALL = ip_network("10.244.1.0/29")  # .2 to .6
LARGE = ip_network("10.244.1.0/24")
SIX = ip_network("fd00:244:0:1::/64")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[LeaseStore]:
    store = LeaseStore(tmp_path / "ipam.db", "boot-1", clock)
    store.configure([SMALL])
    yield store
    store.close()


def last(store: LeaseStore, sandbox: str) -> int:
    return int(store.lease(sandbox, f"default/{sandbox}").addresses[0]) & 0xFF


def test_in_order_without_network_gateway_and_broadcast(store: LeaseStore) -> None:
    assert [last(store, f"s{i}") for i in range(5)] == [2, 3, 4, 5, 6]
    assert store.free == 0


def test_asked_again_it_is_the_same(store: LeaseStore) -> None:
    assert store.lease("s", "default/s") == store.lease("s", "default/s")
    assert store.free == 4


def test_released_is_the_last_to_be_used_again(store: LeaseStore, clock: Clock) -> None:
    assert last(store, "a") == 2
    store.release("a")
    assert [last(store, name) for name in "bcd"] == [3, 4, 5]
    store.release("b")
    clock.now += 1
    assert last(store, "e") == 6
    # Only .2 and .3 are free, both fresh: the longest released goes first.
    assert [last(store, name) for name in "fg"] == [2, 3]


def test_rested_addresses_are_found_next_fit(store: LeaseStore, clock: Clock) -> None:
    for name in "abc":
        store.lease(name, name)
    store.release("a")
    store.release("b")
    clock.now += 61
    assert [last(store, name) for name in "defg"] == [5, 6, 2, 3]


def test_exhaustion_names_pod_and_range(store: LeaseStore) -> None:
    for i in range(5):
        store.lease(f"s{i}", "x")
    with pytest.raises(ExhaustedError) as full:
        store.lease("late", "shop/late")
    assert str(full.value) == (
        "pod shop/late: no IP addresses available in range 10.244.1.0/29: all 5 are in use"
    )
    assert store.get("late") is None
    store.release("s3")
    assert last(store, "late") == 5


def test_dual_stack_is_all_or_nothing(tmp_path: Path, clock: Clock) -> None:
    store = LeaseStore(tmp_path / "db", "boot", clock)
    store.configure([SMALL, ip_network("fd00::/125")])
    assert store.lease("a", "a").addresses == (ip_address("10.244.1.2"), ip_address("fd00::2"))
    store.configure([LARGE, ip_network("fd00::/126")])
    with pytest.raises(ExhaustedError, match="fd00::/126"):
        store.lease("b", "b")
    assert store.get("b") is None
    store.configure([LARGE, SIX])
    # The IPv4 address that was taken for a moment is free.
    assert store.lease("b", "b").addresses[0] == ip_address("10.244.1.3")
    store.close()


def test_release_of_the_unknown(store: LeaseStore) -> None:
    assert store.release("nobody") is None


def test_no_pod_cidr_yet(tmp_path: Path) -> None:
    store = LeaseStore(tmp_path / "db", "boot")
    with pytest.raises(AddressError, match="pod x: the node has no pod CIDR yet"):
        store.lease("s", "x")
    with pytest.raises(AddressError, match="no room for a pod address"):
        store.configure([ip_network("10.0.0.0/31")])
    store.close()


def test_a_restart_keeps_leases_rest_and_place(tmp_path: Path, clock: Clock) -> None:
    first = LeaseStore(tmp_path / "db", "boot-1", clock)
    first.configure([LARGE])
    kept = first.lease("a", "shop/a")
    first.lease("b", "b")
    first.release("b")
    # As kill -9 leaves it: never closed.
    again = LeaseStore(tmp_path / "db", "boot-1", clock)
    again.configure([LARGE])
    assert again.all() == [kept]
    assert last(again, "c") == 4
    first.close()
    again.close()


def test_a_reboot_frees_everything(tmp_path: Path, clock: Clock) -> None:
    first = LeaseStore(tmp_path / "db", "boot-1", clock)
    first.configure([SMALL])
    for i in range(5):
        first.lease(f"s{i}", "x")
    first.close()
    second = LeaseStore(tmp_path / "db", "boot-2", clock)
    second.configure([SMALL])
    assert second.all() == []
    assert second.free == 5
    second.close()


def test_a_killed_transaction_is_absent(tmp_path: Path, clock: Clock) -> None:
    """Copied between the insert and the commit, as kill -9 would leave the files."""
    store = LeaseStore(tmp_path / "db", "boot", clock)
    store.configure([SMALL])
    store.lease("a", "a")
    store._db.execute("BEGIN IMMEDIATE")
    store._db.execute("INSERT INTO lease VALUES ('b', 0, '10.244.1.3', 'b', 'boot')")
    dead = tmp_path / "dead"
    dead.mkdir()
    for file in tmp_path.glob("db*"):
        shutil.copy(file, dead / file.name)
    store._db.execute("ROLLBACK")
    store.close()
    found = LeaseStore(dead / "db", "boot", clock)
    found.configure([SMALL])
    assert [lease.sandbox for lease in found.all()] == ["a"]
    assert last(found, "c") == 3
    found.close()


class Leases(RuleBasedStateMachine):
    """Any order of leases, releases, restarts, reboots and hours: one sandbox per address."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="podwire-ipam-"))
        self.clock = Clock()
        self.boot = 1
        self.held: dict[str, Any] = {}
        self.released: dict[Any, float] = {}
        self.store = self.open()

    def open(self) -> LeaseStore:
        store = LeaseStore(self.folder / "db", f"boot-{self.boot}", self.clock)
        store.configure([SMALL, ip_network("fd00::/124")])
        return store

    @rule(sandbox=st.sampled_from("abcdefgh"))
    def lease(self, sandbox: str) -> None:
        if sandbox in self.held or len(self.held) < 5:
            found = self.store.lease(sandbox, sandbox)
            if sandbox in self.held:
                assert found == self.held[sandbox]
                return
            address = found.addresses[0]
            rested = self.clock.now - self.released.get(address, -1e9) >= 60
            used = {lease.addresses[0] for lease in self.held.values()}
            others = [
                a
                for a in list(SMALL)[2:-1]
                if a not in used and self.clock.now - self.released.get(a, -1e9) >= 60
            ]
            assert rested or not others, "a fresh one only where no rested one is left"
            self.held[sandbox] = found
        else:
            with pytest.raises(ExhaustedError):
                self.store.lease(sandbox, sandbox)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        sandbox = data.draw(st.sampled_from(sorted(self.held)))
        assert self.store.release(sandbox) == self.held[sandbox]
        self.released[self.held.pop(sandbox).addresses[0]] = self.clock.now

    @rule(seconds=st.sampled_from([1, 30, 61]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self.open()

    @rule()
    def reboot(self) -> None:
        self.store.close()
        self.boot += 1
        self.held.clear()
        self.store = self.open()

    @invariant()
    def one_sandbox_per_address(self) -> None:
        leases = self.store.all()
        assert {lease.sandbox: lease for lease in leases} == self.held
        addresses = [address for lease in leases for address in lease.addresses]
        assert len(addresses) == len(set(addresses)) == 2 * len(leases)
        assert self.store.free == 5 - len(leases)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
