"""Which session speaks which protocol on this kernel."""

from __future__ import annotations

import functools
import socket
from collections.abc import Mapping

from podwire.explain.probes.rawsctp import RawSctpSession
from podwire.explain.probes.sessions import (
    HttpSession,
    IcmpSession,
    SctpSession,
    Session,
    TcpSession,
    UdpSession,
)


@functools.cache
def sessions() -> Mapping[str, type[Session]]:
    return {
        "tcp": TcpSession,
        "udp": UdpSession,
        "http": HttpSession,
        "icmp": IcmpSession,
        "sctp": SctpSession if _has_sctp() else RawSctpSession,
    }


def _has_sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True
