"""A Kubernetes REST client: paths from `Kind`, bytes through msgspec, errors as `ApiError`.

One aiohttp session serves a process. An `Endpoint` is either a unix socket (inside a lab, trusted
by file permission) or an HTTPS URL with client credentials (a kubeconfig or an in-cluster token).
"""

from __future__ import annotations

import asyncio
import enum
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from podwire.client.decoding import decode_list, decode_view
from podwire.errors import ApiError
from podwire.objects.meta import JsonObject, Kind, T

_JSON = "application/json"
# A watch line carries one object; 3 MiB is the largest body an API server accepts.
_READ_BUFFER = 2**18
# How long a token read from a file is taken as it was (client-go transport/token_source.go).
_TOKEN_S = 60.0

Lines = list[bytes]


class PatchType(enum.Enum):
    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True)
class Endpoint:
    """Where an API server is and who we are to it."""

    url: str = "http://podwire"
    unix_socket: Path | None = None
    ca_file: Path | None = None
    client_cert: tuple[Path, Path] | None = None
    token: str | None = None
    token_file: Path | None = None
    """Instead of `token`: a pod's, which is renewed; it is read anew as client-go does."""

    def connector(self) -> aiohttp.BaseConnector:
        if self.unix_socket is not None:
            return aiohttp.UnixConnector(str(self.unix_socket), limit=0)
        context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        if self.client_cert is not None:
            context.load_cert_chain(*map(str, self.client_cert))
        return aiohttp.TCPConnector(ssl=context, limit=0)


@dataclass
class Api:
    """The client; use as an async context manager. `user_agent` names the field manager."""

    endpoint: Endpoint
    user_agent: str = "podwire"
    _session: aiohttp.ClientSession | None = field(default=None, repr=False)
    _token: str = field(default="", repr=False)
    _token_read: float = 0.0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            base_url=self.endpoint.url,
            connector=self.endpoint.connector(),
            headers=self._headers(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            read_bufsize=_READ_BUFFER,
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": self.user_agent, "Accept": _JSON}
        if self.endpoint.token:
            headers["Authorization"] = f"Bearer {self.endpoint.token}"
        return headers

    def _authorization(self) -> dict[str, str] | None:
        """The header of a renewed token; None where the session's headers say it all."""
        if self.endpoint.token_file is None:
            return None
        now = time.monotonic()
        if not self._token or now - self._token_read > _TOKEN_S:
            self._token = self.endpoint.token_file.read_text().strip()
            self._token_read = now
        return {"Authorization": f"Bearer {self._token}"}

    def _content(self, content_type: str) -> dict[str, str]:
        return {"Content-Type": content_type, **(self._authorization() or {})}

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Api is not open: use `async with Api(...)`")
        return self._session

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = _JSON,
        timeout_s: float | None = 30.0,
    ) -> bytes:
        """Send one request and return the body; raises `ApiError` for any 4xx or 5xx answer."""
        data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        async with self.session.request(
            method,
            path,
            params=query,
            data=data,
            headers=self._content(content_type) if data is not None else self._authorization(),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as response:
            payload = await response.read()
            if response.status >= 400:
                raise _api_error(payload, response.status)
            return payload

    async def get(self, kind: Kind[T], name: str, namespace: str = "") -> T:
        payload = await self.request("GET", kind.path(namespace, name))
        return decode_view(payload, kind.view)

    async def get_raw(self, kind: Kind[T], name: str, namespace: str = "") -> JsonObject:
        """The whole object, for callers that must carry fields the view does not name."""
        return _decode_object(await self.request("GET", kind.path(namespace, name)))

    async def list(
        self,
        kind: Kind[T],
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> tuple[Sequence[T], str]:
        """All objects and the resourceVersion they were read at."""
        query = _selectors(label_selector, field_selector)
        payload = await self.request("GET", kind.path(namespace), query=query)
        return decode_list(payload, kind.view)

    async def create(
        self, kind: Kind[T], obj: Mapping[str, Any], namespace: str = "", subresource: str = ""
    ) -> T:
        """Create `obj` (kind and apiVersion are filled in); `namespace` defaults to its own."""
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **obj}
        meta = obj.get("metadata") or {}
        path = kind.path(
            namespace or meta.get("namespace", ""),
            meta.get("name", "") if subresource else "",
            subresource,
        )
        return decode_view(await self.request("POST", path, body=body), kind.view)

    async def replace(
        self, kind: Kind[T], obj: Mapping[str, Any], *, subresource: str = ""
    ) -> JsonObject:
        """PUT the whole raw object; a stale resourceVersion raises `ConflictError`."""
        meta = obj["metadata"]
        path = kind.path(meta.get("namespace", ""), meta["name"], subresource)
        return _decode_object(await self.request("PUT", path, body=obj))

    async def patch(
        self,
        kind: Kind[T],
        name: str,
        patch: Any,
        namespace: str = "",
        *,
        subresource: str = "",
        patch_type: PatchType = PatchType.MERGE,
    ) -> T:
        payload = await self.request(
            "PATCH",
            kind.path(namespace, name, subresource),
            body=patch,
            content_type=patch_type.value,
        )
        return decode_view(payload, kind.view)

    async def delete(
        self,
        kind: Kind[T],
        name: str,
        namespace: str = "",
        *,
        grace_period_s: int | None = None,
        uid: str | None = None,
        propagation: str | None = None,
    ) -> None:
        """Delete; `uid` is a precondition, so that a successor of the same name survives."""
        options: JsonObject = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if propagation is not None:
            options["propagationPolicy"] = propagation
        await self.request("DELETE", kind.path(namespace, name), body=options)

    async def watch_lines(
        self,
        kind: Kind[T],
        resource_version: str,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        timeout_s: int = 600,
    ) -> AsyncIterator[Lines]:
        """Batches of complete JSON lines as they arrive; ends when the server closes the watch."""
        query = _selectors(label_selector, field_selector) | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_s),
        }
        async with self.session.get(
            kind.path(namespace),
            params=query,
            headers=self._authorization(),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=timeout_s + 30),
        ) as response:
            if response.status >= 400:
                raise _api_error(await response.read(), response.status)
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
                if lines:
                    yield lines

    async def wait_healthy(self, timeout_s: float = 10.0) -> None:
        """Return when `/readyz` answers; used right after a server was started."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                await self.request("GET", "/readyz", timeout_s=2.0)
                return
            except (aiohttp.ClientError, ApiError, OSError):
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.01)


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    query = {}
    if label_selector:
        query["labelSelector"] = label_selector
    if field_selector:
        query["fieldSelector"] = field_selector
    return query


def _decode_object(payload: bytes) -> JsonObject:
    return msgspec.json.decode(payload, type=dict[str, Any])


def _api_error(payload: bytes, code: int) -> ApiError:
    try:
        status = _decode_object(payload)
    except msgspec.MsgspecError:
        status = {"message": payload[:500].decode(errors="replace")}
    return ApiError.from_status(status, code)
