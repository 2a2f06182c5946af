"""Announcements are byte for byte what RFC 5227, 826 and 4861 say."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from podwire.kernel import announce

MAC = bytes.fromhex("0a5800000001")
ADDRESS, ADDRESS6 = IPv4Address("172.30.0.200"), IPv6Address("fd00:30::200")


def test_arp_announcement_is_a_request_for_itself() -> None:
    assert announce.arp_announcement(ADDRESS, MAC).hex() == (
        "ffffffffffff" + "0a5800000001" + "0806" + "0001080006040001"
        "0a5800000001" + "ac1e00c8" + "000000000000" + "ac1e00c8"
    )


def test_gratuitous_reply() -> None:
    assert announce.arp_announcement(ADDRESS, MAC, reply=True).hex() == (
        "ffffffffffff" + "0a5800000001" + "0806" + "0001080006040002"
        "0a5800000001" + "ac1e00c8" + "0a5800000001" + "ac1e00c8"
    )


def test_neighbour_advertisement() -> None:
    frame = announce.neighbour_advertisement(ADDRESS6, MAC)
    source = "fd000030000000000000000000000200"
    all_nodes = "ff020000000000000000000000000001"
    assert frame[:14].hex() == "333300000001" + "0a5800000001" + "86dd"
    assert frame[14:54].hex() == "60000000" + "0020" + "3aff" + source + all_nodes
    message = frame[54:]
    assert message[:2].hex() == "8800"
    assert message[4:].hex() == "20000000" + source + "0201" + "0a5800000001"
    # With its checksum in place the sum over pseudo header and message is zero.
    pseudo = bytes.fromhex(source + all_nodes + "00000020" + "0000003a")
    assert announce.checksum(pseudo + message) == 0


def test_a_router_says_so() -> None:
    frame = announce.neighbour_advertisement(ADDRESS6, MAC, router=True)
    assert frame[58:62].hex() == "a0000000"


def test_checksum_of_rfc_1071() -> None:
    # The example of RFC 1071 section 3: the sum is ddf2.
    assert announce.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


def test_frames() -> None:
    assert len(announce.frames(ADDRESS, MAC)) == 2
    assert len(announce.frames(ADDRESS6, MAC)) == 1
