"""What can be asked of rtnetlink, as values: pure, comparable, printable in the words of `ip`.

A planner returns a list of these; `rtnl.Rtnl.apply` sends the list in one system call,
`fake.FakeKernel` performs it in memory. Objects that are wholly described by themselves (addresses,
routes, rules, neighbours, fdb entries) are wrapped in a verb: `Replace(Route(...))`,
`Delete(Address(...))`. Links have parts that exist only while they are made (peer, namespace),
hence their own verbs.

A device is named or numbered. Names are resolved when the request is sent, one question to the
kernel each; a link added with an explicit `index` earlier in the same list needs none, and that is
the fast path for pods. Source: rtnetlink(7),
include/uapi/linux/{rtnetlink,if_link,neighbour,fib_rules}.h.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import ClassVar, Final, Literal, TypeAlias

from msgspec import Struct

Device: TypeAlias = int | str
IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
IPNetwork: TypeAlias = IPv4Network | IPv6Network
RouteType: TypeAlias = Literal[
    "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit"
]
Scope: TypeAlias = Literal["global", "site", "link", "host", "nowhere"]

TABLE_DEFAULT: Final = 253
TABLE_MAIN: Final = 254
TABLE_LOCAL: Final = 255
PROTOCOL_KERNEL: Final = 2
PROTOCOL_STATIC: Final = 4


class Veth(Struct, frozen=True, kw_only=True):
    """The far end of a veth pair; `netns` is a descriptor, None the namespace of the request.

    It starts down (the kernel cannot open it before its peer exists): `SetLink` it up afterwards.
    """

    peer: str
    mac: str | None = None
    mtu: int | None = None
    netns: int | None = None
    index: int = 0

    kind: ClassVar[str] = "veth"

    def __str__(self) -> str:
        where = "" if self.netns is None else f" netns fd:{self.netns}"
        return f"veth peer name {self.peer}{where}"


class Bridge(Struct, frozen=True, kw_only=True):
    """A bridge without spanning tree. `ageing_s` None keeps the kernel's 300 s."""

    multicast_snooping: bool = False
    ageing_s: int | None = None
    vlan_filtering: bool = False

    kind: ClassVar[str] = "bridge"

    def __str__(self) -> str:
        return "bridge"


class Vxlan(Struct, frozen=True, kw_only=True):
    """A VXLAN device whose fdb is written by podwire, hence `learning` is off (RFC 7348)."""

    vni: int
    port: int = 4789
    local: IPAddress | None = None
    device: Device | None = None
    learning: bool = False

    kind: ClassVar[str] = "vxlan"

    def __str__(self) -> str:
        return f"vxlan id {self.vni} dstport {self.port}"


class Dummy(Struct, frozen=True):
    kind: ClassVar[str] = "dummy"

    def __str__(self) -> str:
        return "dummy"


class Ifb(Struct, frozen=True):
    """An intermediate functional block: gives traffic shaping of what arrives a queue."""

    kind: ClassVar[str] = "ifb"

    def __str__(self) -> str:
        return "ifb"


class WireGuard(Struct, frozen=True):
    """A WireGuard device; its keys and peers go through a protocol of their own."""

    kind: ClassVar[str] = "wireguard"

    def __str__(self) -> str:
        return "wireguard"


LinkKind: TypeAlias = Veth | Bridge | Vxlan | Dummy | Ifb | WireGuard


class AddLink(Struct, frozen=True, kw_only=True):
    """Make a link. `exist_ok` accepts a link of that name as it is; follow with `SetLink`.

    `index` chooses the interface index (0: the kernel does), unique in the link's namespace.
    """

    name: str
    kind: LinkKind
    index: int = 0
    mac: str | None = None
    mtu: int | None = None
    up: bool = False
    master: Device | None = None
    netns: int | None = None
    exist_ok: bool = False

    def __str__(self) -> str:
        return f"link add {self.name} type {self.kind}"


class SetLink(Struct, frozen=True, kw_only=True):
    """Change a link; None leaves a property alone.

    `master` 0 detaches. `link_local` False keeps the kernel from giving the link an fe80:: address
    (no DAD, no MLD) and works only before it is up. `netns` is a descriptor.
    """

    device: Device
    up: bool | None = None
    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    master: Device | None = None
    netns: int | None = None
    alias: str | None = None
    promisc: bool | None = None
    link_local: bool | None = None

    def __str__(self) -> str:
        changes = {
            f: getattr(self, f)
            for f in self.__struct_fields__
            if f != "device" and getattr(self, f) is not None
        }
        return f"link set {self.device} " + " ".join(f"{k} {v}" for k, v in changes.items())


class SetPort(Struct, frozen=True, kw_only=True):
    """Change a bridge port; None leaves a property alone."""

    device: Device
    hairpin: bool | None = None
    isolated: bool | None = None
    learning: bool | None = None
    flood: bool | None = None
    neigh_suppress: bool | None = None

    def __str__(self) -> str:
        changes = [
            f"{f} {'on' if getattr(self, f) else 'off'}"
            for f in self.__struct_fields__
            if f != "device" and getattr(self, f) is not None
        ]
        return f"bridge link set dev {self.device} " + " ".join(changes)


class DeleteLink(Struct, frozen=True):
    """Remove a link, and with a veth its peer."""

    device: Device
    missing_ok: bool = True

    def __str__(self) -> str:
        return f"link del {self.device}"


