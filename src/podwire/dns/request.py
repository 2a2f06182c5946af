"""One query on its way through a chain of plugins, and what comes back.

Request -> errors -> log -> ... -> forward;   Reply, or Failure for a response code without data
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, NamedTuple, Protocol

import dns.exception
import dns.message
import dns.name
import dns.rcode

from podwire.dns import packet
from podwire.dns.packet import Edns, Question
from podwire.dns.seam import Client
from podwire.errors import PodwireError

# How deep in chains this task is: targets of aliases are asked for from the top of the server,
# where a rewrite may lead back to the alias.
DEPTH: Final[ContextVar[int]] = ContextVar("depth", default=0)
MAX_UDP: Final = 512  # without EDNS: RFC 1035 section 4.2.1


class Request:
    """A query with its question and EDNS read once."""

    __slots__ = ("client", "edns", "question", "text", "wire")

    def __init__(self, wire: bytes, client: Client, question: Question, edns: Edns | None) -> None:
        self.wire = wire
        self.client = client
        self.question = question
        self.edns = edns
        self.text = packet.name_to_text(question.name)

    @staticmethod
    def parse(wire: bytes, client: Client) -> Request | None:
        """None for what has not exactly one well-formed question."""
        question = packet.parse_question(wire)
        if question is None:
            return None
        return Request(wire, client, question, packet.parse_edns(wire, question.end))

    def asking(
        self, name: bytes | None = None, qtype: int | None = None, qclass: int | None = None
    ) -> Request:
        """The same query with another question; raises ValueError for no legal name."""
        old = self.question
        wire_name = old.name if name is None else name
        if len(wire_name) > 255:
            raise ValueError(f"name of {len(wire_name)} bytes")
        kind = old.qtype if qtype is None else qtype
        group = old.qclass if qclass is None else qclass
        end = 12 + len(wire_name) + 4
        wire = (
            self.wire[:12]
            + wire_name
            + kind.to_bytes(2, "big")
            + group.to_bytes(2, "big")
            + self.wire[old.end :]
        )
        question = Question(wire_name.lower(), kind, group, end)
        return Request(wire, self.client, question, packet.parse_edns(wire, end))

    @property
    def limit(self) -> int:
        """How long a response may be."""
        if self.client.tcp:
            return 65535
        return min(self.edns.size, packet.OWN_SIZE) if self.edns else MAX_UDP

    @property
    def dnssec(self) -> bool:
        return self.edns is not None and self.edns.dnssec

    def failed(self, code: int) -> bytes:
        """A response with this code, without records."""
        return packet.error_reply(self.wire, code, edns=self.edns, end=self.question.end)

    def shown(self) -> str:
        return f"{self.text} {type_name(self.question.qtype)}"


class Reply(NamedTuple):
    """A whole response to the request.

    `live` answers come from the watch and are never to be cached. `owned`: the name is the
    cluster's and fell through; the answer may be cached under that name, which changes evict,
    but under no other.
    """

    wire: bytes
    plugin: str
    live: bool = False
    owned: bool = False


class Failure(PodwireError):  # noqa: N818 - as CoreDNS: a response code and why
    """No response of its own: the client gets the code, the log the message."""

    def __init__(self, code: int, message: str, plugin: str) -> None:
        self.code, self.plugin = code, plugin
        super().__init__(message)


Handler = Callable[[Request], Awaitable[Reply]]


class Plugin(Protocol):
    async def __call__(self, request: Request) -> Reply: ...


def type_name(qtype: int) -> str:
    return _TYPES.get(qtype) or f"TYPE{qtype}"


def decode(wire: bytes, plugin: str) -> dns.message.Message:
    """A response as dnspython has it, one record per set so that their order stays."""
    try:
        return dns.message.from_wire(
            wire, one_rr_per_rrset=True, ignore_trailing=True, raise_on_truncation=False
        )
    except (dns.exception.DNSException, ValueError, IndexError, EOFError) as e:
        raise Failure(packet.SERVFAIL, f"response does not parse: {e!r}", plugin) from e


def encode(message: dns.message.Message, plugin: str) -> bytes:
    try:
        return message.to_wire(max_size=65535)
    except (dns.exception.DNSException, ValueError) as e:
        raise Failure(packet.SERVFAIL, f"response cannot be written: {e!r}", plugin) from e


def name_from_text(text: str) -> bytes:
    """Wire form; raises ValueError for what is no domain name."""
    try:
        return dns.name.from_text(text).to_wire() or b""
    except (dns.exception.DNSException, UnicodeError) as e:
        raise ValueError(f"{text!r} is not a domain name") from e


def rcode_name(code: int) -> str:
    return dns.rcode.to_text(dns.rcode.Rcode(code)) if code <= 10 else f"RCODE{code}"


def _type_names() -> dict[int, str]:
    import dns.rdatatype

    return {int(kind): kind.name for kind in dns.rdatatype.RdataType}


_TYPES: Final = _type_names()
