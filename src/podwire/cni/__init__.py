"""The pod network: addresses, the wiring of one pod, and what a node needs to reach the others.

request -> IPAM lease -> PodLink (pure) -> kernel batch        one pod   (`PodNetwork`)
Nodes   -> NodeNetwork (pure) -> plan -> kernel transaction    one node  (`agents/`)
"""

from podwire.cni.config import Address, Network, NetworkConfig
from podwire.cni.podnetwork import Attachment, PodAddresses, PodNetwork

__all__ = ["Address", "Attachment", "Network", "NetworkConfig", "PodAddresses", "PodNetwork"]
