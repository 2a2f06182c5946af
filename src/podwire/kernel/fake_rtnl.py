"""rtnetlink in memory: the same requests as `rtnl.Rtnl`, on a `Namespace` that is plain data.

It keeps what requests say and the consequences planners rely on: connected routes, peers that
vanish together, routes that go with their link, the errors of what is missing, present, down or
unreachable. It does not forward packets, and it has neither link-local addresses nor random MACs:
give links a MAC where it matters.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Final, TypeAlias, TypeVar

import msgspec

from podwire.errors import KernelError
from podwire.kernel import encode as nl
from podwire.kernel import nfpack
from podwire.kernel import requests as rq
from podwire.kernel.fake_iptables import Tables
from podwire.kernel.flows import Flow

_NO_MAC: Final = "00:00:00:00:00:00"
_IPV6_METRIC: Final = 1024
_IPV6_CONNECTED_METRIC: Final = 256

_Verb: TypeAlias = rq.Add | rq.Replace | rq.Delete
_K = TypeVar("_K")
_V = TypeVar("_V")
_E = TypeVar("_E", rq.Address, rq.Neighbour, rq.Proxy, rq.Fdb)


def _replaced(value: rq.Link, **changes: object) -> rq.Link:
    return msgspec.structs.replace(value, **changes)


@dataclass
class Namespace:
    """The state of one namespace; tests may read all of it."""

    links: dict[int, rq.Link] = field(default_factory=dict)
    peers: dict[int, tuple[Namespace, int]] = field(default_factory=dict)
    addresses: list[rq.Address] = field(default_factory=list)
    routes: dict[tuple[rq.IPNetwork, int, int], rq.Route] = field(default_factory=dict)
    rules: list[rq.Rule] = field(default_factory=list)
    neighbours: dict[tuple[str, rq.IPAddress], rq.Neighbour] = field(default_factory=dict)
    proxies: dict[tuple[str, rq.IPAddress], rq.Proxy] = field(default_factory=dict)
    fdb: list[rq.Fdb] = field(default_factory=list)
    tables: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    elements: dict[tuple[str, str, str], dict[nfpack.Key, nfpack.Data]] = field(
        default_factory=dict
    )
    generation: int = 1
    flows: list[Flow] = field(default_factory=list)
    announced: list[tuple[str, rq.IPAddress]] = field(default_factory=list)
    iptables: Tables = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)
    next_index: int = 2

    def __post_init__(self) -> None:
        self.links[1] = rq.Link(
            index=1, name="lo", kind="", mac=_NO_MAC, mtu=65536, up=False, carrier=False
        )
        for priority, table in ((0, 255), (32766, 254), (32767, 253)):
            self.rules.append(rq.Rule(priority=priority, table=table))
        for priority, table in ((0, 255), (32766, 254)):
            self.rules.append(rq.Rule(priority=priority, table=table, family=6))

    def find(self, device: rq.Device) -> rq.Link:
        for link in self.links.values():
            if device in (link.index, link.name):
                return link
        raise KernelError(f"link {device}", errno=errno.ENODEV)

    def named(self, device: rq.Device | None) -> str | None:
        return None if device is None else self.find(device).name


class FakeRtnl:
    """`rtnl.Rtnl` on a `Namespace`."""

    def __init__(self, behind: Callable[[int], Namespace], namespace: Namespace) -> None:
        self._behind = behind
        self._ns = namespace

    def close(self) -> None:
        pass

    def apply(self, requests: Iterable[rq.Request]) -> None:
        wanted = list(requests)
        failures: list[tuple[rq.Request, KernelError]] = []
        for request in wanted:
            try:
                self._apply_one(request)
            except KernelError as e:
                if e.errno not in nl.tolerated(request):
                    failures.append((request, e))
        if failures:
            request, error = failures[0]
            more = f" (and {len(failures) - 1} more of {len(wanted)})" if len(failures) > 1 else ""
            raise KernelError(f"{request}{more}", errno=error.errno) from error

    def _apply_one(self, request: rq.Request) -> None:
        if isinstance(request, rq.AddLink):
            self._add_link(request)
        elif isinstance(request, rq.SetLink):
            self._set_link(request)
        elif isinstance(request, rq.SetPort):
            self._set_port(request)
        elif isinstance(request, rq.DeleteLink):
            remove_link(self._ns, self._ns.find(request.device).index)
        else:
            self._entry(request)

    # -- links -----------------------------------------------------------------------------------

    def _namespace(self, fd: int | None) -> Namespace:
        return self._ns if fd is None else self._behind(fd)

    def _add_link(self, r: rq.AddLink) -> None:
        home = self._namespace(r.netns)
        kind = r.kind
        master = None if r.master is None else self._ns.named(r.master)
        _claim(home, r.name, r.index)
        if not isinstance(kind, rq.Veth):
            _insert(home, r.name, r.index, kind.kind, r.mac, r.mtu or 1500, master)
        else:
            away = self._namespace(kind.netns)
            _claim(away, kind.peer, kind.index)
            if home is away and kind.peer == r.name:
                raise KernelError(f"link {r.name}", errno=errno.EEXIST)
            far = _insert(away, kind.peer, kind.index, "veth", kind.mac, kind.mtu or 1500, None)
            near = _insert(home, r.name, r.index, "veth", r.mac, r.mtu or 1500, master)
            home.peers[near], away.peers[far] = (away, far), (home, near)
        if r.up:
            _set_up(home, home.find(r.name).index, True)

    def _set_link(self, r: rq.SetLink) -> None:
        ns = self._ns
        link = ns.find(r.device)
        changes: dict[str, object] = {}
        for name in ("mac", "mtu", "alias", "promisc"):
            if getattr(r, name) is not None:
                changes[name] = getattr(r, name)
        if r.master is not None:
            changes["master"] = ns.named(r.master) if r.master != 0 else None
            if r.master == 0:
                changes |= {"hairpin": False, "isolated": False}
        ns.links[link.index] = _replaced(link, **changes)
        if r.name is not None and r.name != link.name:
            _claim(ns, r.name, 0)
            _rename(ns, link.index, r.name)
        if r.netns is not None:
            _move(ns, self._namespace(r.netns), link.index)
        elif r.up is not None:
            _set_up(ns, link.index, r.up)

    def _set_port(self, r: rq.SetPort) -> None:
        link = self._ns.find(r.device)
        if link.master is None:
            raise KernelError(f"port {link.name}", errno=errno.EOPNOTSUPP)
        wanted = {"hairpin": r.hairpin, "isolated": r.isolated}
        changes = {name: value for name, value in wanted.items() if value is not None}
        self._ns.links[link.index] = _replaced(link, **changes)

    # -- entries ---------------------------------------------------------------------------------

    def _entry(self, request: _Verb) -> None:
        entry = request.entry
        if isinstance(entry, rq.Route):
            self._route(request, self._normal_route(entry))
        elif isinstance(entry, rq.Address):
            self._address(request, _with_device(entry, self._ns))
        elif isinstance(entry, rq.Neighbour):
            neighbour = _with_device(entry, self._ns)
            key = (str(neighbour.device), neighbour.address)
            _change(request, self._ns.neighbours, key, neighbour)
        elif isinstance(entry, rq.Proxy):
            proxy = _with_device(entry, self._ns)
            # The kernel does not mind adding one twice.
            ensured = request if isinstance(request, rq.Delete) else rq.Replace(entry)
            _change(ensured, self._ns.proxies, (str(proxy.device), proxy.address), proxy)
        elif isinstance(entry, rq.Rule):
            self._rule(request, entry)
        else:
            self._fdb(request, _with_device(entry, self._ns))

    def _normal_route(self, r: rq.Route) -> rq.Route:
        ns = self._ns
        version = r.destination.version
        hops = tuple(msgspec.structs.replace(h, device=ns.named(h.device)) for h in r.hops)
        scope = nl.scope_name(nl.route_scope(r, delete=False)) if version == 4 else None
        metric = r.metric or (_IPV6_METRIC if version == 6 else 0)
        return msgspec.structs.replace(
            r, device=ns.named(r.device), hops=hops, scope=scope, metric=metric
        )

    def _route(self, request: _Verb, route: rq.Route) -> None:
        key = (route.destination, route.table, route.metric)
        if isinstance(request, rq.Delete):
            found = self._ns.routes.get(key)
            if found is None or (route.device and found.device != route.device):
                raise KernelError(str(route), errno=errno.ESRCH)
            del self._ns.routes[key]
            return
        if route.device is not None and not self._ns.find(route.device).up:
            raise KernelError(str(route), errno=errno.ENETDOWN)
        if route.onlink and route.via is not None:
            # Before a namespace's first IPv4 address it has no local table to judge gateways by.
            if route.via.version == 4 and not any(
                a.address.version == 4 for a in self._ns.addresses
            ):
                raise KernelError(str(route), errno=errno.EINVAL)
        elif route.via is not None:
            route = msgspec.structs.replace(route, device=self._reach(route))
        _change(request, self._ns.routes, key, route)

    def _reach(self, route: rq.Route) -> str:
        """The device on whose connected network the gateway is."""
        via = route.via
        for known in self._ns.routes.values():
            if known.via or known.device is None or route.device not in (None, known.device):
                continue
            if via in known.destination:
                return str(known.device)
        if via is not None and via.version == 6 and via.is_link_local and route.device is not None:
            return str(route.device)
        unreachable = errno.ENETUNREACH if via and via.version == 4 else errno.EHOSTUNREACH
        raise KernelError(str(route), errno=unreachable)

    def _address(self, request: _Verb, address: rq.Address) -> None:
        ns = self._ns
        wanted = (address.device, address.address)
        same = [a for a in ns.addresses if (a.device, a.address) == wanted]
        if isinstance(request, rq.Add) and same:
            raise KernelError(str(address), errno=errno.EEXIST)
        if isinstance(request, rq.Delete) and not same:
            raise KernelError(str(address), errno=errno.EADDRNOTAVAIL)
        for old in same:
            ns.addresses.remove(old)
            for connected in _connected(old):
                ns.routes.pop(_key(connected), None)
        if isinstance(request, rq.Delete):
            return
        ns.addresses.append(address)
        if ns.find(address.device).up:
            _connect(ns, address)

    def _rule(self, request: _Verb, rule: rq.Rule) -> None:
        example = rule.source or rule.destination
        if example is not None:
            rule = msgspec.structs.replace(rule, family=example.version)
        present = rule in self._ns.rules
        if isinstance(request, rq.Delete):
            if not present:
                raise KernelError(str(rule), errno=errno.ENOENT)
            self._ns.rules.remove(rule)
        elif present:
            raise KernelError(str(rule), errno=errno.EEXIST)
        else:
            self._ns.rules.append(rule)

    def _fdb(self, request: _Verb, entry: rq.Fdb) -> None:
        fdb = self._ns.fdb
        if isinstance(request, rq.Delete):
            if entry not in fdb:
                raise KernelError(str(entry), errno=errno.ENOENT)
            fdb.remove(entry)
            return
        if isinstance(request, rq.Replace):
            fdb[:] = [e for e in fdb if (e.device, e.mac) != (entry.device, entry.mac)]
        elif entry in fdb:
            raise KernelError(str(entry), errno=errno.EEXIST)
        fdb.append(entry)

    # -- questions -------------------------------------------------------------------------------

    def index(self, name: str) -> int:
        return self._ns.find(name).index

    def links(self) -> dict[str, rq.Link]:
        return {link.name: _seen(self._ns, link) for link in self._ns.links.values()}

    def addresses(self) -> list[rq.Address]:
        return list(self._ns.addresses)

    def routes(self, table: int | None = rq.TABLE_MAIN) -> list[rq.Route]:
        return [r for r in self._ns.routes.values() if table is None or r.table == table]

    def rules(self) -> list[rq.Rule]:
        return sorted(self._ns.rules, key=lambda rule: (rule.family, rule.priority))

    def neighbours(self) -> list[rq.Neighbour]:
        return list(self._ns.neighbours.values())

    def proxies(self) -> list[rq.Proxy]:
        return list(self._ns.proxies.values())

    def fdb(self) -> list[rq.Fdb]:
        return list(self._ns.fdb)


def _change(request: _Verb, table: dict[_K, _V], key: _K, value: _V) -> None:
    """Add to, replace in or delete from a table, with the kernel's errors."""
    if isinstance(request, rq.Delete):
        if key not in table:
            raise KernelError(str(value), errno=errno.ENOENT)
        del table[key]
    elif isinstance(request, rq.Add) and key in table:
        raise KernelError(str(value), errno=errno.EEXIST)
    else:
        table[key] = value


