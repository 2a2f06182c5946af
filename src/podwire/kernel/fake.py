"""The kernel, as far as planners use it, in memory: `effects.Effects` without root or clock.

Links, addresses, routes: `fake_rtnl`; set elements and flows: `fake_nf`; iptables: `fake_iptables`.
nftables text is kept by table; its commands are understood, its rules are not. No packet moves.

The scenarios in tests/kernel/test_kernel_fake.py run here and on the kernel, and the states are
compared.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import fake_iptables
from podwire.kernel.effects import FlowTable, RouteNetlink, SetElements
from podwire.kernel.fake_nf import FakeConntrack, FakeNfElements, forget
from podwire.kernel.fake_rtnl import FakeRtnl, Namespace, remove_link
from podwire.kernel.iptables import Family
from podwire.kernel.requests import IPAddress

_FIRST_FD: Final = 1_000_000  # no real descriptor: closing one by mistake must fail

_COMMAND: Final = re.compile(
    r"^(?P<verb>add|create|delete|flush|insert|replace|list)\s+"
    r"(?P<noun>table|chain|rule|set|map|element|counter|flowtable)\s+"
    r"(?:(?P<family>ip6?|inet|arp|bridge|netdev)\s+)?(?P<name>[\w-]+)"
)
_BLOCK: Final = re.compile(
    r"^(?:add\s+)?table\s+(?:(?P<family>ip6?|inet|arp|bridge|netdev)\s+)?(?P<name>[\w-]+)\s*\{"
)


def split_commands(text: str) -> list[str]:
    """Cut nft text into its top-level commands: by line and semicolon outside of braces. Pure."""
    commands: list[str] = []
    depth = 0
    current = ""
    for raw in text.splitlines():
        line = raw.split("#", 1)[0] if '"' not in raw else raw
        for character in line:
            depth += {"{": 1, "}": -1}.get(character, 0)
            if character == ";" and depth == 0:
                commands.append(current)
                current = ""
            else:
                current += character
        if depth == 0:
            commands.append(current)
            current = ""
        else:
            current += "\n"
    return [command.strip() for command in commands if command.strip()]


def _nft_command(tables: dict[tuple[str, str], list[str]], command: str) -> None:
    block = _BLOCK.match(command)
    if block:
        tables.setdefault((block["family"] or "ip", block["name"]), []).append(command)
        return
    found = _COMMAND.match(command)
    if not found:
        raise KernelError(f"nftables: {command[:100]!r}: the fake does not know this command")
    key = (found["family"] or "ip", found["name"])
    verb, noun = found["verb"], found["noun"]
    if noun == "table" and verb in ("add", "create"):
        if verb == "create" and key in tables:
            raise KernelError(f"nftables: {command}", errno=errno.EEXIST)
        tables.setdefault(key, [])
        return
    if key not in tables:
        raise KernelError(f"nftables: {command[:100]!r}", errno=errno.ENOENT)
    if noun == "table" and verb == "delete":
        del tables[key]
    else:
        tables[key].append(command)


class FakeKernel:
    """`effects.Effects` in memory. Starts in one namespace, as a node's agent does."""

    def __init__(self) -> None:
        self._by_fd: dict[int, Namespace] = {}
        self._pins: dict[Path, Namespace] = {}
        self._here = Namespace()
        self._next_fd = _FIRST_FD

    def _open(self, namespace: Namespace) -> int:
        self._next_fd += 1
        self._by_fd[self._next_fd] = namespace
        return self._next_fd

    def namespace(self, ns: int | None = None) -> Namespace:
        """The state behind a descriptor, or the current namespace's."""
        if ns is None:
            return self._here
        if ns not in self._by_fd:
            raise KernelError(f"namespace fd {ns}", errno=errno.EBADF)
        return self._by_fd[ns]

    def open_descriptors(self) -> int:
        """How many descriptors nobody closed: a test of leaks."""
        return len(self._by_fd)

    def current(self) -> int:
        return self._open(self._here)

    @contextlib.contextmanager
    def creating(self, pin: Path) -> Iterator[int]:
        if pin in self._pins:
            raise KernelError(f"network namespace {pin}: the pin exists", errno=errno.EEXIST)
        former, self._here = self._here, Namespace()
        self._pins[pin] = self._here
        fd = self._open(self._here)
        try:
            yield fd
        except BaseException:
            self.close(fd)
            self.delete_pin(pin)
            raise
        finally:
            self._here = former

    @contextlib.contextmanager
    def entered(self, ns: int) -> Iterator[None]:
        former, self._here = self._here, self.namespace(ns)
        try:
            yield
        finally:
            self._here = former

    def open_pin(self, pin: Path) -> int:
        if pin not in self._pins:
            raise KernelError(f"network namespace {pin}: cannot open", errno=errno.ENOENT)
        return self._open(self._pins[pin])

    def delete_pin(self, pin: Path) -> None:
        namespace = self._pins.pop(pin, None)
        if namespace is not None:
            self._collect(namespace)

    def close(self, ns: int) -> None:
        self._collect(self._by_fd.pop(ns))

    def _collect(self, namespace: Namespace) -> None:
        """A namespace nothing refers to any more takes its links, and their peers, with it."""
        alive = [self._here, *self._pins.values(), *self._by_fd.values()]
        if not any(namespace is other for other in alive):
            for index in [index for index in namespace.links if index != 1]:
                if index in namespace.links:
                    remove_link(namespace, index)

    @contextlib.contextmanager
    def rtnl(self, ns: int | None = None) -> Iterator[RouteNetlink]:
        yield FakeRtnl(self.namespace, self.namespace(ns))

    def nft(self, text: str, ns: int | None = None) -> None:
        namespace = self.namespace(ns)
        tables = copy.deepcopy(namespace.tables)
        elements = dict(namespace.elements)
        for command in split_commands(text):
            _nft_command(tables, command)
            forget(elements, command)
        namespace.tables, namespace.elements = tables, elements
        namespace.generation += 1

    @contextlib.contextmanager
    def elements(self, ns: int | None = None) -> Iterator[SetElements]:
        yield FakeNfElements(self.namespace(ns))

    @contextlib.contextmanager
    def conntrack(self, ns: int | None = None) -> Iterator[FlowTable]:
        yield FakeConntrack(self.namespace(ns))

    def list_table(self, family: str, name: str, ns: int | None = None) -> str:
        tables = self.namespace(ns).tables
        if (family, name) not in tables:
            raise KernelError(f"nftables: table {family} {name}", errno=errno.ENOENT)
        return "\n".join(tables[family, name]) + "\n"

    def iptables_restore(self, text: str, family: Family = 4, ns: int | None = None) -> None:
        fake_iptables.restore(self.namespace(ns).iptables, text, family)

    def iptables_save(self, table: str, family: Family = 4, ns: int | None = None) -> str:
        return fake_iptables.save(self.namespace(ns).iptables, table, family)

    def announce(self, device: str, addresses: Iterable[IPAddress], ns: int | None = None) -> None:
        namespace = self.namespace(ns)
        wanted = list(addresses)
        try:
            link = namespace.find(device)
        except KernelError as e:
            raise KernelError(f"announcement on {device}", errno=errno.ENODEV) from e
        if wanted and not link.up:
            raise KernelError(f"announcement on {device}", errno=errno.ENETDOWN)
        namespace.announced += [(device, address) for address in wanted]

    def write_sysctls(self, values: Mapping[str, str | int], ns: int | None = None) -> None:
        sysctls = self.namespace(ns).sysctls
        for key, value in values.items():
            sysctls[_sysctl_key(key)] = str(value)

    def read_sysctl(self, key: str, ns: int | None = None) -> str:
        return self.namespace(ns).sysctls.get(_sysctl_key(key), "0")


def _sysctl_key(key: str) -> str:
    path = key if "/" in key else key.replace(".", "/")
    if not path.startswith("net/"):
        raise KernelError(f"sysctl {key}: only net.* may be touched")
    return path
