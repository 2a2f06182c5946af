"""`POST /dns`: the search walked with real queries, against servers on loopback addresses."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.rdatatype
from dns_fakes import respond

from podwire.agents.resolving import Place
from podwire.agents.resolving import walk as look_up
from podwire.explain.dnswire import DnsRequest, DnsResponse
from podwire.kernel.rtnl import Rtnl, loopback_up

A = ["web. 5 IN A 10.96.0.80"]
Says = Callable[[bytes], bytes]


@contextlib.contextmanager
def server(address: str, says: Says) -> Iterator[list[bytes]]:
    """A name server on port 53 of `address`; yields what it is asked."""
    asked: list[bytes] = []
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind((address, 53))

        def serve() -> None:
            while query := sock.recvfrom(512):
                if not query[0]:
                    return
                asked.append(query[0])
                sock.sendto(says(query[0]), query[1])

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        with socket.socket(type=socket.SOCK_DGRAM) as end:
            end.sendto(b"", (address, 53))
        thread.join()


def walk(tmp_path: Path, *servers: str, name: str = "web.", conf: str = "") -> DnsResponse:
    resolv, hosts = tmp_path / "resolv.conf", tmp_path / "hosts"
    resolv.write_text(conf + "".join(f"nameserver {each}\n" for each in servers))
    hosts.write_text("")
    wanted = DnsRequest("shop/web-0", name, ("A",))
    return look_up(Place(None, resolv, hosts), wanted, [dns.rdatatype.A])


def test_a_server_that_fails_is_left_for_the_next_as_glibc_does(tmp_path: Path) -> None:
    """resolv/res_send.c: SERVFAIL, NOTIMP and REFUSED are no answers while others can be asked."""
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    for code in ("SERVFAIL", "NOTIMP", "REFUSED"):
        sick = server("127.0.0.2", lambda wire, code=code: respond(wire, rcode=code))
        with sick as first, server("127.0.0.3", lambda wire: respond(wire, A)):
            (exchange,) = walk(tmp_path, "127.0.0.2", "127.0.0.3").exchanges
            assert (exchange.server, exchange.rcode, exchange.tries) == ("127.0.0.3", "NOERROR", 2)
            (exchange,) = walk(tmp_path, "127.0.0.2").exchanges
            assert (exchange.server, exchange.rcode, exchange.tries) == ("127.0.0.2", code, 2)
            assert exchange.error == ""
            assert len(first) == 3


def test_a_denial_is_an_answer(tmp_path: Path) -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    with server("127.0.0.2", lambda wire: respond(wire, rcode="NXDOMAIN")):
        (exchange,) = walk(tmp_path, "127.0.0.2", "127.0.0.3").exchanges
        assert (exchange.server, exchange.rcode, exchange.tries) == ("127.0.0.2", "NXDOMAIN", 1)


def test_a_name_that_gets_too_long_by_the_search_list_is_passed_over(tmp_path: Path) -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    name = ".".join(["n" * 60] * 4)
    with server("127.0.0.2", lambda wire: respond(wire, rcode="NXDOMAIN")) as asked:
        conf = f"search {'s' * 20}.example\nnameserver 127.0.0.2\noptions ndots:9\n"
        first, second = walk(tmp_path, name=name, conf=conf).exchanges
    assert (first.tries, first.rcode) == (0, "")
    assert "too long" in first.error or "> 255" in first.error
    assert (second.name, second.rcode) == (f"{name}.", "NXDOMAIN")
    assert len(asked) == 1
