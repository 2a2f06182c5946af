"""A route netlink socket bound to the network namespace it was opened in.

    requests -> encode -> one sendmsg -> one acknowledgement each -> KernelError naming the request

The kernel performs every message of a datagram whether or not an earlier one failed, so a failed
list leaves the rest done: the error names the first failure and counts the others. Lists are
idempotent where their requests are (`Replace`, `Delete`), so the cure is to send the list again.

An `Rtnl` serves one thread at a time; the namespace of the calling thread does not matter after
opening.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import decode, guard
from podwire.kernel import encode as nl
from podwire.kernel import requests as rq
from podwire.kernel.handle import Handle

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_RECEIVE: Final = 1 << 17
# An acknowledgement occupies about 800 bytes of the receive buffer (truesize), which holds at least
# 212,992 unless the machine was tuned down: beyond this many in one send it could overflow.
_CHUNK: Final = 200
_DUMP_RETRIES: Final = 10


class Rtnl(Handle):
    """The links, addresses, routes, rules and neighbours of one network namespace."""

    def __init__(self) -> None:
        """Open in the calling thread's namespace; `HostNamespaceError` when that is the host's."""
        guard.assert_not_host("rtnetlink")
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
        except OSError as e:
            raise KernelError("rtnetlink: cannot open a socket", errno=e.errno or 0) from e
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._seq = 0

    def close(self) -> None:
        self._socket.close()

    # -- changes ---------------------------------------------------------------------------------

    def apply(self, requests: Iterable[rq.Request]) -> None:
        """Perform the requests in order, each acknowledged by the kernel.

        Errors: `KernelError` with the errno, the kernel's words and the first request that failed.
        """
        wanted = list(requests)
        failures: list[tuple[rq.Request, int, str]] = []
        known: dict[str, int] = {}
        for start in range(0, len(wanted), _CHUNK):
            failures += self._send(wanted[start : start + _CHUNK], known)
        if failures:
            request, code, text = failures[0]
            more = f" (and {len(failures) - 1} more of {len(wanted)})" if len(failures) > 1 else ""
            words = f": {text}" if text else ""
            raise KernelError(f"{request}{words}{more}", errno=code)

    def _send(
        self, requests: Sequence[rq.Request], known: dict[str, int]
    ) -> list[tuple[rq.Request, int, str]]:
        def resolve(device: rq.Device) -> int:
            if isinstance(device, int):
                return device
            if device not in known:
                # What was asked for before must be there before it can be looked up.
                flush()
                known[device] = self.index(device)
            return known[device]

        def flush() -> None:
            if pending:
                failures.extend(self._exchange(pending, parts))
                pending.clear()
                parts.clear()

        pending: dict[int, rq.Request] = {}
        parts: list[bytes] = []
        failures: list[tuple[rq.Request, int, str]] = []
        for request in requests:
            try:
                kind, flags, body = nl.encode(request, resolve)
            except KernelError as e:
                if e.errno not in nl.tolerated(request):
                    failures.append((request, e.errno, ""))
                continue
            self._seq += 1
            pending[self._seq] = request
            parts.append(nl.message(kind, flags | nl.NLM_F_REQUEST | nl.NLM_F_ACK, self._seq, body))
            _learn(request, known)
        flush()
        return failures

    def _exchange(
        self, pending: dict[int, rq.Request], parts: list[bytes]
    ) -> Iterator[tuple[rq.Request, int, str]]:
        waiting = dict(pending)
        failures: dict[int, tuple[rq.Request, int, str]] = {}
        try:
            self._socket.sendmsg(parts)
            while waiting:
                for kind, flags, seq, body in decode.messages(self._socket.recv(_RECEIVE)):
                    if kind != nl.NLMSG_ERROR or seq not in waiting:
                        continue
                    request = waiting.pop(seq)
                    code, text = decode.error_of(flags, body)
                    if code and code not in nl.tolerated(request):
                        failures[seq] = (request, code, text)
        except OSError as e:
            first = next(iter(waiting.values()), None)
            raise KernelError(f"rtnetlink: {first}", errno=e.errno or 0) from e
        return iter([failures[seq] for seq in sorted(failures)])

    # -- questions -------------------------------------------------------------------------------

    def index(self, name: str) -> int:
        """The interface index of `name`; `KernelError` ENODEV when there is no such link."""
        self._seq += 1
        try:
            self._socket.send(
                nl.message(nl.RTM_GETLINK, nl.NLM_F_REQUEST, self._seq, nl.link_query(name))
            )
            while True:
                for kind, flags, seq, body in decode.messages(self._socket.recv(_RECEIVE)):
                    if seq != self._seq:
                        continue
                    if kind == nl.RTM_NEWLINK:
                        return decode.link_index(body)
                    code, text = decode.error_of(flags, body)
                    raise KernelError(f"link {name}{': ' if text else ''}{text}", errno=code)
        except OSError as e:
            raise KernelError(f"link {name}", errno=e.errno or 0) from e

    def _dump(self, kind: int, family: int = 0, query: bytes | None = None) -> list[bytes]:
        for _ in range(_DUMP_RETRIES):
            bodies = self._dump_once(kind, query or nl.dump_query(kind, family))
            if bodies is not None:
                return bodies
        raise KernelError("rtnetlink dump: changed under the reader every time", errno=errno.EINTR)

    def _dump_once(self, kind: int, query: bytes) -> list[bytes] | None:
        """One dump, or None when the kernel says that it is inconsistent (NLM_F_DUMP_INTR)."""
        self._seq += 1
        flags = nl.NLM_F_REQUEST | nl.NLM_F_DUMP
        bodies: list[bytes] = []
        interrupted = False
        try:
            self._socket.send(nl.message(kind, flags, self._seq, query))
            while True:
                for got, got_flags, seq, body in decode.messages(self._socket.recv(_RECEIVE)):
                    if seq != self._seq:
                        continue
                    interrupted = interrupted or bool(got_flags & nl.NLM_F_DUMP_INTR)
                    if got == nl.NLMSG_DONE:
                        return None if interrupted else bodies
                    if got == nl.NLMSG_ERROR:
                        code, text = decode.error_of(got_flags, body)
                        raise KernelError(f"rtnetlink dump {text}".rstrip(), errno=code)
                    bodies.append(body)
        except OSError as e:
            raise KernelError("rtnetlink dump", errno=e.errno or 0) from e

    def links(self) -> dict[str, rq.Link]:
        """Every link, by name."""
        pairs = [decode.parse_link(body) for body in self._dump(nl.RTM_GETLINK)]
        names = {link.index: link.name for link, _ in pairs}
        return {
            link.name: _with_master(link, names.get(master)) if master else link
            for link, master in pairs
        }

    def _names(self) -> decode.NameOf:
        names = {link.index: link.name for link in self.links().values()}
        # A link made since then; its number is still a valid `Device`.
        return lambda index: names.get(index) or f"if{index}"

    def addresses(self) -> list[rq.Address]:
        """Every IPv4 and IPv6 address."""
        name_of = self._names()
        return [decode.parse_address(body, name_of) for body in self._dump(nl.RTM_GETADDR)]

    def routes(self, table: int | None = rq.TABLE_MAIN) -> list[rq.Route]:
        """The IPv4 and IPv6 routes of `table` (None: of all), IPv6 clones left out."""
        name_of = self._names()
        routes = (decode.parse_route(body, name_of) for body in self._dump(nl.RTM_GETROUTE))
        return [route for route in routes if table is None or route.table == table]

    def rules(self) -> list[rq.Rule]:
        """The rules that look a table up, the kernel's own three included."""
        rules = (decode.parse_rule(body) for body in self._dump(nl.RTM_GETRULE))
        return [rule for rule in rules if rule is not None]

    def neighbours(self) -> list[rq.Neighbour]:
        """The permanent neighbour entries."""
        return [e for e in self._entries(0) if isinstance(e, rq.Neighbour)]

    def proxies(self) -> list[rq.Proxy]:
        """The proxy neighbour entries."""
        name_of = self._names()
        bodies = self._dump(nl.RTM_GETNEIGH, query=nl.proxy_query())
        entries = (decode.parse_proxy(body, name_of) for body in bodies)
        return [entry for entry in entries if entry is not None]

    def fdb(self) -> list[rq.Fdb]:
        """The permanent forwarding entries of VXLAN devices."""
        return [e for e in self._entries(socket.AF_BRIDGE) if isinstance(e, rq.Fdb)]

    def _entries(self, family: int) -> list[rq.Neighbour | rq.Fdb]:
        name_of = self._names()
        entries = (decode.parse_neighbour(b, name_of) for b in self._dump(nl.RTM_GETNEIGH, family))
        return [entry for entry in entries if entry is not None]


def _learn(request: rq.Request, known: dict[str, int]) -> None:
    """Remember what a request in the same list says about names."""
    if isinstance(request, rq.AddLink):
        if request.index and request.netns is None and not request.exist_ok:
            known[request.name] = request.index
        kind = request.kind
        if (
            isinstance(kind, rq.Veth)
            and kind.index
            and kind.netns is None
            and request.netns is None
        ):
            known[kind.peer] = kind.index
    elif isinstance(request, rq.DeleteLink) or (
        isinstance(request, rq.SetLink) and (request.name or request.netns is not None)
    ):
        known.clear()


def _with_master(link: rq.Link, master: str | None) -> rq.Link:
    fields = {name: getattr(link, name) for name in link.__struct_fields__}
    return rq.Link(**{**fields, "master": master})


def loopback_up() -> rq.SetLink:
    """What every fresh namespace needs first; the loopback is always number 1."""
    return rq.SetLink(device=1, up=True)
