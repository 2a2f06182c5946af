"""Throughput between two pods, against a topology of the same kind built by hand with `ip`.

    python benchmarks/throughput.py [--mode routed|kubenet] [--overlay none|vxlan] [--seconds 3]

Measured: TCP with one and with eight streams, UDP (iperf3, a dependency of this benchmark only) and
TCP_RR (one byte there and back, transactions per second), on one node and across two. Both
topologies stand at the same time and are measured in turns. `--ours hand` compares the hand-built
one with itself: the noise of the machine.

A `World` is where pods are: namespaces by the pid of a process that sees their pins. The lab's is
`lab_world`; to compare something else write another factory and name it in `WORLDS`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Literal

sys.path.insert(0, str(Path(__file__).parent))

from labs import components, run_directory, running_lab
from lib import paired, print_result
from podwire import Lab
from podwire.kernel import guard, libc
from podwire.objects.documents import Document

Metric = Literal["tcp_1", "tcp_8", "udp", "tcp_rr"]
METRICS: Final[tuple[Metric, ...]] = ("tcp_1", "tcp_8", "udp", "tcp_rr")
_PORT: Final = 5201
_TARGET: Final = 0.95


@dataclass(frozen=True)
class Kind:
    """What both topologies are: `routed` or `kubenet` pods, `none` or `vxlan` between nodes."""

    mode: str
    overlay: str

    @property
    def mtu(self) -> int:
        return 1450 if self.overlay == "vxlan" else 1500


@dataclass(frozen=True)
class Place:
    """A pod: the pin of its network namespace as process `pid` sees it, and its address."""

    pid: int
    pin: str
    address: str

    def command(self, *command: str) -> list[str]:
        """`command` run inside; refused when "inside" is the caller's own namespace."""
        path = f"/proc/{self.pid}/root{self.pin}"
        if Path(path).stat().st_ino == Path("/proc/self/ns/net").stat().st_ino:
            raise SystemExit(f"{path}: is this process's own network namespace")
        return ["nsenter", f"--net={path}", "--", *command]


@dataclass(frozen=True)
class World:
    """`client` and `near` share a node, `far` is on another one."""

    client: Place
    near: Place
    far: Place


WorldFactory = Callable[[Kind], AbstractContextManager[World]]


# --- the comparator: nothing but `ip` -----------------------------------------------------------


def hand_commands(kind: Kind) -> Iterator[str]:
    """The topology as shell lines, two nodes on a bridge with two pods and one pod."""
    yield "ip link set lo up"
    yield "ip link add br0 type bridge mcast_snooping 0"
    yield "ip link set br0 up"
    for n in (1, 2):
        yield f"ip netns add node{n}"
        yield f"ip link add n{n} type veth peer name eth0 netns node{n}"
        yield f"ip link set n{n} master br0 up"
        yield f"ip -n node{n} link set lo up"
        yield f"ip -n node{n} addr add 172.30.0.{n + 1}/24 dev eth0"
        yield f"ip -n node{n} link set eth0 up"
        yield f"ip netns exec node{n} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'"
        if kind.mode == "kubenet":
            yield f"ip -n node{n} link add cbr0 mtu {kind.mtu} type bridge mcast_snooping 0"
            yield f"ip -n node{n} addr add 10.244.{n}.1/24 dev cbr0"
            yield f"ip -n node{n} link set cbr0 up"
    for n in (1, 2):
        yield from _hand_overlay(n, 3 - n, kind)
    for n, i in ((1, 2), (1, 3), (2, 2)):
        yield from _hand_pod(n, i, kind)


def _hand_overlay(n: int, peer: int, kind: Kind) -> Iterator[str]:
    if kind.overlay == "none":
        yield f"ip -n node{n} route add 10.244.{peer}.0/24 via 172.30.0.{peer + 1}"
        return
    mac = f"02:00:00:00:00:0{peer}"
    yield (
        f"ip -n node{n} link add vx0 address 02:00:00:00:00:0{n} mtu {kind.mtu} type vxlan"
        f" id 1 dstport 4789 local 172.30.0.{n + 1} dev eth0 nolearning"
    )
    yield f"ip -n node{n} addr add 10.244.{n}.0/32 dev vx0"
    yield f"ip -n node{n} link set vx0 up"
    yield f"bridge -n node{n} fdb append {mac} dev vx0 dst 172.30.0.{peer + 1}"
    yield f"ip -n node{n} neigh add 10.244.{peer}.0 lladdr {mac} dev vx0 nud permanent"
    yield f"ip -n node{n} route add 10.244.{peer}.0/24 via 10.244.{peer}.0 dev vx0 onlink"


