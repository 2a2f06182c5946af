"""Logs, exec and node proxying against a kubelet of a few lines on a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .conftest import PODS, Api, pod

NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}


class Kubelet:
    """Answers logs and echoes upgraded connections; remembers the request lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.lines.append(head.splitlines()[0])
        if "pgrade: " in head:
            protocol = next(x for x in head.splitlines() if x.lower().startswith("upgrade: "))
            answer = (
                f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{protocol}\r\n\r\n"
            )
            writer.write(answer.encode() + b"hello ")
            while data := await reader.read(1000):
                writer.write(data.upper())
        else:
            body = b"line 1\nline 2\n"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()


@pytest.fixture
async def kubelet(tmp_path: Path, api: Api) -> AsyncIterator[Kubelet]:
    kubelet = Kubelet()
    server = await asyncio.start_unix_server(kubelet.serve, tmp_path / "n1.sock")
    await api.post("/api/v1/nodes", NODE)
    await api.post(PODS, pod("a", nodeName="n1"))
    async with server:
        yield kubelet


async def test_log(api: Api, kubelet: Kubelet) -> None:
    assert await api.get(f"{PODS}/a/log?tailLines=2") == "line 1\nline 2\n"
    assert kubelet.lines == ["GET /containerLogs/default/a/main?tailLines=2 HTTP/1.1"]


async def test_node_proxy(api: Api, kubelet: Kubelet) -> None:
    assert await api.get("/api/v1/nodes/n1/proxy/reach/probe?x=1") == "line 1\nline 2\n"
    assert kubelet.lines == ["GET /reach/probe?x=1 HTTP/1.1"]
    assert (await api.call("GET", "/api/v1/nodes/n9/proxy/x"))[0] == 404


@pytest.mark.parametrize("protocol", ["websocket", "SPDY/3.1"])
async def test_exec_is_a_byte_pipe(
    api: Api, kubelet: Kubelet, tmp_path: Path, protocol: str
) -> None:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "api.sock")
    query = "command=ls&command=-l&stdin=true&stdout=true&tty=true"
    writer.write(
        f"POST {PODS}/a/exec?{query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        f"Upgrade: {protocol}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert protocol.encode() in head
    assert await reader.readexactly(6) == b"hello "
    for word in (b"one", b"two"):
        writer.write(word)
        assert await reader.readexactly(3) == word.upper()
    writer.close()
    assert kubelet.lines == [
        "POST /exec/default/a/main?command=ls&command=-l&input=1&output=1&tty=1 HTTP/1.1"
    ]


async def test_exec_refusals(api: Api, kubelet: Kubelet, tmp_path: Path) -> None:
    code, refused = await api.call("POST", f"{PODS}/a/exec?command=ls")
    assert (code, refused["message"]) == (400, "Upgrade request required")
    await api.merge(f"{PODS}/a/status", {"status": {"phase": "Succeeded"}})
    code, refused = await api.call("POST", f"{PODS}/a/exec?command=ls")
    assert "current phase is Succeeded" in refused["message"]
    await api.post(PODS, pod("b", nodeName="n2"))
    code, refused = await api.call("GET", f"{PODS}/b/log")
    assert code == 502
