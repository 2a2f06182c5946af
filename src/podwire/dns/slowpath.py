"""From a configuration to what answers: server blocks and their chains.

    query -> `front`: the fast answers, or one fresh in the cache          in the receive loop
          -> SlowPath.resolve -> block of the longest zone -> errors -> log -> dns64 -> loadbalance
             -> cache -> rewrite -> autopath -> hosts -> kubernetes -> loop -> forward    as a task

The order of plugins is CoreDNS's, whatever the file's. The fast answers stand before the chain, so
`front` keeps back what the chain would change: names of `rewrite` and `hosts`, what falls through,
what `autopath` or `dns64` would complete, and everything where `log` is on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from podwire.dns import config, packet
from podwire.dns.cache import Cache
from podwire.dns.forward import Forward, NewTransport, parse_search, upstream_addresses
from podwire.dns.index import Changes, PodMode, ZoneOptions
from podwire.dns.metrics import (
    FAST_VIEW,
    Collected,
    Histogram,
    Metrics,
    Site,
    counted,
    counted_type,
)
from podwire.dns.plugins.autopath import Autopath, SearchOf
from podwire.dns.plugins.cache import CachePlugin, collect
from podwire.dns.plugins.dns64 import Dns64
from podwire.dns.plugins.errors import Errors
from podwire.dns.plugins.hosts import Hosts
from podwire.dns.plugins.kubernetes import External, Kubernetes
from podwire.dns.plugins.loadbalance import LoadBalance
from podwire.dns.plugins.log import Log
from podwire.dns.plugins.loop import Loop
from podwire.dns.plugins.rewrite import Rewrite
from podwire.dns.request import (
    DEPTH,
    Failure,
    Handler,
    Reply,
    Request,
    name_from_text,
    rcode_name,
)
from podwire.dns.seam import Client, FastAnswers
from podwire.dns.zones import in_zone
from podwire.errors import PodwireError, UsageError
from podwire.objects.meta import LabelSelector

_PROBE_TIMEOUT_S: Final = 2.0
_DEPTH_MAX: Final = 8


def _nobody(address: str) -> Sequence[str] | None:
    return None


def _write_line(line: str) -> None:
    print(line, file=sys.stdout, flush=True)


def _halt(message: str) -> None:
    raise PodwireError(message)


def zone_options(settings: config.Kubernetes, local_addresses: Iterable[str] = ()) -> ZoneOptions:
    """What the `kubernetes` block says, for the zone's index. Without trailing dots."""
    zones = tuple(zone.rstrip(".") for zone in settings.zones)
    through = settings.fallthrough
    return ZoneOptions(
        zones=zones,
        ttl_s=settings.ttl,
        pods=PodMode(settings.pods),
        endpoint_pod_names=settings.endpoint_pod_names,
        namespaces=frozenset(settings.namespaces),
        namespace_labels=settings.namespace_labels or LabelSelector(),
        labels=settings.labels or LabelSelector(),
        endpoints=not settings.noendpoints,
        ignore_empty_service=settings.ignore_empty_service,
        fallthrough=None if through is None else tuple(zone.rstrip(".") for zone in through),
        local_addresses=tuple(local_addresses) or ("127.0.0.1",),
    )


@dataclass(frozen=True)
class World:
    """What a chain needs from around it. Only `fast` differs between a server and most tests.

    `search_of` tells a pod's search list by its address; `halt` is called when a loop is found.
    """

    fast: FastAnswers | None = None
    external: External | None = None
    search_of: SearchOf = _nobody
    write: Callable[[str], None] = _write_line
    halt: Callable[[str], None] = _halt
    clock: Callable[[], float] | None = None
    transport: NewTransport | None = None
    metrics: Metrics = field(default_factory=Metrics)
    rng: random.Random = field(default_factory=random.Random)