class Address(Struct, frozen=True):
    """An address of a link. `prefix_route` False: no connected route comes with it.

    `nodad` (IPv6) makes it usable at once; podwire's addresses are unique by allocation.
    """

    device: Device
    address: IPInterface
    prefix_route: bool = True
    nodad: bool = True
    scope: Scope = "global"

    def __str__(self) -> str:
        return f"{self.address} dev {self.device}"


class Hop(Struct, frozen=True):
    """One way of a multipath route."""

    via: IPAddress | None = None
    device: Device | None = None
    weight: int = 1
    onlink: bool = False

    def __str__(self) -> str:
        via = f" via {self.via}" if self.via else ""
        dev = f" dev {self.device}" if self.device is not None else ""
        return f"nexthop{via}{dev} weight {self.weight}"


class Route(Struct, frozen=True, kw_only=True):
    """A route. `scope` None: what `ip` would choose. `via` may be of the other family."""

    destination: IPNetwork
    via: IPAddress | None = None
    device: Device | None = None
    onlink: bool = False
    source: IPAddress | None = None
    mtu: int | None = None
    metric: int = 0
    table: int = TABLE_MAIN
    scope: Scope | None = None
    type: RouteType = "unicast"
    protocol: int = PROTOCOL_STATIC
    hops: tuple[Hop, ...] = ()

    def __str__(self) -> str:
        parts: list[str] = [] if self.type == "unicast" else [self.type]
        parts.append(str(self.destination))
        if self.via:
            parts.append(f"via {self.via}")
        if self.device is not None:
            parts.append(f"dev {self.device}")
        if self.onlink:
            parts.append("onlink")
        if self.source:
            parts.append(f"src {self.source}")
        if self.metric:
            parts.append(f"metric {self.metric}")
        if self.table != TABLE_MAIN:
            parts.append(f"table {self.table}")
        return " ".join([*parts, *map(str, self.hops)])


class Rule(Struct, frozen=True, kw_only=True):
    """A routing rule; the family is that of `source` or `destination`, else `family`."""

    priority: int
    table: int
    family: Literal[4, 6] = 4
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    mark: int | None = None
    mask: int = 0xFFFFFFFF
    input_device: str | None = None
    output_device: str | None = None

    def __str__(self) -> str:
        parts = [f"pref {self.priority}", f"from {self.source or 'all'}"]
        if self.destination:
            parts.append(f"to {self.destination}")
        if self.mark is not None:
            parts.append(f"fwmark {self.mark:#x}/{self.mask:#x}")
        if self.input_device:
            parts.append(f"iif {self.input_device}")
        if self.output_device:
            parts.append(f"oif {self.output_device}")
        return " ".join([*parts, f"lookup {self.table}"])


class Neighbour(Struct, frozen=True):
    """A permanent neighbour entry: never resolved, never aged, not counted in gc_thresh3."""

    device: Device
    address: IPAddress
    mac: str

    def __str__(self) -> str:
        return f"{self.address} lladdr {self.mac} dev {self.device}"


class Proxy(Struct, frozen=True):
    """A proxy neighbour: the device answers ARP or neighbour discovery for an address not its own.

    Needs forwarding (and proxy_ndp for IPv6) on the device, answers only for addresses routed
    elsewhere, and after a random delay below proxy_delay: set net/ipvX/neigh/DEVICE/proxy_delay
    to 0. The kernel drops it when the device goes down or loses its carrier.
    """

    device: Device
    address: IPAddress

    def __str__(self) -> str:
        return f"proxy {self.address} dev {self.device}"


class Fdb(Struct, frozen=True):
    """A forwarding entry of a VXLAN device: frames to `mac` go to the endpoint `remote`.

    MAC 00:00:00:00:00:00 is the flood list: `Add` one entry per endpoint.
    """

    device: Device
    mac: str
    remote: IPAddress

    def __str__(self) -> str:
        return f"{self.mac} dev {self.device} dst {self.remote}"


Entry: TypeAlias = Address | Route | Rule | Neighbour | Proxy | Fdb

_NOUNS: Final[dict[type, str]] = {
    Address: "addr",
    Route: "route",
    Rule: "rule",
    Neighbour: "neigh",
    Proxy: "neigh",
    Fdb: "fdb",
}


class Add(Struct, frozen=True):
    """Create; what is there already is an error unless `exist_ok`."""

    entry: Entry
    exist_ok: bool = False

    def __str__(self) -> str:
        return f"{_NOUNS[type(self.entry)]} add {self.entry}"


class Replace(Struct, frozen=True):
    """Create or overwrite: afterwards it is as described. A rule is only ensured."""

    entry: Entry

    def __str__(self) -> str:
        return f"{_NOUNS[type(self.entry)]} replace {self.entry}"


class Delete(Struct, frozen=True):
    """Remove; an absent entry (or device) is fine unless `missing_ok` is False."""

    entry: Entry
    missing_ok: bool = True

    def __str__(self) -> str:
        return f"{_NOUNS[type(self.entry)]} del {self.entry}"


Request: TypeAlias = AddLink | SetLink | SetPort | DeleteLink | Add | Replace | Delete


class Link(Struct, frozen=True, kw_only=True):
    """A link as the kernel lists it; `master` is a name, `peer_index` a veth's far end."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    carrier: bool
    master: str | None = None
    alias: str = ""
    peer_index: int = 0
    promisc: bool = False
    hairpin: bool = False
    isolated: bool = False
