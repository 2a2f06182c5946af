"""healthCheckNodePorts as a balancer asks them: over the network, in both families."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from podwire.agents.healthchecks import HEALTHZ_PORT, ProxyHealth, ServiceHealthChecks
from podwire.kernel.rtnl import Rtnl, loopback_up
from podwire.objects.meta import Key
from podwire.services.model import HealthCheck

WEB, API = Key("shop", "web"), Key("shop", "api")
PORT = 30099


async def get(port: int, path: str = "/", host: str = "127.0.0.1") -> tuple[int, Any, str]:
    url = f"http://{host}:{port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        weight = answer.headers.get("X-Load-Balancing-Endpoint-Weight", "")
        return answer.status, json.loads(await answer.text()), weight


def serving(body: Callable[[ServiceHealthChecks, list[str]], Any], *families: int) -> None:
    """Run `body` beside the servers, in a namespace with a loopback."""
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])

    async def main() -> None:
        refused: list[str] = []
        checks = ServiceHealthChecks(
            ProxyHealth(), lambda key, text: refused.append(f"{key}: {text}"), families or (4,)
        )
        task = asyncio.ensure_future(checks.run())
        try:
            await body(checks, refused)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_a_port_follows_its_service(scratch: Path) -> None:
    async def body(checks: ServiceHealthChecks, refused: list[str]) -> None:
        checks.set(WEB, HealthCheck(PORT, 2))
        await checks.settled.wait()
        assert checks.ports == {WEB: PORT}
        status, found, weight = await get(PORT, "/any/path?at=all")
        assert (status, found["localEndpoints"], weight) == (200, 2, "2")
        checks.set(WEB, HealthCheck(PORT, 0))
        assert (await get(PORT))[0] == 503
        # The node port belongs to another Service next.
        checks.set(WEB, HealthCheck(PORT + 1, 1))
        checks.set(API, HealthCheck(PORT, 3))
        await checks.settled.wait()
        assert checks.ports == {WEB: PORT + 1, API: PORT}
        assert (await get(PORT))[1]["service"]["name"] == "api"
        assert (await get(PORT + 1))[1]["service"]["name"] == "web"
        checks.set(WEB, None)
        checks.set(API, None)
        await checks.settled.wait()
        assert not checks.ports
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(PORT)
        assert refused == []

    serving(body)


def test_both_families_and_the_proxys_own_health(scratch: Path) -> None:
    async def body(checks: ServiceHealthChecks, refused: list[str]) -> None:
        checks.set(WEB, HealthCheck(PORT, 1))
        await checks.settled.wait()
        for host in ("127.0.0.1", "[::1]"):
            assert (await get(PORT, host=host))[0] == 200
            for path in ("/healthz", "/livez"):
                assert (await get(HEALTHZ_PORT, path, host))[0] == 200
        checks.proxy.node_eligible = False
        assert (await get(HEALTHZ_PORT, "/healthz"))[0] == 503
        assert (await get(HEALTHZ_PORT, "/livez"))[0] == 200
        assert (await get(PORT))[0] == 200

    serving(body, 4, 6)


def test_a_port_somebody_has_is_told(scratch: Path) -> None:
    async def body(checks: ServiceHealthChecks, refused: list[str]) -> None:
        server = await asyncio.start_server(lambda r, w: None, "0.0.0.0", PORT)
        async with server:
            checks.set(WEB, HealthCheck(PORT, 1))
            await checks.settled.wait()
            assert refused[0].startswith(f"shop/web: failed to start healthcheck on port {PORT}: ")
            checks.set(API, HealthCheck(PORT + 1, 1))
            await checks.settled.wait()
            assert checks.ports == {API: PORT + 1}

    serving(body)


def test_a_port_that_is_given_back_is_opened(scratch: Path) -> None:
    """By an agent that was still ending, for one."""

    async def body(checks: ServiceHealthChecks, refused: list[str]) -> None:
        server = await asyncio.start_server(lambda r, w: None, "0.0.0.0", PORT)
        checks.set(WEB, HealthCheck(PORT, 1))
        await checks.settled.wait()
        assert checks.ports == {}
        server.close()
        await server.wait_closed()
        async with asyncio.timeout(10):
            while not checks.ports:
                checks.settled.clear()
                await checks.settled.wait()
        assert (await get(PORT))[0] == 200
        assert len(refused) == 1

    serving(body)
