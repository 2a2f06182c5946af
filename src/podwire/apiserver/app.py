"""One API server: opens the store, listens, serves until stopped.

    ServerConfig -> ApiServer.start(): PKI, store, kinds, bootstrap objects, listeners
                    ApiServer.stop():  listeners closed, watches ended, store closed

HTTPS listeners need credentials; the unix socket (mode 0600) is trusted by file permission.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage

from podwire.apiserver.authn import TokenSigner
from podwire.apiserver.bootstrap import bootstrap, keep_service_cidr
from podwire.apiserver.context import Context, KubeletSocket
from podwire.apiserver.crds import CustomKinds
from podwire.apiserver.expiry import EVENT_TTL_S, Expiry
from podwire.apiserver.metrics import Metrics
from podwire.apiserver.ownservice import keep_own_service
from podwire.apiserver.pki import Pki, ensure_pki
from podwire.apiserver.registry import Registry
from podwire.apiserver.server import MAX_BODY, Handler
from podwire.apiserver.service_addresses import ServiceAddresses
from podwire.apiserver.service_allocation import load
from podwire.apiserver.store import Store
from podwire.objects.meta import Key

DEFAULT_SERVICE_CIDRS = (IPv4Network("10.96.0.0/16"),)
SHUTDOWN_S = 1.0


def _no_kubelet(node: str) -> None:
    return None


@dataclass(frozen=True)
class ServerConfig:
    """Where one API server keeps its state and where it listens."""

    store: Path
    pki_dir: Path
    unix_socket: Path | None = None
    tls_sockets: Sequence[socket.socket] = ()
    """Sockets that listen already, e.g. inherited from before entering the lab."""
    tls_addresses: Sequence[tuple[str, int]] = ()
    """Addresses to bind; port 0 takes a free one (see `ApiServer.tls_ports`)."""
    service_cidrs: Sequence[IPv4Network | IPv6Network] = DEFAULT_SERVICE_CIDRS
    advertised: Sequence[tuple[IPv4Address | IPv6Address, int]] = ()
    """Where pods reach the server: the endpoints of the Service `kubernetes`; none, then it has
    none."""
    kubelet_socket: KubeletSocket = _no_kubelet
    extra_names: Sequence[str] = ()
    """More DNS names for the server certificate."""
    event_ttl_s: float = EVENT_TTL_S


@dataclass
class ApiServer:
    """See the module docstring. Also an async context manager."""

    config: ServerConfig
    tls_ports: list[int] = field(default_factory=list)
    _runner: web.ServerRunner | None = None
    _ctx: Context | None = None
    _pki: Pki | None = None
    _expiry: Expiry | None = None

    @property
    def pki(self) -> Pki:
        assert self._pki is not None, "start() first"
        return self._pki

    @property
    def context(self) -> Context:
        assert self._ctx is not None, "start() first"
        return self._ctx

    def kubeconfig(self, *, name: str = "podwire", port: int | None = None) -> str:
        """An administrator's kubeconfig for the first HTTPS listener on 127.0.0.1."""
        return self.pki.kubeconfig(
            f"https://127.0.0.1:{port if port is not None else self.tls_ports[0]}", name=name
        )

    async def start(self) -> None:
        config = self.config
        services = [str(n.network_address + 1) for n in config.service_cidrs]
        bound = [host for host, _ in config.tls_addresses if host not in ("0.0.0.0", "::")]
        self._pki = ensure_pki(
            config.pki_dir, addresses=(*services, *bound), names=config.extra_names
        )
        self._ctx = ctx = _context(config, self._pki)
        CustomKinds(ctx).start()
        load(ctx)
        await bootstrap(ctx)
        keep_own_service(ctx)
        keep_service_cidr(ctx)
        # Loading every kind now keeps the first request of each as fast as the others.
        for resource in ctx.registry.stored():
            ctx.table(resource)
        self._expiry = Expiry(ctx.store, ctx.builtin_table("", "v1", "events"), config.event_ttl_s)
        self._expiry.start()
        await self._listen(Handler(ctx))

    async def _listen(self, handler: Handler) -> None:
        config = self.config
        server = web.Server(
            handler, request_factory=_request, access_log=None, handler_cancellation=True
        )
        self._runner = web.ServerRunner(server)
        await self._runner.setup()
        if config.unix_socket is not None:
            with contextlib.suppress(FileNotFoundError):
                config.unix_socket.unlink()
            site = web.UnixSite(self._runner, config.unix_socket)
            await site.start()
            os.chmod(config.unix_socket, 0o600)
        tls = _tls(self.pki)
        for listening in (*config.tls_sockets, *map(_bind, config.tls_addresses)):
            self.tls_ports.append(listening.getsockname()[1])
            await web.SockSite(self._runner, listening, ssl_context=tls, backlog=512).start()

    async def stop(self) -> None:
        """Answer what is committed, close the rest; the store is whole on disk afterwards."""
        if self._expiry is not None:
            self._expiry.stop()
            self._expiry = None
        if self._ctx is not None:
            for table in self._ctx.store.tables():
                table.close()
        if self._runner is not None:
            server = self._runner.server
            if server is not None:
                await server.shutdown(SHUTDOWN_S)
            await self._runner.cleanup()
            self._runner = None
        if self._ctx is not None:
            self._ctx.store.close()
            self._ctx = None

    async def __aenter__(self) -> ApiServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """aiohttp's own limit is 1 MiB; what is over MAX_BODY is refused with a Status."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY)


def _context(config: ServerConfig, pki: Pki) -> Context:
    config.store.parent.mkdir(parents=True, exist_ok=True)
    store, registry = Store(config.store), Registry.builtin()
    accounts = registry.find("", "v1", "serviceaccounts")
    assert accounts is not None
    table = store.open_table(accounts.storage, accounts.brief)

    def account_uid(namespace: str, name: str) -> str:
        record = table.records.get(Key(namespace, name))
        return record.uid if record else ""

    return Context(
        store=store,
        registry=registry,
        metrics=Metrics(),
        signer=TokenSigner(pki.service_account_key(), account_uid),
        addresses=ServiceAddresses(),
        kubelet_socket=config.kubelet_socket,
        service_cidrs=tuple(config.service_cidrs),
        advertised=tuple(config.advertised),
    )


def _bind(address: tuple[str, int]) -> socket.socket:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    return listening


def _tls(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(pki.server_cert, pki.server_key)
    context.load_verify_locations(pki.ca_cert)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context


async def serve(config: ServerConfig) -> None:
    """Run a server until the task is cancelled."""
    server = ApiServer(config)
    await server.start()
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop()
