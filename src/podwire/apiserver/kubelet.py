"""Pod logs, exec, attach, port-forward and node proxying: bytes to and from a node's kubelet API.

    client --HTTP/TLS--> API server --unix socket--> kubelet of the pod's node
      GET log            streamed response
      exec, attach, ...  HTTP Upgrade (WebSocket or SPDY/3.1), then raw bytes both ways

The server looks at no frame: what was upgraded to is between client and kubelet.
Source: pkg/registry/core/pod/strategy.go (LogLocation, streamLocation), kubelet server.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from aiohttp import ClientConnectionError, ClientSession, UnixConnector, web

from podwire.apiserver.context import Context
from podwire.apiserver.printers.columns import get
from podwire.apiserver.request import Request, flag, not_found
from podwire.errors import ApiError, BadRequestError
from podwire.objects.meta import JsonObject, Key

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "host"})
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_STREAM_FLAGS = {"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"}
_LOG_OPTIONS = (
    "follow",
    "limitBytes",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "stream",
    "tailLines",
    "timestamps",
)
HEAD_LIMIT = 64 * 1024


async def connect(ctx: Context, request: Request, http: web.BaseRequest) -> web.StreamResponse:
    """Answer a connect request: log, exec, attach, portforward, proxy."""
    if request.target.subresource == "proxy":
        return await _node_proxy(ctx, request, http)
    pod = _pod(ctx, request)
    where = f"{quote(request.target.namespace)}/{quote(request.target.name)}"
    match request.target.subresource:
        case "log":
            container = _container(request, pod)
            query = {k: request.query[k] for k in _LOG_OPTIONS if k in request.query}
            socket = _socket(ctx, request, pod)
            path = f"/containerLogs/{where}/{quote(container)}?{urlencode(query)}"
            return await _stream(socket, "GET", path, http)
        case "portforward":
            path = f"/portForward/{where}"
            query_list = [("port", port) for port in http.query.getall("ports", [])]
        case kind:
            _check_running(pod)
            path = f"/{kind}/{where}/{quote(_container(request, pod))}"
            query_list = _stream_query(http)
    socket = _socket(ctx, request, pod)
    return await _upgrade(socket, f"{path}?{urlencode(query_list)}", http)


def _pod(ctx: Context, request: Request) -> JsonObject:
    target = request.target
    record = ctx.table(request.resource).records.get(Key(target.namespace, target.name))
    if record is None:
        raise not_found(request.resource, target.name)
    return record.object()


def _names(pod: JsonObject, *lists: str) -> list[str]:
    return [c["name"] for name in lists for c in get(pod, "spec", name, default=())]


def choose_container(pod: JsonObject, wanted: str) -> str:
    """The container a request is about. Raises BadRequestError in upstream's words."""
    name = pod["metadata"]["name"]
    every = _names(pod, "containers", "initContainers", "ephemeralContainers")
    if wanted:
        if wanted not in every:
            raise BadRequestError(f"container {wanted} is not valid for pod {name}")
        return wanted
    main = _names(pod, "containers")
    if len(main) == 1:
        return main[0]
    marked = get(pod, "metadata", "annotations", _DEFAULT_CONTAINER)
    if marked in main:
        return str(marked)
    message = (
        f"a container name must be specified for pod {name}, choose one of: [{' '.join(main)}]"
    )
    if extra := _names(pod, "initContainers"):
        message += f" or one of the init containers: [{' '.join(extra)}]"
    raise BadRequestError(message)


def _container(request: Request, pod: JsonObject) -> str:
    return choose_container(pod, request.query.get("container", ""))


def _check_running(pod: JsonObject) -> None:
    phase = get(pod, "status", "phase", default="")
    if phase in ("Succeeded", "Failed"):
        raise ApiError(
            "cannot exec or attach into a container in a completed pod; current phase is " + phase,
            code=400,
            reason="BadRequest",
        )


def _socket(ctx: Context, request: Request, pod: JsonObject) -> str:
    name = pod["metadata"]["name"]
    node = get(pod, "spec", "nodeName", default="")
    if not node:
        if request.target.subresource == "log":
            raise BadRequestError(
                f'container "{_container(request, pod)}" in pod "{name}" is waiting to start: '
                "the pod is not scheduled to a node yet"
            )
        raise BadRequestError(f"pod {name} does not have a host assigned")
    return node_socket(ctx, node)


def node_socket(ctx: Context, node: str) -> str:
    path = ctx.kubelet_socket(node)
    if path is None:
        raise ApiError(
            f"node {node}: no kubelet is known; see `podwire status`",
            code=503,
            reason="ServiceUnavailable",
        )
    return str(path)


