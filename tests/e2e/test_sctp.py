"""SCTP in whole labs: policies and a Service, by lone INITs and by associations, the same rows.

    raw    a kernel without SCTP: an INIT, and what ICMP says of it, as `reach` asks there
    real   a kernel with it: probes by its sockets, and associations: connect, send, receive

Both are held to `policy.evaluate`. A kernel is of one sort or the other; in the machine of tests/vm
the module is held back until `real` asks for it, and there both are held to each other, too.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import policy_cases_cyclonus
import policy_cases_e2e
import policy_cases_own
import pytest
from labtools import PATIENCE
from policy_cases import PORTS, WORLDS, Action, Apply, Delete, Label, Step
from policy_worlds import Probe, make_network_policy
from policylab import LiveCluster, every_probe
from sctplab import Answer, Asked, associate, kept

from podwire.kernel import features
from podwire.lab import Lab
from podwire.objects import kinds
from podwire.policy.evaluate import evaluate

LOADER = Path("/vm/modprobe")
MAKERS = (policy_cases_own, policy_cases_e2e, policy_cases_cyclonus)
NAMES = (
    "podwire: SCTP by rules of every form, then by those of a tier above",
    "podwire: one protocol whole, a range of another",
    "kubernetes: should enforce policy based on Ports (SCTP)",
    "cyclonus: egress: 79-80, sctp",
    "cyclonus: ingress: serve-81-sctp, sctp",
)
SERVICE_PORT, NODE_PORT, NODE_IP = 5000, 30500, "172.30.0.2"
TIMES = 16
"""Enough to meet both of two endpoints."""
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "both", "namespace": "x"},
    "spec": {
        "type": "NodePort",
        "selector": {"serves": "sctp"},
        "ports": [
            {
                "protocol": "SCTP",
                "port": SERVICE_PORT,
                "targetPort": "serve-80-sctp",
                "nodePort": NODE_PORT,
            }
        ],
    },
}
ONLY_Y: Action = Apply(
    make_network_policy(
        "x",
        "only-y",
        podSelector={"matchLabels": {"serves": "sctp"}},
        policyTypes=["Ingress"],
        ingress=[
            {
                "from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}],
                "ports": [{"protocol": "SCTP", "port": 80}],
            }
        ],
    )
)
SEEN: dict[str, list[list[bool]]] = {}
"""What INITs said of the steps of each case."""


class Sctp(LiveCluster):
    """A lab of nine pods that serve 80 and 81, each with its own way to ask."""

    def __init__(self, lab: Lab, *, real: bool) -> None:
        super().__init__(lab, WORLDS["xyz"])
        self.real = real
        addresses = self.addresses()
        self.cases = {str(case): case for maker in MAKERS for case in maker.cases(addresses)}

    def says(self, asked: Sequence[Probe]) -> list[bool]:
        world = self.world
        return [evaluate(world.flow(a), world.policy_set, world.world).allowed for a in asked]

    def check(self, step: Step) -> list[bool]:
        """The step's connections by the evaluator and by packets."""
        self.do(step.actions)
        at = self.addresses()
        asked = [self.asked(row, at) for row in step.expected or () if row.protocol == "SCTP"]
        asked = asked or list(every_probe(at, PORTS, ["SCTP"]))
        says = self.says(asked)
        packets = self.probe_as_said(asked, says)
        self._same(asked, says, packets)
        if self.real:
            rows = [Asked(a.source, a.destination, a.port) for a in asked]
            wanted = [
                Answer(a.destination, a.source) if said else Answer()
                for a, said in zip(asked, says, strict=True)
            ]
            self._same(asked, wanted, associate(self.lab, rows))
        return packets

    @staticmethod
    def _same(asked: Sequence[Probe], says: Sequence[object], packets: Sequence[object]) -> None:
        wrong = [(a, s, p) for a, s, p in zip(asked, says, packets, strict=True) if s != p]
        assert not wrong, f"(asked, evaluator, packets): {wrong[:5]} of {len(wrong)}"


