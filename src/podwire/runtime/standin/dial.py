"""`/dial`: a connection made from inside the pod, as agnhost's netexec does it.

The socket is opened in the pod's namespace and used from ours. Names are looked up in the pod's own
hosts file and then with the servers and search list of its resolv.conf, from inside as well.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from podwire.errors import KernelError
from podwire.kernel import netns
from podwire.runtime.standin.endpoint import Dial
from podwire.runtime.standin.protocol import Serve

_TRY_TIMEOUT_S = 3.0
_DNS_TIMEOUT_S = 2.0
_MAX_ANSWER = 64 * 1024
_A, _AAAA = 1, 28


async def dial(serve: Serve, request: Dial) -> bytes:
    """agnhost's answer: `{"responses": [...], "errors": [...]}`, one entry per try."""
    responses: list[str] = []
    errors: list[str] = []
    for _ in range(request.tries):
        try:
            async with asyncio.timeout(_TRY_TIMEOUT_S + _DNS_TIMEOUT_S):
                responses.append(await _once(serve, request))
        except TimeoutError:
            errors.append(f"{request.host}:{request.port}: i/o timeout")
        except (OSError, KernelError, LookupError) as error:
            errors.append(f"{request.host}:{request.port}: {error}")
    outcome = {"responses": responses} | ({"errors": errors} if errors else {})
    return msgspec.json.encode(outcome)


@contextmanager
def _socket(serve: Serve, address: str, kind: int, protocol: int = 0) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if serve.netns:
        fd = netns.open_pin(Path(serve.netns))
        try:
            sock = netns.socket_in(fd, family, kind, protocol)
        finally:
            os.close(fd)
    else:
        sock = socket.socket(family, kind, protocol)
    with sock:
        sock.setblocking(False)
        yield sock


async def _once(serve: Serve, request: Dial) -> str:
    loop = asyncio.get_running_loop()
    address = await resolve(serve, request.host)
    target = (address, request.port)
    if request.protocol == "udp":
        with _socket(serve, address, socket.SOCK_DGRAM) as sock:
            await loop.sock_connect(sock, target)
            await loop.sock_sendall(sock, request.request.encode())
            return (await loop.sock_recv(sock, 65535)).decode(errors="replace")
    protocol = socket.IPPROTO_SCTP if request.protocol == "sctp" else 0
    with _socket(serve, address, socket.SOCK_STREAM, protocol) as sock:
        await loop.sock_connect(sock, target)
        if request.protocol != "http":
            await loop.sock_sendall(sock, request.request.encode() + b"\n")
            return (await loop.sock_recv(sock, 65535)).decode(errors="replace")
        path = quote(request.request.lstrip("/"), safe="/?&=%:,+")
        host = f"[{request.host}]" if ":" in request.host else request.host
        head = f"GET /{path} HTTP/1.0\r\nHost: {host}:{request.port}\r\n\r\n"
        await loop.sock_sendall(sock, head.encode())
        return _http_body(await _read_all(sock))


async def _read_all(sock: socket.socket) -> bytes:
    data = b""
    while len(data) < _MAX_ANSWER:
        chunk = await asyncio.get_running_loop().sock_recv(sock, 65536)
        if not chunk:
            break
        data += chunk
    return data


def _http_body(data: bytes) -> str:
    _, separator, body = data.partition(b"\r\n\r\n")
    if not data.startswith(b"HTTP/") or not separator:
        raise OSError("malformed HTTP response")
    return body.decode(errors="replace")


# --- names ----------------------------------------------------------------------------------------


async def resolve(serve: Serve, name: str) -> str:
    """One address for `name` as the pod would find it. Raises LookupError."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    known = _hosts_entry(serve.hosts, name)
    if known:
        return known
    servers, searches, ndots = parse_resolv_conf(_read(serve.resolv_conf))
    families = [_AAAA] if ":" in serve.address else [_A, _AAAA]
    for candidate in search_candidates(name, searches, ndots):
        for server in servers:
            for family in families:
                answer = await _query(serve, server, candidate, family)
                if answer:
                    return answer
    raise LookupError(f"lookup {name}: no such host")


def _read(path: str) -> str:
    try:
        return Path(path).read_text() if path else ""
    except OSError:
        return ""


def _hosts_entry(path: str, name: str) -> str | None:
    for line in _read(path).splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if name in names:
            return address
    return None


def parse_resolv_conf(text: str) -> tuple[list[str], list[str], int]:
    """Name servers, search domains and ndots (resolv.conf(5))."""
    servers: list[str] = []
    searches: list[str] = []
    ndots = 1
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_]:
                servers.append(address)
            case ["search", *domains]:
                searches = domains
            case ["options", *options]:
                for option in options:
                    if option.startswith("ndots:") and option[6:].isdigit():
                        ndots = int(option[6:])
    return servers, searches, ndots


def search_candidates(name: str, searches: list[str], ndots: int) -> list[str]:
    """The absolute names to ask for, in the resolver's order."""
    if name.endswith("."):
        return [name.rstrip(".")]
    expanded = [f"{name}.{domain}" for domain in searches]
    return [name, *expanded] if name.count(".") >= ndots else [*expanded, name]


async def _query(serve: Serve, server: str, name: str, record: int) -> str | None:
    loop = asyncio.get_running_loop()
    identity = random.getrandbits(16)
    labels = b"".join(
        bytes([len(label)]) + label.encode("idna") for label in name.split(".") if label
    )
    question = struct.pack("!6H", identity, 0x0100, 1, 0, 0, 0) + labels
    question += b"\0" + struct.pack("!2H", record, 1)
    with _socket(serve, server, socket.SOCK_DGRAM) as sock:
        await loop.sock_connect(sock, (server, 53))
        await loop.sock_sendall(sock, question)
        async with asyncio.timeout(_DNS_TIMEOUT_S):
            while True:
                data = await loop.sock_recv(sock, 4096)
                if data[:2] == question[:2]:
                    return parse_answer(data, len(question), record)


def parse_answer(data: bytes, offset: int, record: int) -> str | None:
    """The first A or AAAA record of a message whose question ends at `offset` (RFC 1035 4.1)."""
    try:
        for _ in range(struct.unpack_from("!H", data, 6)[0]):
            while data[offset] and data[offset] < 0xC0:
                offset += 1 + data[offset]
            offset += 2 if data[offset] >= 0xC0 else 1
            kind, _class, _ttl, size = struct.unpack_from("!2HIH", data, offset)
            offset += 10
            if kind == record:
                return str(ipaddress.ip_address(data[offset : offset + size]))
            offset += size
    except (IndexError, struct.error, ValueError):
        return None
    return None
