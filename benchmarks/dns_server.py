"""Cluster DNS from one process, against unbound (one thread, local-data), knot and dnsmasq.

    python benchmarks/dns_server.py [--services 10000] [--endpoints 10] [--rounds 5] [--seconds 2]

Needs dnsperf and unbound, and takes knot (one UDP worker, zone files: the native limit of an
authoritative server) and dnsmasq where they are. Debian: dnsperf, unbound, knot, dnsmasq-base, or
`root=$PWD; source tools/bootstrap.sh; bootstrap_benchmarks`.
Everything runs in a network namespace of its own, over its loopback; the load generator shares the
machine's processors with the servers. All servers have the same names. Measured in turns, each
round in the opposite order:

    rate     queries a second of dnsperf (8 clients, 100 outstanding): A, SRV, PTR, NXDOMAIN, mixed;
             mixed-tcp are the mixed ones over 8 TCP connections that stay open
    cpu      microseconds of the server's processor per query in the same runs: what the rate would
             be without the load generator on the same processors
    p99      latency at half of the slower one's mixed rate
    flat     our mixed rate with all Services over that with 100

And ours alone, with `--services` Services of `--endpoints` ready endpoints each:

    memory   proportional set size after all names were asked for once
    ready    from the start of the process to an answer, by the clock and of the processor. The
             snapshot is two JSON lists as an API server sends them, read from disk through the
             informers: the API server's own time is not in it
    change   an event on the watch until a query by UDP has the new answer: p50, p99
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dns.message
import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from lib import cpu_seconds, paired, percentile, print_result, pss_bytes
from podwire.client import Api
from podwire.dns import memory
from podwire.dns.answers import Answers
from podwire.dns.index import Index
from podwire.dns.records import Zone
from podwire.dns.server import Server, bind
from podwire.dns.watch import DnsWatch
from podwire.kernel import libc, userns
from podwire.kernel.rtnl import Rtnl, loopback_up
from podwire.objects.meta import Kind

_ZONE = "cluster.local"
_KINDS = ("A", "SRV", "PTR", "NXDOMAIN")
_QUESTIONS = 20_000
_BY_TCP = "-tcp"
_COMPARATORS = {"unbound": 5301, "knotd": 5303, "dnsmasq": 5302}
_OURS, _CHANGES = 5300, 5310


@dataclass(frozen=True)
class Size:
    services: int
    endpoints: int


def name_of(number: int) -> str:
    return f"svc-{number}.ns-{number % 50}.svc.{_ZONE}"


def cluster_ip(number: int) -> str:
    return f"10.{96 + number // 65536}.{number // 256 % 256}.{number % 256}"


def pod_ip(number: int) -> str:
    return f"10.{128 + number // 65536}.{number // 256 % 256}.{number % 256}"


# --- the snapshot an API server would send ------------------------------------------------------


def write_snapshot(folder: Path, size: Size) -> None:
    meta = {"metadata": {"resourceVersion": "1000000"}}
    namespaces = [{"metadata": {"name": f"ns-{n}", "resourceVersion": "1"}} for n in range(50)]
    services = [_service(n) for n in range(size.services)]
    slices = [_slice(n, size.endpoints) for n in range(size.services)]
    for plural, items in (
        ("namespaces", namespaces),
        ("services", services),
        ("endpointslices", slices),
    ):
        (folder / plural).write_bytes(msgspec.json.encode({**meta, "items": items}))


def _service(number: int) -> dict[str, Any]:
    address = cluster_ip(number)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(f"svc-{number}", number),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "selector": {"app": f"svc-{number}"},
        },
    }


def _slice(number: int, endpoints: int) -> dict[str, Any]:
    meta = _meta(f"svc-{number}-abcde", number)
    meta["labels"]["kubernetes.io/service-name"] = f"svc-{number}"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": meta,
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {
                "addresses": [pod_ip(number * endpoints + n)],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{n % 10}",
                "targetRef": {
                    "kind": "Pod",
                    "namespace": f"ns-{number % 50}",
                    "name": f"svc-{number}-7d4b9c-{n:05}",
                    "uid": f"00000000-0000-4000-8000-{number * endpoints + n:012}",
                },
            }
            for n in range(endpoints)
        ],
    }


def _meta(name: str, number: int) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": f"ns-{number % 50}",
        "uid": f"00000000-0000-4000-8000-{number:012}",
        "resourceVersion": str(1000 + number),
        "creationTimestamp": "2025-01-01T00:00:00Z",
        "labels": {"app": name, "app.kubernetes.io/managed-by": "benchmark"},
    }


class SnapshotApi(Api):
    """Lists from files; what arrives on a socket is the watch of Services."""

    def __init__(self, folder: Path, events: socket.socket | None) -> None:
        self._folder = folder
        self._events = events

    async def request(self, method: str, path: str, **more: Any) -> bytes:
        return (self._folder / path.rpartition("/")[2]).read_bytes()

    async def watch_lines(
        self, kind: Kind[Any], resource_version: str, **more: Any
    ) -> AsyncIterator[list[bytes]]:
        loop = asyncio.get_running_loop()
        while True:
            if kind.plural != "services" or self._events is None:
                await loop.create_future()
            else:
                yield [await loop.sock_recv(self._events, 65536)]


# --- servers ------------------------------------------------------------------------------------


def serve(folder: Path, port: int, events: socket.socket | None) -> None:
    """What the program does (`podwire.dns.main`), without a Corefile."""
    memory.begin()

    async def settle(watch: DnsWatch) -> None:
        await watch.synced.wait()
        memory.listed()

    async def run() -> None:
        answers = Answers(Zone(Index()))
        if events is not None:
            events.setblocking(False)
        watch = DnsWatch(SnapshotApi(folder, events), answers)
        server = Server(answers, None)
        udp, tcp = bind("127.0.0.1", port)
        await server.start([udp], [tcp])
        await asyncio.gather(watch.run(), settle(watch))

    uvloop.run(run())


@contextlib.contextmanager
def ours(folder: Path, port: int, events: socket.socket | None = None) -> Iterator[int]:
    """A fresh Python, as the real one is; yields its pid once it answers."""
    command = [sys.executable, __file__, "--serve", str(folder), "--port", str(port)]
    passed = [] if events is None else [events.fileno()]
    if events is not None:
        command += ["--events", str(events.fileno())]
    process = subprocess.Popen(command, pass_fds=passed)
    try:
        wait_ready(port, process)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until the zone's version is answered, which it is when all was listed."""
    query = dns.message.make_query(name_of(0), "A").to_wire()
    deadline = time.monotonic() + 120
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(0.05)
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SystemExit(f"{process.args!r} ended with {process.returncode}")
            with contextlib.suppress(OSError):
                sock.send(query)
                if dns.message.from_wire(sock.recv(4096)).answer:
                    return
            time.sleep(0.005)
    raise SystemExit(f"nothing answers on port {port}")


