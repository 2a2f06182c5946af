"""kill -9 in the middle of writing: what was answered is there afterwards, under its number."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import aiohttp

from podwire.apiserver.app import ApiServer

from .conftest import MAPS, SERVICES, Api, config_for, config_map, service

PROGRAM = """
import asyncio, sys
from pathlib import Path
from podwire.apiserver.app import ApiServer, ServerConfig

async def main() -> None:
    at = Path(sys.argv[1])
    config = ServerConfig(store=at / "store.db", pki_dir=at / "pki", unix_socket=at / "api.sock")
    async with ApiServer(config):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_answered_writes_survive_kill(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    answered: dict[str, str] = {}
    enough = asyncio.Event()

    async def write(api: Api, worker: int) -> None:
        try:
            for index in range(1000):
                name = f"m-{worker}-{index}"
                made = await api.post(MAPS, config_map(name))
                answered[name] = made["metadata"]["resourceVersion"]
                if len(answered) >= 200:
                    enough.set()
        except aiohttp.ClientError:
            return

    connector = aiohttp.UnixConnector(path=str(tmp_path / "api.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        workers = [asyncio.create_task(write(Api(session), index)) for index in range(8)]
        await enough.wait()
        process.kill()
        await process.wait()
        await asyncio.gather(*workers)
    config = config_for(tmp_path)
    connector = aiohttp.UnixConnector(path=str(config.unix_socket))
    async with ApiServer(config), aiohttp.ClientSession(connector=connector) as session:
        listed = await Api(session).get(MAPS)
        found = {i["metadata"]["name"]: i["metadata"]["resourceVersion"] for i in listed["items"]}
        assert answered.items() <= found.items()
        assert int(listed["metadata"]["resourceVersion"]) >= max(map(int, answered.values()))


async def test_services_and_their_addresses_survive_kill_together(tmp_path: Path) -> None:
    """Made, changed and deleted by several at once: afterwards nobody holds what another has."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    answered: dict[str, dict[str, Any]] = {}
    enough = asyncio.Event()

    async def write(api: Api, worker: int) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            for index in range(1000):
                name = f"s-{worker}-{index}"
                made = await api.post(SERVICES, service(name, type="NodePort"))
                if index % 3 == 1:
                    made = await api.merge(f"{SERVICES}/{name}", {"spec": {"type": "ClusterIP"}})
                answered[name] = made["spec"]
                if index % 3 == 2:
                    # Whether it is there afterwards cannot be known before the answer.
                    del answered[name]
                    await api.delete(f"{SERVICES}/{name}")
                if len(answered) >= 100:
                    enough.set()

    connector = aiohttp.UnixConnector(path=str(tmp_path / "api.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        workers = [asyncio.create_task(write(Api(session), index)) for index in range(8)]
        await enough.wait()
        process.kill()
        await process.wait()
        await asyncio.gather(*workers)
    config = config_for(tmp_path)
    connector = aiohttp.UnixConnector(path=str(config.unix_socket))
    async with ApiServer(config), aiohttp.ClientSession(connector=connector) as session:
        listed = (await Api(session).get("/api/v1/services"))["items"]
        addresses = (await Api(session).get("/apis/networking.k8s.io/v1/ipaddresses"))["items"]
    found = {item["metadata"]["name"]: item["spec"] for item in listed}
    assert answered.items() <= found.items()
    held = {spec["clusterIP"]: name for name, spec in found.items()}
    assert len(held) == len(found)
    assert {a["metadata"]["name"]: a["spec"]["parentRef"]["name"] for a in addresses} == held
    ports = [p["nodePort"] for spec in found.values() for p in spec["ports"] if "nodePort" in p]
    assert len(set(ports)) == len(ports)
