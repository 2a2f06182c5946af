"""Where the fast half of the DNS server and the slow half meet.

query -> FastAnswers.answer (sync, one look-up) -> bytes                     names of the cluster
                        None -> SlowPath.resolve (a task) -> bytes           everything else
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Client(NamedTuple):
    """Who asks: the address as text, as the socket gives it, and whether by TCP."""

    address: str
    port: int
    tcp: bool


class SlowPath(Protocol):
    """What may wait: forwarding, caches, rewriting, logs."""

    async def resolve(self, query: bytes, client: Client) -> bytes | None:
        """The whole response to `query`; None drops it."""


class FastAnswers(Protocol):
    """What is answered in the receive loop, without waiting."""

    def answer(self, query: bytes, client: Client) -> bytes | None:
        """The whole response; b"" for what gets none. None: not ours, or it needs the slow path."""

    def owns(self, qname: bytes) -> bool:
        """Whether `qname` (lower-case wire form) is at or below a zone we are authoritative for."""
