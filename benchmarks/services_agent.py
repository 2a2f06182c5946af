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
import os
import selectors
import signal
import socket
import sys
import threading
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import nodeagent
from lib import cpu_seconds, percentile, print_result, pss_bytes
from podwire.agents.config import ServiceConfig
from podwire.agents.services import ServiceAgent
from podwire.client import Api, Informer, PatchType
from podwire.kernel import netns
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

_TARGETS = {"change_p50_ms": 3.0, "change_p99_ms": 10.0, "restart_s": 3.0}
_CHURN_PER_S = 100


async def serve_agent(folder: Path) -> None:
    """The Service part of a node agent."""
    async with nodeagent.client(folder) as api:
        nodes: Informer[Node] = Informer(api, kinds.NODE)
        config = ServiceConfig((4,), (CLUSTER_CIDR,), (SERVICE_CIDR,))
        agent = ServiceAgent(api, nodeagent.NODE, config, nodes)
        async with asyncio.TaskGroup() as group:
            group.create_task(nodes.run())
            group.create_task(agent.run())
            await agent.synced.wait()
            nodeagent.tell_synced(folder)


# --- the client ---------------------------------------------------------------------------------


async def fill(api: Api, size: Size) -> None:
    """Create every Service, then every slice."""
    await api.create(kinds.NAMESPACE, {"metadata": {"name": "bench"}})
    await nodeagent.create_node(api)
    services = (raw_service(n) for n in range(size.services))
    slices = (s for n in range(size.services) for s in raw_slices(n, size.endpoints))
    await nodeagent.all_of(lambda raw: api.create(kinds.SERVICE, raw, "bench"), services)
    await nodeagent.all_of(lambda raw: api.create(kinds.ENDPOINT_SLICE, raw, "bench"), slices)


async def patch_slice(api: Api, number: int, size: Size, *, less: bool) -> None:
    (piece,) = raw_slices(number, size.endpoints)
    if less:
        piece["endpoints"].pop()
    change = {"endpoints": piece["endpoints"]}
    name = f"s{number}-0"
    await api.patch(kinds.ENDPOINT_SLICE, name, change, "bench", patch_type=PatchType.MERGE)


async def changes(api: Api, pin: Path, size: Size, count: int) -> dict[str, float]:
    """One endpoint more or less of one Service at a time."""
    commits = nodeagent.Commits(pin)
    from_event, from_answer = [], []
    async with nodeagent.watching(api, kinds.ENDPOINT_SLICE) as arrived:
        for turn in range(count):
            number = turn * 37 % size.services
            less = (turn // size.services) % 2 == 0
            answered, done = await commits.after(patch_slice(api, number, size, less=less))
            from_event.append((done - arrived[f"s{number}-0"]) * 1000)
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
        await patch_slice(api, number, size, less=turn % 2 == 0)
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
    nodeagent.forget_synced(folder)
    with nodeagent.process("agent", folder, pin):
        in_sync = await nodeagent.wait_synced(folder, 60)
        await asyncio.sleep(0.5)
        client.stopping.set()
        client.join()
    return {
        "in_sync_s": round(in_sync, 2),
        "connections": client.made,
        "failed": client.failed,
        "includes": "starting the interpreter and its imports",
    }


async def measure(args: argparse.Namespace, folder: Path, pin: Path) -> dict[str, Any]:
    size = parse_size(args.size)
    with nodeagent.process("api", folder):
        async with nodeagent.client(folder) as api:
            await fill(api, size)
            with nodeagent.process("agent", folder, pin) as agent:
                cold = await nodeagent.wait_synced(folder, 60)
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
    nodeagent.add_role(parser)
    args = parser.parse_args()
    if args.serve:
        nodeagent.serve(args.serve[0], Path(args.serve[1]), SERVICE_CIDR, serve_agent)
    print_result("services_agent", **nodeagent.run(partial(measure, args)), targets=_TARGETS)


if __name__ == "__main__":
    main()