class _Block:
    """One server block as it runs."""

    def __init__(self, settings: config.Block, world: World, top: SlowPath, server: str) -> None:
        self.settings = settings
        self.server = server
        self.site: Site | None = None
        if settings.prometheus is not None:
            self.site = world.metrics.site(server, settings.zones[0])
        self.cache: CachePlugin | None = None
        self.caches: list[CachePlugin] = []
        self.rewrite: Rewrite | None = None
        self.autopath: Autopath | None = None
        self.hosts: Hosts | None = None
        self.kubernetes: Kubernetes | None = None
        self.dns64: Dns64 | None = None
        self.loop: Loop | None = None
        self.errors: Errors | None = None
        self.forwards: list[Forward] = []
        self.handler = self._chain(world, top)

    def _chain(self, world: World, top: SlowPath) -> Handler:
        handler: Handler = _nothing_left
        for name in reversed(config.ORDER):
            if getattr(self.settings, name):
                handler = _BUILDERS[name](self, handler, world, top)
            if name == "hosts" and self.settings.cache and self._renames:
                handler = self.cached(handler, world, top)
        return handler

    @property
    def _renames(self) -> bool:
        return bool(self.settings.rewrite or self.settings.autopath)

    def cached(self, handler: Handler, world: World, top: SlowPath) -> CachePlugin:
        """One more cache, by the names plugins ask for.

        The upper one knows names as clients ask them: under those, an answer that depends on who
        asks, or on the cluster under another name, must not be kept. Its parts may be.
        """
        settings = self.settings.cache
        assert settings is not None
        rng = world.rng if self.settings.loadbalance else None
        cache = CachePlugin(Cache(settings), handler, top.clock, rng=rng)
        self.caches.append(cache)
        return cache

    @property
    def plain(self) -> bool:
        """Whether a fresh entry of the cache is all a query's answer depends on."""
        return self.cache is not None and not self.settings.log and self.dns64 is None

    def takes_class(self, request: Request) -> bool:
        """Whether a query of another class than IN becomes one of it."""
        question = request.question
        return self.rewrite is not None and self.rewrite.touches(
            request.text, question.qtype, question.qclass
        )


async def _nothing_left(request: Request) -> Reply:
    raise Failure(packet.SERVFAIL, "no next plugin found", "")


