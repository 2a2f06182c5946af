"""A whole API server in this process, on a unix socket in the test's own directory."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from podwire.apiserver.app import ApiServer, ServerConfig


class Api:
    """A thin client: JSON in, (code, JSON) out; `last` keeps the response headers."""

    def __init__(self, session: aiohttp.ClientSession, server: ApiServer | None = None) -> None:
        self.session = session
        self._server = server
        self.headers: dict[str, str] = {}

    @property
    def server(self) -> ApiServer:
        assert self._server is not None
        return self._server

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> tuple[int, Any]:
        raw = body is None or isinstance(body, bytes | io.BytesIO)
        data = body if raw else json.dumps(body).encode()
        headers = {"Accept": accept} | ({"Content-Type": content} if data is not None else {})
        async with self.session.request(
            method, f"http://x{path}", data=data, headers=headers
        ) as answer:
            self.headers = {k.lower(): v for k, v in answer.headers.items()}
            text = await answer.read()
            is_json = answer.headers.get("Content-Type", "").startswith("application/json")
            return answer.status, json.loads(text) if is_json else text.decode()

    async def get(self, path: str, accept: str = "application/json") -> Any:
        code, body = await self.call("GET", path, accept=accept)
        assert code == 200, body
        return body

    async def post(self, path: str, body: Any, code: int = 201) -> Any:
        got, answer = await self.call("POST", path, body)
        assert got == code, answer
        return answer

    async def merge(self, path: str, body: Any, code: int = 200) -> Any:
        got, answer = await self.call("PATCH", path, body, content="application/merge-patch+json")
        assert got == code, answer
        return answer

    async def delete(self, path: str, body: Any = None, code: int = 200) -> Any:
        got, answer = await self.call("DELETE", path, body)
        assert got == code, answer
        return answer


class Stream:
    """The events of one watch, one at a time."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> tuple[str, Any]:
        line = await self.response.content.readline()
        assert line, "the watch ended"
        event = json.loads(line)
        return event["type"], event["object"]

    async def ended(self) -> bool:
        return await self.response.content.readline() == b""

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.response.close()


async def open_watch(api: Api, path: str, accept: str = "application/json") -> Stream:
    """The headers are here when this returns."""
    headers = {"Accept": accept}
    return Stream(await api.session.get(f"http://x{path}", headers=headers))


def config_for(directory: Path) -> ServerConfig:
    return ServerConfig(
        store=directory / "store.db",
        pki_dir=directory / "pki",
        unix_socket=directory / "api.sock",
        kubelet_socket=lambda node: directory / f"{node}.sock",
    )


@contextlib.asynccontextmanager
async def serving(config: ServerConfig) -> AsyncIterator[Api]:
    async with ApiServer(config) as server:
        connector = aiohttp.UnixConnector(path=str(config.unix_socket))
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Api(session, server)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(config_for(tmp_path)) as api:
        yield api


def pod(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "busybox"}], **spec},
    }


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}], **spec},
    }


PODS = "/api/v1/namespaces/default/pods"
MAPS = "/api/v1/namespaces/default/configmaps"
SERVICES = "/api/v1/namespaces/default/services"
