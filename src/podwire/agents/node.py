"""One node's agent process: its network and, in a lab, the kubelet's part.

The process runs in the node's network namespace. Its rooms are wired here and nowhere else.
"""

from __future__ import annotations

import asyncio

from podwire.agents.network import NodeNetworkAgent
from podwire.client import Api
from podwire.cni.attach import KernelPodNetwork
from podwire.cni.config import NetworkConfig
from podwire.cni.ipam import LeaseStore
from podwire.runtime.config import KubeletConfig
from podwire.runtime.containers import Spawner
from podwire.runtime.kubelet import Kubelet


async def run(api: Api, config: KubeletConfig, network: NetworkConfig, *, spawner: Spawner) -> int:
    """Run until cancelled, or until the Node is deleted: then the exit status says so."""
    leases = LeaseStore(config.node_dir / "ipam.db", config.boot_id)
    pods = KernelPodNetwork(network, leases, config.pins_dir)
    node = NodeNetworkAgent(api, config.node_name, network, pods)
    kubelet = Kubelet(config, api, pods, spawner=spawner)
    try:
        async with asyncio.TaskGroup() as group:
            following = group.create_task(node.run())
            code = await kubelet.run()
            following.cancel()
            return code
    finally:
        leases.close()
