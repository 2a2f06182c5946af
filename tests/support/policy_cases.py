"""Cases of the field as data: steps of actions, each with the connections that may then be opened.

    Case -> Step: actions on objects, then verdicts
                  -> CaseCluster.world: the evaluator and the naive reading answer
                  -> a lab: the same actions on its API, the same verdicts by packets

Whoever runs them brings the addresses of the world's pods (`static_addresses` without a lab): some
policies speak of them. Objects are as a user writes them; an executor adds what its cluster needs.
The cases themselves: `policy_cases_cyclonus`, `_e2e`, `_npa` and `_own`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple, TypeAlias

from naive_policy import NaiveWorld
from policy_worlds import PolicyWorld, Probe, make_namespace, make_node, make_pod

Raw: TypeAlias = dict[str, Any]
Addresses: TypeAlias = Mapping[str, str]
"""`namespace/name` of a pod to its address."""


class Apply(NamedTuple):
    """Create the object, or put it in place of the one of its name."""

    object: Raw


class Label(NamedTuple):
    """Give a Pod or a Namespace these labels and no others."""

    kind: str
    namespace: str
    name: str
    labels: dict[str, str]


class Delete(NamedTuple):
    kind: str
    namespace: str
    name: str


Action: TypeAlias = Apply | Label | Delete


class Expect(NamedTuple):
    """One connection between pods (`namespace/name`). `hairpin`: through a Service to itself."""

    source: str
    destination: str
    protocol: str
    port: int
    allowed: bool
    hairpin: bool = False


@dataclass(frozen=True)
class Step:
    """`expected` None: all pods to all pods, on every port and protocol, as the naive reading of
    the API says."""

    actions: tuple[Action, ...] = ()
    expected: tuple[Expect, ...] | None = None
    says: str = ""


@dataclass(frozen=True)
class Case:
    suite: str
    name: str
    world: str
    steps: tuple[Step, ...]
    tags: frozenset[str] = field(default_factory=frozenset)

    def __str__(self) -> str:
        return f"{self.suite}: {self.name}"


# --- worlds -------------------------------------------------------------------------------------

PORTS: Final = (80, 81)
PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
NODES: Final = ("node-1", "node-2", "node-3")
HOUSES: Final = {
    "gryffindor": "harry-potter",
    "slytherin": "draco-malfoy",
    "hufflepuff": "cedric-diggory",
    "ravenclaw": "luna-lovegood",
}
HOST_HOUSE: Final = ("forbidden-forrest", "centaur")
"""Its pods are on their nodes' network."""


def house_namespace(house: str) -> str:
    return f"network-policy-conformance-{house}"


def xyz_pod(namespace: str, name: str) -> Raw:
    """Serves 80 and 81 by every protocol, each by the name `serve-80-tcp`."""
    ports = [
        {
            "name": f"serve-{port}-{protocol.lower()}",
            "containerPort": port,
            "protocol": protocol,
        }
        for port, protocol in itertools.product(PORTS, PROTOCOLS)
    ]
    return make_pod(namespace, name, [], {"pod": name}, node="", ports=ports)


def _xyz() -> list[Raw]:
    names = [(namespace, name) for namespace in "xyz" for name in "abc"]
    return [
        *(make_namespace(name, {"ns": name}) for name in "xyz"),
        *(xyz_pod(*each) for each in names),
    ]


_HOUSE_PORTS: Final = (
    ("TCP", 80, "web"),
    ("TCP", 8080, ""),
    ("UDP", 53, "dns"),
    ("UDP", 5353, ""),
    ("SCTP", 9003, ""),
    ("SCTP", 9005, ""),
)


def _houses() -> list[Raw]:
    found = []
    for house, person in (*HOUSES.items(), HOST_HOUSE):
        namespace = house_namespace(house)
        found.append(make_namespace(namespace, {"conformance-house": house}))
        for index in range(2):
            name = f"{person}-{index}"
            labels = {"conformance-house": house, "statefulset.kubernetes.io/pod-name": name}
            ports = [
                {"containerPort": port, "protocol": protocol} | ({"name": name} if name else {})
                for protocol, port, name in _HOUSE_PORTS
            ]
            host = person == HOST_HOUSE[1]
            found.append(
                make_pod(namespace, name, [], labels, node="", ports=ports, hostNetwork=host)
            )
    return found


