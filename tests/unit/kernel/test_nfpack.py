"""Elements are packed byte for byte as nft 1.0.6 sends them, and dumps parse back."""

from __future__ import annotations

import copy
import pickle
import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.kernel import nfelements, nfpack, nfparse
from podwire.kernel.nfelements import Change, Data, Goto, Jump, Key

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


def ip(text: str) -> bytes:
    return ip_address(text).packed


def one(change: Change, concatenated: bool = False) -> str:
    ((_, body),) = nfpack.bodies(change, concatenated)
    return body.hex()


def add(name: str, key: Key, data: Data = None) -> Change:
    return Change("ip", "t", name, add=[(key, data)])


# What `nft add element ip t ...` was seen to send (strace), in sets declared in
# tests/kernel/test_kernel_nfelements.py.
NFT: dict[str, tuple[Change, bool, str]] = {
    "v { 10.0.0.1 . tcp . 80 : goto lb }": (
        add("v", nfpack.pack_ip_proto_port(ip("10.0.0.1"), TCP, 80), Goto("lb")),
        False,
        (
            "0600010074000000060002007600000034000380300001801400018010000100"
            "0a000001060000000050000018000280140002800800"
            "0100fffffffc070002006c620000"
        ),
    ),
    "d { 10.0.0.1 . tcp . 80 . 3 : 10.0.0.2 . 8080 }": (
        add(
            "d",
            nfpack.pack_ip_proto_port_index(ip("10.0.0.1"), TCP, 80, 3),
            nfpack.pack_ip_port(ip("10.0.0.2"), 8080),
        ),
        False,
        (
            "06000100740000000600020064000000300003802c00018018000180140001000a00000106000000005000000"
            "3000000100002800c0001000a0000021f900000"
        ),
    ),
    "m6 { fd00::1 . udp . 53 }": (
        add("m6", nfpack.pack_ip_proto_port(ip("fd00::1"), UDP, 53)),
        False,
        (
            "060001007400000007000200"
            "6d360000280003802400018020000180"
            "1c000100fd0000000000000000000000000000011100000000350000"
        ),
    ),
    "port { 80 }": (
        add("port", (80).to_bytes(2, "big")),
        False,
        "060001007400000009000200706f72740000000014000380100001800c0001800600010000500000",
    ),
    "p { 10.0.0.0/24 . 80-90 }": (
        add(
            "p",
            (nfpack.pack_ip_port(ip("10.0.0.0"), 80), nfpack.pack_ip_port(ip("10.0.0.255"), 90)),
        ),
        True,
        (
            "06000100740000000600020070000000"
            "2800038024000180100001800c0001000a0000000050000010000a800c0001000a0000ff005a0000"
        ),
    ),
}


@pytest.mark.parametrize("text", NFT)
def test_as_nft_packs_it(text: str) -> None:
    change, concatenated, expected = NFT[text]
    assert one(change, concatenated) == expected


def test_an_interval_of_one_field_is_two_elements() -> None:
    change = Change("ip", "t", "i", delete=[(ip("10.0.0.0"), ip("10.0.0.255"))])
    # The list's entries are all numbered 1, as in the kernel's own dumps; nft counts them.
    assert one(change).endswith(
        "2c000380" + "100001800c000180080001000a000000" + "18000180" + "0800030000000001"
        "0c000180080001000a000100"
    )
    last = Change("ip", "t", "i", add=[((ip("255.0.0.0"), ip("255.255.255.255")), None)])
    assert one(last).endswith("14000380" + "100001800c00018008000100ff000000")


def test_messages_stay_below_64_kib_and_keep_the_order() -> None:
    keys = [n.to_bytes(4, "big") for n in range(20_000)]
    change = Change("ip", "t", "s", delete=keys[:9000], add=[(k, None) for k in keys], flush=True)
    sent = list(nfpack.bodies(change))
    assert [deletes for deletes, _ in sent] == sorted((d for d, _ in sent), reverse=True)
    assert max(len(body) for _, body in sent) < 1 << 16
    added = [body for deletes, body in sent if not deletes]
    assert list(nfparse.parse_elements(added)) == keys
    assert nfparse.count_elements(added) == (len(keys), len(keys))
    assert nfparse.count_elements(added * 2) == (2 * len(keys), len(keys))


def test_nothing_to_do_is_no_message() -> None:
    assert list(nfpack.bodies(Change("ip", "t", "s"))) == []


def test_keys_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keys of \[4, 8\] bytes"):
        list(nfpack.bodies(Change("ip", "t", "s", add=[(b"abcd", None), (b"abcdefgh", None)])))