def _hand_pod(n: int, i: int, kind: Kind) -> Iterator[str]:
    pod, veth, address = f"pod{n}{i}", f"v{i}", f"10.244.{n}.{i}"
    yield f"ip netns add {pod}"
    yield (
        f"ip -n node{n} link add {veth} address ee:ee:ee:ee:ee:ee mtu {kind.mtu} type veth"
        f" peer name eth0 mtu {kind.mtu} netns {pod}"
    )
    yield f"ip -n {pod} link set lo up"
    yield f"ip -n {pod} link set eth0 up"
    if kind.mode == "kubenet":
        # A port's own address must not be another port's: the shared one is for routed pods.
        yield f"ip -n node{n} link set {veth} address ee:ee:ee:ee:ee:0{i} master cbr0 up"
        yield f"ip -n {pod} addr add {address}/24 dev eth0"
        yield f"ip -n {pod} route add default via 10.244.{n}.1"
        return
    yield f"ip -n node{n} link set {veth} up"
    yield f"ip -n node{n} route add {address}/32 dev {veth}"
    yield f"ip -n {pod} addr add {address}/32 dev eth0"
    yield f"ip -n {pod} neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent"
    yield f"ip -n {pod} route add default via 169.254.1.1 dev eth0 onlink"


# What both do besides forwarding: pods leave the cluster masqueraded, hence conntrack.
_MASQUERADE: Final = (
    "table ip nat { chain post { type nat hook postrouting priority srcnat; "
    "ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade; }; }"
)


@contextlib.contextmanager
def hand_built(kind: Kind) -> Iterator[World]:
    """The comparator, in namespaces of a child that ends with this block (or with its parent)."""
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready_read)
        _hold(kind, ready_write)
    os.close(ready_write)
    try:
        with os.fdopen(ready_read, "rb") as pipe:
            report = pipe.read()
        if report != b"ready":
            raise SystemExit(f"hand-built topology: {report.decode()}")
        places = [
            Place(pid, f"/run/netns/pod{n}{i}", f"10.244.{n}.{i}")
            for n, i in ((1, 2), (1, 3), (2, 2))
        ]
        yield World(*places)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _hold(kind: Kind, ready: int) -> None:
    """Build the topology in fresh namespaces and keep them; never returns."""
    try:
        libc.set_pdeathsig(signal.SIGKILL)
        libc.unshare(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
        guard.assert_not_host("benchmark topology")
        libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
        libc.mount("tmpfs", "/run", "tmpfs")
        for line in hand_commands(kind):
            _run(shlex.split(line))
        for n in (1, 2):
            _run(["ip", "netns", "exec", f"node{n}", "nft", _MASQUERADE])
        os.write(ready, b"ready")
        os.close(ready)
        signal.pause()
    except BaseException as e:
        os.write(ready, f"{e}".encode())
    finally:
        os._exit(1)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}: {done.stderr.decode().strip()}")


# --- ours ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def lab_world(kind: Kind) -> Iterator[World]:
    """The same pods in a podwire lab: stand-ins without a port, so that every port is free."""
    wanted = {"client": "node-1", "near": "node-1", "far": "node-2"}
    documents = [Document("benchmark", _pod(name, node)) for name, node in wanted.items()]
    options = {"network": kind.mode, "overlay": kind.overlay}
    with run_directory(), running_lab("throughput", 2, **options) as lab:
        lab.apply_documents(documents)
        holder = components(lab)["holder"]
        yield World(**{name: _place(lab, holder, name) for name in wanted})


