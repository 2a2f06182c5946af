"""`forward`: a query is passed to one of several upstreams, and to the next if that one fails.

    policy -> the first that is not down -> exchange -> its response as it is, the client's ID

5 s are the whole time of a query, 2 s that of one try. Where all are down, health checking is
taken for broken and a random one is asked, unless `failfast`. TC is passed on, for the client to
ask over TCP; with `prefer_udp` it is asked over TCP here.
Source: coredns plugin/forward/forward.go.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from podwire.dns import config, packet
from podwire.dns.directives.forwarding import split_address
from podwire.dns.metrics import Collected, Metrics
from podwire.dns.request import Failure, Handler, Reply, Request, name_from_text, rcode_name
from podwire.dns.upstream import SocketTransport, Transport, Upstream, UpstreamError
from podwire.dns.zones import in_zone
from podwire.errors import UsageError

DEADLINE_S: Final = 5.0
# glibc reads no more of them from resolv.conf; CoreDNS reads all, and so do we, up to its limit.
_COMMENTS: Final = ("#", ";")

NewTransport = Callable[[str, int], Transport]


def parse_nameservers(text: str) -> list[str]:
    """The `nameserver` addresses of a file like resolv.conf."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and not line.startswith(_COMMENTS):
            found.append(words[1])
    return found


