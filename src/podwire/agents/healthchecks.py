"""What load balancers ask a node: is there an endpoint here, and does the proxy do its work?

    ServiceAgent.programmed -> ServiceHealthChecks: one port per Service with a healthCheckNodePort
    ServiceAgent's queue    -> ProxyHealth -> :10256 /healthz, /livez

A balancer sends clients of externalTrafficPolicy Local only to nodes that answer 200. Counts follow
what the kernel was told, not what the API says: a node that answers 200 forwards. Endpoints that
end are not counted, so balancers turn away while those still serve.

/healthz is about the node: it fails as soon as an autoscaler is about to delete it. /livez is about
the proxy alone, so that nobody restarts it for that (KEP-3836).
Source: k/k pkg/proxy/healthcheck/service_health.go and proxy_health.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from podwire.objects.core import Node
from podwire.objects.meta import Key
from podwire.services.model import HealthCheck

_LOG = logging.getLogger(__name__)
HEALTHZ_PORT: Final = 10256
# kube-proxy: twice its sync period of 30 s.
HEALTH_TIMEOUT_S: Final = 60.0
TO_BE_DELETED: Final = "ToBeDeletedByClusterAutoscaler"
_RETRY_S: Final = 2.0
_JSON: Final = "application/json"
_HEADERS: Final = {"X-Content-Type-Options": "nosniff"}
_BODY: Final = """{{
	"service": {{
		"namespace": "{key.namespace}",
		"name": "{key.name}"
	}},
	"localEndpoints": {count},
	"serviceProxyHealthy": {healthy}
}}"""


class ProxyHealth:
    """Healthy while no change waits longer than `HEALTH_TIMEOUT_S` for the kernel."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting_since: float | None = None
        self._updated = dt.datetime.fromtimestamp(0, dt.UTC)
        self.node_eligible = True

    def queued(self) -> None:
        """A change came that the kernel does not have yet."""
        if self._waiting_since is None:
            self._waiting_since = self._clock()

    def updated(self) -> None:
        """The kernel has everything."""
        self._waiting_since = None
        self._updated = dt.datetime.now(dt.UTC)

    def sync_node(self, node: Node | None) -> None:
        """A node that is being deleted, or soon will be, gets no new clients."""
        self.node_eligible = (
            node is not None
            and not node.deleting
            and all(taint.key != TO_BE_DELETED for taint in node.spec.taints)
        )

    @property
    def healthy(self) -> bool:
        since = self._waiting_since
        return since is None or self._clock() - since < HEALTH_TIMEOUT_S

    def healthz(self) -> web.Response:
        return self._answer(self.healthy and self.node_eligible, eligible=self.node_eligible)

    def livez(self) -> web.Response:
        return self._answer(self.healthy, eligible=None)

    def _answer(self, good: bool, eligible: bool | None) -> web.Response:
        now = dt.datetime.now(dt.UTC)
        last = _format(now if good else self._updated)
        text = f'{{"lastUpdated": "{last}","currentTime": "{_format(now)}"'
        if eligible is not None:
            text += f', "nodeEligible": {_json(eligible)}'
        status = 200 if good else 503
        body = f"{text}}}".encode()
        return web.Response(status=status, body=body, headers=_HEADERS, content_type=_JSON)


def _format(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC")


def _json(value: bool) -> str:
    return "true" if value else "false"


def answer_check(key: Key, count: int, healthy: bool) -> web.Response:
    """200 where clients of the Service may come, else 503; the weight is for balancers that weigh
    nodes by their endpoints."""
    good = count > 0 and healthy
    return web.Response(
        status=200 if good else 503,
        body=_BODY.format(key=key, count=count, healthy=_json(healthy)).encode(),
        content_type=_JSON,
        headers={**_HEADERS, "X-Load-Balancing-Endpoint-Weight": str(count)},
    )


@dataclass
class _Listening:
    """One open port and whose it is."""

    port: int
    runner: web.ServerRunner


class ServiceHealthChecks:
    """The open healthCheckNodePorts. `set` says what should be; `run` opens and closes.

    `settled` is set while all that can be open is.
    `refused(key, text)` hears of a port that cannot be opened.
    """

    def __init__(
        self,
        proxy: ProxyHealth,
        refused: Callable[[Key, str], None] = lambda key, text: None,
        families: Iterable[int] = (4,),
    ) -> None:
        self.proxy = proxy
        self._refused = refused
        self._families = tuple(families)
        self._wanted: dict[Key, HealthCheck] = {}
        self._open: dict[Key, _Listening] = {}
        self._told: dict[Key, int] = {}
        """Ports that could not be opened, and of which that was told."""
        self._again: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self.settled = asyncio.Event()

    def set(self, key: Key, check: HealthCheck | None) -> None:
        """What the Service has from now on; a count counts at once."""
        before = self._wanted.get(key)
        if check is None:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = check
        if (before.port if before else 0) != (check.port if check else 0):
            self._told.pop(key, None)
            self.settled.clear()
            self._wake.set()

    @property
    def ports(self) -> dict[Key, int]:
        """What is open."""
        return {key: listening.port for key, listening in self._open.items()}

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._serve_proxy(stack)
                while True:
                    self._wake.clear()
                    await self._reconcile()
                    if not self._wake.is_set():
                        self.settled.set()
                    await self._wake.wait()
        finally:
            if self._again is not None:
                self._again.cancel()
            for key in list(self._open):
                await self._close(key)

    async def _serve_proxy(self, stack: contextlib.AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/livez", self._livez)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        try:
            await web.SockSite(runner, self._listen(HEALTHZ_PORT)).start()
        except OSError as error:
            # kube-proxy may be there too, while a cluster moves from one to the other.
            _LOG.warning("services: /healthz not served on port %d: %s", HEALTHZ_PORT, error)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return self.proxy.healthz()

    async def _livez(self, _request: web.Request) -> web.Response:
        return self.proxy.livez()

    async def _reconcile(self) -> None:
        for key, listening in list(self._open.items()):
            wanted = self._wanted.get(key)
            if wanted is None or wanted.port != listening.port:
                await self._close(key)
        for key, wanted in list(self._wanted.items()):
            if key not in self._open:
                await self._start(key, wanted.port)
        if self._told and not self._retrying():
            # Who has the port may give it back: a former agent that is still ending.
            self._again = asyncio.get_running_loop().call_later(_RETRY_S, self._wake.set)

    def _retrying(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._again is not None and self._again.when() > now

    async def _start(self, key: Key, port: int) -> None:
        async def answer(_request: web.BaseRequest) -> web.Response:
            check = self._wanted.get(key)
            return answer_check(key, check.local_ready if check else 0, self.proxy.healthy)

        runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.SockSite(runner, self._listen(port)).start()
        except OSError as error:
            await runner.cleanup()
            if self._told.get(key) == port:
                return
            self._told[key] = port
            text = f"failed to start healthcheck on port {port}: {error}"
            _LOG.warning("service %s: %s", key, text)
            self._refused(key, text)
            return
        self._open[key] = _Listening(port, runner)
        self._told.pop(key, None)

    async def _close(self, key: Key) -> None:
        await self._open.pop(key).runner.cleanup()

    def _listen(self, port: int) -> socket.socket:
        """Every address of the node, in one socket for both families where it has both."""
        if 6 in self._families:
            return socket.create_server(
                ("::", port),
                family=socket.AF_INET6,
                dualstack_ipv6=4 in self._families,
                backlog=128,
            )
        return socket.create_server(("", port), backlog=128)
