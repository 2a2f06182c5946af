"""Connection tracking entries parse from what kernel 6.18 sent, and pack back."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from podwire.kernel import decode, flows
from podwire.kernel.fake_nf import FakeConntrack
from podwire.kernel.fake_rtnl import Namespace
from podwire.kernel.flows import ASSURED, DST_NAT, Flow, Match, Tuple

UDP_DNAT = (
    "3400018014000180080001007f000001080002007f0000091c000280050001001100000006000200b1d600000600"
    "0300003500003400028014000180080001007f000001080002007f0000011c0002800500010011000000060002"
    "0014e9000006000300b1d6000008000300000001a8080008000000000008000c0088256c4508000b0000000001"
    "080007000000001d"
)
ICMP = (
    "3c00018014000180080001007f000001080002007f00000124000280050001000100000006000400720000000500"
    "05000800000005000600000000003c00028014000180080001007f000001080002007f00000124000280050001"
    "0001000000060004007200000005000500000000000500060000000000080003000000018a0800080000000000"
    "08000c00fa736a5708000b0000000001080007000000001d"
)
ICMPV6 = (
    "540001802c00018014000300000000000000000000000000000000011400040000000000000000000000000000"
    "00000124000280050001003a000000060007007201000005000800800000000500090000000000540002802c00"
    "018014000300000000000000000000000000000000011400040000000000000000000000000000000001240002"
    "80050001003a000000060007007201000005000800810000000500090000000000080003000000018a08000800"
    "0000000008000c0035cbc4ab08000b0000000001080007000000001d"
)


def ip(text: str) -> bytes:
    return ip_address(text).packed


LO, LO6 = ip("127.0.0.1"), ip("::1")
PARSED = {
    UDP_DNAT: Flow(
        Tuple(LO, ip("127.0.0.9"), 45526, 53, 17),
        Tuple(LO, LO, 5353, 45526, 17),
        status=0x1A8,
        timeout_s=29,
        id=0x88256C45,
    ),
    ICMP: Flow(
        Tuple(LO, LO, 29184, 8 << 8, 1),
        Tuple(LO, LO, 29184, 0, 1),
        status=0x18A,
        timeout_s=29,
        id=0xFA736A57,
    ),
    ICMPV6: Flow(
        Tuple(LO6, LO6, 29185, 128 << 8, 58),
        Tuple(LO6, LO6, 29185, 129 << 8, 58),
        status=0x18A,
        timeout_s=29,
        id=0x35CBC4AB,
    ),
}


@pytest.mark.parametrize("raw", PARSED)
def test_what_the_kernel_sent(raw: str) -> None:
    body = bytes.fromhex(raw)
    assert flows.parse_flow(body, 0) == PARSED[raw]
    assert flows.parse_flow(b"\2\0\0\0" + body) == PARSED[raw]
    assert flows.pack_tuple(1, PARSED[raw].orig) == body[: len(body[: body[0]])]
    found = decode.attrs(flows.pack_exact(PARSED[raw]))
    assert found[12] == PARSED[raw].id.to_bytes(4, "big")


def test_flags_and_words() -> None:
    flow = PARSED[UDP_DNAT]
    assert (flow.dst_nat, flow.seen_reply, flow.assured, flow.family) == (True, False, False, 2)
    assert str(flow) == (
        "proto=17 src=127.0.0.1 dst=127.0.0.9 sport=45526 dport=53 -> "
        "src=127.0.0.1 dst=127.0.0.1 sport=5353 dport=45526 mark=0x0"
    )


def test_counters_zone_and_mark() -> None:
    from podwire.kernel.nfnl import attr

    counter = attr(1, (3).to_bytes(8, "big")) + attr(2, (99).to_bytes(8, "big"))
    more = attr(9, counter) + attr(10, counter) + attr(8, b"\0\0\0\7") + attr(18, b"\0\5")
    flow = flows.parse_flow(bytes.fromhex(UDP_DNAT) + more, 0)
    assert (flow.counters, flow.reply_counters, flow.mark, flow.zone) == ((3, 99), (3, 99), 7, 5)
    assert decode.attrs(flows.pack_exact(flow))[18] == b"\0\5"


MATCHES = {
    Match(): True,
    Match(proto=17): True,
    Match(proto=6): False,
    Match(proto=17, dst=ip("127.0.0.9"), dport=53): True,
    Match(dport=54): False,
    Match(src=ip("127.0.0.9")): False,
    Match(sport=45526): True,
    Match(status=DST_NAT): True,
    Match(status=DST_NAT | ASSURED): False,
    Match(mark=(0, 0xFF)): True,
    Match(mark=(1, 0xFF)): False,
}


@pytest.mark.parametrize("match", MATCHES, ids=str)
def test_matches(match: Match) -> None:
    assert match.accepts(PARSED[UDP_DNAT]) is MATCHES[match]


def test_what_the_kernel_is_asked() -> None:
    assert flows.pack_match(Match()) == b""
    asked = decode.attrs(flows.pack_match(Match(proto=17, dst=LO, dport=53, status=DST_NAT)))
    assert decode.attrs(asked[25])[1] == (2 | 8 | 32).to_bytes(4, "little")
    tuple_ = decode.attrs(asked[1])
    assert decode.attrs(tuple_[1]) == {2: LO}
    assert decode.attrs(tuple_[2]) == {1: b"\x11", 3: b"\0\x35"}
    assert asked[3] == asked[26] == DST_NAT.to_bytes(4, "big")
    # Ports alone cannot be asked for; `accepts` looks at them.
    assert flows.pack_match(Match(dport=53)) == b""


def test_the_fake_deletes_exactly() -> None:
    namespace = Namespace(flows=list(PARSED.values()))
    fake = FakeConntrack(namespace)
    (flow,) = fake.dump(match=Match(proto=17))
    successor = Flow(flow.orig, flow.reply, id=flow.id + 1)
    assert fake.delete(successor) is False
    assert fake.delete(flow) is True
    assert (fake.count(), len(fake.dump()), len(fake.dump(10))) == (2, 1, 1)
