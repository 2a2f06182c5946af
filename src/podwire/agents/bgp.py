"""Announcing by BGP: every node that may carry an address tells the routers so, through ExaBGP.

    wanted addresses -> announce and withdraw lines -> FIFO -> exabgp -> router's table (ECMP)

No node owns an address: routers spread connections over all that announce it. Only the session
says that a node lives. So ExaBGP must not outlive the agent: when the agent dies its sessions close
and its routes go at once; when the machine dies they go with the hold time.

Internal addresses are not announced: nodes and pods need no route to them, and nobody beyond is to
have one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from podwire.agents.announcer import Wanted
from podwire.agents.config import BgpConfig
from podwire.errors import KernelError, UsageError
from podwire.kernel import libc
from podwire.services.election import Member
from podwire.services.pools import Address, Pools

_LOG = logging.getLogger(__name__)
_RESTART_S = 1.0
# ExaBGP waits up to a minute before it calls again a router that was away; a fresh one calls now.
_PATIENCE_S = 5.0
_ENVIRONMENT: Final = {
    # It becomes somebody else where it is root: to nobody our files are closed, and a user
    # namespace with one user has none.
    "exabgp_daemon_user": "root",
    # Neither named pipes beside its program nor answers, which nobody would read.
    "exabgp_api_cli": "false",
    "exabgp_api_ack": "false",
    "exabgp_log_level": "WARNING",
    "PYTHONUNBUFFERED": "1",
    # It asks who it is before anything else; see `_prepare`, for where that could not help.
    "RES_OPTIONS": "timeout:1 attempts:1",
    "exabgp_tcp_bind": "",
}


def find_exabgp() -> str:
    """The program, in this virtual environment or on PATH; `UsageError` where there is none."""
    own = Path(sys.executable).with_name("exabgp")
    found = str(own) if own.exists() else shutil.which("exabgp")
    if found is None:
        pip = f"{sys.executable} -m pip install 'exabgp>=5'"
        raise UsageError(f"load balancers by BGP need ExaBGP: {pip}")
    return found


def router_id(node: str, own: Iterable[Address]) -> IPv4Address:
    """The node's IPv4 address, or 32 bits of its name where it has none (RFC 6286)."""
    first = next((a for a in own if isinstance(a, IPv4Address)), None)
    return first or IPv4Address(hashlib.blake2s(node.encode(), digest_size=4).digest())