def parse_search(text: str) -> list[str]:
    """The search list of a file like resolv.conf; the last `search` or `domain` line counts."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in ("search", "domain"):
            found = words[1:]
    return found


def upstream_addresses(to: Iterable[str], files: Mapping[str, str]) -> list[tuple[str, int]]:
    """Addresses and ports; `files` are the texts of the paths among `to`."""
    found: list[tuple[str, int]] = []
    for entry in to:
        texts = [entry]
        if entry.startswith("/"):
            texts = parse_nameservers(files[entry])
            if not texts:
                raise UsageError(
                    f"forward: {entry}: no nameservers found; name upstreams by address instead"
                )
        found += [split_address(text) for text in texts]
    return list(dict.fromkeys(found))


class Forward:
    """One `forward` directive; `following` is what comes behind it in the chain."""

    def __init__(
        self,
        settings: config.Forward,
        addresses: Sequence[tuple[str, int]],
        following: Handler,
        metrics: Metrics,
        *,
        transport: NewTransport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._following = following
        self._metrics = metrics
        self._rng = rng or random.SystemRandom()
        self._turn = self._rng.randrange(len(addresses))
        self._in_flight = 0
        self.refused = 0
        self.broken = 0
        new = transport or self._sockets
        self._transports: list[Transport] = []
        self.upstreams = [self._upstream(address, port, new) for address, port in addresses]
        self._everyone = "+".join(upstream.label for upstream in self.upstreams)
        metrics.collectors.append(self.collect)

    def _sockets(self, address: str, port: int) -> Transport:
        settings = self._settings
        return SocketTransport(
            address, port, expire_s=settings.expire_s, max_idle=settings.max_idle_conns
        )

    def _upstream(self, address: str, port: int, new: NewTransport) -> Upstream:
        settings = self._settings
        transport = new(address, port)
        self._transports.append(transport)
        return Upstream(
            address,
            port,
            transport,
            interval_s=settings.health_check_s,
            recursion=settings.health_recursion,
            domain=name_from_text(settings.health_domain),
            probe_tcp=settings.force_tcp,
        )

    def passes(self, name: str) -> bool:
        """Whether queries for this name are not for these upstreams."""
        settings = self._settings
        if not in_zone(name, settings.source):
            return True
        return name != settings.source and any(in_zone(name, zone) for zone in settings.exclude)

    async def __call__(self, request: Request) -> Reply:
        settings = self._settings
        if self.passes(request.text):
            return await self._following(request)
        if settings.max_concurrent and self._in_flight >= settings.max_concurrent:
            self.refused += 1
            raise Failure(
                packet.REFUSED,
                f"concurrent queries exceeded maximum {settings.max_concurrent}",
                "forward",
            )
        self._in_flight += 1
        try:
            response = await self._ask(request)
        finally:
            self._in_flight -= 1
        if packet.rcode(response) in settings.next_rcodes and isinstance(self._following, Forward):
            return await self._following(request)
        return Reply(response, "forward")

    async def _ask(self, request: Request) -> bytes:
        query = packet.upstream_query(request.wire, request.question, request.edns)
        query = request.wire[:2] + query[2:]
        error: UpstreamError | None = None
        last: bytes | None = None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE_S
        tries = 0
        try:
            async with asyncio.timeout_at(deadline):
                for upstream in self._candidates():
                    try:
                        response = await self._exchange(upstream, request, query)
                    except UpstreamError as e:
                        error = e
                        if self._settings.max_fails:
                            upstream.probe()
                        tries += 1
                        if tries == self._settings.max_connect_attempts:
                            break
                        # What fails at once must not be asked in a busy loop.
                        if tries % len(self.upstreams) == 0:
                            await asyncio.sleep(min(0.01 * tries, 0.25))
                        continue
                    if packet.rcode(response) not in self._settings.failover_rcodes:
                        return response
                    last = response
                    tries += 1
                    if tries >= len(self.upstreams):
                        break
        except TimeoutError:
            pass
        if last is not None:
            return last
        raise Failure(packet.SERVFAIL, str(error or "no healthy proxies"), "forward") from error

    def _candidates(self) -> Iterable[Upstream]:
        """Whom to ask in turn, without end; where all are down, a last one at random."""
        while True:
            alive = 0
            for upstream in self._ordered():
                if not upstream.down(self._settings.max_fails):
                    alive += 1
                    yield upstream
            if not alive:
                self.broken += 1
                if not self._settings.failfast:
                    yield self._rng.choice(self.upstreams)
                return

    def _ordered(self) -> list[Upstream]:
        order = list(self.upstreams)
        if self._settings.policy == "random":
            self._rng.shuffle(order)
        elif self._settings.policy == "round_robin":
            self._turn = (self._turn + 1) % len(order)
            order = order[self._turn :] + order[: self._turn]
        return order

    async def _exchange(self, upstream: Upstream, request: Request, query: bytes) -> bytes:
        settings = self._settings
        loop = asyncio.get_running_loop()
        started = loop.time()
        tcp = settings.force_tcp or (request.client.tcp and not settings.prefer_udp)
        response = await upstream.exchange(query, request.question, tcp=tcp)
        if packet.flags(response) & packet.TC and settings.prefer_udp and not tcp:
            response = await upstream.exchange(query, request.question, tcp=True)
        response = _checked(response, request, upstream)
        self._metrics.observe(
            "coredns_proxy_request_duration_seconds",
            loop.time() - started,
            proxy_name="forward",
            to=upstream.label,
            rcode=rcode_name(packet.rcode(response)),
        )
        return response

    def collect(self) -> Iterable[Collected]:
        for upstream, transport in zip(self.upstreams, self._transports, strict=True):
            labels = {"proxy_name": "forward", "to": upstream.label}
            failed = upstream.failed_probes
            yield "coredns_proxy_healthcheck_failures_total", "counter", labels, failed
            if isinstance(transport, SocketTransport):
                tcp = {**labels, "proto": "tcp"}
                yield "coredns_proxy_conn_cache_hits_total", "counter", tcp, transport.reused
                yield "coredns_proxy_conn_cache_misses_total", "counter", tcp, transport.opened
        source = {"from": self._settings.source, "to": self._everyone}
        yield "coredns_forward_healthcheck_broken_total", "counter", source, self.broken
        own = {"from": self._settings.source}
        yield "coredns_forward_max_concurrent_rejects_total", "counter", own, self.refused
        yield "podwire_dns_forward_in_flight", "gauge", own, self._in_flight

    async def close(self) -> None:
        self._metrics.collectors.remove(self.collect)
        for upstream in self.upstreams:
            await upstream.close()


def _checked(response: bytes, request: Request, upstream: Upstream) -> bytes:
    """With the client's own question (its case too); what does not parse is no response."""
    end = request.question.end
    if response[4:6] == b"\0\0":
        return request.failed(packet.rcode(response))
    found = packet.records(response, end)
    if found is None:
        # CoreDNS empties what overflows and says TC; anything else is the upstream's fault.
        if packet.flags(response) & packet.TC:
            return packet.fit(response, end, 0)
        raise UpstreamError(f"response of {upstream.label} does not parse")
    if any(r.rtype == packet.OPT and r.ttl >> 24 for r in found):
        # BADVERS and the like: about our EDNS, not about the name.
        raise UpstreamError(f"response of {upstream.label} has an extended response code")
    # What stands behind the last record is not DNS.
    return response[:12] + request.wire[12:end] + response[end : found[-1].end if found else end]
