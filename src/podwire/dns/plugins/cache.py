"""`cache`: answers from what upstreams said before. The store itself is `dns.cache`.

    hit   -> the kept answer (sync: `answer_now` also serves the receive loop)
    stale -> at once with TTL 0 and renewed behind it, or (`verify`) only if the upstream fails
    miss  -> the rest of the chain; its answer is kept unless it is live, partial or for a subnet

Live answers (from the watch) are never kept: they are right now, and would not be later.
Source: coredns plugin/cache/handler.go, RFC 8767.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from podwire.dns import packet
from podwire.dns.cache import Cache, Entry, cache_key
from podwire.dns.metrics import Collected
from podwire.dns.packet import Edns
from podwire.dns.plugins.loadbalance import shuffle
from podwire.dns.request import DEPTH, Failure, Handler, Reply, Request
from podwire.dns.zones import in_zone

# Nobody waits for a renewal, and so nothing else bounds how many there are: with an upstream that
# is silent each lasts its 5 s, and every name that is asked for while it is stale begins one.
_RENEWALS_MAX: Final = 100


class CachePlugin:
    """`clock` gives seconds; `rng` shuffles answers of `answer_now`, None leaves their order."""

    def __init__(
        self,
        store: Cache,
        following: Handler,
        clock: Callable[[], float],
        *,
        rng: random.Random | None = None,
    ) -> None:
        self.store = store
        self._following = following
        self._clock = clock
        self._rng = rng
        self._everything = "." in store.settings.zones
        self._tasks: set[asyncio.Task[None]] = set()
        # What is being asked for; its result is why that failed.
        self._asked: dict[bytes, asyncio.Future[Failure | None]] = {}

    async def __call__(self, request: Request) -> Reply:
        if not self._covers(request):
            return await self._following(request)
        key = _key(request)
        now = self._clock()
        entry = self.store.lookup(key, now)
        if entry is None:
            return await self._ask_once(request, key)
        left = entry.remaining(now)
        if left <= 0:
            if self.store.settings.stale_verify:
                with contextlib.suppress(Failure):
                    reply = await self._ask(request, key)
                    if packet.rcode(reply.wire) in (packet.NOERROR, packet.NXDOMAIN):
                        return reply
            else:
                self._renew(entry, request, key)
            self.store.stale += 1
        elif self.store.wants_prefetch(entry, now):
            self.store.prefetches += 1
            self._renew(entry, request, key)
        return self._kept(entry, request, left)

    def _kept(self, entry: Entry, request: Request, left: int) -> Reply:
        shown = entry.ttl if self.store.settings.keep_ttl else left
        wire = entry.render(
            request.wire, request.question.end, max(shown, 0), keep_ad=_keeps_ad(request)
        )
        return Reply(wire, "cache")

    def answer_now(
        self, query: bytes, name: bytes, end: int, edns: Edns | None, limit: int
    ) -> bytes | None:
        """The answer to a query that is fresh in the cache and needs no task; None otherwise."""
        now = self._clock()
        dnssec = edns is not None and edns.dnssec
        bits = query[3]
        key = cache_key(
            name, query[end - 4 : end], dnssec=dnssec, checking_disabled=bool(bits & packet.CD)
        )
        store = self.store
        entry = store.denial.get(key) or store.success.get(key)
        if entry is None:
            return None
        left = entry.ttl - int(now - entry.stored_s)
        prefetch = store.settings.prefetch
        if left <= 0 or not self._everything or (edns is not None and edns.subnet):
            return None
        if prefetch is not None and left <= entry.ttl * prefetch.percentage / 100 + 1:
            return None
        if prefetch is not None:
            entry.popular(now, prefetch.gap_s)
        table = store.success if entry.kind == "success" else store.denial
        table.move_to_end(key)
        store.hits["success" if entry.kind == "success" else "denial"] += 1
        shown = entry.ttl if store.settings.keep_ttl else left
        response = entry.render(query, end, shown, keep_ad=dnssec or bool(bits & packet.AD))
        if entry.run is not None and self._rng is not None:
            response = shuffle(response, entry.run, self._rng)
        if edns is not None:
            response = packet.with_edns(response, edns)
        return response if len(response) <= limit else packet.fit(response, end, limit)

    def _covers(self, request: Request) -> bool:
        if request.edns is not None and request.edns.subnet:
            # Such an answer is right for one network only (RFC 7871 section 7.3).
            return False
        zones = self.store.settings.zones
        return self._everything or any(in_zone(request.text, zone) for zone in zones)

    async def _ask_once(self, request: Request, key: bytes) -> Reply:
        """Who asks for what is being asked for waits for that: each outstanding copy of a query is
        one more that a spoofed answer may hit (RFC 5452 section 5), and one more for the upstream.
        What then is not kept each has to ask for itself, and a query within another waits for none:
        it may be what the first one waits for."""
        first = self._asked.get(key)
        if first is None:
            return await self._ask_first(request, key)
        if DEPTH.get() > 1:
            return await self._ask(request, key)
        await asyncio.wait([first])
        failure = first.result()
        if failure is not None:
            raise Failure(failure.code, str(failure), failure.plugin)
        now = self._clock()
        entry = self.store.fresh(key, now)
        if entry is None:
            return await self._ask(request, key)
        return self._kept(entry, request, entry.remaining(now))

    async def _ask_first(self, request: Request, key: bytes) -> Reply:
        answered = self._asked[key] = asyncio.get_running_loop().create_future()
        failed: Failure | None = None
        try:
            return await self._ask(request, key)
        except Failure as failure:
            failed = failure
            raise
        finally:
            del self._asked[key]
            answered.set_result(failed)

    async def _ask(self, request: Request, key: bytes) -> Reply:
        ticket = self.store.begin(key, request.question.name)
        try:
            reply = await self._following(request)
            if reply.live:
                return reply
            entry = self.store.store(ticket, reply.wire, request.question.qtype, self._clock())
        finally:
            # A failed exchange is no answer: only what an upstream said is kept.
            self.store.drop(ticket)
        if entry is None:
            return reply
        authoritative = packet.flags(reply.wire) & packet.AA
        wire = entry.render(
            request.wire,
            request.question.end,
            entry.ttl,
            keep_ad=_keeps_ad(request),
            more=authoritative,
        )
        return reply._replace(wire=wire)

    def _renew(self, entry: Entry, request: Request, key: bytes) -> None:
        """Ask again behind the client's back; once at a time per entry."""
        if entry.refreshing or len(self._tasks) >= _RENEWALS_MAX:
            return
        entry.refreshing = True
        task = asyncio.get_running_loop().create_task(self._renewing(entry, request, key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _renewing(self, entry: Entry, request: Request, key: bytes) -> None:
        # Over TCP, because nobody waits for this answer and it must not be cut.
        client = request.client._replace(tcp=True)
        request = Request(request.wire, client, request.question, request.edns)
        try:
            with contextlib.suppress(Failure):
                await self._ask(request, key)
        finally:
            entry.refreshing = False

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _key(request: Request) -> bytes:
    question = request.question
    return cache_key(
        question.name,
        request.wire[question.end - 4 : question.end],
        dnssec=request.dnssec,
        checking_disabled=bool(request.wire[3] & packet.CD),
    )


def _keeps_ad(request: Request) -> bool:
    """AD is for those who asked for it, by DO or AD (RFC 6840 section 5.7)."""
    return request.dnssec or bool(request.wire[3] & packet.AD)


def collect(stores: Sequence[Cache], server: str) -> Iterable[Collected]:
    """The numbers of one block's caches, summed."""
    base = {"server": server, "view": "", "zones": ",".join(stores[0].settings.zones)}
    for kind in ("success", "denial"):
        labels = {**base, "type": kind}
        entries = sum(len(s.success if kind == "success" else s.denial) for s in stores)
        yield "coredns_cache_entries", "gauge", labels, entries
        yield "coredns_cache_hits_total", "counter", labels, sum(s.hits[kind] for s in stores)
        evictions = sum(s.evictions[kind] for s in stores)
        yield "coredns_cache_evictions_total", "counter", labels, evictions
    requests = sum(s.misses + sum(s.hits.values()) for s in stores)
    for name, value in (
        ("coredns_cache_requests_total", requests),
        ("coredns_cache_misses_total", sum(s.misses for s in stores)),
        ("coredns_cache_prefetch_total", sum(s.prefetches for s in stores)),
        ("coredns_cache_served_stale_total", sum(s.stale for s in stores)),
        ("coredns_cache_drops_total", sum(s.drops for s in stores)),
        ("podwire_dns_cache_evicted_names_total", stores[0].evicted_names),
    ):
        yield name, "counter", base, value
