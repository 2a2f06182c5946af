"""UDP senders that never listen and never stop: where their datagrams go when Services change.

Each change is done as the agent does it: programmed, then one look of `FlowCleaner` at the table.
Afterwards the sender reaches the endpoints there are now and no other, without starting anew.
Source: the cases of k/k#19029, #48370, #59368, #126130, #139628 and #141371.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from service_net import UDP, Ask, Sender, ServiceNet, in_family, wait
from service_rows import BALANCER, CLUSTER_IP, EXTERNAL, NODE_IP, NODE_PORT, ep
from service_worlds import CLUSTER_CIDRS, NODE, SERVICE_CIDRS, make_service, make_slice
from service_worlds import domain_of as domain

from podwire.agents.servicekernel import FlowCleaner, Ranges
from podwire.services.claims import Owner
from podwire.services.flows import Stale
from podwire.services.model import Frontend, compile_service

OWNER = Owner("Service", make_service().key)
HOSTS = ("here-a", "here-b", "far-a")
# What clients address, and from where: a pod for the cluster IP, beyond the cluster for the rest.
ADDRESSES = {
    "ClusterIP": ("here-c", CLUSTER_IP, 80),
    "NodePort": ("outside", NODE_IP, NODE_PORT),
    "LoadBalancer": ("outside", BALANCER, 80),
    "ExternalIP": ("outside", EXTERNAL, 80),
    "from the node": ("node", CLUSTER_IP, 80),
}


@dataclass(frozen=True)
class State:
    """A Service as it stands: ready endpoints, those that end, ports. None: there is no Service."""

    hosts: tuple[str, ...] = ()
    target: int = 8080
    node_port: int = NODE_PORT
    spec: tuple[tuple[str, str], ...] = ()

    def frontends(self, version: int) -> tuple[Frontend, ...]:
        port = {"name": "dns", "port": 80, "protocol": "UDP", "nodePort": self.node_port}
        spec: dict[str, Any] = {
            "type": "LoadBalancer",
            "clusterIP": in_family(CLUSTER_IP, version),
            "ingress": [{"ip": in_family(BALANCER, version)}],
            "externalIPs": [in_family(EXTERNAL, version)],
            "ports": [port],
        }
        whole = make_slice(
            *({**ep(h), "ip": in_family(ep(h)["ip"], version)} for h in self.hosts),
            ports=[{"name": "dns", "protocol": "UDP", "port": self.target}],
        )
        return compile_service(make_service(**spec, **dict(self.spec)), [whole], NODE).frontends

    @property
    def ends(self) -> set[tuple[str, int]]:
        return {(host, self.target) for host in self.hosts}


class Changing:
    """One Service on one node, changed as `ServiceAgent` changes it."""

    def __init__(self, net: ServiceNet, version: int) -> None:
        self.net, self._version = net, version
        self.cleaner = FlowCleaner((4, 6), net.claims)
        self.stale: list[Stale] = []

    def to(self, state: State | None) -> list[Stale]:
        """Program and clean; returns what was deleted."""
        frontends = state.frontends(self._version) if state else ()
        gone = {f.key for f in self.net.claims.of(OWNER)} - {f.key for f in frontends}
        self.net.program(OWNER, frontends)
        self.stale = self.cleaner.clean(domain(frozenset()), list(gone))
        return self.stale

    def received(self) -> dict[tuple[str, int], int]:
        return dict(self.net.server.received)

    def wait_only_at(self, ends: Iterable[tuple[str, int]], sender: Sender) -> None:
        """Datagrams arrive at `ends`, and from now on nowhere else."""
        ends = set(ends)

        def arriving(count: int) -> set[tuple[str, int]]:
            before = self.received()
            sender.wait_sent(count)
            self.net.server.settle()
            now = self.received()
            return {end for end, number in now.items() if number > before.get(end, 0)}

        # What came before may still be on its way.
        self.net.server.settle()
        wait(lambda: arriving(10) <= ends)
        if ends:
            wait(lambda: arriving(10) & ends)
        found = arriving(40)
        assert found <= ends, (found, ends)


@contextmanager
def changing(scratch: Path, version: int) -> Iterator[Changing]:
    with ServiceNet(scratch) as net:
        net.open(Ranges(SERVICE_CIDRS, CLUSTER_CIDRS))
        world = Changing(net, version)
        try:
            yield world
        finally:
            world.cleaner.close()


def sender_to(net: ServiceNet, kind: str, version: int) -> Sender:
    origin, dst, port = ADDRESSES[kind]
    return Sender(net, Ask(origin, in_family(dst, version), port, UDP))


ALL, OTHERS, ONE = State(HOSTS), State(HOSTS[1:]), State(HOSTS[:1])
LIVES: dict[str, tuple[State | None, ...]] = {
    "an endpoint is removed, others are left (k/k#19029)": (ONE, ALL, OTHERS, ONE),
    "the last endpoint is removed (k/k#139628)": (ONE, State(), State(HOSTS[2:])),
    "the Service is deleted under a sender (k/k#141371)": (ONE, None, State(HOSTS[1:2])),
    "the first endpoint appears after traffic began (k/k#48370)": (State(), ONE),
    "the Service appears after traffic began": (None, ONE),
    "the target port changes": (ONE, State(HOSTS[:1], target=8081), ONE),
    "pods are replaced one by one": (
        State(HOSTS[:1]),
        State(HOSTS[:2]),
        State(HOSTS[1:2]),
        State(HOSTS[1:]),
        State(HOSTS[2:]),
    ),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ADDRESSES)
def test_a_sender_follows(scratch: Path, kind: str, version: int) -> None:
    with changing(scratch, version) as world:
        for name, life in LIVES.items():
            world.to(life[0])
            with sender_to(world.net, kind, version) as sender:
                for number, state in enumerate(life):
                    try:
                        world.to(state)
                        world.wait_only_at(state.ends if state else (), sender)
                    except AssertionError as error:
                        raise AssertionError(f"{name}, state {number}: {error}") from error
            world.to(None)


@pytest.mark.parametrize("version", [4, 6])
def test_the_node_port_changes(scratch: Path, version: int) -> None:
    with changing(scratch, version) as world:
        world.to(ONE)
        with sender_to(world.net, "NodePort", version) as sender:
            world.wait_only_at(ONE.ends, sender)
            world.to(State(HOSTS[:1], node_port=NODE_PORT + 1))
            assert [s.reason for s in world.stale] == ["service gone"]
            world.wait_only_at((), sender)
            world.to(ONE)
            world.wait_only_at(ONE.ends, sender)


@pytest.mark.parametrize("version", [4, 6])
def test_a_policy_that_changes_moves_no_sender(scratch: Path, version: int) -> None:
    """externalTrafficPolicy Local is for new flows: this one keeps its endpoint until it goes."""
    local = State(HOSTS, spec=(("externalTrafficPolicy", "Local"),))
    here = State(("here-a", "here-b"), spec=local.spec)
    with changing(scratch, version) as world:
        world.to(State(("far-a",)))
        with sender_to(world.net, "LoadBalancer", version) as sender:
            world.wait_only_at({("far-a", 8080)}, sender)
            assert world.to(local) == []
            world.wait_only_at({("far-a", 8080)}, sender)
            world.to(here)
            world.wait_only_at({("here-a", 8080), ("here-b", 8080)}, sender)


def test_what_stays_is_not_touched(scratch: Path) -> None:
    """A sender whose endpoint is left keeps it, and what is not ours keeps everything."""
    with changing(scratch, 4) as world:
        world.to(ONE)
        with (
            sender_to(world.net, "ClusterIP", 4) as sender,
            Sender(world.net, Ask("here-c", "10.244.2.3", 8081, UDP)) as stranger,
        ):
            world.wait_only_at({*ONE.ends, ("far-b", 8081)}, sender)
            for state in (ALL, ONE, ALL):
                assert world.to(state) == []
            world.wait_only_at({*ONE.ends, ("far-b", 8081)}, stranger)
        assert world.cleaner.deleted == {}


def test_reasons_are_counted(scratch: Path) -> None:
    with changing(scratch, 4) as world:
        world.to(ONE)
        with sender_to(world.net, "ClusterIP", 4) as sender:
            world.wait_only_at(ONE.ends, sender)
            world.to(OTHERS)
            world.wait_only_at(OTHERS.ends, sender)
            world.to(None)
        assert world.cleaner.deleted == {"endpoint gone": 1, "service gone": 1}
