"""ms per pod: namespace, pin, veth, address, routes and permanent neighbours on both ends.

Prints JSON: ours, a bare `ip -batch` doing the same (its processes started once), the ratio.
Runs in namespaces of its own; needs root or user namespaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from podwire.kernel import libc, netns, userns
from podwire.kernel.requests import (
    AddLink,
    Address,
    Neighbour,
    Replace,
    Request,
    Route,
    SetLink,
    Veth,
)
from podwire.kernel.rtnl import Rtnl, loopback_up

GATEWAY = IPv4Address("169.254.1.1")
DEFAULT = IPv4Network("0.0.0.0/0")
FIRST_INDEX = 1000


def isolate() -> None:
    """Enter fresh namespaces; pins then live on a tmpfs nobody else sees."""
    userns.unshare_as_root(libc.CLONE_NEWNET | libc.CLONE_NEWNS)


def macs(number: int) -> tuple[str, str]:
    tail = f"{number >> 8:02x}:{number & 255:02x}"
    return f"0a:58:00:00:{tail}", f"0a:58:00:01:{tail}"


def wire(node: Rtnl, node_ns: int, pins: Path, number: int) -> int:
    """One pod, as the routed network wires it: one batch inside, one in the node."""
    address = IPv4Address("10.244.0.0") + number
    pod_mac, node_mac = macs(number)
    index = FIRST_INDEX + number
    name = f"pod{number}"
    peer = Veth(peer=name, mac=node_mac, netns=node_ns, index=index)
    inside: list[Request] = [
        loopback_up(),
        AddLink(name="eth0", index=2, mac=pod_mac, up=True, kind=peer),
        Replace(Address(2, IPv4Interface((address, 32)))),
        Replace(Neighbour(2, GATEWAY, node_mac)),
        Replace(Route(destination=DEFAULT, via=GATEWAY, device=2, onlink=True)),
    ]
    outside: list[Request] = [
        SetLink(device=index, up=True),
        Replace(Route(destination=IPv4Network(address), device=index)),
        Replace(Neighbour(index, address, pod_mac)),
    ]
    with netns.creating(pins / name) as fd, Rtnl() as pod:
        pod.apply(inside)
    node.apply(outside)
    return fd


def ours(pods: int) -> list[float]:
    """Seconds for each pod."""
    isolate()
    node_ns = netns.current()
    spent = []
    with tempfile.TemporaryDirectory() as scratch, Rtnl() as node:
        libc.mount("tmpfs", scratch, "tmpfs")
        node.apply([loopback_up()])
        for number in range(1, pods + 1):
            start = time.perf_counter()
            fd = wire(node, node_ns, Path(scratch), number)
            spent.append(time.perf_counter() - start)
            os.close(fd)
        libc.umount2(scratch, libc.MNT_DETACH)
    return spent


def theirs(pods: int) -> list[float]:
    """The same with iproute2: `ip -batch` where it can, one process a pod for the inside."""
    isolate()
    spent = []
    with tempfile.TemporaryDirectory() as scratch:
        libc.mount("tmpfs", "/run", "tmpfs")
        for number in range(1, pods + 1):
            address = IPv4Address("10.244.0.0") + number
            pod_mac, node_mac = macs(number)
            name = f"pod{number}"
            node_batch = (
                f"netns add {name}\n"
                f"link add {name} address {node_mac} type veth peer name eth0 "
                f"address {pod_mac} netns {name}\n"
                f"link set {name} up\nroute replace {address}/32 dev {name}\n"
                f"neigh replace {address} lladdr {pod_mac} dev {name} nud permanent\n"
            )
            pod_batch = (
                f"link set lo up\nlink set eth0 up\naddr replace {address}/32 dev eth0\n"
                f"neigh replace {GATEWAY} lladdr {node_mac} dev eth0 nud permanent\n"
                f"route replace default via {GATEWAY} dev eth0 onlink\n"
            )
            start = time.perf_counter()
            subprocess.run(["ip", "-batch", "-"], input=node_batch, text=True, check=True)
            subprocess.run(
                ["ip", "-n", name, "-batch", "-"], input=pod_batch, text=True, check=True
            )
            spent.append(time.perf_counter() - start)
        del scratch
    return spent


def bare(pods: int) -> list[float]:
    """The floor: only unshare and the bind mount."""
    isolate()
    spent = []
    with tempfile.TemporaryDirectory() as scratch:
        libc.mount("tmpfs", scratch, "tmpfs")
        for number in range(pods):
            start = time.perf_counter()
            os.close(netns.create(Path(scratch) / str(number)))
            spent.append(time.perf_counter() - start)
        libc.umount2(scratch, libc.MNT_DETACH)
    return spent


def in_child(run: str, pods: int) -> list[float]:
    """Run one contestant in its own process, because its namespaces cannot be left."""
    done = subprocess.run(
        [sys.executable, __file__, run, str(pods)], capture_output=True, text=True, check=True
    )
    spent: list[float] = json.loads(done.stdout)
    return spent


def main() -> None:
    contestants = {"ours": ours, "ip_batch": theirs, "bare_netns": bare}
    if len(sys.argv) == 3:
        print(json.dumps(contestants[sys.argv[1]](int(sys.argv[2]))))
        return
    pods = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    result: dict[str, object] = {"pods": pods}
    for name in contestants:
        spent = in_child(name, pods)
        tenth = max(1, pods // 10)
        result[name] = {
            "ms_per_pod": round(1000 * sum(spent) / pods, 2),
            "first_tenth_ms": round(1000 * sum(spent[:tenth]) / tenth, 2),
            "last_tenth_ms": round(1000 * sum(spent[-tenth:]) / tenth, 2),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
