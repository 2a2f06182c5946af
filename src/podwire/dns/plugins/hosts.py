"""`hosts`: A, AAAA and PTR records from lines in the form of hosts(5).

    HostsTable (pure) <- parse_hosts(text); the plugin's file is read anew when it changes

A name that has an address of the other family only is NODATA; one that has none falls through, or
is SERVFAIL, because there is no SOA for a denial.
Source: coredns plugin/hosts/{hosts,hostsfile}.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from podwire.dns import config, packet
from podwire.dns.request import Failure, Handler, Reply, Request, decode, encode
from podwire.dns.zones import falls_through, in_zone, parse_name

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class HostsTable:
    """Names in their normal form; `names` are those of an address, for PTR."""

    v4: dict[str, tuple[str, ...]] = field(default_factory=dict)
    v6: dict[str, tuple[str, ...]] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def addresses(self, name: str, qtype: int) -> tuple[str, ...]:
        """Those of the name, or of the wildcard one label above it."""
        table = self.v4 if qtype == packet.A else self.v6
        found = table.get(name)
        if found is None:
            _, _, parent = name.partition(".")
            found = () if self.exists(name) else table.get(f"*.{parent}", ())
        return found

    def exists(self, name: str) -> bool:
        return name in self.v4 or name in self.v6

    def has(self, name: str) -> bool:
        return bool(self.addresses(name, packet.A) or self.addresses(name, packet.AAAA))

    @property
    def empty(self) -> bool:
        return not self.v4 and not self.v6


def parse_hosts(lines: Iterable[str], zones: Iterable[str], *, reverse: bool = True) -> HostsTable:
    """The entries within the zones; lines that say nothing are skipped, as hosts(5) readers do."""
    zones = tuple(zones)
    v4: dict[str, list[str]] = {}
    v6: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for line in lines:
        words = line.partition("#")[0].split()
        if len(words) < 2:
            continue
        try:
            address = ipaddress.ip_address(words[0].partition("%")[0])
        except ValueError:
            continue
        table = v4 if address.version == 4 else v6
        for word in words[1:]:
            with contextlib.suppress(ValueError):
                name = parse_name(word)
                if not any(in_zone(name, zone) for zone in zones):
                    continue
                table.setdefault(name, []).append(str(address))
                if reverse and not name.startswith("*."):
                    names.setdefault(str(address), []).append(name)
    return HostsTable(_frozen(v4), _frozen(v6), _frozen(names))


def _frozen(table: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(dict.fromkeys(values)) for key, values in table.items()}


class Hosts:
    """Inline entries win over the file's; `read` before the first query, `watch` runs for ever."""

    def __init__(self, settings: config.Hosts, following: Handler) -> None:
        self._settings = settings
        self._following = following
        self._inline = parse_hosts(settings.inline, settings.zones, reverse=settings.reverse)
        self._file = HostsTable()
        self._stamp: tuple[int, int] | None = None
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Called when the file's entries are others."""
        self._listeners.append(listener)

    def read(self) -> None:
        """Take the file's entries if it is another one now; without a file, there are none."""
        settings = self._settings
        try:
            status = os.stat(settings.path)
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            with open(settings.path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            self._set(HostsTable(), None)
            return
        self._set(parse_hosts(lines, settings.zones, reverse=settings.reverse), stamp)

    def _set(self, table: HostsTable, stamp: tuple[int, int] | None) -> None:
        self._stamp = stamp
        if table != self._file:
            self._file = table
            for listener in self._listeners:
                listener()

    async def watch(self) -> None:
        while self._settings.reload_s > 0:
            await asyncio.sleep(self._settings.reload_s)
            self.read()

    def has(self, name: str) -> bool:
        return self._inline.has(name) or self._file.has(name)

    def answers(self, name: str, qtype: int) -> bool:
        """Whether this plugin, and no later one, has the answer."""
        if qtype == packet.PTR:
            return bool(self._pointers(name))
        if not any(in_zone(name, zone) for zone in self._settings.zones):
            return False
        return self.has(name) or not falls_through(name, self._settings.fallthrough)

    async def __call__(self, request: Request) -> Reply:
        name, qtype = request.text.lower(), request.question.qtype
        if not self.answers(name, qtype):
            return await self._following(request)
        data: tuple[str, ...] = ()
        if qtype == packet.PTR:
            data = self._pointers(name)
        elif qtype in (packet.A, packet.AAAA):
            data = self._inline.addresses(name, qtype) or self._file.addresses(name, qtype)
        if not data and not self.has(name):
            raise Failure(packet.SERVFAIL, f"{name} is not among the hosts", "hosts")
        return Reply(self._response(request, data), "hosts", live=True)

    def _pointers(self, name: str) -> tuple[str, ...]:
        address = reverse_address(name)
        if address is None:
            return ()
        return self._inline.names.get(address) or self._file.names.get(address, ())

    def _response(self, request: Request, data: tuple[str, ...]) -> bytes:
        response = decode(request.failed(packet.NOERROR), "hosts")
        response.flags |= dns.flags.AA
        kind = dns.rdatatype.RdataType(request.question.qtype)
        owner = response.question[0].name
        for value in data:
            rdata = dns.rdata.from_text(dns.rdataclass.IN, kind, value)
            response.answer.append(dns.rrset.from_rdata(owner, self._settings.ttl, rdata))
        return encode(response, "hosts")

    @property
    def entries(self) -> int:
        return sum(len(t.v4) + len(t.v6) for t in (self._inline, self._file))


def reverse_address(name: str) -> str | None:
    """The address of a name below in-addr.arpa. or ip6.arpa.; None for other names."""
    try:
        return dns.reversename.to_address(dns.name.from_text(name))
    except (dns.exception.DNSException, ValueError):
        return None
