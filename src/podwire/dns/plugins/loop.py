"""`loop`: a server whose queries come back to it says so and stops.

A query of a random name (HINFO) is sent to the server itself. Once it is seen a third time, it has
gone round through the upstreams: every other query would, too. The watch ends 2 s after the probe
was answered, so that nobody can stop the server with that name later.
Source: coredns plugin/loop/{loop,setup}.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from podwire.dns import packet
from podwire.dns.request import Handler, Reply, Request, name_from_text

SEEN_MAX: Final = 2
_PROBE_FOR_S, _RETRY_S, _WATCH_S = 30.0, 2.0, 2.0

Probe = Callable[[bytes], Awaitable[None]]


class Loop:
    """`halt` is called, once, with what to print before ending."""

    def __init__(self, zone: str, following: Handler, halt: Callable[[str], None]) -> None:
        self.zone = zone
        numbers = f"{secrets.randbits(63)}.{secrets.randbits(63)}."
        self.name = numbers + zone.removeprefix(".")
        self._wire_name = name_from_text(self.name)
        self._following = following
        self._halt = halt
        self._seen = 0
        self.active = True

    async def __call__(self, request: Request) -> Reply:
        question = request.question
        if self.active and question.qtype == packet.HINFO and question.name == self._wire_name:
            self._seen += 1
            if self._seen > SEEN_MAX:
                self.active = False
                self._halt(
                    f"[FATAL] plugin/loop: Loop ({request.client.address}:{request.client.port} -> "
                    f'here) detected for zone "{self.zone}". Query: "HINFO {self.name}". '
                    "An upstream of `forward` leads back to this server: name others, or a "
                    "resolv.conf that does not list the cluster's DNS"
                )
        return await self._following(request)

    def query(self) -> bytes:
        head = packet.HEADER.pack(secrets.randbits(16), packet.RD, 1, 0, 0, 0)
        return head + self._wire_name + packet.HINFO.to_bytes(2, "big") + b"\0\1"

    async def watch(self, probe: Probe) -> None:
        """Send the query to ourselves (`probe` raises OSError or TimeoutError without answer)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PROBE_FOR_S):
                while self.active:
                    try:
                        await probe(self.query())
                        break
                    except (OSError, TimeoutError):
                        await asyncio.sleep(_RETRY_S)
        await asyncio.sleep(_WATCH_S)
        self.active = False