def _with_device(entry: _E, ns: Namespace) -> _E:
    return msgspec.structs.replace(entry, device=ns.named(entry.device))


def _claim(ns: Namespace, name: str, index: int) -> None:
    taken = any(link.name == name for link in ns.links.values())
    if taken:
        raise KernelError(f"link {name}", errno=errno.EEXIST)
    if index in ns.links:
        raise KernelError(f"link {name} index {index}", errno=errno.EEXIST)


def _insert(
    ns: Namespace, name: str, index: int, kind: str, mac: str | None, mtu: int, master: str | None
) -> int:
    index = index or ns.next_index
    while index in ns.links:
        index += 1
    ns.next_index = max(ns.next_index, index + 1)
    ns.links[index] = rq.Link(
        index=index,
        name=name,
        kind=kind,
        mac=mac or _NO_MAC,
        mtu=mtu,
        up=False,
        carrier=False,
        master=master,
    )
    return index


def _seen(ns: Namespace, link: rq.Link) -> rq.Link:
    """The link with what follows from others: carrier and the peer's number."""
    if link.index not in ns.peers:
        return _replaced(link, carrier=link.up)
    away, far = ns.peers[link.index]
    return _replaced(link, carrier=link.up and away.links[far].up, peer_index=far)


def remove_link(ns: Namespace, index: int) -> None:
    """Take a link, its peer and everything that hangs on either out of their namespaces."""
    if index == 1:
        raise KernelError("link lo", errno=errno.EOPNOTSUPP)
    peer = ns.peers.pop(index, None)
    _forget(ns, ns.links.pop(index).name)
    if peer is not None:
        away, far = peer
        del away.peers[far]
        _forget(away, away.links.pop(far).name)