@pytest.fixture(scope="module", params=["raw", "real"])
def sctp(request: pytest.FixtureRequest, root: None) -> Iterator[Sctp]:
    real = request.param == "real"
    if real and LOADER.exists():
        subprocess.run([LOADER, "sctp"], check=True)
    if features.probe().sctp != real:
        pytest.skip(features.EXPLAIN["sctp"] if real else "this kernel knows SCTP and says so")
    with Lab(f"sctp-{request.param}", nodes=3, dns="none") as lab:
        yield Sctp(lab, real=real)


@pytest.fixture
def cluster(sctp: Sctp) -> Iterator[Sctp]:
    yield sctp
    sctp.reset()


@pytest.mark.parametrize("name", NAMES)
def test_policies(cluster: Sctp, name: str) -> None:
    case = cluster.cases[name]
    verdicts = [cluster.check(step) for step in case.steps]
    assert all(len(set(step)) == 2 for step in verdicts), "some are allowed, some are denied"
    assert SEEN.setdefault(name, verdicts) == verdicts


def test_a_service(cluster: Sctp) -> None:
    """Two endpoints behind one address, found by the name of their port; policies know the pods'
    own. From beyond the cluster by a node port."""
    cluster.do([Apply(SERVICE), *(_label(name, serves="sctp") for name in "ab")])
    cluster.lab.wait_services("x/both")
    service = cluster.lab.call(lambda api: api.get(kinds.SERVICE, "both", "x"))
    at = cluster.addresses()
    ends, vip = {at["x/a"], at["x/b"]}, service.spec.cluster_ip
    clients = [at[name] for name in ("x/c", "y/a", "z/a")]
    for action, allowed in ((None, clients), (ONLY_Y, [at["y/a"]])):
        if action:
            cluster.do([action])
        for end in ends:
            says = cluster.says([Probe(client, end, "SCTP", 80) for client in clients])
            assert says == [client in allowed for client in clients]
        asked = [Probe(client, vip, "SCTP", SERVICE_PORT) for client in clients]
        assert cluster.probe_as_said(asked, says) == says
        if cluster.real:
            _check_ends(cluster, clients, vip, {c: ends if c in allowed else {""} for c in clients})
    if cluster.real:
        cluster.do([Delete("NetworkPolicy", "x", "only-y")])
        rows = [Asked("outside", NODE_IP, NODE_PORT)] * TIMES
        assert {answer.address for answer in associate(cluster.lab, rows)} == ends


def _label(name: str, **more: str) -> Label:
    return Label("Pod", "x", name, {"pod": name, **more})


def _check_ends(
    cluster: Sctp, clients: Sequence[str], vip: str, ends: Mapping[str, set[str]]
) -> None:
    """Which pods answered each client's associations, and that they saw its own address."""
    rows = [Asked(client, vip, SERVICE_PORT) for client in clients for _ in range(TIMES)]
    found: dict[str, set[str]] = {client: set() for client in clients}
    for row, answer in zip(rows, associate(cluster.lab, rows), strict=True):
        assert answer.error == ""
        assert answer.client in (row.source, "")
        found[row.source].add(answer.address)
    assert found == ends


@pytest.mark.parametrize("sctp", ["real"], indirect=True)
def test_an_association_that_is_denied_is_cut(cluster: Sctp) -> None:
    """And one that is still allowed goes on."""
    cluster.do([_label("a", serves="sctp")])
    at = cluster.addresses()
    with (
        kept(cluster.lab, Asked(at["y/a"], at["x/a"], 80)) as allowed,
        kept(cluster.lab, Asked(at["z/a"], at["x/a"], 80)) as denied,
    ):
        assert (allowed.speak(), denied.speak()) == ("answered", "answered")
        cluster.do([ONLY_Y])
        # It is cut a moment after the commit.
        until = time.monotonic() + 10 * PATIENCE
        while (said := denied.speak()) == "answered" and time.monotonic() < until:
            time.sleep(0.05)
        assert said == "TimeoutError"
        assert denied.speak() == "TimeoutError", "the other direction brings it back"
        assert allowed.speak() == "answered"
