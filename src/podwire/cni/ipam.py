"""Pod addresses of one node, leased in a transaction.

A lease belongs to a sandbox, not to a pod's name, and carries the boot id of the namespaces it was
made for: after a reboot (or a rebuilt lab) those namespaces are gone, so the leases are too, and
nothing leaks (the failure of every file-based IPAM: plugins#252, k/k#108121). Addresses are handed
out next-fit, so one just released is the last to be used again; should the range be so full that
only fresh ones are free, the longest released goes first.

The store is one SQLite file (WAL): `kill -9` at any instant leaves a lease whole or absent. All
questions are answered from memory; the file is written, never read, after opening.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from podwire.cni.config import Address, Network
from podwire.errors import AddressError, ExhaustedError

# host-local's reserved addresses: network (.0, the VXLAN endpoint), gateway (.1), broadcast.
_RESERVED_FIRST = 2
_RESERVED_LAST = 1
_REUSE_AFTER_S = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS lease (
    sandbox TEXT NOT NULL, position INTEGER NOT NULL, address TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL, boot_id TEXT NOT NULL, PRIMARY KEY (sandbox, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pool (network TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS released (address TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Lease:
    """The addresses of one sandbox, the primary family first; `owner` is "namespace/name"."""

    sandbox: str
    owner: str
    addresses: tuple[Address, ...]


class _Pool:
    """One podCIDR: which offsets are taken, which were released when, where the search goes on."""

    def __init__(self, network: Network, cursor: int) -> None:
        self.network = network
        self.base = int(network.network_address)
        self.size = network.num_addresses
        self.cursor = max(cursor, _RESERVED_FIRST)
        self.used: set[int] = set()
        self.released: dict[int, float] = {}  # oldest first

    @property
    def capacity(self) -> int:
        return max(0, self.size - _RESERVED_FIRST - _RESERVED_LAST)

    def take(self, now: float) -> int:
        """The next free offset; `ExhaustedError` when there is none."""
        if len(self.used) >= self.capacity:
            raise ExhaustedError(
                f"no IP addresses available in range {self.network}: all {self.capacity} are in use"
            )
        offset = self._next_rested(now)
        if offset is None:
            offset = next(iter(self.released))
        self.released.pop(offset, None)
        self.used.add(offset)
        self.cursor = offset + 1
        return offset

    def _next_rested(self, now: float) -> int | None:
        """Next-fit over what is neither used nor fresh; bounded by how much of either there is."""
        offset = self.cursor
        for _ in range(len(self.used) + len(self.released) + 1):
            if offset > self.size - 1 - _RESERVED_LAST:
                offset = _RESERVED_FIRST
            released_at = self.released.get(offset)
            fresh = released_at is not None and now - released_at < _REUSE_AFTER_S
            if offset not in self.used and not fresh:
                return offset
            offset += 1
        return None

    def give_back(self, offset: int, now: float) -> None:
        self.used.discard(offset)
        self.released.pop(offset, None)
        self.released[offset] = now

    def address(self, offset: int) -> Address:
        return self.network[offset]


class LeaseStore:
    """Leases of one node. Not thread-safe: one thread attaches pods."""

    def __init__(
        self, path: Path | str, boot_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._boot_id = boot_id
        self._clock = clock
        self._db = sqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _SCHEMA)
        self._leases: dict[str, Lease] = {}
        self._pools: list[_Pool] = []
        self._load()

    def _load(self) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM lease WHERE boot_id != ?", (self._boot_id,))
        found: dict[str, list[tuple[str, str]]] = {}
        for sandbox, owner, address in self._db.execute(
            "SELECT sandbox, owner, address FROM lease ORDER BY sandbox, position"
        ):
            found.setdefault(sandbox, []).append((owner, address))
        for sandbox, rows in found.items():
            addresses = tuple(ip_address(address) for _, address in rows)
            self._leases[sandbox] = Lease(sandbox, rows[0][0], addresses)

    def configure(self, networks: Iterable[Network]) -> None:
        """Set the node's podCIDRs, one per family, the primary family first.

        Leases outside them stay valid until released; raises `AddressError` for a range without
        room for a single pod.
        """
        self._pools = []
        for network in networks:
            row = self._db.execute(
                "SELECT next FROM pool WHERE network = ?", (str(network),)
            ).fetchone()
            pool = _Pool(network, row[0] if row else 0)
            if pool.capacity < 1:
                raise AddressError(f"pod CIDR {network}: no room for a pod address")
            self._pools.append(pool)
            self._fill(pool)

    def _fill(self, pool: _Pool) -> None:
        for lease in self._leases.values():
            pool.used.update(
                int(address) - pool.base for address in lease.addresses if address in pool.network
            )
        rows = self._db.execute("SELECT address, at FROM released ORDER BY at").fetchall()
        for text, at in rows:
            address = ip_address(text)
            if address in pool.network and int(address) - pool.base not in pool.used:
                pool.released[int(address) - pool.base] = at

    @property
    def configured(self) -> bool:
        return bool(self._pools)

    def get(self, sandbox: str) -> Lease | None:
        return self._leases.get(sandbox)

    def all(self) -> list[Lease]:
        return list(self._leases.values())

    @property
    def free(self) -> int:
        """How many more pods fit, by the tightest family."""
        return min((pool.capacity - len(pool.used) for pool in self._pools), default=0)

    def lease(self, sandbox: str, owner: str) -> Lease:
        """One address per family for `sandbox`, the same ones when asked again."""
        held = self._leases.get(sandbox)
        if held is not None:
            return held
        if not self._pools:
            raise AddressError(f"pod {owner}: the node has no pod CIDR yet")
        now = self._clock()
        taken: list[tuple[_Pool, int]] = []
        try:
            for pool in self._pools:
                taken.append((pool, pool.take(now)))
            lease = Lease(sandbox, owner, tuple(pool.address(offset) for pool, offset in taken))
            self._persist(lease, taken)
        except (ExhaustedError, sqlite3.Error) as error:
            for pool, offset in taken:
                pool.used.discard(offset)
            if isinstance(error, sqlite3.Error):
                raise AddressError(f"pod {owner}: cannot record its address: {error}") from error
            raise ExhaustedError(f"pod {owner}: {error}") from error
        self._leases[sandbox] = lease
        return lease

    def _persist(self, lease: Lease, taken: list[tuple[_Pool, int]]) -> None:
        with self._transaction():
            self._db.executemany(
                "INSERT INTO lease (sandbox, position, address, owner, boot_id)"
                " VALUES (?, ?, ?, ?, ?)",
                [
                    (lease.sandbox, position, str(address), lease.owner, self._boot_id)
                    for position, address in enumerate(lease.addresses)
                ],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO pool (network, next) VALUES (?, ?)",
                [(str(pool.network), offset + 1) for pool, offset in taken],
            )

    def release(self, sandbox: str) -> Lease | None:
        """Give the addresses back; None when there was no such lease."""
        lease = self._leases.get(sandbox)
        if lease is None:
            return None
        now = self._clock()
        with self._transaction():
            self._db.execute("DELETE FROM lease WHERE sandbox = ?", (sandbox,))
            self._db.execute("DELETE FROM released WHERE at < ?", (now - _REUSE_AFTER_S,))
            self._db.executemany(
                "INSERT OR REPLACE INTO released (address, at) VALUES (?, ?)",
                [(str(address), now) for address in lease.addresses],
            )
        del self._leases[sandbox]
        for pool in self._pools:
            for address in lease.addresses:
                if address in pool.network:
                    pool.give_back(int(address) - pool.base, now)
        return lease

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    def close(self) -> None:
        self._db.close()


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._db.execute("COMMIT" if error is None else "ROLLBACK")