def _pod(name: str, node: str) -> dict[str, object]:
    containers = [{"name": "main", "image": "example.com/standin"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": containers},
    }


def _place(lab: Lab, holder: int, name: str) -> Place:
    """A pod's pin as the holder sees it; the sandbox's id is in the kubelet's record."""
    pod = lab.pod(name).object
    folder = lab.paths.volatile(pod.spec.node_name) / "pods" / pod.metadata.uid
    record = Path(f"/proc/{holder}/root{folder}/sandbox.json")
    sandbox: str = json.loads(record.read_text())["id"]
    return Place(holder, str(lab.paths.pod_pins / sandbox), pod.status.pod_ip)


# --- measuring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Bits or transactions, per second and per second of processor time.

    The second is the steadier one where others use the machine: a veth's packets are carried by
    the processes that send them, so their processor time is what forwarding costs.
    """

    per_second: float
    per_cpu_second: float


def measure(metric: Metric, client: Place, server: Place, seconds: float) -> Sample:
    """iperf3 knows whole seconds only."""
    if metric == "tcp_rr":
        return _tcp_rr(client, server, seconds)
    extra = {
        "tcp_1": [],
        "tcp_8": ["-P", "8"],
        # Datagrams that fit every mode's MTU, as fast as the sender can.
        "udp": ["-u", "-b", "0", "-l", "1400"],
    }[metric]
    report = _iperf3(client, server, ["-t", str(max(1, round(seconds))), *extra])
    end = report["end"]
    if metric == "udp":
        total = end["sum"]
        rate = float(total["bits_per_second"]) * (1 - float(total["lost_percent"]) / 100)
    else:
        rate = float(end["sum_received"]["bits_per_second"])
    percent = end["cpu_utilization_percent"]
    return Sample(rate, rate / (percent["host_total"] + percent["remote_total"]) * 100)


def _iperf3(
    client: Place, server: Place, options: list[str]
) -> dict[str, dict[str, dict[str, float]]]:
    listening = subprocess.Popen(
        server.command("iperf3", "-s", "-1", "-p", str(_PORT), "--forceflush"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for_line(listening, b"listening")
        done = subprocess.run(
            client.command("iperf3", "-c", server.address, "-p", str(_PORT), "-J", *options),
            capture_output=True,
            timeout=60,
            check=False,
        )
        report: dict[str, dict[str, dict[str, float]]] = json.loads(done.stdout or b"{}")
        if done.returncode or "end" not in report:
            raise SystemExit(f"iperf3: {report.get('error') or done.stderr.decode()}")
        return report
    finally:
        listening.kill()
        listening.wait()
        if listening.stdout:
            listening.stdout.close()


def _wait_for_line(process: subprocess.Popen[bytes], word: bytes) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    raise SystemExit("the server ended before it listened")


def _tcp_rr(client: Place, server: Place, seconds: float) -> Sample:
    """netperf's TCP_RR in Python: its own cost (some 4 us a transaction) is the same for both."""
    me = str(Path(__file__).resolve())
    serving = subprocess.Popen(
        server.command(sys.executable, me, "--rr-server"), stdout=subprocess.PIPE
    )
    try:
        _wait_for_line(serving, b"listening")
        done = subprocess.run(
            client.command(
                sys.executable, me, "--rr-client", server.address, "--seconds", str(seconds)
            ),
            capture_output=True,
            timeout=seconds + 30,
            check=True,
        )
        rate, busy = map(float, done.stdout.split())
        return Sample(rate, rate / busy)
    finally:
        serving.kill()
        serving.wait()
        if serving.stdout:
            serving.stdout.close()


def serve_rr() -> None:
    with socket.create_server(("", _PORT + 1)) as listener:
        print("listening", flush=True)
        conn, _peer = listener.accept()
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := conn.recv(1):
            conn.send(data)


def ask_rr(address: str, seconds: float) -> tuple[float, float]:
    """Transactions per second, and the part of a processor this end used for them."""
    with socket.create_connection((address, _PORT + 1), timeout=5) as conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn.setblocking(True)
        # A lost peer must not hang the benchmark; SO_RCVTIMEO costs nothing per call.
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
        for _ in range(200):
            conn.send(b"x")
            conn.recv(1)
        count, started, cpu = 0, time.perf_counter(), time.process_time()
        until = started + seconds
        while time.perf_counter() < until:
            for _ in range(100):
                conn.send(b"x")
                conn.recv(1)
            count += 100
        elapsed = time.perf_counter() - started
        return count / elapsed, (time.process_time() - cpu) / elapsed


def compare(
    kind: Kind, ours: WorldFactory, comparator: WorldFactory, seconds: float, rounds: int
) -> dict[str, dict[str, object]]:
    """Every metric on one node and across two, in turns."""
    figures: dict[str, dict[str, object]] = {}
    with ours(kind) as a, comparator(kind) as b:
        for where in ("same_node", "across_nodes"):
            a_server, b_server = (a.near, b.near) if where == "same_node" else (a.far, b.far)
            for metric in METRICS:
                mine, theirs = list[float](), list[float]()

                def take(metric: Metric, client: Place, server: Place, busy: list[float]) -> float:
                    sample = measure(metric, client, server, seconds)
                    busy.append(sample.per_cpu_second)
                    return sample.per_second

                result = paired(
                    partial(take, metric, a.client, a_server, mine),
                    partial(take, metric, b.client, b_server, theirs),
                    rounds,
                    more_is_better=True,
                )
                figures[f"{where}/{metric}"] = {
                    **result.as_json(),
                    "ratio_per_cpu_second": round(median(mine) / median(theirs), 4),
                    "meets_target": result.ratio >= _TARGET,
                }
    return figures


WORLDS: Final[dict[str, WorldFactory]] = {"hand": hand_built, "lab": lab_world}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("routed", "kubenet"), default="routed")
    parser.add_argument("--overlay", choices=("none", "vxlan"), default="none")
    parser.add_argument("--ours", choices=sorted(WORLDS), default=next(reversed(WORLDS)))
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rr-server", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rr-client", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rr_server:
        serve_rr()
        return
    if args.rr_client:
        print(*ask_rr(args.rr_client, args.seconds))
        return
    if os.geteuid() != 0 or not shutil.which("iperf3"):
        raise SystemExit("needs root and iperf3 (apt-get install iperf3)")
    kind = Kind(args.mode, args.overlay)
    figures = compare(kind, WORLDS[args.ours], hand_built, args.seconds, args.rounds)
    print_result(
        "throughput",
        mode=kind.mode,
        overlay=kind.overlay,
        ours=args.ours,
        target=_TARGET,
        figures=figures,
    )


if __name__ == "__main__":
    main()