def records(size: Size) -> Iterator[tuple[str, str, str]]:
    for number in range(size.services):
        name = name_of(number)
        yield name, "A", cluster_ip(number)
        yield f"_http._tcp.{name}", "SRV", f"0 100 80 {name}."
        reverse = ".".join(reversed(cluster_ip(number).split(".")))
        yield f"{reverse}.in-addr.arpa", "PTR", f"{name}."


def unbound_config(size: Size) -> str:
    data = "\n".join(f'  local-data: "{n}. 5 IN {kind} {d}"' for n, kind, d in records(size))
    return f"""server:
  directory: ""
  chroot: ""
  username: ""
  do-daemonize: no
  use-syslog: no
  verbosity: 0
  num-threads: 1
  interface: 127.0.0.1@{_COMPARATORS["unbound"]}
  pidfile: ""
  do-ip6: no
  local-zone: "{_ZONE}." static
  local-zone: "10.in-addr.arpa." static
{data}
remote-control:
  control-enable: no
"""


def dnsmasq_config(size: Size) -> str:
    lines = [
        "no-daemon\nno-resolv\nno-hosts\nbind-interfaces\nlisten-address=127.0.0.1\nlocal-ttl=5",
        f"port={_COMPARATORS['dnsmasq']}\nlocal=/{_ZONE}/\nlocal=/in-addr.arpa/\npid-file=",
    ]
    for name, kind, data in records(size):
        if kind == "A":
            lines.append(f"host-record={name},{data}")
        elif kind == "SRV":
            lines.append(f"srv-host={name},{data.split()[3].rstrip('.')},80,0,100")
    return "\n".join(lines) + "\n"


def knot_config(size: Size, folder: Path) -> str:
    """The configuration; its zones are written into `folder`."""
    zones = (_ZONE, "10.in-addr.arpa")
    for zone in zones:
        lines = [f"{zone}. 5 IN SOA ns.{zone}. hostmaster.{zone}. 1 7200 1800 86400 5"]
        lines.append(f"{zone}. 5 IN NS localhost.")
        lines += [f"{n}. 5 IN {kind} {d}" for n, kind, d in records(size) if n.endswith(zone)]
        (folder / f"{zone}.zone").write_text("\n".join(lines) + "\n")
    served = "".join(
        f"  - domain: {zone}\n    file: {zone}.zone\n    zonefile-load: whole\n"
        "    zonefile-sync: -1\n    journal-content: none\n"
        for zone in zones
    )
    return f"""server:
  rundir: {folder}
  listen: 127.0.0.1@{_COMPARATORS["knotd"]}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: {folder}
log:
  - target: stderr
    any: error
template:
  - id: default
    storage: {folder}
zone:
{served}"""


