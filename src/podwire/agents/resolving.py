"""`POST /dns`: one name looked up as a program in a pod would, every query sent for real.

    resolv.conf of the pod -> candidates -> query from inside its namespace -> the next, until one
    has an answer

Queries are sent from a thread of their own, because entering a namespace moves the thread and
because a name server that is silent takes its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import msgspec
from aiohttp import web

from podwire.errors import BadRequestError, KernelError, NotFoundError, UsageError
from podwire.explain.dnssearch import Resolver, candidates, find_in_hosts, parse_resolver
from podwire.explain.dnswire import DnsExchange, DnsRequest, DnsResponse, parse_dns_request
from podwire.kernel import netns

_PORT: Final = 53
_MAX_TYPES: Final = 8
_FAILURES: Final = (dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED)


@dataclass(frozen=True)
class Place:
    """Where a pod's programs run: its namespace (None: the node's) and its own files."""

    netns: Path | None
    resolv_conf: Path
    hosts: Path


class Resolving:
    """`place` finds a pod, raising `LookupError`."""

    def __init__(self, place: Callable[[str], Place]) -> None:
        self._place = place
        self._thread = ThreadPoolExecutor(2, thread_name_prefix="dns-explain")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def handle(self, request: web.Request) -> web.Response:
        try:
            wanted = parse_dns_request(await request.read())
            kinds = [dns.rdatatype.from_text(kind) for kind in wanted.types[:_MAX_TYPES]]
            dns.name.from_text(wanted.name)
        except (UsageError, dns.exception.DNSException, ValueError) as error:
            raise BadRequestError(f"dns: {error}") from error
        try:
            place = self._place(wanted.source)
        except LookupError as error:
            raise NotFoundError(str(error)) from error
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._thread, walk, place, wanted, kinds)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")


def walk(place: Place, wanted: DnsRequest, kinds: list[dns.rdatatype.RdataType]) -> DnsResponse:
    """The search list with real queries, from the calling thread."""
    text = _read(place.resolv_conf)
    resolver = parse_resolver(text)
    line = find_in_hosts(_read(place.hosts), wanted.name)
    exchanges: list[DnsExchange] = []
    for name in candidates(resolver, wanted.name):
        asked = [_ask(place, resolver, name, kind) for kind in kinds]
        exchanges += asked
        if any(exchange.found for exchange in asked):
            break
    return DnsResponse(text, line, tuple(exchanges))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _ask(place: Place, resolver: Resolver, name: str, kind: dns.rdatatype.RdataType) -> DnsExchange:
    """As glibc: every server in turn, `attempts` times over, until one has an answer or denies it;
    what fails counts where nothing better comes (resolv/res_send.c)."""
    what = dns.rdatatype.to_text(kind)
    try:
        query = dns.message.make_query(name, kind)
    except dns.exception.DNSException as illegal:
        return DnsExchange(name, what, error=str(illegal), tries=0)  # longer than a name can be
    started, tries, error = time.monotonic(), 0, "no name server"
    failed: DnsExchange | None = None
    for server in resolver.nameservers * resolver.attempts:
        tries += 1
        try:
            answer, tcp = _exchange(place.netns, server, query, resolver.timeout_s)
        except (OSError, KernelError, dns.exception.DNSException, ValueError) as silent:
            error = f"{server}: {_words(silent)}"
            continue
        found = DnsExchange(
            name=name,
            type=what,
            server=server,
            rcode=dns.rcode.to_text(answer.rcode()),
            records=_lines(answer.answer),
            authority=_lines(answer.authority),
            took_ms=_since(started),
            tries=tries,
            tcp=tcp,
        )
        if answer.rcode() not in _FAILURES:
            return found
        failed = found
    if failed is not None:
        return failed
    return DnsExchange(name, what, error=error, tries=tries, took_ms=_since(started))


def _since(started: float) -> float:
    """Milliseconds."""
    return round((time.monotonic() - started) * 1000, 3)


def _words(failed: Exception) -> str:
    if isinstance(failed, TimeoutError):
        return "no answer"
    return getattr(failed, "strerror", None) or str(failed) or type(failed).__name__


def _lines(section: list[dns.rrset.RRset]) -> tuple[str, ...]:
    return tuple(line for rrset in section for line in rrset.to_text().splitlines())


def _exchange(
    pin: Path | None, server: str, query: dns.message.Message, timeout_s: float
) -> tuple[dns.message.Message, bool]:
    """By UDP, and by TCP when that was cut short; whether it was TCP."""
    with _socket(pin, server, socket.SOCK_DGRAM, timeout_s) as sock:
        sock.send(query.to_wire())
        deadline = time.monotonic() + timeout_s
        while True:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            answer = dns.message.from_wire(sock.recv(65535), ignore_trailing=True)
            if query.is_response(answer):
                break
    if not answer.flags & dns.flags.TC:
        return answer, False
    with _socket(pin, server, socket.SOCK_STREAM, timeout_s) as sock:
        wire = query.to_wire()
        sock.sendall(len(wire).to_bytes(2, "big") + wire)
        with sock.makefile("rb") as stream:
            size = int.from_bytes(stream.read(2), "big")
            return dns.message.from_wire(stream.read(size)), True


@contextlib.contextmanager
def _socket(
    pin: Path | None, server: str, kind: socket.SocketKind, timeout_s: float
) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    fd = None if pin is None else netns.open_pin(pin)
    try:
        sock = socket.socket(family, kind) if fd is None else netns.socket_in(fd, family, kind)
    finally:
        if fd is not None:
            os.close(fd)
    with sock:
        sock.settimeout(timeout_s)
        sock.connect((server, _PORT))
        yield sock
