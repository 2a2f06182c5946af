"""The round trips of this namespace's connections, and of no other's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from podwire.kernel.rtnl import Rtnl, loopback_up
from podwire.kernel.sockdiag import SockDiag


@contextlib.contextmanager
def connected(family: int, host: str) -> Iterator[int]:
    """The port of an established connection's far end."""
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection((host, port)) as client, listener.accept()[0]:
            assert client.fileno() >= 0
            yield port


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_connection_has_a_round_trip(family: int, host: str) -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    with SockDiag() as diag, connected(family, host) as port:
        (found,) = [s for s in diag.established(family) if s.dport == port]
        assert found.dst == socket.inet_pton(family, host)
        assert found.min_rtt_us is not None
        assert 0 < found.min_rtt_us < 1_000_000


def test_other_namespaces_are_not_seen() -> None:
    with SockDiag() as diag:
        assert diag.established() == []