keys = st.integers(1, 20).flatmap(
    lambda n: st.lists(st.binary(min_size=n, max_size=n), min_size=1, unique=True)
)
verdicts = st.sampled_from([Goto("a"), Goto("long-name"), Jump("a"), nfpack.DROP, nfpack.RETURN])


@given(keys, st.data())
def test_round_trip(keys: list[bytes], draw: st.DataObject) -> None:
    length = draw.draw(st.integers(1, 20))
    values = st.binary(min_size=length, max_size=length)
    kind: st.SearchStrategy[Data] = draw.draw(st.sampled_from([st.none(), values, verdicts]))
    elements = {key: draw.draw(kind) for key in keys}
    change = Change("ip6", "t", "s", add=list(elements.items()))
    bodies = [body for _, body in nfpack.bodies(change)]
    assert nfparse.parse_elements(bodies) == elements
    assert [key for key, _ in nfparse.parse_keyed(bodies)] == keys


@given(
    st.lists(st.integers(0, 255), min_size=2, unique=True).map(sorted),
    st.booleans(),
    st.sampled_from([None, b"data", nfpack.ACCEPT]),
)
def test_intervals_round_trip(cuts: list[int], concatenated: bool, data: Data) -> None:
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    ranges: list[Key] = [(bytes([first]), bytes([last])) for first, last in pairs]
    change = Change("ip", "t", "s", add=[(key, data) for key in ranges])
    bodies = [body for _, body in nfpack.bodies(change, concatenated)]
    found = list(nfparse.parse_intervals(bodies))
    assert [key for key, _ in found] == ranges
    assert {nfparse.parse_data(a.get(nfpack.DATA)) for _, a in found} == {data}


def test_verdicts_print_as_nft_does_and_survive_copies() -> None:
    goto = Goto("lb-2")
    assert (str(goto), goto.chain) == ("goto lb-2", "lb-2")
    assert Goto("a") != Jump("a")
    for again in (copy.deepcopy(goto), pickle.loads(pickle.dumps(goto))):
        assert (again, type(again)) == (goto, Goto)


def test_indexed_keys() -> None:
    base = nfpack.pack_ip_proto_port(ip("10.96.0.1"), TCP, 80)
    assert nfpack.indexed(base, 3) == [
        nfpack.pack_ip_proto_port_index(ip("10.96.0.1"), TCP, 80, n) for n in range(3)
    ]
    assert nfpack.pack_proto_port(UDP, 53).hex() == "1100000000350000"


def test_transactions_are_cut_to_size_in_order() -> None:
    elements = [(n.to_bytes(4, "big"), None) for n in range(5000)]
    changes = [
        Change("ip", "t", "a", add=elements, delete=[b"abcd"], flush=True),
        Change("ip", "t", "b", add=elements[:10]),
    ]
    batches = list(nfelements.split(changes, 20_000))
    assert all(nfelements.size_of(batch) <= 20_000 for batch in batches)
    assert len(batches) > 3
    steps = [change for batch in batches for change in batch]
    assert steps[0].flush
    assert tuple(steps[1].delete) == (b"abcd",)
    assert [e for c in steps if c.set == "a" for e in c.add] == elements
    assert steps[-1] == changes[-1]
    assert list(nfelements.split(changes, 1 << 21)) == [changes]


def test_a_replaced_element_is_never_torn_and_a_whole_change_never_cut() -> None:
    keys = [n.to_bytes(4, "big") for n in range(1000)]
    replaced = Change("ip", "t", "a", delete=keys, add=[(key, b"data") for key in keys])
    for batch in nfelements.split([replaced], 20_000):
        assert nfelements.size_of(batch) <= 20_000
        assert all([*c.delete] == [key for key, _ in c.add] for c in batch)
    assert list(nfelements.split([replaced], 20_000, lambda _: True)) == [[replaced]]


def test_counters() -> None:
    counter = nfpack.nfnl.attr(1, b"counter\0") + nfpack.nfnl.attr(
        2,
        nfpack.nfnl.attr(1, (840).to_bytes(8, "big"))
        + nfpack.nfnl.attr(2, (10).to_bytes(8, "big")),
    )
    assert nfparse.parse_counter({7: counter}) == (10, 840)
    limit = nfpack.nfnl.attr(1, b"limit\0")
    listed = nfpack.nfnl.attr(1, limit) + nfpack.nfnl.attr(1, counter)
    assert nfparse.parse_counter({11: listed}) == (10, 840)
    assert nfparse.parse_counter({}) is None
