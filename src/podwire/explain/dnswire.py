"""What `podwire dns explain` asks a node's agent, and what it answers, as JSON.

The agent reads the pod's resolv.conf and hosts file and sends every query of the search for real,
from inside the pod's network namespace.
"""

from __future__ import annotations

import msgspec

from podwire.errors import UsageError


class DnsRequest(msgspec.Struct, frozen=True, rename="camel"):
    """Look `name` up as a program in the pod `source` (namespace/name) would."""

    source: str
    name: str
    types: tuple[str, ...] = ("A", "AAAA")


class DnsExchange(msgspec.Struct, frozen=True, rename="camel"):
    """One query and what came of it. `rcode` is empty where no answer came, then `error` says why,
    `tries` 0 for a name that cannot be asked for; `records` are lines of the answer section."""

    name: str
    type: str
    server: str = ""
    rcode: str = ""
    records: tuple[str, ...] = ()
    authority: tuple[str, ...] = ()
    took_ms: float = 0.0
    tries: int = 1
    tcp: bool = False
    error: str = ""

    @property
    def found(self) -> bool:
        return self.rcode == "NOERROR" and bool(self.records)


class DnsResponse(msgspec.Struct, frozen=True, rename="camel"):
    """`hosts` is the line of /etc/hosts that answers first, where there is one."""

    resolv_conf: str
    hosts: str = ""
    exchanges: tuple[DnsExchange, ...] = ()


def parse_dns_request(body: bytes) -> DnsRequest:
    """Raises `UsageError` for what is not one."""
    try:
        return msgspec.json.decode(body, type=DnsRequest)
    except msgspec.MsgspecError as error:
        raise UsageError(f"dns request: {error}") from error
