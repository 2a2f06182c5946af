"""TCP connections as their own ends see them: tcp_info by sock_diag netlink. Read-only.

A socket knows what no packet counter does: how long the other end takes. `min_rtt` is the smallest
round trip of the last five minutes (net.ipv4.tcp_min_rtt_wlen), the handshake's among them.
Source: include/uapi/linux/inet_diag.h, tcp.h; net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final, NamedTuple

from podwire.errors import KernelError
from podwire.kernel import decode
from podwire.kernel import encode as nl
from podwire.kernel.handle import Handle

_SOCK_DIAG_BY_FAMILY: Final = 20
_PROTOCOL: Final = 4  # NETLINK_SOCK_DIAG
_ESTABLISHED: Final = 1 << 1
_WANT_INFO: Final = 1 << 1  # INET_DIAG_INFO - 1
_INFO: Final = 2
_REQUEST: Final = struct.Struct("=BBBxI48x")  # inet_diag_req_v2, any addresses
_MESSAGE: Final = struct.Struct("!BBBBHH16s16s")  # the beginning of inet_diag_msg
_MESSAGE_SIZE: Final = 72
_MIN_RTT: Final = 148  # offset in struct tcp_info, since Linux 4.6
_UNMEASURED: Final = 0xFFFFFFFF
_RECEIVE: Final = 1 << 16


class TcpSocket(NamedTuple):
    """An established connection's far end, and its smallest round trip (None: not measured)."""

    dst: bytes
    dport: int
    min_rtt_us: int | None


class SockDiag(Handle):
    """The TCP sockets of the namespace it was opened in."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _PROTOCOL
            )
            self._socket.bind((0, 0))
        except OSError as e:
            raise KernelError("sock_diag: cannot open a socket", errno=e.errno or 0) from e

    def close(self) -> None:
        self._socket.close()

    def established(self, family: int = socket.AF_INET) -> list[TcpSocket]:
        """Every established connection of the family.

        A socket of AF_INET6 that speaks IPv4 is of AF_INET6 here and is given as IPv4.
        """
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, _WANT_INFO, _ESTABLISHED)
        flags = nl.NLM_F_REQUEST | nl.NLM_F_DUMP
        found: list[TcpSocket] = []
        try:
            self._socket.send(nl.message(_SOCK_DIAG_BY_FAMILY, flags, 1, body))
            while True:
                for kind, _flags, _seq, answer in decode.messages(self._socket.recv(_RECEIVE)):
                    if kind == nl.NLMSG_DONE:
                        return found
                    if kind == nl.NLMSG_ERROR:
                        code = decode.error_of(_flags, answer)[0]
                        raise KernelError("sock_diag", errno=code or errno.EIO)
                    found.append(parse_socket(answer))
        except OSError as e:
            raise KernelError(f"sock_diag: {os.strerror(e.errno or 0)}", errno=e.errno or 0) from e


def parse_socket(answer: bytes) -> TcpSocket:
    """One inet_diag_msg with its attributes."""
    family, _state, _timer, _retrans, _sport, dport, _src, dst = _MESSAGE.unpack_from(answer)
    packed = dst[:4] if family == socket.AF_INET else dst
    if packed[:12] == bytes(10) + b"\xff\xff":
        packed = packed[12:]
    info = decode.attrs(answer, _MESSAGE_SIZE).get(_INFO, b"")
    if len(info) < _MIN_RTT + 4:
        return TcpSocket(packed, dport, None)
    value = int.from_bytes(info[_MIN_RTT : _MIN_RTT + 4], "little")
    return TcpSocket(packed, dport, None if value == _UNMEASURED else value)
