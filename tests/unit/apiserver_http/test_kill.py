"""kill -9 in the middle of writing: what was answered is there afterwards, under its number."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp

from podwire.apiserver.app import ApiServer

from .conftest import MAPS, Api, config_for, config_map

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