WORLDS: Final[Mapping[str, list[Raw]]] = {"xyz": _xyz(), "houses": _houses()}


class CaseCluster:
    """The objects of a case as steps go by, with pods placed and addressed as a lab would."""

    def __init__(self, world: str) -> None:
        self._objects: dict[tuple[str, str, str], Raw] = {}
        self._placed = 0
        for raw in WORLDS[world]:
            self.do(Apply(raw))

    def do(self, action: Action) -> None:
        match action:
            case Apply(raw):
                raw = copy.deepcopy(raw)
                kind, meta = kind_of(raw), raw["metadata"]
                if kind == "Pod":
                    self._place(raw)
                self._objects[kind, meta.get("namespace", ""), meta["name"]] = raw
            case Label(kind, namespace, name, labels):
                self._objects[kind, namespace, name]["metadata"]["labels"] = dict(labels)
            case Delete(kind, namespace, name):
                del self._objects[kind, namespace, name]
                if kind == "Namespace":
                    inside = [key for key in self._objects if key[1] == name]
                    for key in inside:
                        del self._objects[key]

    def _place(self, pod: Raw) -> None:
        """Nodes take turns; every other pod of a node is beyond the /28 of the first."""
        index = self._placed
        self._placed += 1
        node = index % len(NODES)
        pod["spec"]["nodeName"] = NODES[node]
        ip = f"10.244.{node + 1}.{2 + 9 * (index // len(NODES))}"
        if pod["spec"].get("hostNetwork"):
            ip = f"172.30.0.{node + 2}"
        pod["status"]["podIPs"] = [{"ip": ip}]

    def _all(self, *kinds: str) -> list[Raw]:
        return [raw for (kind, _, _), raw in self._objects.items() if kind in kinds]

    @property
    def world(self) -> PolicyWorld:
        kinds = {kind for kind, _, _ in self._objects} - {"Pod", "Namespace", "Service"}
        labels = {"kubernetes.io/os": "linux"}
        nodes = [make_node(n, [f"172.30.0.{i + 2}"], labels) for i, n in enumerate(NODES)]
        return PolicyWorld(
            NaiveWorld(self._all("Namespace"), self._all("Pod"), nodes, self._all(*kinds))
        )

    @property
    def addresses(self) -> dict[str, str]:
        return {
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": pod["status"]["podIPs"][0][
                "ip"
            ]
            for pod in self._all("Pod")
        }

    def probe(self, expect: Expect) -> Probe:
        at = self.addresses
        ends = at[expect.source], at[expect.destination]
        return Probe(*ends, expect.protocol, expect.port, expect.hairpin)

    def all_probes(self) -> Iterator[Probe]:
        """Every pair of pods, on every port and protocol: 486 in the world of nine."""
        at = self.addresses.values()
        for source, destination in itertools.product(at, at):
            for port, protocol in itertools.product(PORTS, PROTOCOLS):
                yield Probe(source, destination, protocol, port)


def around(address: str, bits: int) -> str:
    """The network of 2**bits addresses that holds this one, in either family."""
    length = ip_address(address).max_prefixlen - bits
    return str(ip_network(f"{address}/{length}", strict=False))


def kind_of(raw: Raw) -> str:
    """Pods and namespaces do not say it."""
    if "kind" in raw:
        return str(raw["kind"])
    return "Pod" if "spec" in raw else "Namespace"


def static_addresses(world: str) -> dict[str, str]:
    return CaseCluster(world).addresses


def table(port: int, protocol: str, pods: Sequence[str], *rules: str) -> tuple[Expect, ...]:
    """All pairs of different pods: allowed, but for `rules` in their order.

    `* !> x/*` denies, `x/b > x/a` allows again. A pod and itself are left out: upstream's own
    suites ignore that pair ("loopback"), since plugins differ.
    """
    verdicts = dict.fromkeys(itertools.permutations(pods, 2), True)
    for rule in rules:
        source, sign, destination = rule.split()
        for pair in verdicts:
            if _matches(source, pair[0]) and _matches(destination, pair[1]):
                verdicts[pair] = sign == ">"
    return tuple(Expect(a, b, protocol, port, ok) for (a, b), ok in verdicts.items())


def _matches(pattern: str, pod: str) -> bool:
    namespace, _, name = pattern.partition("/")
    own_namespace, _, own_name = pod.partition("/")
    return namespace in ("*", own_namespace) and name in ("", "*", own_name)
