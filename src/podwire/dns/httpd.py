"""The three small HTTP servers beside DNS: `/health`, `/ready`, `/metrics`.

    GET PATH -> the page's function -> status and text; one connection, one answer

Each has its own port, as CoreDNS's plugins have. The functions are called in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

Page = Callable[[], tuple[HTTPStatus, str]]
Pages = Mapping[str, Page]

_TIMEOUT_S: Final = 10.0
_MAX_REQUEST: Final = 16 * 1024


async def serve_pages(pages: Pages, sockets: list[socket.socket]) -> list[asyncio.Server]:
    """Serve until the servers are closed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_respond(pages, head))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    return [await asyncio.start_server(answer, sock=s, limit=_MAX_REQUEST) for s in sockets]


def _respond(pages: Pages, head: bytes) -> bytes:
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
    method, path = [*words, "", ""][:2]
    page = pages.get(path.partition("?")[0])
    if method not in ("GET", "HEAD"):
        status, text = HTTPStatus.METHOD_NOT_ALLOWED, ""
    elif page is None:
        status, text = HTTPStatus.NOT_FOUND, "404 page not found\n"
    else:
        status, text = page()
    body = text.encode()
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: text/plain; version=0.0.4; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "\r\n",
    )
    return "\r\n".join(lines).encode() + (b"" if method == "HEAD" else body)
