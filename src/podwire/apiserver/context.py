"""What every handler works with: the store, the registry of kinds and the server's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING

from podwire.apiserver.registry import Registry, Resource
from podwire.apiserver.store import Record, Store, Table
from podwire.objects.meta import Key

if TYPE_CHECKING:
    from podwire.apiserver.authn import TokenSigner
    from podwire.apiserver.metrics import Metrics
    from podwire.apiserver.service_addresses import ServiceAddresses

GIT_VERSION = "v1.33.0"

KubeletSocket = Callable[[str], str | Path | None]
"""Node name -> the unix socket its kubelet API listens on; None for an unknown node."""


@dataclass
class Context:
    """One running server's state; handlers get it as their first argument."""

    store: Store
    registry: Registry
    metrics: Metrics
    signer: TokenSigner
    addresses: ServiceAddresses
    """What Services hold of addresses and node ports."""
    kubelet_socket: KubeletSocket
    service_cidrs: tuple[IPv4Network | IPv6Network, ...]
    advertised: tuple[tuple[IPv4Address | IPv6Address, int], ...] = ()
    """Where pods reach this server: the endpoints of its own Service."""
    ready: bool = False
    cache: dict[object, tuple[int, bytes]] = field(default_factory=dict)
    """Discovery and OpenAPI bodies with the registry generation they were made for."""

    def table(self, resource: Resource) -> Table:
        return self.store.open_table(resource.storage, resource.brief)

    def builtin_table(self, group: str, version: str, plural: str) -> Table:
        resource = self.registry.find(group, version, plural)
        if resource is None:
            raise LookupError(f"{plural}.{group}: not a built-in kind")
        return self.table(resource)

    def latest(self, resource: Resource, namespace: str, name: str) -> Record | None:
        """The newest version of an object, staged writes included."""
        return self.store.latest(self.table(resource), Key(namespace, name))