def _forget(ns: Namespace, name: str) -> None:
    """Everything that goes with a link: addresses, routes, neighbours, fdb, ports."""
    ns.addresses[:] = [a for a in ns.addresses if a.device != name]
    ns.fdb[:] = [e for e in ns.fdb if e.device != name]
    _drop_neighbours(ns, name)
    _drop_routes(ns, name)
    for index, link in ns.links.items():
        if link.master == name:
            ns.links[index] = _replaced(link, master=None, hairpin=False, isolated=False)


def _drop_neighbours(ns: Namespace, name: str) -> None:
    for table in (ns.neighbours, ns.proxies):
        for key in [key for key in table if key[0] == name]:
            del table[key]


def _drop_routes(ns: Namespace, name: str) -> None:
    gone = [
        key
        for key, route in ns.routes.items()
        if route.device == name or (route.hops and all(h.device == name for h in route.hops))
    ]
    for key in gone:
        del ns.routes[key]


def _set_up(ns: Namespace, index: int, up: bool) -> None:
    link = ns.links[index]
    if link.up == up:
        return
    ns.links[index] = _replaced(link, up=up)
    if not up:
        _drop_routes(ns, link.name)
        ns.addresses[:] = [
            a for a in ns.addresses if a.device != link.name or a.address.version == 4
        ]
        _drop_neighbours(ns, link.name)
        return
    if index == 1:
        _add_loopback_addresses(ns)
    for address in ns.addresses:
        if address.device == link.name:
            _connect(ns, address)


