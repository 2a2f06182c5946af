"""The program of the image `podwire.dev/dns`: cluster DNS in a pod, configured by a Corefile.

    Corefile -> Instance (zone, watch, chain, sockets) <- replaced when the Corefile is
    /health, /ready, /metrics beside it; SIGTERM: unready, serving on for `lameduck`, then out

It finds the API server, its token and its files as any pod's program does, so it runs the same on a
real cluster (`python -m podwire.dns.main -conf /etc/coredns/Corefile`). In a lab it is forked from
the holder and told where its pod's files and sockets are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

import uvloop

from podwire.client import Api, Endpoint
from podwire.dns import memory
from podwire.dns.config import Corefile
from podwire.dns.corefile import parse_corefile
from podwire.dns.forward import parse_search
from podwire.dns.httpd import Pages, serve_pages
from podwire.dns.imports import read_imports
from podwire.dns.instance import Instance, Surroundings
from podwire.dns.listening import Listening, own_addresses, parse_listener
from podwire.dns.podfiles import PodFiles
from podwire.dns.zones import parse_name
from podwire.errors import KernelError, PodwireError
from podwire.kernel.inotify import DirectoryWatch

_LOG = logging.getLogger(__name__)
_COREFILE: Final = "/etc/coredns/Corefile"


class Program:
    """Runs until it is told to stop; `stop` may be called any time."""

    def __init__(self, corefile: str, around: Surroundings, files: PodFiles) -> None:
        self._conf = corefile
        self._around = around
        self._files = files
        self._folders: set[str] = set()
        self._instance: Instance | None = None
        self._stopping = asyncio.Event()
        self._code = 0
        self._instant = False
        self._pages: list[asyncio.Server] = []

    def stop(self, code: int = 0) -> None:
        self._code = code
        self._stopping.set()

    def fail(self, message: str) -> None:
        """End at once, as CoreDNS does when it finds a loop."""
        print(message, flush=True)
        self._instant = True
        self.stop(1)

    async def run(self) -> int:
        """The exit status. Raises `PodwireError` for a Corefile that is none."""
        corefile = self._read()
        instance = Instance(corefile, self._around)
        await instance.start()
        self._instance = instance
        # Last: a probe that came early waits for its answer instead of being told no.
        await self._serve_pages(corefile)
        _LOG.info("serving %s", ", ".join(f"port {port}" for port in corefile.ports))
        beside = [asyncio.create_task(self._reload()), asyncio.create_task(_settle(instance))]
        await self._stopping.wait()
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        if not self._instant:
            await asyncio.sleep(_lameduck_s(self._instance.corefile))
        await self._instance.stop()
        for server in self._pages:
            server.close()
        self._around.listening.keep(())
        return self._code

    def _read(self) -> Corefile:
        corefile, self._folders = read_corefile(self._conf, self._files)
        return corefile

    # --- reloading --------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """A Corefile that was replaced, or what it imports, is put in force; one that is wrong is
        said and left."""
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        with DirectoryWatch(self._files.path(self._conf).parent) as watch:
            loop.add_reader(watch, changed.set)
            try:
                watched: set[str] | None = None
                while True:
                    if watched != self._folders:
                        # What changed before it was watched is seen by reading it once more.
                        watched = self._watch(watch)
                        changed.set()
                    await changed.wait()
                    changed.clear()
                    watch.drain()
                    await self._replace()
            finally:
                loop.remove_reader(watch)

    def _watch(self, watch: DirectoryWatch) -> set[str]:
        for folder in self._folders:
            # An optional ConfigMap has no folder.
            with contextlib.suppress(KernelError):
                watch.add(self._files.path(folder))
        return set(self._folders)

    async def _replace(self) -> None:
        old = self._instance
        assert old is not None
        if not any(block.reload for block in old.corefile.blocks):
            return
        try:
            corefile = self._read()
            if corefile == old.corefile:
                return
            fresh = Instance(corefile, self._around)
            try:
                await fresh.start()
            except BaseException:
                await fresh.stop()
                raise
        except (PodwireError, OSError, UnicodeDecodeError) as error:
            _LOG.error("plugin/reload: Corefile changed but reload failed: %s", error)
            self._around.listening.keep(old.corefile.ports)
            return
        self._instance = fresh
        await old.stop()
        self._around.listening.keep(corefile.ports)
        del old
        memory.replaced()
        _LOG.info("plugin/reload: Running configuration is replaced")

    # --- the pages --------------------------------------------------------------------------------

    async def _serve_pages(self, corefile: Corefile) -> None:
        """Each where the first block that names it says; they outlive reloads."""
        wanted: list[tuple[str, Pages]] = []
        for block in corefile.blocks:
            if block.health:
                wanted.append((block.health.address, {"/health": self._health}))
            if block.ready:
                wanted.append((block.ready.address, {"/ready": self._ready}))
            if block.prometheus:
                wanted.append((block.prometheus, {"/metrics": self._metrics}))
        served: dict[str, Pages] = {}
        for address, pages in wanted:
            served[address] = {**served.get(address, {}), **pages}
        for address, pages in served.items():
            host, port = parse_listener(address)
            addresses = (host,) if host else ()
            sockets = self._around.listening.sockets(socket.SOCK_STREAM, port, addresses)
            self._pages += await serve_pages(pages, sockets)

    def _health(self) -> tuple[HTTPStatus, str]:
        return HTTPStatus.OK, "OK"

    def _ready(self) -> tuple[HTTPStatus, str]:
        instance = self._instance
        if self._stopping.is_set() or instance is None or not instance.synced.is_set():
            return HTTPStatus.SERVICE_UNAVAILABLE, "kubernetes"
        return HTTPStatus.OK, "OK"

    def _metrics(self) -> tuple[HTTPStatus, str]:
        return HTTPStatus.OK, self._instance.metrics.render() if self._instance else ""


async def _settle(instance: Instance) -> None:
    await instance.synced.wait()
    memory.listed()


def _lameduck_s(corefile: Corefile) -> float:
    return max((b.health.lameduck_s for b in corefile.blocks if b.health), default=0.0)


def read_corefile(conf: str, files: PodFiles) -> tuple[Corefile, set[str]]:
    """The file at the pod's path `conf`, with all it imports and the environment's variables; the
    folders it imports from."""
    text = files.path(conf).read_text(encoding="utf-8")
    found = read_imports(conf, text, files.path, os.environ)
    corefile = parse_corefile(text, file=conf, files=found.texts, environment=os.environ)
    return files.locate(corefile), found.folders


def searched_beside(files: PodFiles) -> tuple[str, ...]:
    """What the node's pods search behind the cluster's names: as CoreDNS, the pod's own resolv.conf
    is taken for the node's, which it is with `dnsPolicy: Default`."""
    try:
        text = files.path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found = []
    for word in parse_search(text):
        with contextlib.suppress(ValueError):
            found.append(parse_name(word))
    return tuple(name for name in found if name != ".")


