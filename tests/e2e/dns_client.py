"""Programs that run inside pods of the DNS tests: constant lookups, by glibc or by datagrams.

python dns_client.py lookups FLAG NAME...      getaddrinfo of the names while FLAG exists
python dns_client.py queries FLAG NAME SERVER...   A queries to each server, one line of JSON each
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time

import dns.message
import dns.rcode
import dns.rdatatype


def lookups(flag: str, names: list[str]) -> None:
    """As programs do: getaddrinfo in several threads. Prints the number and what failed."""
    counts, failures = [0], []

    def work() -> None:
        while os.path.exists(flag):
            for name in names:
                try:
                    socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)
                except OSError as error:
                    failures.append(f"{name}: {error}")
                counts[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"asked": counts[0], "failed": failures}))


def queries(flag: str, name: str, servers: list[str]) -> None:
    """One line an answer: when it was asked for and there, by whom, and what it said."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in servers]
    for sock, server in zip(sockets, servers, strict=True):
        sock.settimeout(2.0)
        sock.connect((server, 53))
    while os.path.exists(flag):
        for sock, server in zip(sockets, servers, strict=True):
            query = dns.message.make_query(name, "A")
            sent = time.monotonic()
            sock.send(query.to_wire())
            answer = dns.message.from_wire(sock.recv(65535))
            got = time.monotonic()
            assert query.is_response(answer), answer
            found = sorted(str(rdata) for rrset in answer.answer for rdata in rrset)
            rcode = dns.rcode.to_text(answer.rcode())
            line = {"sent": sent, "got": got, "by": server, "rcode": rcode, "found": found}
            print(json.dumps(line), flush=True)
        time.sleep(0.002)


if __name__ == "__main__":
    _, what, *rest = sys.argv
    if what == "lookups":
        lookups(rest[0], rest[1:])
    else:
        queries(rest[0], rest[1], rest[2:])
