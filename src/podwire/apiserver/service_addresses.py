"""Cluster IPs and node ports: which are free, and the next one to hand out.

    ServiceCIDRs (ready ones) -> AddressRange: lower band | upper band      IPAddress objects,
    30000-32767               -> NodePorts:    lower band | upper band      what Services hold
                                               users choose   dynamic        -> what is taken

Dynamic allocation goes next-fit through the upper band and turns to the lower one when that is
full (KEP-3070, KEP-3668), so that a number is not reused at once. An address is taken while an
IPAddress of its name exists or a Service holds it; a port while a Service holds it. What Services
hold is kept here, changed when a write is staged and put back when it does not come true.

Source: pkg/registry/core/service/{ipallocator,portallocator}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, TypeVar

from podwire.errors import AddressError, ExhaustedError
from podwire.objects.meta import Key

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Exists = Callable[[Address], bool]
"""Whether there is an IPAddress object of this name."""
T = TypeVar("T")
NODE_PORTS = range(30000, 32768)

FULL = "range is full"
IP_TAKEN = "provided IP is already allocated"
FOREIGN = "the provided network does not match the current range"
PORT_TAKEN = "provided port is already allocated"


def address_band(size: int) -> int:
    """How many addresses at the start of a CIDR of `size` are left to users (KEP-3070)."""
    return 0 if size <= 16 else min(max(16, size // 16), 256)


def port_band(size: int) -> int:
    """The same for node ports (KEP-3668)."""
    return 0 if size <= 16 else min(max(16, size // 32), 128)


class _Band:
    """Whole numbers from `first` to `last`, handed out next-fit."""

    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self._size = max(0, last - first + 1)
        self._next = 0

    def find(self, is_free: Callable[[int], bool]) -> int | None:
        for step in range(self._size):
            offset = (self._next + step) % self._size
            if is_free(self._first + offset):
                return self._first + offset
        return None

    def took(self, number: int) -> None:
        if 0 <= number - self._first < self._size:
            self._next = (number - self._first + 1) % self._size


class _Bands:
    """Upper band first, lower when it is full."""

    def __init__(self, first: int, last: int, lower: int) -> None:
        self._bands = (_Band(first + lower, last), _Band(first, first + lower - 1))

    def find(self, is_free: Callable[[int], bool]) -> int | None:
        for band in self._bands:
            number = band.find(is_free)
            if number is not None:
                return number
        return None

    def took(self, number: int) -> None:
        for band in self._bands:
            band.took(number)


class AddressRange:
    """The addresses of one service CIDR, without its network and (IPv4) broadcast address."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._first = int(network.network_address) + 1
        self._last = int(network.broadcast_address) - (network.version == 4)
        self._bands = _Bands(self._first, self._last, address_band(network.num_addresses))
        self._make = IPv4Address if network.version == 4 else IPv6Address

    def __contains__(self, address: Address) -> bool:
        if address.version != self.network.version:
            return False
        return self._first <= int(address) <= self._last

    def find(self, is_free: Callable[[Address], bool]) -> Address | None:
        number = self._bands.find(lambda n: is_free(self._make(n)))
        return None if number is None else self._make(number)

    def took(self, address: Address) -> None:
        self._bands.took(int(address))


