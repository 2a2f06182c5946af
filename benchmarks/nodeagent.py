"""What benchmarks of one node's agent share: a real API server and the agent as processes, the
agent in a network namespace of its own, whose nftables somebody watches."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import uvloop

from podwire.apiserver.app import ApiServer, ServerConfig
from podwire.client import Api, Endpoint
from podwire.kernel import guard, libc, netns, userns
from podwire.kernel.nfmonitor import NfMonitor
from podwire.objects import kinds

NODE = "node-0"
NODE_ADDRESS = "172.30.0.2"
_IN_FLIGHT = 64
_SYNCED = "synced"


# --- the two processes ----------------------------------------------------------------------------


def add_role(parser: argparse.ArgumentParser) -> None:
    """The option with which a benchmark starts itself again."""
    parser.add_argument("--serve", nargs=2, metavar=("ROLE", "FOLDER"), help=argparse.SUPPRESS)


def serve(
    role: str,
    folder: Path,
    service_cidr: IPv4Network | IPv6Network,
    agent: Callable[[Path], Coroutine[Any, Any, None]],
) -> None:
    """Never returns. `agent` is given the folder, and calls `tell_synced`."""
    libc.set_pdeathsig(9)
    # As every component of a lab has it (lab/components.py).
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    uvloop.run(_serve_api(folder, service_cidr) if role == "api" else agent(folder))


async def _serve_api(folder: Path, service_cidr: IPv4Network | IPv6Network) -> None:
    config = ServerConfig(
        folder / "store.db",
        folder / "pki",
        unix_socket=folder / "api.sock",
        service_cidrs=(service_cidr,),
    )
    server = ApiServer(config)
    await server.start()
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def client(folder: Path) -> AsyncIterator[Api]:
    async with Api(Endpoint(unix_socket=folder / "api.sock")) as api:
        await api.wait_healthy(20.0)
        yield api


@contextlib.contextmanager
def process(role: str, folder: Path, pin: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """This script as `role`; the agent in the namespace of `pin`."""
    command = [sys.executable, sys.argv[0], "--serve", role, str(folder)]
    if pin is not None:
        command = ["nsenter", f"--net={pin}", "--", *command]
    child = subprocess.Popen(command, env=os.environ | guard.environment())
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def tell_synced(folder: Path) -> None:
    (folder / _SYNCED).touch()


def forget_synced(folder: Path) -> None:
    (folder / _SYNCED).unlink()


async def wait_synced(folder: Path, timeout_s: float) -> float:
    """Seconds until the agent told it."""
    began = time.perf_counter()
    while not (folder / _SYNCED).exists():
        if time.perf_counter() - began > timeout_s:
            raise SystemExit(f"{folder}: the agent was not in sync in {timeout_s:g} s")
        await asyncio.sleep(0.002)
    return time.perf_counter() - began


def run(measure: Callable[[Path, Path], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
    """Call it with a folder and the pin of a new namespace, which end with it."""
    userns.unshare_as_root(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
    libc.mount("podwire", "/mnt", "tmpfs", data="mode=0700")
    with tempfile.TemporaryDirectory(prefix="pwb-", dir="/tmp") as home:
        pin = Path("/mnt/node-0")
        with netns.creating(pin):
            pass
        return uvloop.run(measure(Path(home), pin))


# --- objects --------------------------------------------------------------------------------------


async def create_node(api: Api) -> None:
    await api.create(kinds.NODE, {"metadata": {"name": NODE}})
    status = {"status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}]}}
    await api.patch(kinds.NODE, NODE, status, subresource="status")


async def all_of(make: Callable[[Any], Awaitable[Any]], things: Iterable[Any]) -> None:
    """Call it for each, many at once."""
    source = iter(things)

    async def work() -> None:
        for thing in source:
            await make(thing)

    async with asyncio.TaskGroup() as group:
        for _ in range(_IN_FLIGHT):
            group.create_task(work())


# --- when things happened -------------------------------------------------------------------------


class Commits:
    """When the agent's namespace saw its next transaction."""

    def __init__(self, pin: Path) -> None:
        fd = netns.open_pin(pin)
        try:
            self._monitor = NfMonitor.in_ns(fd)
        finally:
            os.close(fd)
        self.times: list[float] = []
        self.seen = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._read)

    def _read(self) -> None:
        if self._monitor.read():
            self.times.append(time.perf_counter())
            self.seen.set()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._monitor.fileno())
        self._monitor.close()

    async def after(self, change: Awaitable[Any]) -> tuple[float, float]:
        """(when the change was answered, when the last transaction it led to was there)."""
        self.seen.clear()
        await change
        answered = time.perf_counter()
        await asyncio.wait_for(self.seen.wait(), 5)
        # Up to three transactions: the last one within a few milliseconds counts.
        await asyncio.sleep(0.01)
        return answered, self.times[-1]


@contextlib.asynccontextmanager
async def watching(api: Api, kind: Any) -> AsyncIterator[dict[str, float]]:
    """When each object's last event arrived here, by name."""
    arrived: dict[str, float] = {}
    _, version = await api.list(kind)

    async def watch() -> None:
        async for lines in api.watch_lines(kind, version):
            now = time.perf_counter()
            for line in lines:
                at = line.find(b'"name":"', line.find(b'"metadata":')) + 8
                arrived[line[at : line.index(b'"', at)].decode()] = now

    task = asyncio.create_task(watch())
    await asyncio.sleep(0.5)  # the watch is open; there is no event to wait for
    try:
        yield arrived
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
