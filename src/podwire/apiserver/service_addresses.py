"""Cluster IPs and node ports: which are taken, and the next free one.

Addresses are handed out next-fit from the upper part of each range (the lower part, KEP-3070, is
for those that users choose), so that an address is not reused at once. What is taken is kept in
memory and follows the store: taken when staged, given back on rollback or when the Service goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from podwire.errors import ExhaustedError
from podwire.objects.meta import JsonObject

Address = IPv4Address | IPv6Address
NODE_PORTS = range(30000, 32768)
NODE_PORT_BAND = 86
"""The first ports are for those that users choose: min(max(16, 2768/32), 128)."""


class AddressRange:
    """The addresses of one service CIDR."""

    def __init__(self, network: IPv4Network | IPv6Network) -> None:
        self.network = network
        # IPv6 ranges are walked no further than 2^16, as upstream's bitmap is.
        self._size = min(network.num_addresses, 1 << 16)
        self._band = min(max(16, self._size // 16), 256)
        self._next = self._band
        self.taken: set[Address] = set()

    @property
    def family(self) -> str:
        return f"IPv{self.network.version}"

    def usable(self, address: Address) -> bool:
        """In the range, and neither its network nor (IPv4) its broadcast address."""
        if address not in self.network or address == self.network.network_address:
            return False
        return self.network.version == 6 or address != self.network.broadcast_address

    def allocate(self) -> Address:
        """Raises ExhaustedError."""
        base = self.network.network_address
        for step in range(self._size):
            offset = (self._next + step) % self._size
            address = base + offset
            if self.usable(address) and address not in self.taken:
                self._next = offset + 1
                self.taken.add(address)
                return address
        raise ExhaustedError(f"service CIDR {self.network}: range is full")


class NodePorts:
    def __init__(self) -> None:
        self._next = NODE_PORTS.start + NODE_PORT_BAND
        self.taken: set[tuple[str, int]] = set()
        """(protocol, port): one number may serve TCP and UDP of one Service."""

    def allocate(self, protocol: str) -> int:
        """Raises ExhaustedError."""
        for step in range(len(NODE_PORTS)):
            port = NODE_PORTS.start + (self._next - NODE_PORTS.start + step) % len(NODE_PORTS)
            if not any((p, port) in self.taken for p in ("TCP", "UDP", "SCTP")):
                self._next = port + 1
                self.taken.add((protocol, port))
                return port
        raise ExhaustedError(f"node ports {NODE_PORTS.start}-{NODE_PORTS[-1]}: range is full")


class ServiceAddresses:
    """All that Services hold, per family in the order of the service CIDRs."""

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network]) -> None:
        self.ranges = [AddressRange(network) for network in networks]
        self.ports = NodePorts()

    def of_family(self, family: str) -> AddressRange | None:
        return next((r for r in self.ranges if r.family == family), None)

    def hold(self, service: JsonObject) -> None:
        """Mark what a stored Service holds."""
        for address in held_addresses(service):
            for each in self.ranges:
                if address in each.network:
                    each.taken.add(address)
        self.ports.taken |= held_ports(service)

    def release(self, service: JsonObject, keep: JsonObject | None = None) -> None:
        """Give back what `service` held and `keep` (its newer version) does not."""
        kept = held_addresses(keep) if keep else set()
        for each in self.ranges:
            each.taken -= held_addresses(service) - kept
        self.ports.taken -= held_ports(service) - (held_ports(keep) if keep else set())


def held_addresses(service: JsonObject) -> set[Address]:
    spec = service.get("spec") or {}
    texts = [spec.get("clusterIP"), *(spec.get("clusterIPs") or ())]
    return {ip_address(text) for text in texts if text and text != "None"}


def held_ports(service: JsonObject) -> set[tuple[str, int]]:
    spec = service.get("spec") or {}
    ports = {
        (port.get("protocol", "TCP"), port["nodePort"])
        for port in spec.get("ports") or ()
        if port.get("nodePort")
    }
    if spec.get("healthCheckNodePort"):
        ports.add(("TCP", spec["healthCheckNodePort"]))
    return ports