def _add_loopback_addresses(ns: Namespace) -> None:
    present = {a.address for a in ns.addresses}
    for text in ("127.0.0.1/8", "::1/128"):
        if ip_interface(text) not in present:
            ns.addresses.append(rq.Address("lo", ip_interface(text), scope="host"))


def _connected(address: rq.Address) -> list[rq.Route]:
    """The route that comes with an address."""
    network = address.address.network
    if not address.prefix_route or address.device == "lo":
        return []
    if network.version == 6:
        return [
            rq.Route(
                destination=network,
                device=address.device,
                metric=_IPV6_CONNECTED_METRIC,
                protocol=rq.PROTOCOL_KERNEL,
            )
        ]
    if network.prefixlen == 32:
        return []
    return [
        rq.Route(
            destination=network,
            device=address.device,
            source=address.address.ip,
            scope="link",
            protocol=rq.PROTOCOL_KERNEL,
        )
    ]


def _connect(ns: Namespace, address: rq.Address) -> None:
    for route in _connected(address):
        ns.routes[_key(route)] = route


def _key(route: rq.Route) -> tuple[rq.IPNetwork, int, int]:
    return route.destination, route.table, route.metric


def _rename(ns: Namespace, index: int, name: str) -> None:
    old = ns.links[index].name
    ns.links[index] = _replaced(ns.links[index], name=name)
    replace = msgspec.structs.replace
    ns.addresses[:] = [replace(a, device=name) if a.device == old else a for a in ns.addresses]
    for key, route in ns.routes.items():
        if route.device == old:
            ns.routes[key] = replace(route, device=name)


def _move(ns: Namespace, target: Namespace, index: int) -> None:
    """A link that changes its namespace goes down and loses everything but itself and its peer."""
    link = ns.links[index]
    _claim(target, link.name, 0)
    del ns.links[index]
    _forget(ns, link.name)
    peer = ns.peers.pop(index, None)
    number = 0 if index in target.links else index
    new = _insert(target, link.name, number, link.kind, link.mac, link.mtu, None)
    if peer is not None:
        away, far = peer
        target.peers[new] = peer
        away.peers[far] = (target, new)
