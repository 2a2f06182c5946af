"""Messages are byte for byte what the kernel's headers say, and answers parse back."""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.errors import KernelError
from podwire.kernel import decode
from podwire.kernel import encode as nl
from podwire.kernel import requests as rq

DEVICES = {"eth0": 2, "br0": 3}
NAMES = {number: name for name, number in DEVICES.items()}


def resolve(device: rq.Device) -> int:
    if isinstance(device, int):
        return device
    if device not in DEVICES:
        raise KernelError(device, errno=errno.ENODEV)
    return DEVICES[device]


def test_address_message() -> None:
    request = rq.Replace(rq.Address("eth0", IPv4Interface("10.0.0.1/24")))
    kind, flags, body = nl.encode(request, resolve)
    assert (kind, flags) == (20, 0x500)
    assert body.hex() == "02180000" + "02000000" + "080002000a000001" + "080001000a000001"


def test_route_message_golden() -> None:
    route = rq.Route(
        destination=IPv4Network("10.244.1.0/24"), via=IPv4Address("172.30.0.3"), device="eth0"
    )
    kind, _, body = nl.encode(rq.Replace(route), resolve)
    assert kind == 24
    assert body[:12] == struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 4, 0, 1, 0)
    found = decode.attrs(body, 12)
    assert found == {
        nl.RTA_DST: bytes([10, 244, 1, 0]),
        nl.RTA_TABLE: struct.pack("=I", 254),
        nl.RTA_GATEWAY: bytes([172, 30, 0, 3]),
        nl.RTA_OIF: struct.pack("=I", 2),
    }


v4 = st.builds(
    lambda n, p: ip_network((n, p), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
v6 = st.builds(
    lambda n, p: ip_network((n, p), strict=False),
    st.integers(2**40, 2**128 - 1),
    st.integers(0, 128),
)


@given(
    destination=st.one_of(v4, v6),
    via=st.none() | st.builds(IPv4Address, st.integers(1, 2**32 - 1)),
    via6=st.none() | st.builds(IPv6Address, st.integers(1, 2**128 - 1)),
    metric=st.integers(0, 2**32 - 1),
    table=st.integers(1, 2**32 - 1),
    mtu=st.none() | st.integers(68, 65535),
    onlink=st.booleans(),
)
def test_routes_round_trip(
    destination: rq.IPNetwork,
    via: IPv4Address | None,
    via6: IPv6Address | None,
    metric: int,
    table: int,
    mtu: int | None,
    onlink: bool,
) -> None:
    route = rq.Route(
        destination=destination,
        via=via or via6,
        device="eth0",
        metric=metric,
        table=table,
        mtu=mtu,
        onlink=onlink,
        scope="link" if destination.version == 4 else None,
    )
    _, _, body = nl.encode(rq.Replace(route), resolve)
    assert decode.parse_route(body, NAMES.__getitem__) == route


@given(weights=st.lists(st.integers(1, 256), min_size=1, max_size=20))
def test_multipath_round_trips(weights: list[int]) -> None:
    hops = tuple(rq.Hop(IPv4Address(n + 1), "eth0", w) for n, w in enumerate(weights))
    route = rq.Route(destination=IPv4Network("10.0.0.0/8"), hops=hops, scope="global")
    _, _, body = nl.encode(rq.Replace(route), resolve)
    assert decode.parse_route(body, NAMES.__getitem__) == route


@given(st.integers(0, 4), st.binary(max_size=300))
def test_attributes_survive_any_bytes(kind: int, payload: bytes) -> None:
    assert decode.attrs(nl.attr(kind, payload)) == {kind: payload}
    decode.attrs(payload)
    list(decode.messages(payload))


def test_error_with_the_kernels_words() -> None:
    words = nl.attr(1, b"Nexthop has invalid gateway\0")
    body = struct.pack("=i", -errno.ENETUNREACH) + b"\0" * 16 + words
    assert decode.error_of(0x300, body) == (errno.ENETUNREACH, "Nexthop has invalid gateway")
    assert decode.error_of(0, struct.pack("=i", 0) + b"\0" * 16) == (0, "")


def test_unknown_names_come_from_resolve() -> None:
    with pytest.raises(KernelError):
        nl.encode(rq.SetLink(device="nowhere"), resolve)


def test_proxy_message_golden() -> None:
    proxy = rq.Proxy("eth0", IPv4Address("10.0.0.1"))
    kind, flags, body = nl.encode(rq.Add(proxy), resolve)
    assert (kind, flags) == (28, 0x600)
    # ndmsg: family, padding, index, NUD_PERMANENT, NTF_PROXY, type; what `ip neigh add proxy` sends
    assert body.hex() == "02000000" + "02000000" + "8000" + "08" + "00" + "080001000a000001"
    assert decode.parse_proxy(body, NAMES.__getitem__) == proxy
    assert nl.encode(rq.Delete(proxy), resolve)[:2] == (29, 0)
    neighbour = nl.encode(rq.Add(rq.Neighbour(2, proxy.address, "0a:58:00:00:00:01")), resolve)[2]
    assert decode.parse_proxy(neighbour, NAMES.__getitem__) is None


def test_requests_read_like_ip() -> None:
    route = rq.Route(
        destination=IPv4Network("10.0.0.0/8"),
        via=IPv4Address("10.0.0.1"),
        device="eth0",
        onlink=True,
    )
    table = {
        rq.Replace(route): "route replace 10.0.0.0/8 via 10.0.0.1 dev eth0 onlink",
        rq.Delete(rq.Neighbour("eth0", IPv4Address("10.0.0.1"), "0a:58:00:00:00:01")): (
            "neigh del 10.0.0.1 lladdr 0a:58:00:00:00:01 dev eth0"
        ),
        rq.Add(rq.Proxy("eth0", IPv6Address("fd00::1"))): "neigh add proxy fd00::1 dev eth0",
        rq.Add(rq.Rule(priority=9, table=7, mark=1, mask=1)): (
            "rule add pref 9 from all fwmark 0x1/0x1 lookup 7"
        ),
        rq.AddLink(name="a", kind=rq.Veth(peer="b", netns=5)): (
            "link add a type veth peer name b netns fd:5"
        ),
        rq.SetLink(device="a", up=True, mtu=1400): "link set a up True mtu 1400",
        rq.SetPort(device="a", hairpin=True): "bridge link set dev a hairpin on",
        rq.DeleteLink("a"): "link del a",
    }
    assert {str(request): text for request, text in table.items()} == {t: t for t in table.values()}


def test_what_is_tolerated() -> None:
    entry = rq.Address("eth0", IPv4Interface("10.0.0.1/24"))
    assert errno.EADDRNOTAVAIL in nl.tolerated(rq.Delete(entry))
    assert not nl.tolerated(rq.Delete(entry, missing_ok=False))
    assert not nl.tolerated(rq.Replace(entry))
    assert errno.EEXIST in nl.tolerated(rq.Replace(rq.Rule(priority=1, table=1)))
