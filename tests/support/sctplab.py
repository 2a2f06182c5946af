"""SCTP associations in a lab, on a kernel that has it: one-to-one style (RFC 6458 section 4).

    associate(lab, [Asked(source, address, port)]) -> [Answer]: connect, send, receive

Sources are pods' addresses, nodes' names or `outside`. All rows of a source are asked at once, by
one process in its namespace that shares nothing with the lab. Stand-ins answer the first words of
an association with who they are and whom they see.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from labtools import PATIENCE
from outsideclient import entering

from podwire.lab import Lab

# An INIT that is lost is repeated after three seconds (RTO.Initial, RFC 9260 section 16): time for
# one more, so that what is silent was dropped.
TIMEOUT_S = 2.0 * PATIENCE

_ASSOCIATE = """
import errno, json, select, socket, sys, time
rows, deadline = json.loads(sys.argv[1]), time.monotonic() + float(sys.argv[2])
answers, waiting, poll = [""] * len(rows), {}, select.epoll()
for i, (address, port) in enumerate(rows):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_SCTP)
    s.connect_ex((address, port))
    poll.register(s, select.EPOLLOUT)
    waiting[s.fileno()] = i, s
while waiting and (left := deadline - time.monotonic()) > 0:
    for fd, event in poll.poll(left):
        i, s = waiting[fd]
        try:
            if number := s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, "")
            if event & select.EPOLLIN:
                answers[i] = s.recv(4096).decode()
            elif event & select.EPOLLOUT:
                s.send(b"hello")
                poll.modify(s, select.EPOLLIN)
                continue
        except OSError as e:
            answers[i] = errno.errorcode[e.errno]
        del waiting[fd]
        poll.unregister(fd)
        s.close()
print(json.dumps(answers))
"""

_KEPT = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
s.settimeout(float(sys.argv[3]))
s.connect((sys.argv[1], int(sys.argv[2])))
while True:
    try:
        s.send(b"hello")
        print("answered" if s.recv(4096) else "ended", flush=True)
    except OSError as e:
        print(e.__class__.__name__, flush=True)
    if not sys.stdin.readline():
        break
"""


class Asked(NamedTuple):
    source: str
    address: str
    port: int


@dataclass(frozen=True)
class Answer:
    """Who answered, and whom it saw; or `error`, the name of an errno, "" for silence."""

    address: str = ""
    client: str = ""
    error: str = ""


def pod_pins(lab: Lab) -> dict[str, str]:
    """Every pod's IPv4 address and the file its network namespace is pinned by, in the lab."""
    each = 'for p in "$0"/*; do echo $p $(nsenter --net=$p ip -o -4 addr show dev eth0); done'
    words = [*entering(lab, ""), "sh", "-c", each, str(lab.paths.pod_pins)]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {row[row.index("inet") + 1].split("/")[0]: row[0] for row in rows if "inet" in row}


def associate(lab: Lab, asked: Sequence[Asked]) -> list[Answer]:
    """In the order they were asked; all at once."""
    pins = pod_pins(lab)
    by_source: dict[str, list[int]] = {}
    for i, row in enumerate(asked):
        by_source.setdefault(row.source, []).append(i)
    running = []
    for source, some in by_source.items():
        rows = json.dumps([(asked[i].address, asked[i].port) for i in some])
        words = [sys.executable, "-c", _ASSOCIATE, rows, str(TIMEOUT_S)]
        place = entering(lab, pins.get(source, source))
        running.append((some, subprocess.Popen([*place, *words], stdout=subprocess.PIPE)))
    answers = [Answer()] * len(asked)
    for some, process in running:
        with process:
            said, _ = process.communicate()
        assert process.returncode == 0
        for i, text in zip(some, json.loads(said), strict=True):
            answers[i] = _answer(text)
    return answers


def _answer(text: str) -> Answer:
    first, _, said = text.partition("\n")
    if not said:
        return Answer(error=text)
    assert said == "hello", text
    who = json.loads(first)
    return Answer(who["address"], who["client"])


class Kept:
    """An association that stays; `speak` says what becomes of some more words."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def speak(self) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def kept(lab: Lab, asked: Asked) -> Iterator[Kept]:
    """Made, and answered once."""
    place = entering(lab, pod_pins(lab).get(asked.source, asked.source))
    words = [sys.executable, "-c", _KEPT, asked.address, str(asked.port), str(TIMEOUT_S)]
    with subprocess.Popen(
        [*place, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "answered"
            yield Kept(process)
        finally:
            process.kill()
