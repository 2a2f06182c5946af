"""The seam between planners and the kernel: one protocol, the real thing and its double.

Code that takes an `Effects` runs unchanged on `KernelEffects` and on `fake.FakeKernel`; the
scenarios in tests/kernel run on both and compare what came out.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from podwire.kernel import announce, iptables, netns, nfpack, nft, sysctl
from podwire.kernel import requests as rq
from podwire.kernel.conntrack import Conntrack
from podwire.kernel.flows import EVERY, Flow, Match
from podwire.kernel.iptables import Family
from podwire.kernel.nfelements import NfElements
from podwire.kernel.rtnl import Rtnl


class RouteNetlink(Protocol):
    """What `rtnl.Rtnl` offers; bound to one namespace."""

    def apply(self, requests: Iterable[rq.Request]) -> None: ...
    def index(self, name: str) -> int: ...
    def links(self) -> dict[str, rq.Link]: ...
    def addresses(self) -> list[rq.Address]: ...
    def routes(self, table: int | None = rq.TABLE_MAIN) -> list[rq.Route]: ...
    def rules(self) -> list[rq.Rule]: ...
    def neighbours(self) -> list[rq.Neighbour]: ...
    def proxies(self) -> list[rq.Proxy]: ...
    def fdb(self) -> list[rq.Fdb]: ...
    def close(self) -> None: ...


class SetElements(Protocol):
    """What `nfelements.NfElements` offers; bound to one namespace."""

    max_batch: int

    @property
    def port(self) -> int: ...
    def apply(self, changes: Sequence[nfpack.Change]) -> None: ...
    def flush(self, family: str, table: str, name: str) -> None: ...
    def dump(self, family: str, table: str, name: str) -> dict[nfpack.Key, nfpack.Data]: ...
    def dump_counters(
        self, family: str, table: str, name: str
    ) -> dict[nfpack.Key, tuple[int, int]]: ...
    def generation(self) -> int: ...
    def own_pid(self) -> int: ...
    def close(self) -> None: ...


class FlowTable(Protocol):
    """What `conntrack.Conntrack` offers; bound to one namespace."""

    def dump(self, family: int = socket.AF_INET, match: Match = EVERY) -> list[Flow]: ...
    def count(self) -> int: ...
    def maximum(self) -> int: ...
    def delete(self, flow: Flow) -> bool: ...
    def delete_many(self, wanted: Iterable[Flow]) -> int: ...
    def close(self) -> None: ...


class Effects(Protocol):
    """Everything a network planner may do. `ns` is a namespace descriptor, None the current one.

    Inside `creating` and `entered` the current namespace is another: never await there.
    """

    def current(self) -> int: ...
    def creating(self, pin: Path) -> contextlib.AbstractContextManager[int]: ...
    def entered(self, ns: int) -> contextlib.AbstractContextManager[None]: ...
    def open_pin(self, pin: Path) -> int: ...
    def delete_pin(self, pin: Path) -> None: ...
    def close(self, ns: int) -> None: ...
    def rtnl(self, ns: int | None = None) -> contextlib.AbstractContextManager[RouteNetlink]: ...
    def nft(self, text: str, ns: int | None = None) -> None: ...
    def list_table(self, family: str, name: str, ns: int | None = None) -> str: ...
    def elements(self, ns: int | None = None) -> contextlib.AbstractContextManager[SetElements]: ...
    def conntrack(self, ns: int | None = None) -> contextlib.AbstractContextManager[FlowTable]: ...
    def iptables_restore(self, text: str, family: Family = 4, ns: int | None = None) -> None: ...
    def iptables_save(self, table: str, family: Family = 4, ns: int | None = None) -> str: ...
    def announce(
        self, device: str, addresses: Iterable[rq.IPAddress], ns: int | None = None
    ) -> None: ...
    def write_sysctls(self, values: Mapping[str, str | int], ns: int | None = None) -> None: ...
    def read_sysctl(self, key: str, ns: int | None = None) -> str: ...


class KernelEffects:
    """The real effects."""

    def current(self) -> int:
        return netns.current()

    def creating(self, pin: Path) -> contextlib.AbstractContextManager[int]:
        return netns.creating(pin)

    def entered(self, ns: int) -> contextlib.AbstractContextManager[None]:
        return netns.entered(ns)

    def open_pin(self, pin: Path) -> int:
        return netns.open_pin(pin)

    def delete_pin(self, pin: Path) -> None:
        netns.delete(pin)

    def close(self, ns: int) -> None:
        os.close(ns)

    @contextlib.contextmanager
    def rtnl(self, ns: int | None = None) -> Iterator[RouteNetlink]:
        with Rtnl() if ns is None else Rtnl.in_ns(ns) as handle:
            yield handle

    def nft(self, text: str, ns: int | None = None) -> None:
        nft.apply(text, ns)

    def list_table(self, family: str, name: str, ns: int | None = None) -> str:
        return nft.list_table(family, name, ns)

    @contextlib.contextmanager
    def elements(self, ns: int | None = None) -> Iterator[SetElements]:
        with NfElements() if ns is None else NfElements.in_ns(ns) as handle:
            yield handle

    @contextlib.contextmanager
    def conntrack(self, ns: int | None = None) -> Iterator[FlowTable]:
        with Conntrack() if ns is None else Conntrack.in_ns(ns) as handle:
            yield handle

    def iptables_restore(self, text: str, family: Family = 4, ns: int | None = None) -> None:
        iptables.restore(text, family, ns)

    def iptables_save(self, table: str, family: Family = 4, ns: int | None = None) -> str:
        return iptables.save(table, family, ns)

    def announce(
        self, device: str, addresses: Iterable[rq.IPAddress], ns: int | None = None
    ) -> None:
        announce.announce(device, addresses, ns)

    def write_sysctls(self, values: Mapping[str, str | int], ns: int | None = None) -> None:
        sysctl.write(values, ns)

    def read_sysctl(self, key: str, ns: int | None = None) -> str:
        return sysctl.read(key, ns)