@contextlib.contextmanager
def comparator(program: str, folder: Path, size: Size) -> Iterator[int]:
    config = folder / f"{program}.conf"
    command = [program, "-C" if program == "dnsmasq" else "-c", str(config)]
    if program == "unbound":
        config.write_text(unbound_config(size))
    elif program == "knotd":
        config.write_text(knot_config(size, folder))
    else:
        config.write_text(dnsmasq_config(size))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_ready(_COMPARATORS[program], process)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


# --- load ---------------------------------------------------------------------------------------


def write_questions(folder: Path, size: Size) -> dict[str, Path]:
    chance = random.Random(7)
    made: dict[str, list[str]] = {}
    for kind in _KINDS:
        made[kind] = [_question(kind, chance.randrange(size.services)) for _ in range(_QUESTIONS)]
    # What a cluster asks: mostly A, and what the search path makes of them.
    weights = {"A": 60, "NXDOMAIN": 30, "SRV": 5, "PTR": 5}
    made["mixed"] = [
        chance.choice(made[kind])
        for kind in chance.choices(list(weights), list(weights.values()), k=_QUESTIONS)
    ]
    files = {}
    for kind, lines in made.items():
        files[kind] = folder / f"questions-{kind}-{size.services}"
        files[kind].write_text("\n".join(lines) + "\n")
    files["mixed" + _BY_TCP] = files["mixed"]
    return files


def _question(kind: str, number: int) -> str:
    name = name_of(number)
    if kind == "SRV":
        return f"_http._tcp.{name} SRV"
    if kind == "PTR":
        return ".".join(reversed(cluster_ip(number).split("."))) + ".in-addr.arpa PTR"
    if kind == "NXDOMAIN":
        return f"{name.partition('.svc.')[0]}.ns-{number % 50}.svc.{_ZONE} A"
    return f"{name} A"


@dataclass
class Load:
    """One run of dnsperf."""

    rate: float
    completed: int
    lost: int


def dnsperf(port: int, questions: Path, seconds: float, *more: str) -> tuple[Load, str]:
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(questions)]
    command += ["-l", f"{seconds:g}", "-c", "8", "-q", "100", "-t", "2", *more]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {
        key: float(value)
        for key, value in re.findall(r"^\s+(Queries \w+(?: \w+)?):\s+([\d.]+)", text, re.MULTILINE)
    }
    load = Load(
        found["Queries per second"], int(found["Queries completed"]), int(found["Queries lost"])
    )
    return load, text


def percentiles(port: int, questions: Path, seconds: float, rate: float) -> dict[str, float]:
    """Latencies in microseconds at a given rate, from dnsperf's own clock per query."""
    _, text = dnsperf(port, questions, seconds, "-Q", str(int(rate)), "-v")
    found = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("> ")]
    return {
        "p50_us": round(percentile(found, 0.5) * 1e6, 1),
        "p99_us": round(percentile(found, 0.99) * 1e6, 1),
    }


class Contest:
    """Ours and a comparator on the same questions, in turns."""

    def __init__(self, pids: dict[int, int], seconds: float) -> None:
        self._pids = pids
        self._seconds = seconds
        self.cpu_us: dict[tuple[int, str], list[float]] = {}
        self.lost = 0

    def rate(self, port: int, kind: str, questions: Path) -> float:
        before = cpu_seconds([self._pids[port]])
        transport = ("-m", "tcp") if kind.endswith(_BY_TCP) else ()
        load, _ = dnsperf(port, questions, self._seconds, *transport)
        spent = cpu_seconds([self._pids[port]]) - before
        self.lost += load.lost
        self.cpu_us.setdefault((port, kind), []).append(spent / max(1, load.completed) * 1e6)
        return load.rate

    def rates(self, port: int, files: dict[str, Path], rounds: int) -> dict[str, Any]:
        found = {}
        for kind, questions in files.items():
            figures = paired(
                partial(self.rate, _OURS, kind, questions),
                partial(self.rate, port, kind, questions),
                rounds,
                more_is_better=True,
            )
            mine, theirs = (statistics.median(self.cpu_us[at, kind]) for at in (_OURS, port))
            found[kind] = {
                **figures.as_json(),
                "cpu_us_per_query": [round(mine, 2), round(theirs, 2), round(theirs / mine, 3)],
            }
        return found


