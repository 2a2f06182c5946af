"""One node's agent with 10,000 Services of 10 endpoints: a change, churn, a restart.

    python benchmarks/services_agent.py [--size 10000x10] [--changes 500] [--churn 20]

A real API server holds the objects, a real `ServiceAgent` in a process and network namespace of its
own follows it; this process writes slices and watches both the API and that namespace's nftables.

    change     from the watch event (as any client gets it) to the kernel's commit, and from the
               answer to the write to the commit; one endpoint more or one less each time
    churn      100 endpoint changes a second: processor time of the agent
    memory     PSS of the agent
    restart    SIGKILL and start: seconds until it is in sync again, while a client in that
               namespace opens connections through one of the Services all the time
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from lib import cpu_seconds, percentile, print_result, pss_bytes
from podwire.agents.config import ServiceConfig
from podwire.agents.services import ServiceAgent
from podwire.apiserver.app import ApiServer, ServerConfig
from podwire.client import Api, Endpoint, Informer
from podwire.kernel import guard, libc, netns, userns
from podwire.kernel.nfmonitor import NfMonitor
from podwire.kernel.requests import Address, Replace
from podwire.kernel.rtnl import Rtnl, loopback_up
from podwire.objects import kinds
from podwire.objects.core import Node
from service_sizes import (
    CLUSTER_CIDR,
    SERVICE_CIDR,
    Size,
    cluster_ip,
    endpoint_ip,
    raw_service,
    raw_slices,
)
from services_cold import parse_size

_IN_FLIGHT = 64
_TARGETS = {"change_p50_ms": 3.0, "change_p99_ms": 10.0, "restart_s": 3.0}
_CHURN_PER_S = 100


# --- the two processes --------------------------------------------------------------------------


async def serve_api(folder: Path) -> None:
    config = ServerConfig(
        folder / "store.db",
        folder / "pki",
        unix_socket=folder / "api.sock",
        service_cidrs=(SERVICE_CIDR,),
    )
    server = ApiServer(config)
    await server.start()
    await asyncio.Event().wait()


async def serve_agent(folder: Path) -> None:
    """The Service part of a node agent; `synced` is a file that appears."""
    async with Api(Endpoint(unix_socket=folder / "api.sock")) as api:
        await api.wait_healthy(20.0)
        nodes: Informer[Node] = Informer(api, kinds.NODE)
        config = ServiceConfig((4,), (CLUSTER_CIDR,), (SERVICE_CIDR,))
        agent = ServiceAgent(api, "node-0", config, nodes)
        async with asyncio.TaskGroup() as group:
            group.create_task(nodes.run())
            group.create_task(agent.run())
            await agent.synced.wait()
            (folder / "synced").touch()


@contextlib.contextmanager
def process(role: str, folder: Path, pin: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, __file__, "--serve", role, str(folder)]
    if pin is not None:
        command = ["nsenter", f"--net={pin}", "--", *command]
    child = subprocess.Popen(command, env=os.environ | guard.environment())
    try:
        yield child
    finally:
        child.kill()
        child.wait()


# --- the client ---------------------------------------------------------------------------------


async def fill(api: Api, size: Size) -> None:
    """Create every Service, then every slice."""
    await api.create(kinds.NAMESPACE, {"metadata": {"name": "bench"}})
    node = {"metadata": {"name": "node-0"}}
    await api.create(kinds.NODE, node)
    status = {"status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.2"}]}}
    await api.patch(kinds.NODE, "node-0", status, subresource="status")
    for kind, bodies in (
        (kinds.SERVICE, (raw_service(n) for n in range(size.services))),
        (
            kinds.ENDPOINT_SLICE,
            (s for n in range(size.services) for s in raw_slices(n, size.endpoints)),
        ),
    ):

        async def work(kind: Any = kind, bodies: Any = bodies) -> None:
            for body in bodies:
                await api.create(kind, body, "bench")

        async with asyncio.TaskGroup() as group:
            for _ in range(_IN_FLIGHT):
                group.create_task(work())


async def wait_file(path: Path, timeout_s: float) -> float:
    began = time.perf_counter()
    while not path.exists():
        if time.perf_counter() - began > timeout_s:
            raise SystemExit(f"{path}: did not appear in {timeout_s:g} s")
        await asyncio.sleep(0.002)
    return time.perf_counter() - began


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


def changed_slice(number: int, size: Size, *, less: bool) -> bytes:
    (piece,) = raw_slices(number, size.endpoints)
    if less:
        piece["endpoints"].pop()
    return msgspec.json.encode({"endpoints": piece["endpoints"]})


@contextlib.asynccontextmanager
async def watching(api: Api) -> AsyncIterator[dict[str, float]]:
    """When each slice's last event arrived here, by name."""
    arrived: dict[str, float] = {}
    _, version = await api.list(kinds.ENDPOINT_SLICE)

    async def watch() -> None:
        async for lines in api.watch_lines(kinds.ENDPOINT_SLICE, version):
            now = time.perf_counter()
            for line in lines:
                at = line.find(b'"name":"s')
                arrived[line[at + 8 : line.index(b'"', at + 8)].decode()] = now

    task = asyncio.create_task(watch())
    await asyncio.sleep(0.5)  # the watch is open; there is no event to wait for
    try:
        yield arrived
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def changes(api: Api, pin: Path, size: Size, count: int) -> dict[str, float]:
    """One endpoint more or less of one Service at a time."""
    commits = Commits(pin)
    from_event, from_answer = [], []
    async with watching(api) as arrived:
        for turn in range(count):
            number = turn * 37 % size.services
            name = f"s{number}-0"
            body = changed_slice(number, size, less=(turn // size.services) % 2 == 0)
            commits.seen.clear()
            before = len(commits.times)
            path = kinds.ENDPOINT_SLICE.path("bench", name)
            await api.request("PATCH", path, body=body, content_type="application/merge-patch+json")
            answered = time.perf_counter()
            await asyncio.wait_for(commits.seen.wait(), 5)
            # Up to three transactions: the last one within a few milliseconds counts.
            await asyncio.sleep(0.01)
            done = commits.times[-1]
            assert len(commits.times) > before
            from_event.append((done - arrived[name]) * 1000)
            from_answer.append((done - answered) * 1000)
    commits.close()
    return {
        "watch_event_to_kernel_p50_ms": round(percentile(from_event, 0.5), 3),
        "watch_event_to_kernel_p99_ms": round(percentile(from_event, 0.99), 3),
        "answer_to_kernel_p50_ms": round(percentile(from_answer, 0.5), 3),
        "answer_to_kernel_p99_ms": round(percentile(from_answer, 0.99), 3),
        "changes": count,
    }


async def churn(api: Api, pid: int, size: Size, seconds: int) -> dict[str, float]:
    """The agent's processor time while 100 endpoints a second come and go."""
    loop = asyncio.get_running_loop()
    began, before = loop.time(), cpu_seconds([pid])
    for turn in range(seconds * _CHURN_PER_S):
        number = turn * 41 % size.services
        body = changed_slice(number, size, less=turn % 2 == 0)
        path = kinds.ENDPOINT_SLICE.path("bench", f"s{number}-0")
        await api.request("PATCH", path, body=body, content_type="application/merge-patch+json")
        await asyncio.sleep(max(0.0, began + (turn + 1) / _CHURN_PER_S - loop.time()))
    took = loop.time() - began
    return {
        "changes_per_s": round(seconds * _CHURN_PER_S / took, 1),
        "agent_percent_of_a_core": round((cpu_seconds([pid]) - before) / took * 100, 1),
    }


class Client(threading.Thread):
    """Connections through a Service of the namespace, one after the other, until stopped."""

    def __init__(self, pin: Path, address: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._fd = netns.open_pin(pin)
        self._address = address
        self.stopping = threading.Event()
        self.made = self.failed = 0

    def run(self) -> None:
        while not self.stopping.is_set():
            sock = netns.socket_in(self._fd, socket.AF_INET)
            sock.settimeout(1.0)
            try:
                sock.connect(self._address)
                self.made += 1
            except OSError:
                self.failed += 1
            finally:
                # RST: thousands of TIME_WAITs would fill the machine's table.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()


class Backends(threading.Thread):
    """Accepts and closes: a queue nobody empties would refuse connections in the end."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__(daemon=True)
        self._selector = selectors.DefaultSelector()
        for sock in sockets:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                with contextlib.suppress(OSError):
                    assert isinstance(key.fileobj, socket.socket)
                    key.fileobj.accept()[0].close()


def serve_backends(pin: Path, size: Size) -> None:
    """Service 0's endpoints, all in the agent's own namespace."""
    fd = netns.open_pin(pin)
    sockets = []
    try:
        with Rtnl.in_ns(fd) as rtnl:
            rtnl.apply([loopback_up()])
            for k in range(size.endpoints):
                rtnl.apply([Replace(Address(1, IPv4Interface(f"{endpoint_ip(k)}/32")))])
            rtnl.apply([Replace(Address(1, IPv4Interface(f"{cluster_ip(0)}/32")))])
        for k in range(size.endpoints):
            sock = netns.socket_in(fd, socket.AF_INET)
            sock.bind((endpoint_ip(k), 8080))
            sock.listen(512)
            sockets.append(sock)
    finally:
        os.close(fd)
    Backends(sockets).start()


async def restart(folder: Path, pin: Path, size: Size, agent: Any) -> dict[str, Any]:
    """Kill the agent, start it again, with a client that never stops."""
    serve_backends(pin, size)
    client = Client(pin, (cluster_ip(0), 80))
    client.start()
    await asyncio.sleep(0.5)
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    (folder / "synced").unlink()
    with process("agent", folder, pin):
        in_sync = await wait_file(folder / "synced", 60)
        await asyncio.sleep(0.5)
        client.stopping.set()
        client.join()
    return {
        "in_sync_s": round(in_sync, 2),
        "connections": client.made,
        "failed": client.failed,
        "includes": "starting the interpreter and its imports",
    }


async def measure(folder: Path, pin: Path, args: argparse.Namespace) -> dict[str, Any]:
    size = parse_size(args.size)
    with process("api", folder):
        async with Api(Endpoint(unix_socket=folder / "api.sock")) as api:
            await api.wait_healthy(20.0)
            await fill(api, size)
            with process("agent", folder, pin) as agent:
                cold = await wait_file(folder / "synced", 60)
                await asyncio.sleep(1.0)
                figures: dict[str, Any] = {"size": str(size), "start_to_synced_s": round(cold, 2)}
                figures["change"] = await changes(api, pin, size, args.changes)
                figures["agent_pss_mib"] = round(pss_bytes([agent.pid]) / 2**20, 1)
                figures["churn"] = await churn(api, agent.pid, size, args.churn)
                figures["restart"] = await restart(folder, pin, size, agent)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="10000x10")
    parser.add_argument("--changes", type=int, default=500)
    parser.add_argument("--churn", type=int, default=20, help="seconds")
    parser.add_argument("--serve", nargs=2, metavar=("ROLE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        libc.set_pdeathsig(9)
        role, folder = args.serve[0], Path(args.serve[1])
        # As every component of a lab has it (lab/components.py).
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        uvloop.run(serve_api(folder) if role == "api" else serve_agent(folder))
        return
    userns.unshare_as_root(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
    libc.mount("podwire", "/mnt", "tmpfs", data="mode=0700")
    with tempfile.TemporaryDirectory(prefix="pwb-", dir="/tmp") as home:
        pin = Path("/mnt/node-0")
        with netns.creating(pin):
            pass
        figures = uvloop.run(measure(Path(home), pin, args))
    print_result("services_agent", **figures, targets=_TARGETS)


if __name__ == "__main__":
    main()
