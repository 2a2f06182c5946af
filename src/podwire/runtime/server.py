"""The kubelet's own API, on a unix socket that only the lab's API server can reach.

    /containerLogs/NS/POD/CONTAINER     /exec/NS/POD/CONTAINER     /attach/NS/POD/CONTAINER
    /pods     /healthz     /metrics     and what others register with `add_route`

Source: kubernetes/kubernetes pkg/kubelet/server/server.go (paths and refusals).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from podwire.errors import ApiError, BadRequestError, ContainerError, NotFoundError
from podwire.runtime.containers import ExecProcess, RunningContainer
from podwire.runtime.kubelet import Kubelet
from podwire.runtime.logs import LogOptions, read_log
from podwire.runtime.state import Slot
from podwire.runtime.streams import ExecRequest, serve_exec
from podwire.runtime.worker import PodWorker

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class KubeletServer:
    """Use as an async context manager around the agent's life."""

    def __init__(self, kubelet: Kubelet) -> None:
        self._kubelet = kubelet
        self._path = kubelet.config.kubelet_socket
        self._runner: web.AppRunner | None = None
        self._more_metrics: list[Callable[[Mapping[str, str]], Awaitable[str]]] = []
        self._app = web.Application(middlewares=[_errors])
        target = "{namespace}/{pod}/{container}"
        self._app.router.add_get("/healthz", _healthz)
        self._app.router.add_get("/pods", self._pods)
        self._app.router.add_get("/metrics", self._metrics)
        self._app.router.add_get(f"/containerLogs/{target}", self._logs)
        for method in ("GET", "POST"):
            self._app.router.add_route(method, f"/exec/{target}", self._exec)
            self._app.router.add_route(method, f"/attach/{target}", self._attach)
            self._app.router.add_route(method, "/portForward/{namespace}/{pod}", _port_forward)

    def add_route(self, method: str, path: str, handler: Handler) -> None:
        """Add a route before the server starts, e.g. the probe engine's `/probe`."""
        self._app.router.add_route(method, path, handler)

    def add_metrics(self, page: Callable[[Mapping[str, str]], Awaitable[str]]) -> None:
        """Append another part's metrics to `/metrics`; it is given the request's query."""
        self._more_metrics.append(page)

    async def __aenter__(self) -> KubeletServer:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()
        self._path.chmod(0o600)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # -- what a request is about -------------------------------------------------------------------

    def _find(self, request: web.Request) -> tuple[PodWorker, Slot]:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        worker = self._kubelet.find(namespace, name)
        if worker is None:
            raise NotFoundError(f'pod "{name}" not found in namespace "{namespace}"')
        wanted = request.match_info["container"]
        slot = next((slot for slot in worker.slots if slot.name == wanted), None)
        if slot is None:
            raise NotFoundError(f'container "{wanted}" not found in pod "{name}_{namespace}"')
        return worker, slot

    def _running(self, request: web.Request) -> RunningContainer:
        worker, slot = self._find(request)
        if slot.running is None:
            raise BadRequestError(f'container not found ("{slot.name}") in pod {worker.pod.key}')
        return slot.running

    # -- handlers ----------------------------------------------------------------------------------

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        container = self._running(request)

        async def start(wanted: ExecRequest) -> ExecProcess:
            return await container.exec(wanted.command, tty=wanted.tty, stdin=wanted.stdin)

        return await serve_exec(request, start)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        container = self._running(request)

        async def start(_wanted: ExecRequest) -> ExecProcess:
            return await container.attach()

        return await serve_exec(request, start)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        worker, slot = self._find(request)
        options = LogOptions.parse(request.query, time.time())
        path, ended = self._log_of(worker, slot, options)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in read_log(path, options, ended):
            await response.write(chunk)
        await response.write_eof()
        return response

    def _log_of(
        self, worker: PodWorker, slot: Slot, options: LogOptions
    ) -> tuple[Path, Callable[[], bool]]:
        host, name = self._kubelet.host, worker.pod.metadata.name
        attempt = slot.attempt
        if options.previous:
            path = host.log_path(worker.pod, slot.name, attempt - 1)
            if attempt == 0 or not (path.exists() or slot.last is not None):
                raise BadRequestError(
                    f'previous terminated container "{slot.name}" in pod "{name}" not found'
                )
            return path, lambda: True
        if slot.running is None and slot.ended is None and slot.last is None:
            reason, message = slot.waiting
            detail = f"trying and failing to pull image: {message}" if "Pull" in reason else reason
            raise BadRequestError(
                f'container "{slot.name}" in pod "{name}" is waiting to start: {detail}'
            )
        container = slot.running
        path = container.log_path if container else host.log_path(worker.pod, slot.name, attempt)
        return path, lambda: slot.running is not container or container is None

    async def _pods(self, _request: web.Request) -> web.Response:
        items: list[Any] = [
            msgspec.to_builtins(worker.pod) for worker in self._kubelet.pods.values()
        ]
        body = msgspec.json.encode({"kind": "PodList", "apiVersion": "v1", "items": items})
        return web.Response(body=body, content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        workers = self._kubelet.pods.values()
        running = sum(slot.is_running for worker in workers for slot in worker.slots)
        restarts = sum(slot.attempt for worker in workers for slot in worker.slots)
        lines = [
            "# HELP kubelet_running_pods Number of pods that have a running pod sandbox",
            "# TYPE kubelet_running_pods gauge",
            f"kubelet_running_pods {sum(worker.sandbox is not None for worker in workers)}",
            "# HELP kubelet_running_containers Number of containers currently running",
            "# TYPE kubelet_running_containers gauge",
            f"kubelet_running_containers {running}",
            "# HELP kubelet_container_restarts Restarts of the containers on this node",
            "# TYPE kubelet_container_restarts gauge",
            f"kubelet_container_restarts {restarts}",
            "",
        ]
        more = [await page(request.query) for page in self._more_metrics]
        return web.Response(text="".join(["\n".join(lines), *more]), content_type="text/plain")


async def _healthz(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _port_forward(request: web.Request) -> web.StreamResponse:
    where = f"{request.match_info['namespace']}/{request.match_info['pod']}"
    raise ApiError(
        f"port-forward is not served in this version; use `podwire publish PORT:{where}:PORT`",
        code=501,
        reason="NotImplemented",
    )


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as plain text, as kubelet answers; the API server makes a Status of them."""
    try:
        return await handler(request)
    except ApiError as error:
        return web.Response(text=error.message, status=error.code)
    except ContainerError as error:
        return web.Response(text=str(error), status=500)
