"""A node with routed pods behind veth pairs, made in the test's own namespaces.

The wiring is `ip` and `nft`, on purpose not podwire's own: the probe engine is what is tested.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from podwire.kernel import guard, netns


class World:
    """A namespace of its own with pods behind veth pairs, as a node has them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fds: dict[str, int] = {}

    def sh(self, command: str, pod: str = "") -> None:
        with netns.maybe_entered(self.fds[pod] if pod else None):
            subprocess.run(command.split(), check=True, capture_output=True)

    def nft(self, text: str, pod: str = "") -> None:
        with netns.maybe_entered(self.fds[pod] if pod else None):
            subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)

    def pin(self, pod: str) -> Path:
        return self.directory / pod

    def pod(self, number: int) -> str:
        """A routed pod 10.244.0.NUMBER / fd00:244::NUMBER; the node is .1 on every pair."""
        name = f"pod{number}"
        self.fds[name] = netns.create(self.pin(name))
        self.sh(f"ip link add v{number} type veth peer name p{number}")
        self.sh(f"ip link set p{number} netns {self.pin(name)}")
        # A link-local address of our own needs no duplicate address detection to be waited for.
        self.sh(f"ip link set v{number} addrgenmode none")
        self.sh(f"ip link set v{number} up")
        self.sh(f"ip addr add fe80::1/64 dev v{number} nodad")
        self.sh(f"ip addr add 10.244.0.1/32 dev v{number}")
        self.sh(f"ip addr add fd00:244::1/128 dev v{number} nodad")
        self.sh("ip link set lo up", name)
        self.sh(f"ip link set p{number} addrgenmode none", name)
        self.sh(f"ip link set p{number} name eth0 up", name)
        self.sh(f"ip addr add 10.244.0.{number}/32 dev eth0", name)
        self.sh(f"ip addr add fd00:244::{number}/128 dev eth0 nodad", name)
        self.sh("ip route add default via 10.244.0.1 dev eth0 onlink", name)
        self.sh("ip route add default via fd00:244::1 dev eth0 onlink", name)
        self.sh(f"ip route add 10.244.0.{number}/32 dev v{number}")
        self.sh(f"ip route add fd00:244::{number}/128 dev v{number}")
        return name


@pytest.fixture
def in_world(scratch: Path) -> Callable[[Callable[[World], None]], None]:
    """Run a function in a `World`; the test is already in namespaces of its own."""

    def run(body: Callable[[World], None]) -> None:
        guard.assert_not_host("test")
        world = World(scratch)
        world.sh("ip link set lo up")
        # The sysctls of this new namespace only; /proc/sys/net shows the calling process's.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        body(world)

    return run
