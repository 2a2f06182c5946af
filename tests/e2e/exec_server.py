"""A tiny Kubernetes API with one pod whose exec runs programs of this machine."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from podwire.errors import ApiError, ContainerError
from podwire.runtime.streams import ExecRequest, LocalProcess, serve_exec, spawn_local

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "default", "uid": "1"},
    "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "x"}]},
    "status": {"phase": "Running"},
}
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
_RESOURCES = [
    {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": _VERBS},
    {"name": "pods/exec", "namespaced": True, "kind": "PodExecOptions", "verbs": ["create", "get"]},
]
JSON: dict[str, Any] = {
    "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": _RESOURCES},
    "/api/v1/namespaces/default/pods/p": POD,
}


class ExecServer:
    def __init__(self) -> None:
        self.started: list[LocalProcess] = []
        self.upgrades: list[str] = []
        self.url = ""

    async def start(self, request: ExecRequest) -> LocalProcess:
        if request.command[0] == "missing":
            raise ContainerError("container c: exec missing: no such file in $PATH")
        process = await spawn_local(request.command, stdin=request.stdin, tty=request.tty)
        self.started.append(process)
        return process

    async def exec(self, request: web.Request) -> web.StreamResponse:
        self.upgrades.append(request.headers.get("Upgrade", ""))
        try:
            return await serve_exec(request, self.start)
        except ApiError as e:
            return web.json_response(e.status(), status=e.code)

    async def json(self, request: web.Request) -> web.Response:
        body = JSON.get(request.path)
        return web.json_response(
            body or {"kind": "Status", "code": 404}, status=200 if body else 404
        )


@contextlib.asynccontextmanager
async def serving(unix_socket: str = "") -> AsyncIterator[ExecServer]:
    server = ExecServer()
    app = web.Application()
    app.router.add_route("*", "/api/v1/namespaces/default/pods/p/exec", server.exec)
    app.router.add_get("/{path:.*}", server.json)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    if unix_socket:
        await web.UnixSite(runner, unix_socket).start()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[-1][1]}"
    try:
        yield server
    finally:
        for process in server.started:
            process.kill(signal.SIGKILL)
        await runner.cleanup()