def render_config(
    node: str, own: tuple[Address, ...], peer: Address, config: BgpConfig, relay: Path
) -> str:
    """ExaBGP's configuration of one session, for the family it is spoken over."""
    local = next(address for address in own if address.version == peer.version)
    lines = [
        "process podwire {",
        f"\trun /bin/sh {relay};",
        "\tencoder text;",
        "}",
        f"neighbor {peer} {{",
        f"\trouter-id {router_id(node, own)};",
        f"\tlocal-address {local};",
        f"\tlocal-as {config.local_as};",
        f"\tpeer-as {config.peer_as};",
        f"\thold-time {config.hold_time_s};",
        f"\tfamily {{ ipv{peer.version} unicast; }}",
        "\tapi { processes [ podwire ]; neighbor-changes; }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def render_relay(fifo: Path, states: Path) -> str:
    """What ExaBGP runs to be told commands, and to tell how its sessions are. A shell gives what
    runs in the background another standard input, unless it is told not to."""
    return f"exec 3<&0\ncat <&3 >'{states}' &\nexec cat '{fifo}'\n"


def parse_state(line: str) -> bool | None:
    """Whether the session stands now, of a line ExaBGP tells; None for any other line."""
    match line.split():
        case ["neighbor", _, "up" | "down" as state, *_]:
            return state == "up"
    return None


def plan_routes(before: frozenset[Address], after: frozenset[Address]) -> list[str]:
    """ExaBGP's commands that lead from one set of announced addresses to another."""
    changes = [
        *(("withdraw", address) for address in sorted(before - after, key=_order)),
        *(("announce", address) for address in sorted(after - before, key=_order)),
    ]
    return [f"{verb} route {a}/{a.max_prefixlen} next-hop self" for verb, a in changes]


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def plan_own(node: str, wanted: Wanted, nodes: Iterable[str], pools: Pools) -> frozenset[Address]:
    """What this node announces: the external addresses it may carry."""
    if node not in nodes:
        return frozenset()
    return frozenset(
        address
        for address, eligible in wanted.items()
        if (eligible is None or node in eligible) and pools.scope_of(address) == "external"
    )


class BgpAnnouncement:
    """One ExaBGP per peer: a session that is tried anew never costs another."""

    def __init__(
        self,
        node_name: str,
        own: tuple[Address, ...],
        config: BgpConfig,
        pools: Pools,
        folder: Path,
    ) -> None:
        self._name = node_name
        self._pools = pools
        program, families = find_exabgp(), {address.version for address in own}
        self._speakers: list[Speaker] = []
        for index, peer in enumerate(p for p in config.peers if p.version in families):
            stem = folder / f"exabgp-{index}"
            relay = stem.with_suffix(".sh")
            text = render_config(node_name, own, peer, config, relay)
            self._speakers.append(Speaker(program, peer, text, stem))

    def set(self, wanted: Wanted, members: Mapping[str, Member]) -> None:
        own = plan_own(self._name, wanted, members, self._pools)
        for speaker in self._speakers:
            speaker.set(frozenset(a for a in own if a.version == speaker.peer.version))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for speaker in self._speakers:
                group.create_task(speaker.run())

    @property
    def announced(self) -> frozenset[Address]:
        """What any of its sessions was told."""
        return frozenset(a for speaker in self._speakers for a in speaker.announced)

    def close(self) -> None:
        for speaker in self._speakers:
            speaker.close()


class Speaker:
    """An ExaBGP with its one session; `announced` is what it was told."""

    def __init__(self, program: str, peer: Address, config: str, stem: Path) -> None:
        self.peer = peer
        self._program = program
        self._text = config
        self._file, self._relay = stem.with_suffix(".conf"), stem.with_suffix(".sh")
        self._fifo, self._states = stem.with_suffix(".fifo"), stem.with_suffix(".states")
        self._pipe = -1
        self._told = -1
        self._impatient: asyncio.TimerHandle | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.announced: frozenset[Address] = frozenset()

    def set(self, addresses: frozenset[Address]) -> None:
        self._write(plan_routes(self.announced, addresses))
        self.announced = addresses

    def _write(self, lines: Iterable[str]) -> None:
        if self._pipe < 0:
            return  # told when ExaBGP starts
        for line in lines:
            try:
                os.write(self._pipe, line.encode() + b"\n")
            except BlockingIOError:
                # It does not read: begin again, with all of it.
                _LOG.error("load balancers: exabgp does not listen; it is started anew")
                self._stop()
                return

    async def run(self) -> None:
        try:
            while True:
                await self._start()
                assert self._process is not None
                code = await self._process.wait()
                _LOG.warning("load balancers: exabgp ended (%d)", code)
                await asyncio.sleep(_RESTART_S)
        finally:
            self.close()

    async def _start(self) -> None:
        """A fresh pipe for a fresh process: it is told everything anew."""
        self._close_pipes()
        for fifo in (self._fifo, self._states):
            fifo.unlink(missing_ok=True)
            os.mkfifo(fifo, 0o600)
        self._file.write_text(self._text)
        self._relay.write_text(render_relay(self._fifo, self._states))
        # Both ends, so that opening and writing never wait for the reader.
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        self._pipe, self._told = os.open(self._fifo, flags), os.open(self._states, flags)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._told, self._hear)
        self._impatient = loop.call_later(_PATIENCE_S, self._stop)
        self._process = await asyncio.create_subprocess_exec(
            self._program,
            "server",
            str(self._file),
            env={**os.environ, **_ENVIRONMENT},
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=_prepare,
        )
        self._write(plan_routes(frozenset(), self.announced))

    def _hear(self) -> None:
        """The session comes and goes; while it is down patience runs out."""
        state = None
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self._told, 65536).decode(errors="replace").splitlines():
                found = parse_state(line)
                state = state if found is None else found
        if state is True and self._impatient is not None:
            self._impatient.cancel()
            self._impatient = None
        elif state is False and self._impatient is None:
            loop = asyncio.get_running_loop()
            self._impatient = loop.call_later(_PATIENCE_S, self._stop)

    def _stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _close_pipes(self) -> None:
        if self._impatient is not None:
            self._impatient.cancel()
            self._impatient = None
        if self._told >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._told)
            os.close(self._told)
            self._told = -1
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def close(self) -> None:
        self._stop()
        self._close_pipes()


def _prepare() -> None:
    """In the child: it ends with the agent, and its host's name needs no DNS to be looked up."""
    libc.set_pdeathsig(signal.SIGKILL)
    with contextlib.suppress(OSError, KernelError):
        libc.unshare(libc.CLONE_NEWUTS)
        socket.sethostname("localhost")
