"""The back ends of Services by the name `--service-proxy` gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from podwire.agents.config import ServiceProxy
from podwire.agents.iptablesbackend import IptablesBackend
from podwire.agents.ipvsbackend import IpvsBackend
from podwire.agents.nftablesbackend import NftablesBackend
from podwire.agents.servicekernel import ServiceBackend
from podwire.services.claims import Claims

BackendFactory: TypeAlias = Callable[[Iterable[int], Claims], ServiceBackend]
BACKENDS: dict[ServiceProxy, BackendFactory] = {
    "nftables": NftablesBackend,
    "iptables": IptablesBackend,
    "ipvs": IpvsBackend,
}
