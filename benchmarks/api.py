"""The API server alone: creates per second, a list of 10,000 pods, watch latency, memory.

    python benchmarks/api.py [--pods 10000] [--watchers 100] [--writes 200]

Creates: one client process, 64 requests in flight over the unix socket. The comparator is a bare
aiohttp and SQLite loop that stores the same bodies with neither validation nor defaults, versions
or watches; both are measured in turns in the same run with the same client. Watch latency is from
just before a write is sent to the arrival at each watcher; the watchers are one process, which
reads their events one after the other, and that time is in the figure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent))

from lib import cpu_seconds, paired, percentile, print_result, pss_bytes
from podwire.apiserver.app import ApiServer, ServerConfig
from podwire.client import Api, Endpoint
from podwire.kernel import libc
from podwire.objects import kinds

_IN_FLIGHT = 64
_WRITE_EVERY_S = 0.02


def pod(name: str) -> bytes:
    """A pod as a manifest would have it."""
    return msgspec.json.encode(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "web", "tier": "front"}},
            "spec": {
                "containers": [
                    {
                        "name": "main",
                        "image": "example.com/web:1.0",
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "env": [{"name": "MODE", "value": "production"}],
                        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
                    }
                ]
            },
        }
    )


# --- the servers --------------------------------------------------------------------------------


async def serve_podwire(folder: Path) -> None:
    config = ServerConfig(folder / "store.db", folder / "pki", unix_socket=folder / "api.sock")
    server = ApiServer(config)
    await server.start()
    await asyncio.Event().wait()


async def serve_bare(folder: Path) -> None:
    """Store what comes, commit what came together at once, answer with it."""
    db = sqlite3.connect(folder / "store.db", isolation_level=None)
    db.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
        "CREATE TABLE object (key TEXT PRIMARY KEY, body BLOB)"
    )
    waiting: list[tuple[str, bytes, asyncio.Future[None]]] = []
    loop = asyncio.get_running_loop()

    def commit() -> None:
        rows, waiting[:] = waiting[:], []
        db.execute("BEGIN")
        db.executemany("INSERT INTO object VALUES (?, ?)", [row[:2] for row in rows])
        db.execute("COMMIT")
        for _, _, done in rows:
            done.set_result(None)

    async def create(request: web.BaseRequest) -> web.Response:
        if request.method != "POST":
            return web.Response(body=b"ok")
        body = await request.read()
        name = msgspec.json.decode(body)["metadata"]["name"]
        done = loop.create_future()
        waiting.append((name, body, done))
        if len(waiting) == 1:
            loop.call_soon(commit)
        await done
        return web.Response(status=201, body=body, content_type="application/json")

    runner = web.ServerRunner(web.Server(create))
    await runner.setup()
    await web.UnixSite(runner, str(folder / "api.sock")).start()
    await asyncio.Event().wait()


SERVERS = {"podwire": serve_podwire, "bare": serve_bare}


@contextlib.contextmanager
def running(server: str) -> Iterator[tuple[Path, int]]:
    """The server in a process of its own; yields its socket and pid."""
    with tempfile.TemporaryDirectory(prefix="pwb-", dir="/tmp") as folder:
        process = subprocess.Popen([sys.executable, __file__, "--serve", server, folder])
        try:
            yield Path(folder, "api.sock"), process.pid
        finally:
            process.kill()
            process.wait()


# --- the client ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def client(path: Path) -> AsyncIterator[Api]:
    async with Api(Endpoint(unix_socket=path), user_agent="benchmark") as api:
        await api.wait_healthy(20.0)
        yield api


async def fill(api: Api, count: int) -> float:
    """Seconds to create `count` pods."""
    numbers = iter(range(count))
    bodies = [pod(f"pod-{number}") for number in range(count)]

    async def work() -> None:
        for number in numbers:
            await api.request("POST", kinds.POD.path("default"), body=bodies[number])

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(_IN_FLIGHT):
            group.create_task(work())
    return time.perf_counter() - started


def creates_per_second(server: str, count: int) -> float:
    with running(server) as (path, _pid):

        async def measured() -> float:
            async with client(path) as api:
                return count / await fill(api, count)

        return uvloop.run(measured())


async def lists(api: Api, rounds: int = 7) -> dict[str, float]:
    """Median time of a whole list, raw and as typed views."""
    raw, typed, size = [], [], 0
    for _ in range(rounds):
        started = time.perf_counter()
        size = len(await api.request("GET", kinds.POD.path()))
        raw.append(time.perf_counter() - started)
        started = time.perf_counter()
        await api.list(kinds.POD)
        typed.append(time.perf_counter() - started)
    median = percentile(raw, 0.5)
    return {
        "ms": round(median * 1000, 1),
        "ms_as_views": round(percentile(typed, 0.5) * 1000, 1),
        "mb": round(size / 1e6, 2),
        "mb_per_s": round(size / 1e6 / median, 1),
    }


async def watch_latency(api: Api, watchers: int, writes: int) -> dict[str, float]:
    """From a write to its arrival at every watcher."""
    sent: dict[bytes, float] = {}
    latencies: list[float] = []
    done = asyncio.Event()
    _, version = await api.list(kinds.POD)

    async def watch() -> None:
        async for lines in api.watch_lines(kinds.POD, version):
            now = time.perf_counter()
            for line in lines:
                at = line.find(b'"stamp":"')
                if at >= 0:
                    latencies.append(now - sent[line[at + 9 : at + 17]])
            if len(latencies) >= watchers * writes:
                done.set()

    tasks = [asyncio.create_task(watch()) for _ in range(watchers)]
    await asyncio.sleep(1.0)  # every watch is open; there is no event to wait for
    for number in range(writes):
        stamp = f"{number:08d}"
        sent[stamp.encode()] = time.perf_counter()
        patch = {"metadata": {"annotations": {"stamp": stamp}}}
        await api.patch(kinds.POD, f"pod-{number}", patch, "default")
        await asyncio.sleep(_WRITE_EVERY_S)
    await asyncio.wait_for(done.wait(), 60)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "p50_ms": round(percentile(latencies, 0.5) * 1000, 2),
        "p99_ms": round(percentile(latencies, 0.99) * 1000, 2),
        "watchers": watchers,
        "writes": writes,
    }


async def with_many(path: Path, pid: int, args: argparse.Namespace) -> dict[str, Any]:
    async with client(path) as api:
        before = pss_bytes([pid])
        started = cpu_seconds([pid])
        await fill(api, args.pods)
        cpu_us = (cpu_seconds([pid]) - started) / args.pods * 1e6
        filled = pss_bytes([pid])
        listing = await lists(api)
        latency = await watch_latency(api, args.watchers, args.writes)
        return {
            "pods": args.pods,
            "server_cpu_us_per_create": round(cpu_us),
            "pss_mib": round(filled / 2**20, 1),
            "pss_mib_empty": round(before / 2**20, 1),
            "list": listing,
            "watch": latency,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--creates", type=int, default=4_000)
    parser.add_argument("--watchers", type=int, default=100)
    parser.add_argument("--writes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=2, metavar=("SERVER", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        libc.set_pdeathsig(9)
        uvloop.run(SERVERS[args.serve[0]](Path(args.serve[1])))
        return
    creates = paired(
        lambda: creates_per_second("podwire", args.creates),
        lambda: creates_per_second("bare", args.creates),
        args.rounds,
        more_is_better=True,
    )
    with running("podwire") as (path, pid):
        figures = uvloop.run(with_many(path, pid, args))
    print_result("api", creates_per_second=creates.as_json(), in_flight=_IN_FLIGHT, **figures)


if __name__ == "__main__":
    main()
