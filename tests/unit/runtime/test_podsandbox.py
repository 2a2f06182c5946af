"""A pod's sandbox when a step fails or the agent dies: nothing is made twice, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from podwire.cni import Attachment
from podwire.errors import AddressError
from podwire.objects.core import Pod
from podwire.runtime import sandbox as records
from podwire.runtime.config import KubeletConfig
from podwire.runtime.launch import Host
from podwire.runtime.livepod import LivePod
from podwire.runtime.poddns import NO_RESOLVER
from podwire.runtime.podsandbox import PodSandbox
from podwire.runtime.state import slots_of
from podwire.runtime.status import PodView

POD = msgspec.convert(
    {
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "c"}]},
    },
    Pod,
)


class Addresses:
    ips = (IPv4Address("10.244.1.2"),)


class FakeNetwork:
    """Sandboxes by id; `full` refuses new ones."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.full = False

    def add(self, request: Attachment) -> Addresses:
        if self.full:
            raise AddressError("no address left")
        self.there.add(request.sandbox_id)
        return Addresses()

    def check(self, request: Attachment) -> Addresses | None:
        return Addresses() if request.sandbox_id in self.there else None

    def delete(self, sandbox: str) -> None:
        self.there.discard(sandbox)


class World:
    """One pod on a node whose policy is committed once `committed` is true."""

    def __init__(self, directory: Path) -> None:
        self.network = FakeNetwork()
        self.committed = True
        self.woken = 0
        (directory / "pods").mkdir()
        self.config = KubeletConfig(
            "node", (IPv4Address("172.30.0.2"),), directory, directory, directory, "boot"
        )
        events = type("Events", (), {"emit": lambda *_args, **_kwargs: None})()
        self.host = Host(
            config=self.config,
            api=cast(Any, None),
            network=cast(Any, self.network),
            network_thread=ThreadPoolExecutor(1),
            standins=cast(Any, None),
            events=events,
            specs=cast(Any, None),
            references=cast(Any, None),
            admission=cast(Any, None),
            policy_ready=self.policy,
            node_dns=NO_RESOLVER,
        )

    async def policy(self, _pod: Pod, _ips: Sequence[str]) -> None:
        if not self.committed:
            raise OSError("the policy agent does not answer")

    def pod(self) -> tuple[LivePod, PodSandbox]:
        def wake() -> None:
            self.woken += 1

        live = LivePod(self.host, POD, slots_of(POD), PodView(), wake, lambda _when: None)
        return live, PodSandbox(live)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_step_that_failed_is_repeated_in_the_same_sandbox(world: World) -> None:
    async def go() -> None:
        live, sandbox = world.pod()
        world.committed = False
        with pytest.raises(OSError, match="policy"):
            await sandbox.ensure()
        assert not live.view.sandbox_ready
        world.committed = True
        assert await sandbox.ensure()
        assert live.view.sandbox_ready
        assert live.sandbox is not None
        assert world.network.there == {live.sandbox.id}

    asyncio.run(go())


def test_a_name_too_long_for_the_kernel_has_no_sandbox_and_waits_for_no_address(
    world: World,
) -> None:
    async def go() -> None:
        live, sandbox = world.pod()
        spec = msgspec.structs.replace(
            POD.spec, hostname="h" * 63, subdomain="s", set_hostname_as_fqdn=True
        )
        live.pod = msgspec.structs.replace(POD, spec=spec)
        assert not await sandbox.ensure()
        assert live.view.sandbox_message.startswith(
            "Failed to create pod sandbox: failed to construct FQDN from pod hostname and "
        )
        assert not world.network.there
        assert not world.host.starving

    asyncio.run(go())


def test_an_agent_that_died_before_the_host_files_leaves_them_to_the_next(world: World) -> None:
    async def go() -> None:
        _, sandbox = world.pod()
        world.committed = False
        with pytest.raises(OSError, match="policy"):
            await sandbox.ensure()
        hosts = world.host.pod_dir("u") / "hosts"
        hosts.unlink()
        world.committed = True
        (record,) = records.load_all(world.config.pods_dir)
        live, sandbox = world.pod()
        assert await sandbox.adopt(record)
        assert not live.view.sandbox_ready
        assert await sandbox.ensure()
        assert hosts.exists()
        assert world.network.there == {record.id}

    asyncio.run(go())


def test_a_record_that_cannot_be_written_keeps_no_network(world: World, tmp_path: Path) -> None:
    async def go() -> None:
        (tmp_path / "pods/u").write_text("in the way")
        _, sandbox = world.pod()
        with pytest.raises(OSError, match="Not a directory"):
            await sandbox.ensure()
        assert not world.network.there

    asyncio.run(go())


def test_an_address_given_back_wakes_one_that_waits(world: World) -> None:
    async def go() -> None:
        live, sandbox = world.pod()
        assert await sandbox.ensure()
        world.network.full = True
        starved, other = world.pod()
        assert not await other.ensure()
        assert "no address left" in starved.view.sandbox_message
        await sandbox.drop()
        assert live.sandbox is None
        assert world.woken == 1
        assert not world.host.starving

    asyncio.run(go())
