"""`log`: one line per query, in CoreDNS's formats.

    [INFO] 10.244.1.7:5075 - 2900 "A IN example.org. udp 41 false 4096" NOERROR qr,rd,ra 68 0.0379s

Source: coredns plugin/log/log.go, plugin/pkg/replacer/replacer.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import dns.opcode
import dns.rdataclass

from podwire.dns import config, packet
from podwire.dns.cache import classify
from podwire.dns.request import Failure, Handler, Reply, Request, rcode_name, type_name
from podwire.dns.zones import in_zone

COMMON: Final = (
    '{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" '
    "{rcode} {>rflags} {rsize} {duration}"
)
COMBINED: Final = COMMON + ' "{>opcode}"'
_PLACEHOLDER: Final = re.compile(r"\{[^{}]*\}")
_FLAGS: Final = (
    ("qr", packet.QR),
    ("aa", packet.AA),
    ("tc", packet.TC),
    ("rd", packet.RD),
    ("ra", packet.RA),
    ("ad", packet.AD),
    ("cd", packet.CD),
)


class Log:
    """`clock` gives seconds; `write` gets whole lines."""

    def __init__(
        self,
        rules: Sequence[config.Log],
        following: Handler,
        write: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._following = following
        self._write = write
        self._clock = clock

    async def __call__(self, request: Request) -> Reply:
        rule = next(
            (r for r in self._rules if any(in_zone(request.text, name) for name in r.names)), None
        )
        if rule is None:
            return await self._following(request)
        started = self._clock()
        try:
            reply = await self._following(request)
        except Failure as failure:
            self._log(rule, request, request.failed(failure.code), started)
            raise
        self._log(rule, request, reply.wire, started)
        return reply

    def _log(self, rule: config.Log, request: Request, response: bytes, started: float) -> None:
        if not rule.classes & {"all", response_class(request, response)}:
            return
        seconds = self._clock() - started
        self._write(f"[INFO] {format_query(rule.format, request, response, seconds)}")


def response_class(request: Request, response: bytes) -> config.ResponseClass:
    found = packet.records(response, request.question.end) or []
    kind = classify(response, found, request.question.qtype)
    return "success" if kind == "success" else "denial" if kind == "denial" else "error"


def format_query(layout: str, request: Request, response: bytes, seconds: float) -> str:
    """The line; a placeholder nobody knows (metadata) is `-`."""
    values = _values(request, response, seconds)
    layout = layout.replace("{common}", COMMON).replace("{combined}", COMBINED)
    return _PLACEHOLDER.sub(lambda m: values.get(m[0], "-"), layout)


def _values(request: Request, response: bytes, seconds: float) -> dict[str, str]:
    client, question, edns = request.client, request.question, request.edns
    bits = packet.flags(response)
    opcode = packet.flags(request.wire) >> 11 & 0xF
    return {
        "{type}": type_name(question.qtype),
        "{name}": request.text,
        "{class}": dns.rdataclass.to_text(dns.rdataclass.RdataClass(question.qclass)),
        "{proto}": "tcp" if client.tcp else "udp",
        "{remote}": f"[{client.address}]" if ":" in client.address else client.address,
        "{port}": str(client.port),
        "{size}": str(len(request.wire)),
        "{duration}": f"{seconds:.9f}s",
        "{rcode}": rcode_name(packet.rcode(response)),
        "{rsize}": str(len(response)),
        "{>rflags}": ",".join(name for name, bit in _FLAGS if bits & bit),
        "{>bufsize}": str(edns.size if edns else 512),
        "{>do}": "true" if request.dnssec else "false",
        "{>id}": str(int.from_bytes(request.wire[:2], "big")),
        "{>opcode}": dns.opcode.to_text(dns.opcode.Opcode(opcode)),
    }