def _stream_query(http: web.BaseRequest) -> list[tuple[str, str]]:
    query = [("command", word) for word in http.query.getall("command", [])]
    return query + [
        (theirs, "1") for ours, theirs in _STREAM_FLAGS.items() if flag(http.query, ours)
    ]


def _unreachable(socket: str, error: Exception) -> ApiError:
    return ApiError(
        f"error dialing the kubelet at {socket}: {error}; see `podwire status`",
        code=502,
        reason="BadGateway",
    )


# -- plain HTTP ---------------------------------------------------------------------------------


async def _node_proxy(ctx: Context, request: Request, http: web.BaseRequest) -> web.StreamResponse:
    target = request.target
    if ctx.table(request.resource).records.get(Key("", target.name)) is None:
        raise not_found(request.resource, target.name)
    path = "/" + quote(target.rest)
    if http.query_string:
        path += "?" + http.query_string
    return await _stream(node_socket(ctx, target.name), http.method, path, http)


async def _stream(socket: str, method: str, path: str, http: web.BaseRequest) -> web.StreamResponse:
    """Send the request on and stream the answer back as it comes."""
    headers = {k: v for k, v in http.headers.items() if k.lower() not in _HOP_BY_HOP}
    headers.pop("Authorization", None)
    body = await http.read() if http.body_exists else None
    async with ClientSession(connector=UnixConnector(path=socket), auto_decompress=False) as client:
        try:
            answer = await client.request(
                method, f"http://kubelet{path}", headers=headers, data=body, timeout=None
            )
        except (ClientConnectionError, OSError) as error:
            raise _unreachable(socket, error) from error
        async with answer:
            if answer.status >= 400 and not _is_json(answer.headers):
                text = (await answer.text()).strip()
                raise ApiError.from_status({"message": text or answer.reason}, answer.status)
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    response.headers.add(name, value)
            await response.prepare(http)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


def _is_json(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Type", "").startswith("application/json")


# -- upgraded streams ---------------------------------------------------------------------------


class _ToKubelet:
    """Takes the place of the HTTP parser of an upgraded connection: bytes go to the kubelet."""

    def __init__(self, writer: asyncio.StreamWriter, client: asyncio.Transport) -> None:
        self._writer = writer
        self._client = client
        self.closed = asyncio.Event()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        if self._writer.is_closing():
            return True, b""
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > HEAD_LIMIT * 16:
            self._client.pause_reading()
            task = asyncio.ensure_future(self._resume())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return False, b""

    async def _resume(self) -> None:
        await self._writer.drain()
        self._client.resume_reading()

    def feed_eof(self) -> None:
        self.closed.set()
        if not self._writer.is_closing() and self._writer.can_write_eof():
            self._writer.write_eof()

    def set_exception(self, error: BaseException, cause: BaseException | None = None) -> None:
        self.closed.set()


async def _upgrade(socket: str, path: str, http: web.BaseRequest) -> web.StreamResponse:
    """Pass an HTTP Upgrade through and then copy bytes both ways until either side ends."""
    if "upgrade" not in http.headers.get("Connection", "").lower():
        raise BadRequestError("Upgrade request required")
    transport = http.transport
    assert transport is not None
    try:
        reader, writer = await asyncio.open_unix_connection(socket, limit=HEAD_LIMIT)
    except OSError as error:
        raise _unreachable(socket, error) from error
    try:
        writer.write(_head(http, path))
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status != 101:
            raise await _refused(status, head, reader)
        uplink = _ToKubelet(writer, transport)
        http.protocol.set_parser(uplink)  # type: ignore[arg-type]  # a parser by its two methods
        transport.write(head)
        while data := await reader.read(HEAD_LIMIT):
            if transport.is_closing():
                break
            transport.write(data)
            while transport.get_write_buffer_size() > HEAD_LIMIT * 16:
                await http._payload_writer.drain()
        return _Upgraded(status=101)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise _unreachable(socket, error) from error
    finally:
        writer.close()


class _Upgraded(web.StreamResponse):
    """Everything has been sent already; only the connection remains to be closed."""

    async def prepare(self, request: web.BaseRequest) -> None:
        self._req = request
        self._eof_sent = True
        self.force_close()
        request.protocol.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def _head(http: web.BaseRequest, path: str) -> bytes:
    lines = [f"{http.method} {path} HTTP/1.1", "Host: kubelet"]
    for name, value in http.headers.items():
        if name.lower() not in ("host", "authorization"):
            lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _refused(status: int, head: bytes, reader: asyncio.StreamReader) -> ApiError:
    """The kubelet's own refusal, in its words."""
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    text = (await reader.readexactly(length) if length else await reader.read(HEAD_LIMIT)).decode()
    reason = "BadRequest" if status == 400 else "InternalError"
    return ApiError(text.strip() or f"the kubelet answered {status}", code=status, reason=reason)
