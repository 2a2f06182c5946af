"""A client in one of a lab's namespaces that outlives many questions, and a drum that never stops.

It shares no process with the lab, so only the data plane can disturb it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from podwire.lab import Lab, launch

_ASK = """
import http.client, json, socket, sys
def tcp(q):
    c = http.client.HTTPConnection(q["host"], q["port"], timeout=q["timeout"])
    try:
        c.request("GET", q["path"])
        return c.getresponse().read().decode()
    finally:
        c.close()
def udp(q):
    kind = socket.AF_INET6 if ":" in q["host"] else socket.AF_INET
    with socket.socket(kind, socket.SOCK_DGRAM) as s:
        s.settimeout(q["timeout"])
        s.connect((q["host"], q["port"]))
        s.send(b"hostname")
        return s.recv(4096).decode()
for line in sys.stdin:
    q = json.loads(line)
    try:
        answer = {"text": (udp if q["udp"] else tcp)(q)}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"""

_DRUM = """
import json, select, socket, sys, time
host, port = sys.argv[1], int(sys.argv[2])
beats, wanted = [], -1
while True:
    if select.select([sys.stdin], [], [], 0.01)[0]:
        line = sys.stdin.readline()
        if not line:
            break
        wanted = len(beats) + int(line)
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=float(sys.argv[3])) as s:
            s.sendall(b"GET /hostname HTTP/1.0\\r\\n\\r\\n")
            text = b""
            while part := s.recv(4096):
                text += part
        beats.append((began, time.monotonic(), b" 200 " in text[:16]))
    except OSError as error:
        beats.append((began, time.monotonic(), False))
    if len(beats) == wanted:
        print("flowed", flush=True)
print(json.dumps(beats), flush=True)
"""


def entering(lab: Lab, host: str) -> list[str]:
    """The words that lead into a node's namespace, the router's or `outside`'s; "" is the lab's."""
    holder = launch.holder_of(lab.paths)
    assert holder is not None
    words = ["nsenter", f"--target={holder.pid}", "--mount"]
    if os.geteuid() != 0:
        words += ["--user", "--preserve-credentials"]
    if not host:
        return [*words, "--net"]
    return [*words, "nsenter", f"--net={lab.paths.node_pins / host}"]


def run_in(lab: Lab, host: str, *command: str) -> str:
    done = subprocess.run(
        [*entering(lab, host), *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class Client:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(
        self,
        host: str,
        port: int = 80,
        path: str = "/hostname",
        *,
        udp: bool = False,
        timeout_s: float = 1.0,
    ) -> tuple[str, str]:
        """(answer, error): one of them is empty."""
        question = {"host": host, "port": port, "path": path, "udp": udp, "timeout": timeout_s}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, str] = json.loads(self._process.stdout.readline())
        return answer.get("text", ""), answer.get("error", "")

    def get(self, host: str, port: int = 80, path: str = "/hostname", **options: Any) -> str:
        """The answer; fails without one."""
        text, error = self.ask(host, port, path, **options)
        assert not error, f"{host}:{port}{path}: {error}"
        return text


@contextlib.contextmanager
def client(lab: Lab, host: str = "outside") -> Iterator[Client]:
    command = [*entering(lab, host), sys.executable, "-c", _ASK]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Client(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


@dataclass(frozen=True)
class Beat:
    """One connection: when it was begun and ended, and whether it was answered."""

    began: float
    ended: float
    answered: bool


class Drum:
    """A new connection every 10 ms."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def flow(self, beats: int = 20) -> None:
        """Return when that many more connections have been answered, or have failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{beats}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline(), "the drum ended"

    def stop(self) -> list[Beat]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        *_, last = self._process.stdout.read().splitlines()
        return [Beat(*beat) for beat in json.loads(last)]


@contextlib.contextmanager
def drum(
    lab: Lab, address: str, port: int = 80, *, host: str = "outside", timeout_s: float = 0.1
) -> Iterator[Drum]:
    command = [*entering(lab, host), sys.executable, "-c", _DRUM, address, str(port)]
    with subprocess.Popen(
        [*command, str(timeout_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Drum(process)
        finally:
            process.kill()


def longest_gap_s(beats: list[Beat]) -> float:
    """The longest time between two answers."""
    answered = [beat.ended for beat in beats if beat.answered]
    return max((b - a for a, b in itertools.pairwise(answered)), default=0.0)
