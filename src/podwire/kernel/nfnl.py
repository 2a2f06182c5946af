"""Netfilter netlink (nfnetlink): the socket that sets, maps and connection tracking share.

    nlmsghdr (subsystem << 8 | operation), nfgenmsg (family, version, resource), attributes

Integers in attributes are big-endian, unlike rtnetlink's. The kernel performs a request inside of
sendmsg(2), so when the call returns, every answer that is not a dump already waits in the receive
buffer: nothing here ever blocks. Source: include/uapi/linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import decode, guard
from podwire.kernel import encode as nl
from podwire.kernel.handle import Handle

SUBSYS_CTNETLINK: Final = 1
SUBSYS_NFTABLES: Final = 10
_GETGEN: Final = SUBSYS_NFTABLES << 8 | 16
MSG_BATCH_BEGIN: Final = 16
MSG_BATCH_END: Final = 17
GROUP_NFTABLES: Final = 7

GENMSG: Final = struct.Struct("!BBH")
NESTED: Final = 0x8000

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_NO_ENOBUFS: Final = 5
_CAP_ACK: Final = 10
_EXT_ACK: Final = 11
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_RECEIVE: Final = 1 << 17
_DUMP_RETRIES: Final = 10


def attr(kind: int, payload: bytes) -> bytes:
    return nl.attr(kind, payload)


def nest(kind: int, payload: bytes) -> bytes:
    return nl.attr(kind | NESTED, payload)


def text(kind: int, value: str) -> bytes:
    return nl.attr(kind, value.encode() + b"\0")


def message(kind: int, flags: int, seq: int, family: int, body: bytes, resource: int = 0) -> bytes:
    """One message; `kind` is the subsystem shifted left by 8, or'ed with the operation."""
    return nl.message(kind, flags, seq, GENMSG.pack(family, 0, resource) + body)


class NfSocket(Handle):
    """A netfilter netlink socket bound to the namespace it was opened in; for one thread."""

    what: str = "netfilter"

    def __init__(self) -> None:
        """Open in the calling thread's namespace; `HostNamespaceError` when that is the host's."""
        guard.assert_not_host(self.what)
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_RAW | socket.SOCK_CLOEXEC,
                12,  # NETLINK_NETFILTER
            )
            self._socket.bind((0, 0))
        except OSError as e:
            raise KernelError(f"{self.what}: cannot open a socket", errno=e.errno or 0) from e
        for option in (_CAP_ACK, _EXT_ACK, _NO_ENOBUFS):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._seq = 0

    @property
    def port(self) -> int:
        """The netlink port id: who the kernel says did it, in notifications."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        self._socket.close()

    # -- buffers ---------------------------------------------------------------------------------

    def _send_buffer(self, wanted: int) -> int:
        """Make the send buffer as large as allowed; return the largest datagram it takes.

        Past net.core.wmem_max only CAP_NET_ADMIN of the initial user namespace helps.
        """
        self._enlarge(_SO_SNDBUFFORCE, socket.SO_SNDBUF, wanted)
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32

    def _receive_buffer(self, wanted: int) -> None:
        self._enlarge(_SO_RCVBUFFORCE, socket.SO_RCVBUF, wanted)

    def _enlarge(self, force: int, ordinary: int, wanted: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, force, wanted)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, ordinary, wanted)

    def _join(self, group: int, *, count_losses: bool) -> None:
        """Subscribe to a group; with `count_losses` an overrun is told as ENOBUFS."""
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._socket.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, int(not count_losses))
        self._socket.setblocking(False)

    # -- exchanges -------------------------------------------------------------------------------

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & 0x7FFFFFFF
        return self._seq

    def _exchange(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Send, then yield (type, flags, sequence, body) of all the answers."""
        try:
            self._socket.send(data)
        except OSError as e:
            raise KernelError(
                f"{self.what}: {len(data)} bytes cannot be sent", errno=e.errno or 0
            ) from e
        with contextlib.suppress(BlockingIOError):
            while True:
                yield from decode.messages(self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT))

    def _ask(self, kind: int, family: int, body: bytes, flags: int = 0) -> list[bytes]:
        """The answers' bodies to one request, nfgenmsg included; `KernelError` on refusal."""
        seq = self._next_seq()
        found: list[bytes] = []
        request = message(kind, nl.NLM_F_REQUEST | flags, seq, family, body)
        for got, got_flags, got_seq, got_body in self._exchange(request):
            if got_seq != seq:
                continue
            if got == nl.NLMSG_ERROR:
                code, words = decode.error_of(got_flags, got_body)
                if code:
                    raise KernelError(words or "refused", errno=code)
            else:
                found.append(got_body)
        return found

    def _configure(self, kind: int, resource: int, body: bytes, likely: str) -> None:
        """One request whose answer only says whether it was done; `likely` is why it was not, where
        the kernel has no words."""
        seq = self._next_seq()
        flags = nl.NLM_F_REQUEST | nl.NLM_F_ACK
        request = message(kind, flags, seq, socket.AF_UNSPEC, body, resource)
        for _got, got_flags, got_seq, got_body in self._exchange(request):
            if got_seq == seq:
                code, words = decode.error_of(got_flags, got_body)
                if code:
                    raise KernelError(f"{self.what}: {words or likely}", errno=code)

    def _generation(self) -> tuple[int, int]:
        """(the ruleset's generation, the calling thread's number in the initial pid namespace)."""
        (answer,) = self._ask(_GETGEN, 0, b"")
        found = decode.attrs(answer, 4)
        return int.from_bytes(found[1], "big"), int.from_bytes(found.get(2, b""), "big")

    def _dump(self, kind: int, family: int, body: bytes) -> list[bytes]:
        """Every message of a dump, from its attributes on; asked anew while it was interrupted."""
        for _ in range(_DUMP_RETRIES):
            bodies = self._dump_once(kind, family, body)
            if bodies is not None:
                return bodies
        raise KernelError(
            f"{self.what} dump: changed under the reader every time", errno=errno.EINTR
        )

    def _dump_once(self, kind: int, family: int, body: bytes) -> list[bytes] | None:
        seq = self._next_seq()
        flags = nl.NLM_F_REQUEST | nl.NLM_F_DUMP
        bodies: list[bytes] = []
        interrupted = False
        try:
            self._socket.send(message(kind, flags, seq, family, body))
            while True:
                data = self._socket.recv(_RECEIVE)
                for got, got_flags, got_seq, got_body in decode.messages(data):
                    if got_seq != seq:
                        continue
                    interrupted = interrupted or bool(got_flags & nl.NLM_F_DUMP_INTR)
                    code = int.from_bytes(got_body[:4], "little", signed=True)
                    if got == nl.NLMSG_ERROR or (got == nl.NLMSG_DONE and code < 0):
                        # -EINTR: the generation changed between two parts of the dump.
                        if -code == errno.EINTR:
                            return None
                        raise KernelError(f"{self.what} dump", errno=-code)
                    if got == nl.NLMSG_DONE:
                        return None if interrupted else bodies
                    bodies.append(got_body[4:])
        except OSError as e:
            raise KernelError(f"{self.what} dump", errno=e.errno or 0) from e