def latencies(
    port: int, questions: Path, seconds: float, rate: float, rounds: int
) -> dict[str, Any]:
    mine: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for number in range(rounds):
        order = [(mine, _OURS), (theirs, port)]
        for values, at in order if number % 2 == 0 else reversed(order):
            values.append(percentiles(at, questions, seconds, rate))

    def median(values: list[dict[str, float]], key: str) -> float:
        return statistics.median(value[key] for value in values)

    ratios = [a["p99_us"] / b["p99_us"] for a, b in zip(mine, theirs, strict=True)]
    return {
        "rate": int(rate),
        "ours": {key: median(mine, key) for key in ("p50_us", "p99_us")},
        "comparator": {key: median(theirs, key) for key in ("p50_us", "p99_us")},
        "p99_ratio": round(statistics.median(ratios), 3),
    }


# --- ours alone ---------------------------------------------------------------------------------


def ask_everything(port: int, folder: Path, size: Size) -> None:
    """Every Service's A, SRV and PTR once, so that all of it is kept."""
    questions = folder / "everything"
    lines = [f"{name} {kind}" for name, kind, _ in records(size)]
    questions.write_text("\n".join(lines) + "\n")
    dnsperf(port, questions, 60, "-n", "1")


def changes(folder: Path, count: int) -> dict[str, Any]:
    """Milliseconds from writing an event to having its answer; queries follow one another."""
    ours_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    took = []
    with ours(folder, _CHANGES, server_end), socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", _CHANGES))
        sock.settimeout(5)
        query = dns.message.make_query(name_of(7), "A").to_wire()
        for number in range(count):
            service = _service(7)
            service["metadata"]["resourceVersion"] = str(2_000_000 + number)
            address = f"10.95.{number // 256}.{number % 256}"
            service["spec"] |= {"clusterIP": address, "clusterIPs": [address]}
            wanted = socket.inet_aton(address)
            event = msgspec.json.encode({"type": "MODIFIED", "object": service})
            begun = time.perf_counter()
            ours_end.send(event)
            while True:
                sock.send(query)
                if wanted in sock.recv(4096):
                    break
            took.append((time.perf_counter() - begun) * 1e3)
    ours_end.close()
    server_end.close()
    return {
        "count": count,
        "p50_ms": round(percentile(took, 0.5), 3),
        "p99_ms": round(percentile(took, 0.99), 3),
    }


def starts(folder: Path, count: int) -> list[tuple[float, float]]:
    """Seconds by the clock and of the processor, from the start of the process to an answer."""
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        with ours(folder, _CHANGES) as pid:
            found.append((round(time.perf_counter() - begun, 2), round(cpu_seconds([pid]), 2)))
    return found


def run(size: Size, rounds: int, seconds: float, folder: Path) -> None:
    small = Size(100, size.endpoints)
    for part, of in (("large", size), ("small", small)):
        (folder / part).mkdir()
        write_snapshot(folder / part, of)
    files = write_questions(folder, size)
    result: dict[str, Any] = {"size": vars(size), "against": {}}
    with ours(folder / "large", _OURS) as pid:
        idle = pss_bytes([pid])
        ask_everything(_OURS, folder, size)
        for program, port in _COMPARATORS.items():
            if not shutil.which(program):
                result["against"][program] = "not installed"
                continue
            with comparator(program, folder, size) as other:
                contest = Contest({_OURS: pid, port: other}, seconds)
                rates = contest.rates(port, files, rounds)
                half = min(rates["mixed"]["ours"], rates["mixed"]["comparator"]) / 2
                at_half = latencies(port, files["mixed"], seconds, half, rounds)
                result["against"][program] = {
                    "rates": rates,
                    "half_load": at_half,
                    "lost": contest.lost,
                    "comparator_pss_mib": round(pss_bytes([other]) / 2**20, 1),
                }
        result["pss_mib"] = {
            "listed": round(idle / 2**20, 1),
            "all_asked": round(pss_bytes([pid]) / 2**20, 1),
        }
        with ours(folder / "small", _CHANGES):
            few = write_questions(folder, small)["mixed"]
            result["flat"] = paired(
                lambda: dnsperf(_OURS, files["mixed"], seconds)[0].rate,
                lambda: dnsperf(_CHANGES, few, seconds)[0].rate,
                rounds,
                more_is_better=True,
            ).as_json()
    result["ready_s"] = starts(folder / "large", 3)
    result["change"] = changes(folder / "large", 2000)
    print_result("dns", **result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=_OURS, help=argparse.SUPPRESS)
    parser.add_argument("--events", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        events = None if options.events is None else socket.socket(fileno=options.events)
        serve(Path(options.serve), options.port, events)
        return
    missing = [name for name in ("dnsperf", "unbound") if not shutil.which(name)]
    if missing:
        raise SystemExit(f"needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    userns.unshare_as_root(libc.CLONE_NEWNET)
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    with tempfile.TemporaryDirectory() as folder:
        run(
            Size(options.services, options.endpoints), options.rounds, options.seconds, Path(folder)
        )


if __name__ == "__main__":
    main()
