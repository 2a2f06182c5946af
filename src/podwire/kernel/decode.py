"""rtnetlink messages: what the kernel answers, as values. Pure; the way back of `encode`.

Devices come as names: `NameOf` knows them, from one list of links before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from socket import AF_BRIDGE, AF_INET, AF_INET6
from typing import TypeAlias

from podwire.kernel import encode as nl
from podwire.kernel import requests as rq

NameOf: TypeAlias = Callable[[int], str]


def mac_text(raw: bytes) -> str:
    return raw.hex(":")


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Split a datagram: (type, flags, sequence, body) of each message."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, flags, seq, _port = nl.HEADER.unpack_from(data, offset)
        if size < 16:
            return
        yield kind, flags, seq, data[offset + 16 : offset + size]
        offset += (size + 3) & ~3


def attrs(data: bytes, offset: int = 0) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + 4 <= end:
        size, kind = nl.ATTR.unpack_from(data, offset)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def error_of(flags: int, body: bytes) -> tuple[int, str]:
    """(errno, the kernel's own words) of an nl.NLMSG_ERROR; errno 0 is an acknowledgement."""
    code = -int.from_bytes(body[:4], "little", signed=True)
    text = _extended(flags, body).get(1, b"")
    return code, text.rstrip(b"\0").decode(errors="replace")


def error_offset(flags: int, body: bytes) -> int:
    """Where in the message it complains of an nl.NLMSG_ERROR points; 0 when it does not say."""
    return _int(_extended(flags, body).get(2))


def _extended(flags: int, body: bytes) -> dict[int, bytes]:
    """The attributes of an extended acknowledgement (NLMSGERR_ATTR_*)."""
    if not flags & 0x200:  # NLM_F_ACK_TLVS
        return {}
    size = 16 if flags & 0x100 else int.from_bytes(body[4:8], "little")  # NLM_F_CAPPED
    return attrs(body, 4 + ((size + 3) & ~3))


def _int(raw: bytes | None) -> int:
    return int.from_bytes(raw, "little") if raw else 0


def _string(raw: bytes | None) -> str:
    return raw.rstrip(b"\0").decode() if raw else ""


def _ip(raw: bytes) -> rq.IPAddress:
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


def _network(raw: bytes | None, prefixlen: int, family: int) -> rq.IPNetwork:
    if family == AF_INET:
        return IPv4Network((raw or b"\0" * 4, prefixlen))
    return IPv6Network((raw or b"\0" * 16, prefixlen))


def link_index(body: bytes) -> int:
    index: int = nl.IFINFO.unpack_from(body)[2]
    return index


def parse_link(body: bytes) -> tuple[rq.Link, int]:
    """The link (still without its master's name) and its master's index."""
    _fam, _type, index, flags, _change = nl.IFINFO.unpack_from(body)
    a = attrs(body, 16)
    info = attrs(a.get(nl.IFLA_LINKINFO, b""))
    port = attrs(info.get(nl.IFLA_INFO_SLAVE_DATA, b""))
    link = rq.Link(
        index=index,
        name=_string(a.get(nl.IFLA_IFNAME)),
        kind=_string(info.get(nl.IFLA_INFO_KIND)),
        mac=mac_text(a.get(nl.IFLA_ADDRESS, b"")),
        mtu=_int(a.get(nl.IFLA_MTU)),
        up=bool(flags & nl.IFF_UP),
        carrier=bool(flags & nl.IFF_LOWER_UP),
        alias=_string(a.get(nl.IFLA_IFALIAS)),
        peer_index=_int(a.get(nl.IFLA_LINK)),
        promisc=bool(flags & nl.IFF_PROMISC),
        hairpin=bool(_int(port.get(nl.IFLA_BRPORT_MODE))),
        isolated=bool(_int(port.get(nl.IFLA_BRPORT_ISOLATED))),
    )
    return link, _int(a.get(nl.IFLA_MASTER))


def parse_address(body: bytes, name_of: NameOf) -> rq.Address:
    family, prefixlen, flags8, scope, index = nl.IFADDR.unpack_from(body)
    a = attrs(body, 8)
    flags = _int(a.get(nl.IFA_FLAGS)) or flags8
    raw = a.get(nl.IFA_LOCAL) or a[nl.IFA_ADDRESS]
    address: rq.IPInterface
    address = (
        IPv4Interface((raw, prefixlen)) if family == AF_INET else IPv6Interface((raw, prefixlen))
    )
    return rq.Address(
        name_of(index),
        address,
        prefix_route=not flags & nl.IFA_F_NOPREFIXROUTE,
        nodad=family == AF_INET or bool(flags & nl.IFA_F_NODAD),
        scope=nl.SCOPE_NAMES.get(scope, "global"),
    )


def _parse_via(a: dict[int, bytes]) -> rq.IPAddress | None:
    if nl.RTA_GATEWAY in a:
        return _ip(a[nl.RTA_GATEWAY])
    return _ip(a[nl.RTA_VIA][2:]) if nl.RTA_VIA in a else None


def _parse_hops(raw: bytes, name_of: NameOf) -> Iterator[rq.Hop]:
    offset = 0
    while offset + 8 <= len(raw):
        size, flags, hops, index = nl.NEXTHOP.unpack_from(raw, offset)
        via = _parse_via(attrs(raw[offset : offset + size], 8))
        yield rq.Hop(via, name_of(index), hops + 1, bool(flags & nl.RTNH_F_ONLINK))
        offset += (size + 3) & ~3


def parse_route(body: bytes, name_of: NameOf) -> rq.Route:
    family, dst_len, _src, _tos, table, protocol, scope, kind, flags = nl.RTMSG.unpack_from(body)
    a = attrs(body, 12)
    oif = _int(a.get(nl.RTA_OIF))
    mtu = attrs(a.get(nl.RTA_METRICS, b"")).get(nl.RTAX_MTU)
    return rq.Route(
        destination=_network(a.get(nl.RTA_DST), dst_len, family),
        via=_parse_via(a),
        device=name_of(oif) if oif else None,
        onlink=bool(flags & nl.RTNH_F_ONLINK),
        source=_ip(a[nl.RTA_PREFSRC]) if nl.RTA_PREFSRC in a else None,
        mtu=_int(mtu) if mtu else None,
        metric=_int(a.get(nl.RTA_PRIORITY)),
        table=_int(a.get(nl.RTA_TABLE)) or table,
        scope=nl.SCOPE_NAMES.get(scope) if family == AF_INET else None,
        type=nl.ROUTE_TYPE_NAMES.get(kind, "unicast"),
        protocol=protocol,
        hops=tuple(_parse_hops(a.get(nl.RTA_MULTIPATH, b""), name_of)),
    )


def parse_neighbour(body: bytes, name_of: NameOf) -> rq.Neighbour | rq.Fdb | None:
    """A permanent entry; None for what the kernel learned by itself."""
    family, index, state, _flags, _type = nl.NDMSG.unpack_from(body)
    a = attrs(body, 12)
    if not state & nl.NUD_PERMANENT or nl.NDA_DST not in a or nl.NDA_LLADDR not in a:
        return None
    kind = rq.Fdb if family == AF_BRIDGE else rq.Neighbour
    if kind is rq.Fdb:
        return rq.Fdb(name_of(index), mac_text(a[nl.NDA_LLADDR]), _ip(a[nl.NDA_DST]))
    return rq.Neighbour(name_of(index), _ip(a[nl.NDA_DST]), mac_text(a[nl.NDA_LLADDR]))


def parse_proxy(body: bytes, name_of: NameOf) -> rq.Proxy | None:
    """A proxy entry; None for one that is meant for every device."""
    _family, index, _state, flags, _type = nl.NDMSG.unpack_from(body)
    if not flags & nl.NTF_PROXY or not index:
        return None
    return rq.Proxy(name_of(index), _ip(attrs(body, 12)[nl.NDA_DST]))


def parse_rule(body: bytes) -> rq.Rule | None:
    """A rule that looks a table up; None for other actions."""
    family, dst_len, src_len, _tos, table, action, _flags = nl.RULE.unpack_from(body)
    if action != nl.FR_ACT_TO_TBL or family not in (AF_INET, AF_INET6):
        return None
    a = attrs(body, 12)
    return rq.Rule(
        priority=_int(a.get(nl.FRA_PRIORITY)),
        table=_int(a.get(nl.FRA_TABLE)) or table,
        family=4 if family == AF_INET else 6,
        source=_network(a[nl.FRA_SRC], src_len, family) if nl.FRA_SRC in a else None,
        destination=_network(a[nl.FRA_DST], dst_len, family) if nl.FRA_DST in a else None,
        mark=_int(a[nl.FRA_FWMARK]) if nl.FRA_FWMARK in a else None,
        mask=_int(a[nl.FRA_FWMASK]) if nl.FRA_FWMASK in a else 0xFFFFFFFF,
        input_device=_string(a.get(nl.FRA_IIFNAME)) or None,
        output_device=_string(a.get(nl.FRA_OIFNAME)) or None,
    )
