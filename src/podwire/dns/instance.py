"""One configuration, serving: what a Corefile comes to while it is in force.

    Corefile -> zone and watch of its `kubernetes` block | nothing
             -> the chain of every block -> a server per port

A reload makes a second instance, waits until it is synced, and ends the first: as CoreDNS does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from podwire.client import Api
from podwire.dns import config
from podwire.dns.answers import Answers
from podwire.dns.external import ExternalNames
from podwire.dns.front import Front
from podwire.dns.index import Index, ZoneOptions
from podwire.dns.listening import Listening
from podwire.dns.metrics import Metrics
from podwire.dns.plugins.autopath import search_list
from podwire.dns.records import Zone
from podwire.dns.server import Server
from podwire.dns.slowpath import SlowPath, World, zone_options
from podwire.dns.watch import DnsWatch
from podwire.errors import UsageError

_LOG = logging.getLogger(__name__)
_NO_ZONE: Final = ZoneOptions(zones=())


@dataclass(frozen=True)
class Surroundings:
    """What every instance of a program shares. `api` None: no cluster is watched. `halt` ends the
    program with a message: a loop was found. `searched`: what pods search behind the cluster's
    names, with final dots."""

    api: Api | None
    listening: Listening
    addresses: tuple[str, ...] = ("127.0.0.1",)
    halt: Callable[[str], None] = print
    searched: tuple[str, ...] = ()


class Instance:
    """`start` returns when it serves; `synced` is set when its zone is whole."""

    def __init__(self, corefile: config.Corefile, around: Surroundings) -> None:
        self.corefile = corefile
        self.metrics = Metrics()
        self.synced = asyncio.Event()
        self._around = around
        found = [block.kubernetes for block in corefile.blocks if block.kubernetes]
        if len(found) > 1:
            raise UsageError("Corefile: more than one `kubernetes`; put all zones into one")
        self._settings = found[0] if found else None
        options = zone_options(found[0], around.addresses) if found else _NO_ZONE
        balanced = any(block.kubernetes and block.loadbalance for block in corefile.blocks)
        self.answers = Answers(Zone(Index(options)), rotate=balanced)
        self._watch: DnsWatch | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: list[Server] = []
        world = World(
            fast=self.answers,
            external=partial(ExternalNames, self.answers),
            search_of=self.search_of,
            halt=around.halt,
            metrics=self.metrics,
        )
        self._chains = {port: SlowPath(corefile.on_port(port), world) for port in corefile.ports}
        for chain in self._chains.values():
            self.answers.on_evict(chain.evict)
            chain.count_fast(self.answers.counts)

    async def start(self) -> None:
        """Serve, once synced or `startup_timeout` has passed (then SERVFAIL until it is)."""
        if self._settings is None:
            self.answers.mark_synced()
            self.synced.set()
        else:
            await self._follow(self._settings.startup_timeout_s)
        for port in self.corefile.ports:
            await self._serve(port)

    async def _follow(self, timeout_s: float) -> None:
        if self._around.api is None:
            raise UsageError("Corefile: `kubernetes` needs an API server")
        programmed = self.metrics.programmed
        self._watch = DnsWatch(self._around.api, self.answers, programmed=programmed)
        self._tasks = [
            asyncio.create_task(self._watch.run()),
            asyncio.create_task(self._note_synced(self._watch)),
        ]
        self._tasks[0].add_done_callback(self._unwatched)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.synced.wait()
                return
        _LOG.warning("starting server with unsynced Kubernetes API")

    def _unwatched(self, task: asyncio.Task[None]) -> None:
        """A server that hears of nothing more must not go on: its successor will."""
        if not task.cancelled():
            self._around.halt(f"[FATAL] plugin/kubernetes: the watch ended: {task.exception()!r}")

    async def _note_synced(self, watch: DnsWatch) -> None:
        await watch.synced.wait()
        self.synced.set()

    async def _serve(self, port: int) -> None:
        chain = self._chains[port]
        server = Server(Front(self.answers, chain), chain)
        addresses = list(dict.fromkeys(a for b in self.corefile.on_port(port) for a in b.bind))
        open_ones = self._around.listening.sockets
        await server.start(
            open_ones(socket.SOCK_DGRAM, port, addresses),
            open_ones(socket.SOCK_STREAM, port, addresses),
        )
        self._servers.append(server)
        chain.time_fast(server.latency.histogram)
        chain.start((addresses[0] if addresses else self._around.addresses[0], port))

    async def stop(self) -> None:
        """Finish what is under way, take nothing new."""
        await asyncio.gather(*(server.stop() for server in self._servers))
        await asyncio.gather(*(chain.close() for chain in self._chains.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def search_of(self, address: str) -> Sequence[str] | None:
        """A pod's search list by its address, for `autopath`."""
        if self._settings is None:
            return None
        namespace = self.answers.zone.index.namespace_at(address)
        if namespace is None:
            return None
        return search_list(namespace, self._settings.zones[0], self._around.searched)