def _errors(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    settings = block.settings.errors
    assert settings is not None
    block.errors = Errors(settings, handler, world.write)
    return block.errors


def _log(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    return Log(block.settings.log, handler, world.write, top.clock)


def _dns64(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    settings = block.settings.dns64
    assert settings is not None
    block.dns64 = Dns64(settings, handler, world.metrics, block.server)
    return block.dns64


def _loadbalance(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    return LoadBalance(handler, world.rng)


def _cache(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    block.cache = block.cached(handler, world, top)
    return block.cache


def _rewrite(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    block.rewrite = Rewrite(block.settings.rewrite, handler)
    return block.rewrite


def _autopath(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    settings = block.settings.autopath
    assert settings is not None
    search_of = world.search_of
    if settings.source != "@kubernetes":
        search = [*parse_search(_read(settings.source)), ""]
        fixed = [name_text(entry) if entry else "" for entry in search]

        def search_of(address: str) -> Sequence[str]:
            return fixed

    block.autopath = Autopath(settings, handler, search_of, world.metrics, block.server)
    return block.autopath


def name_text(text: str) -> str:
    return packet.name_to_text(name_from_text(text.lower()))


def _hosts(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    settings = block.settings.hosts
    assert settings is not None
    block.hosts = Hosts(settings, handler)
    block.hosts.read()
    return block.hosts


def _kubernetes(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    settings = block.settings.kubernetes
    assert settings is not None
    if world.fast is None:
        return handler
    block.kubernetes = Kubernetes(settings, world.fast, world.external, handler, top, top.take)
    return block.kubernetes


def _loop(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    block.loop = Loop(block.settings.zones[0], handler, world.halt)
    return block.loop


def _forward(block: _Block, handler: Handler, world: World, top: SlowPath) -> Handler:
    for settings in reversed(block.settings.forward):
        files = {path: _read(path) for path in settings.to if path.startswith("/")}
        addresses = upstream_addresses(settings.to, files)
        forward = Forward(settings, addresses, handler, world.metrics, transport=world.transport)
        block.forwards.append(forward)
        handler = forward
    return handler


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise UsageError(f"{path}: cannot be read ({e.strerror}); name upstreams by address") from e


Builder = Callable[[_Block, Handler, World, "SlowPath"], Handler]
_BUILDERS: Final[Mapping[str, Builder]] = {
    "errors": _errors,
    "log": _log,
    "dns64": _dns64,
    "loadbalance": _loadbalance,
    "cache": _cache,
    "rewrite": _rewrite,
    "autopath": _autopath,
    "hosts": _hosts,
    "kubernetes": _kubernetes,
    "loop": _loop,
    "forward": _forward,
}


class SlowPath:
    """`seam.SlowPath` over the blocks of one listener (`Corefile.on_port`)."""

    def __init__(self, blocks: Sequence[config.Block], world: World) -> None:
        self.world = world
        self._clock = world.clock
        port = blocks[0].port if blocks else 53
        self._blocks = [_Block(block, world, self, _server_label(block, port)) for block in blocks]
        # Fast answers that a chain has asked for: it counts them itself. By type and code, as text.
        self.taken: Counter[tuple[str, str]] = Counter()
        self._by_zone = {
            name_from_text(zone): block for block in self._blocks for zone in block.settings.zones
        }
        self._tasks: list[asyncio.Task[None]] = []
        world.metrics.collectors.append(self.collect)

    def clock(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    def block_of(self, name: bytes) -> _Block | None:
        """The block with the longest zone that the name (lower-case wire form) is in."""
        by_zone = self._by_zone
        if len(by_zone) == 1 and (everything := by_zone.get(b"\0")):
            return everything
        at = 0
        while True:
            block = by_zone.get(name[at:])
            if block is not None:
                return block
            if not name[at]:
                return None
            at += 1 + name[at]

    async def resolve(self, query: bytes, client: Client) -> bytes | None:
        if len(query) < 12 or packet.flags(query) & packet.QR:
            return None
        request = Request.parse(query, client)
        if request is None or packet.flags(query) & packet.OPCODE:
            readable = request is not None
            return packet.error_reply(query, packet.NOTIMP if readable else packet.FORMERR)
        if request.edns is not None and request.edns.version:
            return request.failed(packet.BADVERS)
        block = self.block_of(request.question.name)
        if block is None or request.question.qtype in (packet.AXFR, packet.IXFR):
            return request.failed(packet.REFUSED)
        if request.question.qclass != packet.IN and not block.takes_class(request):
            return request.failed(packet.REFUSED)
        depth = DEPTH.get()
        if depth >= _DEPTH_MAX:
            return request.failed(packet.SERVFAIL)
        started = self.clock()
        token = DEPTH.set(depth + 1)
        try:
            reply = await block.handler(request)
        except Failure as failure:
            reply = Reply(request.failed(failure.code), "")
        finally:
            DEPTH.reset(token)
        response = finished(reply.wire, request)
        self._count(block, reply.plugin, request, response, self.clock() - started)
        return response

    def _count(
        self, block: _Block, plugin: str, request: Request, response: bytes, seconds: float
    ) -> None:
        if block.site is not None:
            block.site.count(
                plugin,
                request.wire,
                response,
                qtype=request.question.qtype,
                tcp=request.client.tcp,
                v6=":" in request.client.address,
                dnssec=request.dnssec,
                seconds=seconds,
            )

    def answer_now(self, query: bytes, client: Client) -> bytes | None:
        """A fresh answer from the cache, where nothing else in the chain wants the query."""
        question = packet.parse_question(query)
        if question is None or query[2] & 0xF8:
            return None
        block = self.block_of(question.name)
        if block is None or not block.plain or block.cache is None:
            return None
        started = self.clock()
        edns = packet.parse_edns(query, question.end)
        if edns is not None and edns.version:
            return None
        limit = 65535 if client.tcp else min(edns.size, packet.OWN_SIZE) if edns else 512
        response = block.cache.answer_now(query, question.name, question.end, edns, limit)
        if response is not None and block.site is not None:
            block.site.count(
                "cache",
                query,
                response,
                qtype=question.qtype,
                tcp=client.tcp,
                v6=":" in client.address,
                dnssec=edns is not None and edns.dnssec,
                seconds=self.clock() - started,
            )
        return response

    def evict(self, changes: Changes) -> None:
        """A change on the watch (`Answers.on_evict`): what caches hold of it goes at once."""
        for block in self._blocks:
            for cache in block.caches:
                if changes.everything:
                    cache.store.clear()
                else:
                    cache.store.evict(changes.subtrees)

    def on_hosts(self, listener: Callable[[], None]) -> None:
        """Called when a hosts file has come to say something else."""
        for block in self._blocks:
            if block.hosts is not None:
                block.hosts.on_change(listener)

    def count_fast(self, counts: Mapping[tuple[str, str], Sequence[int]]) -> None:
        """Have what the receive loop answers on the page too: `counts` by type and code.

        It does not know the transport of each: the label is empty.
        """
        site, taken = self._cluster_site(), self.taken
        if site is not None:
            self.world.metrics.collectors.append(lambda: counted(site, counts, taken))

    def time_fast(self, histogram: Histogram) -> None:
        """Have the durations of the receive loop's answers on the page; of all types together."""
        site = self._cluster_site()
        if site is not None:
            labels = {"server": site.server, "type": "", "view": FAST_VIEW, "zone": site.zone}
            name = "coredns_dns_request_duration_seconds"
            self.world.metrics.show(name, histogram, **labels)

    def _cluster_site(self) -> Site | None:
        block = next((b for b in self._blocks if b.kubernetes is not None), None)
        return block.site if block is not None else None

    def start(self, listening: tuple[str, int] | None = None) -> None:
        """Begin what runs beside queries; `listening` is where loop detection finds ourselves."""
        for block in self._blocks:
            if block.hosts is not None:
                self._run(block.hosts.watch())
            if block.loop is not None and listening is not None:
                self._run(block.loop.watch(udp_probe(*listening)))

    def _run(self, work: Awaitable[None]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    async def close(self) -> None:
        self.world.metrics.collectors.remove(self.collect)
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for block in self._blocks:
            for cache in block.caches:
                await cache.close()
            if block.errors is not None:
                block.errors.close()
            for forward in block.forwards:
                await forward.close()

    def collect(self) -> Iterable[Collected]:
        for block in self._blocks:
            if block.caches:
                yield from collect([cache.store for cache in block.caches], block.server)
            if block.hosts is not None:
                yield "coredns_hosts_entries", "gauge", {}, block.hosts.entries

    def take(self, qtype: int, response: bytes) -> None:
        """A fast answer that does not reach the client as such."""
        self.taken[counted_type(qtype), rcode_name(packet.rcode(response))] += 1

    # --- for the door in front ----------------------------------------------------------------

    @property
    def logs(self) -> bool:
        return any(block.settings.log for block in self._blocks)

    @property
    def guards(self) -> bool:
        """Whether any answer of the cluster's own names may be the chain's to give."""
        return (
            self.logs
            or any(b.rewrite or b.autopath or b.hosts or b.dns64 for b in self._blocks)
            or any(b.kubernetes is None for b in self._blocks if self._inside(b))
        )

    def _inside(self, block: _Block) -> bool:
        """Whether a block's zone is below one of the cluster's."""
        fast = self.world.fast
        return fast is not None and any(
            fast.owns(name_from_text(zone)) for zone in block.settings.zones
        )

    def name_needs_chain(self, name: bytes, qtype: int, qclass: int) -> bool:
        """Whether some plugin before `kubernetes` wants such a question, whoever asks."""
        block = self.block_of(name)
        if block is None or block.settings.log or block.kubernetes is None:
            return True
        text = packet.name_to_text(name)
        if not any(in_zone(text, zone) for zone in block.kubernetes.zones):
            return True
        if block.rewrite is not None and block.rewrite.touches(text, qtype, qclass):
            return True
        return block.hosts is not None and block.hosts.answers(text, qtype)

    def answer_needs_chain(
        self, name: bytes, query: bytes, response: bytes, client: Client
    ) -> bool:
        """Whether this answer is only half of what the chain would say."""
        block = self.block_of(name)
        if block is None:
            return False
        code = packet.rcode(response)
        if code == packet.NXDOMAIN:
            text = packet.name_to_text(name)
            if block.kubernetes is not None and block.kubernetes.falls_through(text, response):
                return True
            if block.autopath is not None:
                return block.autopath.base(text, client.address) is not None
        if block.dns64 is not None and code == packet.NOERROR:
            request = Request.parse(query, client)
            return request is not None and block.dns64.applies(request)
        return False


def finished(wire: bytes, request: Request) -> bytes:
    """The response as this client may have it: OPT only if it sent one, RA, and no longer than
    it can take."""
    end = request.question.end
    found = packet.records(wire, end)
    if found is None:
        return request.failed(packet.SERVFAIL)
    has_opt = any(r.rtype == packet.OPT for r in found)
    if has_opt and request.edns is None:
        wire = packet.without_opt(wire, found)
    elif not has_opt and request.edns is not None:
        wire = packet.with_edns(wire, request.edns)
    return packet.fit(wire, end, request.limit)


def _server_label(block: config.Block, port: int) -> str:
    host = block.bind[0] if block.bind else ""
    return f"dns://[{host}]:{port}" if ":" in host else f"dns://{host}:{port}"


def udp_probe(address: str, port: int) -> Callable[[bytes], Awaitable[None]]:
    """Sends a query there and waits for any answer."""

    async def probe(query: bytes) -> None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect((address, port))
            sock.send(query)
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await loop.sock_recv(sock, 512)

    return probe