async def run(
    arguments: Sequence[str], files: PodFiles, listening: Listening, endpoint: Endpoint | None
) -> int:
    """The program with its files and sockets; `endpoint` None finds the API server as pods do."""
    options = _parser().parse_args(arguments)
    corefile, _ = read_corefile(options.conf, files)
    hosts = files.path("/etc/hosts")
    addresses = own_addresses(hosts.read_text() if hosts.exists() else "")
    async with contextlib.AsyncExitStack() as stack:
        api = None
        if any(block.kubernetes for block in corefile.blocks):
            where = endpoint or files.endpoint()
            api = await stack.enter_async_context(Api(where, user_agent="podwire-dns"))
        around = Surroundings(
            api, listening, addresses, lambda text: program.fail(text), searched_beside(files)
        )
        program = Program(options.conf, around, files)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, program.stop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, program.stop)
        return await program.run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="podwire-dns", description="Cluster DNS.")
    parser.add_argument("-conf", "--conf", default=_COREFILE, metavar="FILE", help="the Corefile")
    return parser


def start(
    arguments: Sequence[str], files: PodFiles, sockets: Sequence[int], endpoint: Endpoint | None
) -> int:
    """Run to the end in a new event loop; the exit status."""
    memory.begin()
    logging.basicConfig(
        level=logging.INFO, format="[%(levelname)s] %(message)s", stream=sys.stdout, force=True
    )
    try:
        return uvloop.run(run(arguments, files, Listening(sockets), endpoint))
    except (PodwireError, OSError, UnicodeDecodeError, KernelError) as error:
        print(f"[FATAL] {error}", flush=True)
        return 1


def builtin(*, args: Sequence[str], files: Mapping[str, str], sockets: Sequence[int] = ()) -> None:
    """The entry point of the built-in image."""
    raise SystemExit(start(args, PodFiles(files), sockets, None))


if __name__ == "__main__":
    raise SystemExit(start(sys.argv[1:], PodFiles(), (), None))
