"""rtnetlink messages: requests to bytes. Pure: no socket, no clock. `decode` is the way back.

A message is a 16-byte header (length, type, flags, sequence, port), a fixed body per family
(ifinfomsg, ifaddrmsg, rtmsg, ndmsg, fib_rule_hdr) and attributes (length, type, payload, padded to
4). Requests refer to devices by number here; `Resolve` turns the names into numbers. Source: RFC
3549, include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour,fib_rules}.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from socket import AF_BRIDGE, AF_INET, AF_INET6
from typing import Final, TypeAlias

from podwire.kernel import requests as rq

Resolve: TypeAlias = Callable[[rq.Device], int]

NLM_F_REQUEST: Final = 0x1
NLM_F_MULTI: Final = 0x2
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34

IFF_UP: Final = 0x1
IFF_PROMISC: Final = 0x100
IFF_LOWER_UP: Final = 0x10000

IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINK: Final = 5
IFLA_MASTER: Final = 10
IFLA_PROTINFO: Final = 12
IFLA_LINKINFO: Final = 18
IFLA_IFALIAS: Final = 20
IFLA_AF_SPEC: Final = 26
IFLA_NET_NS_FD: Final = 28
IFLA_EXT_MASK: Final = 29
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_INFO_SLAVE_DATA: Final = 5
VETH_INFO_PEER: Final = 1
IFLA_BR_AGEING_TIME: Final = 4
IFLA_BR_VLAN_FILTERING: Final = 7
IFLA_BR_MCAST_SNOOPING: Final = 23
IFLA_VXLAN_ID: Final = 1
IFLA_VXLAN_LINK: Final = 3
IFLA_VXLAN_LOCAL: Final = 4
IFLA_VXLAN_LEARNING: Final = 7
IFLA_VXLAN_PORT: Final = 15
IFLA_VXLAN_LOCAL6: Final = 17
IFLA_INET6_ADDR_GEN_MODE: Final = 8
IFLA_BRPORT_MODE: Final = 4
IFLA_BRPORT_LEARNING: Final = 8
IFLA_BRPORT_UNICAST_FLOOD: Final = 9
IFLA_BRPORT_NEIGH_SUPPRESS: Final = 32
IFLA_BRPORT_ISOLATED: Final = 33
ADDR_GEN_MODE_EUI64: Final = 0
ADDR_GEN_MODE_NONE: Final = 1

IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_FLAGS: Final = 8
IFA_F_NODAD: Final = 0x02
IFA_F_NOPREFIXROUTE: Final = 0x200

RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
RTA_PREFSRC: Final = 7
RTA_METRICS: Final = 8
RTA_MULTIPATH: Final = 9
RTA_TABLE: Final = 15
RTA_VIA: Final = 18
RTAX_MTU: Final = 2
RTNH_F_ONLINK: Final = 4

NDA_DST: Final = 1
NDA_LLADDR: Final = 2
NUD_PERMANENT: Final = 0x80
NTF_SELF: Final = 0x02
NTF_PROXY: Final = 0x08

FRA_DST: Final = 1
FRA_SRC: Final = 2
FRA_IIFNAME: Final = 3
FRA_PRIORITY: Final = 6
FRA_FWMARK: Final = 10
FRA_TABLE: Final = 15
FRA_FWMASK: Final = 16
FRA_OIFNAME: Final = 17
FR_ACT_TO_TBL: Final = 1

_ROUTE_TYPES: Final[dict[rq.RouteType, int]] = {
    "unicast": 1,
    "local": 2,
    "broadcast": 3,
    "anycast": 4,
    "multicast": 5,
    "blackhole": 6,
    "unreachable": 7,
    "prohibit": 8,
}
ROUTE_TYPE_NAMES: Final = {number: name for name, number in _ROUTE_TYPES.items()}
_SCOPES: Final[dict[rq.Scope, int]] = {
    "global": 0,
    "site": 200,
    "link": 253,
    "host": 254,
    "nowhere": 255,
}
SCOPE_NAMES: Final = {number: name for name, number in _SCOPES.items()}

HEADER: Final = struct.Struct("=IHHII")
IFINFO: Final = struct.Struct("=BxHiII")
IFADDR: Final = struct.Struct("=BBBBi")
RTMSG: Final = struct.Struct("=BBBBBBBBI")
NDMSG: Final = struct.Struct("=BxxxiHBB")
RULE: Final = struct.Struct("=BBBBBxxBI")
NEXTHOP: Final = struct.Struct("=HBBi")
ATTR: Final = struct.Struct("=HH")
_U8: Final = struct.Struct("=B")
_U32: Final = struct.Struct("=I")
_PAD: Final = (b"", b"\0\0\0", b"\0\0", b"\0")


def message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    return HEADER.pack(16 + len(body), kind, flags, seq, 0) + body


def attr(kind: int, payload: bytes) -> bytes:
    size = len(payload)
    return ATTR.pack(size + 4, kind) + payload + _PAD[size & 3]


def _u8(kind: int, value: int) -> bytes:
    return attr(kind, _U8.pack(value))


def _u32(kind: int, value: int) -> bytes:
    return attr(kind, _U32.pack(value))


def _text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def _nested(kind: int, payload: bytes) -> bytes:
    return attr(kind | 0x8000, payload)


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _family(version: int) -> int:
    return AF_INET if version == 4 else AF_INET6


# -- requests to bytes ---------------------------------------------------------------------------


def encode(request: rq.Request, resolve: Resolve) -> tuple[int, int, bytes]:
    """The message's type, flags (without REQUEST and ACK) and body.

    Errors: whatever `resolve` raises for a name that is not there.
    """
    if isinstance(request, rq.Replace | rq.Add | rq.Delete):
        return _entry(request, resolve)
    if isinstance(request, rq.AddLink):
        return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _add_link(request, resolve)
    if isinstance(request, rq.SetLink):
        return RTM_NEWLINK, 0, _set_link(request, resolve)
    if isinstance(request, rq.SetPort):
        return RTM_SETLINK, 0, _set_port(request, resolve)
    return RTM_DELLINK, 0, _link_reference(request.device)


def tolerated(request: rq.Request) -> frozenset[int]:
    """The errnos that mean "it is so already"."""
    if isinstance(request, rq.Delete | rq.DeleteLink) and request.missing_ok:
        return _MISSING
    if isinstance(request, rq.AddLink | rq.Add) and request.exist_ok:
        return _EXISTS
    if isinstance(request, rq.Replace) and isinstance(request.entry, rq.Rule):
        return _EXISTS
    if isinstance(request, rq.SetLink) and request.link_local is False:
        return _NO_IPV6
    return frozenset()


# A link without IPv6 (the kernel has none, or the MTU is under 1280) has no fe80:: either.
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT})
_EXISTS: Final = frozenset({errno.EEXIST})
_MISSING: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})


def _entry(request: rq.Add | rq.Replace | rq.Delete, resolve: Resolve) -> tuple[int, int, bytes]:
    entry = request.entry
    delete = isinstance(request, rq.Delete)
    if delete:
        flags = 0
    elif isinstance(request, rq.Add):
        flags = NLM_F_CREATE | NLM_F_EXCL
    else:
        flags = NLM_F_CREATE | NLM_F_REPLACE
    if isinstance(entry, rq.Route):
        return RTM_DELROUTE if delete else RTM_NEWROUTE, flags, _route(entry, delete, resolve)
    if isinstance(entry, rq.Neighbour):
        return RTM_DELNEIGH if delete else RTM_NEWNEIGH, flags, _neighbour(entry, resolve)
    if isinstance(entry, rq.Proxy):
        return RTM_DELNEIGH if delete else RTM_NEWNEIGH, flags, _proxy(entry, resolve)
    if isinstance(entry, rq.Address):
        return RTM_DELADDR if delete else RTM_NEWADDR, flags, _address(entry, resolve)
    if isinstance(entry, rq.Fdb):
        if isinstance(request, rq.Add):
            # A zero or multicast MAC has many endpoints; the kernel wants APPEND for the second.
            flags = NLM_F_CREATE | NLM_F_APPEND
        return RTM_DELNEIGH if delete else RTM_NEWNEIGH, flags, _fdb(entry, resolve)
    if not delete:
        # Without EXCL the kernel keeps a second identical rule.
        flags = NLM_F_CREATE | NLM_F_EXCL
    return RTM_DELRULE if delete else RTM_NEWRULE, flags, _rule(entry)


def _ifinfo(index: int, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    return IFINFO.pack(family, 0, index, flags, change)


def _link_reference(device: rq.Device) -> bytes:
    if isinstance(device, int):
        return _ifinfo(device)
    return _ifinfo(0) + _text(IFLA_IFNAME, device)


def _link_start(index: int, name: str, mac: str | None, mtu: int | None, up: bool) -> bytes:
    head = _ifinfo(index, IFF_UP, IFF_UP) if up else _ifinfo(index)
    head += _text(IFLA_IFNAME, name)
    if mac is not None:
        head += attr(IFLA_ADDRESS, mac_bytes(mac))
    if mtu is not None:
        head += _u32(IFLA_MTU, mtu)
    return head


def _add_link(r: rq.AddLink, resolve: Resolve) -> bytes:
    body = _link_start(r.index, r.name, r.mac, r.mtu, r.up)
    if r.master is not None:
        body += _u32(IFLA_MASTER, resolve(r.master))
    if r.netns is not None:
        body += _u32(IFLA_NET_NS_FD, r.netns)
    info = _text(IFLA_INFO_KIND, r.kind.kind)
    data = _kind_data(r.kind, resolve)
    if data:
        info += _nested(IFLA_INFO_DATA, data)
    return body + _nested(IFLA_LINKINFO, info)


def _kind_data(kind: rq.LinkKind, resolve: Resolve) -> bytes:
    if isinstance(kind, rq.Veth):
        peer = _link_start(kind.index, kind.peer, kind.mac, kind.mtu, up=False)
        if kind.netns is not None:
            peer += _u32(IFLA_NET_NS_FD, kind.netns)
        return _nested(VETH_INFO_PEER, peer)
    if isinstance(kind, rq.Bridge):
        data = _u8(IFLA_BR_MCAST_SNOOPING, kind.multicast_snooping)
        if kind.vlan_filtering:
            data += _u8(IFLA_BR_VLAN_FILTERING, 1)
        if kind.ageing_s is not None:
            data += _u32(IFLA_BR_AGEING_TIME, kind.ageing_s * 100)  # in USER_HZ
        return data
    if isinstance(kind, rq.Vxlan):
        data = _u32(IFLA_VXLAN_ID, kind.vni)
        data += attr(IFLA_VXLAN_PORT, struct.pack("!H", kind.port))
        data += _u8(IFLA_VXLAN_LEARNING, kind.learning)
        if kind.local is not None:
            which = IFLA_VXLAN_LOCAL if kind.local.version == 4 else IFLA_VXLAN_LOCAL6
            data += attr(which, kind.local.packed)
        if kind.device is not None:
            data += _u32(IFLA_VXLAN_LINK, resolve(kind.device))
        return data
    return b""


def _set_link(r: rq.SetLink, resolve: Resolve) -> bytes:
    flags = change = 0
    for wanted, bit in ((r.up, IFF_UP), (r.promisc, IFF_PROMISC)):
        if wanted is not None:
            change |= bit
            flags |= bit if wanted else 0
    # A new name takes the place of the name in the message, so the link is given by number.
    body = _ifinfo(resolve(r.device), flags, change)
    if r.name is not None:
        body += _text(IFLA_IFNAME, r.name)
    if r.mac is not None:
        body += attr(IFLA_ADDRESS, mac_bytes(r.mac))
    if r.mtu is not None:
        body += _u32(IFLA_MTU, r.mtu)
    if r.master is not None:
        body += _u32(IFLA_MASTER, resolve(r.master) if r.master != 0 else 0)
    if r.netns is not None:
        body += _u32(IFLA_NET_NS_FD, r.netns)
    if r.alias is not None:
        body += attr(IFLA_IFALIAS, r.alias.encode())
    if r.link_local is not None:
        mode = ADDR_GEN_MODE_EUI64 if r.link_local else ADDR_GEN_MODE_NONE
        body += _nested(IFLA_AF_SPEC, _nested(AF_INET6, _u8(IFLA_INET6_ADDR_GEN_MODE, mode)))
    return body


def _set_port(r: rq.SetPort, resolve: Resolve) -> bytes:
    options = (
        (IFLA_BRPORT_MODE, r.hairpin),
        (IFLA_BRPORT_ISOLATED, r.isolated),
        (IFLA_BRPORT_LEARNING, r.learning),
        (IFLA_BRPORT_UNICAST_FLOOD, r.flood),
        (IFLA_BRPORT_NEIGH_SUPPRESS, r.neigh_suppress),
    )
    data = b"".join(_u8(kind, value) for kind, value in options if value is not None)
    head = _ifinfo(resolve(r.device), family=AF_BRIDGE)
    return head + _nested(IFLA_PROTINFO, data)


def _address(a: rq.Address, resolve: Resolve) -> bytes:
    packed = a.address.ip.packed
    version = a.address.version
    flags = 0 if a.prefix_route else IFA_F_NOPREFIXROUTE
    if version == 6 and a.nodad:
        flags |= IFA_F_NODAD
    body = IFADDR.pack(
        _family(version), a.address.network.prefixlen, 0, _SCOPES[a.scope], resolve(a.device)
    )
    body += attr(IFA_LOCAL, packed) + attr(IFA_ADDRESS, packed)
    return body + _u32(IFA_FLAGS, flags) if flags else body


def route_scope(r: rq.Route, delete: bool) -> int:
    """The rtm_scope of a route: as given, else what `ip` would choose; "any" to delete by."""
    if r.scope is not None:
        return _SCOPES[r.scope]
    if r.destination.version == 6:
        return 0
    if delete:
        return _SCOPES["nowhere"]  # any
    if r.type == "local":
        return _SCOPES["host"]
    if r.type == "unicast" and r.via is None and not any(h.via for h in r.hops):
        return _SCOPES["link"]
    return 0


def scope_name(number: int) -> rq.Scope:
    return SCOPE_NAMES.get(number, "global")


def _gateway(via: rq.IPAddress, version: int) -> bytes:
    if via.version == version:
        return attr(RTA_GATEWAY, via.packed)
    return attr(RTA_VIA, struct.pack("=H", _family(via.version)) + via.packed)


def _hop(h: rq.Hop, version: int, resolve: Resolve) -> bytes:
    gateway = b"" if h.via is None else _gateway(h.via, version)
    device = 0 if h.device is None else resolve(h.device)
    flags = RTNH_F_ONLINK if h.onlink else 0
    return NEXTHOP.pack(8 + len(gateway), flags, h.weight - 1, device) + gateway


def _route(r: rq.Route, delete: bool, resolve: Resolve) -> bytes:
    destination = r.destination
    version = destination.version
    body = RTMSG.pack(
        _family(version),
        destination.prefixlen,
        0,
        0,
        r.table if r.table < 256 else 0,
        0 if delete else r.protocol,
        route_scope(r, delete),
        _ROUTE_TYPES[r.type],
        RTNH_F_ONLINK if r.onlink else 0,
    )
    if destination.prefixlen:
        body += attr(RTA_DST, destination.network_address.packed)
    body += _u32(RTA_TABLE, r.table)
    if r.via is not None:
        body += _gateway(r.via, version)
    if r.device is not None:
        body += _u32(RTA_OIF, resolve(r.device))
    if r.metric:
        body += _u32(RTA_PRIORITY, r.metric)
    if r.source is not None:
        body += attr(RTA_PREFSRC, r.source.packed)
    if r.mtu is not None:
        body += _nested(RTA_METRICS, _u32(RTAX_MTU, r.mtu))
    if r.hops:
        body += attr(RTA_MULTIPATH, b"".join(_hop(h, version, resolve) for h in r.hops))
    return body


def _neighbour(n: rq.Neighbour, resolve: Resolve) -> bytes:
    body = NDMSG.pack(_family(n.address.version), resolve(n.device), NUD_PERMANENT, 0, 0)
    return body + attr(NDA_DST, n.address.packed) + attr(NDA_LLADDR, mac_bytes(n.mac))


def _proxy(p: rq.Proxy, resolve: Resolve) -> bytes:
    body = NDMSG.pack(_family(p.address.version), resolve(p.device), NUD_PERMANENT, NTF_PROXY, 0)
    return body + attr(NDA_DST, p.address.packed)


def _fdb(f: rq.Fdb, resolve: Resolve) -> bytes:
    body = NDMSG.pack(AF_BRIDGE, resolve(f.device), NUD_PERMANENT, NTF_SELF, 0)
    return body + attr(NDA_DST, f.remote.packed) + attr(NDA_LLADDR, mac_bytes(f.mac))


def _rule(r: rq.Rule) -> bytes:
    example = r.source or r.destination
    version = example.version if example else r.family
    body = RULE.pack(
        _family(version),
        r.destination.prefixlen if r.destination else 0,
        r.source.prefixlen if r.source else 0,
        0,
        r.table if r.table < 256 else 0,
        FR_ACT_TO_TBL,
        0,
    )
    body += _u32(FRA_PRIORITY, r.priority) + _u32(FRA_TABLE, r.table)
    if r.destination:
        body += attr(FRA_DST, r.destination.network_address.packed)
    if r.source:
        body += attr(FRA_SRC, r.source.network_address.packed)
    if r.mark is not None:
        body += _u32(FRA_FWMARK, r.mark) + _u32(FRA_FWMASK, r.mask)
    if r.input_device:
        body += _text(FRA_IIFNAME, r.input_device)
    if r.output_device:
        body += _text(FRA_OIFNAME, r.output_device)
    return body


def link_query(name: str) -> bytes:
    """The body of a RTM_GETLINK that asks for one link by name."""
    return _ifinfo(0) + _text(IFLA_IFNAME, name)


def proxy_query() -> bytes:
    """The body of a RTM_GETNEIGH that dumps the proxy entries, which others leave out."""
    return NDMSG.pack(0, 0, 0, NTF_PROXY, 0)


def dump_query(kind: int, family: int = 0) -> bytes:
    """The body of a dump request of the given RTM_GET*."""
    if kind == RTM_GETLINK or (kind == RTM_GETNEIGH and family == AF_BRIDGE):
        return _ifinfo(0, family=family)
    if kind == RTM_GETNEIGH:
        return NDMSG.pack(family, 0, 0, 0, 0)
    if kind == RTM_GETADDR:
        return IFADDR.pack(family, 0, 0, 0, 0)
    return RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