@dataclass
class Reservation:
    """What one write takes and gives back; `revert` undoes all of it, newest first."""

    taken: list[Address] = field(default_factory=list)
    released: list[Address] = field(default_factory=list)
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _then: list[Callable[[], None]] = field(default_factory=list)

    def did(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def then(self, step: Callable[[], None]) -> None:
        """What to do only when the write is staged."""
        self._then.append(step)

    def revert(self) -> None:
        while self._undo:
            self._undo.pop()()
        self.taken.clear()
        self.released.clear()
        self._then.clear()

    def keep(self) -> Callable[[], None]:
        """It is staged; what is returned undoes it should the commit fail."""
        while self._then:
            self._then.pop(0)()
        undo, self._undo = self._undo, []

        def run() -> None:
            for step in reversed(undo):
                step()

        return run


class _Held(Generic[T]):
    """Which Service holds what."""

    def __init__(self) -> None:
        self.by: dict[T, Key] = {}

    def take(self, what: T, owner: Key, reservation: Reservation) -> None:
        before = self.by.get(what)
        self.by[what] = owner
        reservation.did(lambda: self._put_back(what, before))

    def release(self, what: T, owner: Key, reservation: Reservation) -> bool:
        """Whether it was the owner's to give back."""
        if self.by.get(what) != owner:
            return False
        del self.by[what]
        reservation.did(lambda: self._put_back(what, owner))
        return True

    def _put_back(self, what: T, owner: Key | None) -> None:
        if owner is None:
            self.by.pop(what, None)
        else:
            self.by[what] = owner


class ServiceAddresses:
    """See the module docstring. `owner` is the Service that a write is about."""

    def __init__(self) -> None:
        self.addresses: _Held[Address] = _Held()
        self.ports: _Held[int] = _Held()
        self._ranges: dict[Network, AddressRange] = {}
        first, last = NODE_PORTS.start, NODE_PORTS[-1]
        self._port_bands = _Bands(first, last, port_band(len(NODE_PORTS)))

    def range_of(self, network: Network) -> AddressRange:
        """One per CIDR, however many ServiceCIDRs have it: it knows what was handed out last."""
        found = self._ranges.get(network)
        if found is None:
            found = self._ranges[network] = AddressRange(network)
        return found

    def hold(self, owner: Key, addresses: Iterable[Address], ports: Iterable[int]) -> None:
        """What a stored Service has, at the start."""
        for address in addresses:
            self.addresses.by[address] = owner
        for port in ports:
            self.ports.by[port] = owner

    def allocate(
        self, ranges: Sequence[AddressRange], exists: Exists, owner: Key, reservation: Reservation
    ) -> Address:
        """The next free address of the first range that has one. Raises ExhaustedError."""
        held = self.addresses.by
        for each in ranges:
            address = each.find(lambda a: a not in held and not exists(a))
            if address is not None:
                self._take(address, each, owner, reservation)
                return address
        raise ExhaustedError(FULL)

    def take(
        self,
        address: Address,
        ranges: Sequence[AddressRange],
        exists: Exists,
        owner: Key,
        reservation: Reservation,
    ) -> None:
        """This very address. Raises AddressError: no range has it, or it is taken."""
        within = next((each for each in ranges if address in each), None)
        if within is None:
            raise AddressError(FOREIGN)
        if address in self.addresses.by or exists(address):
            raise AddressError(IP_TAKEN)
        self._take(address, None, owner, reservation)

    def _take(
        self, address: Address, within: AddressRange | None, owner: Key, reservation: Reservation
    ) -> None:
        self.addresses.take(address, owner, reservation)
        reservation.taken.append(address)
        if within is not None:
            reservation.then(lambda: within.took(address))

    def release(self, address: Address, owner: Key, reservation: Reservation) -> None:
        if self.addresses.release(address, owner, reservation):
            reservation.released.append(address)

    def allocate_port(self, owner: Key, reservation: Reservation) -> int:
        """Raises ExhaustedError."""
        held = self.ports.by
        port = self._port_bands.find(lambda number: number not in held)
        if port is None:
            raise ExhaustedError(FULL)
        self.ports.take(port, owner, reservation)
        reservation.then(lambda: self._port_bands.took(port))
        return port

    def take_port(self, port: int, owner: Key, reservation: Reservation) -> None:
        """Raises AddressError."""
        if port not in NODE_PORTS:
            raise AddressError(
                "provided port is not in the valid range. The range of valid ports is "
                f"{NODE_PORTS.start}-{NODE_PORTS[-1]}"
            )
        if port in self.ports.by:
            raise AddressError(PORT_TAKEN)
        self.ports.take(port, owner, reservation)

    def release_port(self, port: int, owner: Key, reservation: Reservation) -> None:
        self.ports.release(port, owner, reservation)
