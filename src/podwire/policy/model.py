"""One shape for every policy kind, so that there is one meaning. Pure.

    NetworkPolicy                  tier NetworkPolicy, rules Accept, isolates its subjects
    ClusterNetworkPolicy           tier Admin or Baseline, rules in order, isolates nobody
    AdminNetworkPolicy, Baseline-  the same, in their older spelling

A policy says of its subject pods, per direction, which peers may connect to which ports. Ports are
those of the packet where it reaches the pod: after DNAT, a container's port and never a Service's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal, NamedTuple, TypeAlias

from podwire.policy.selector import EVERYTHING, Selector

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Direction: TypeAlias = Literal["ingress", "egress"]
Action: TypeAlias = Literal["Accept", "Deny", "Pass"]

DIRECTIONS: Final[tuple[Direction, ...]] = ("egress", "ingress")
PROTOCOLS: Final = {"TCP": 6, "UDP": 17, "SCTP": 132}
PROTOCOL_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}
ICMP: Final = 1
ICMPV6: Final = 58
LAST_PORT: Final = 65535

STAGE_ANNOTATION: Final = "policy.podwire.dev/stage"
OBSERVE_ANNOTATION: Final = "policy.podwire.dev/observe"
"""On a Node, "true" has its agent note the connections that pass, too."""


class Tier(IntEnum):
    """In the order they are asked."""

    ADMIN = 0
    NETWORK_POLICY = 1
    BASELINE = 2


class PolicyRef(NamedTuple):
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        scope = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {scope}{self.name}"


# --- peers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PodsPeer:
    """Pods by labels, of one namespace (`namespace`) or of those `namespaces` selects.

    Pods on the host's network are never meant (S13): their traffic is their node's.
    """

    pods: Selector = EVERYTHING
    namespace: str = ""
    namespaces: Selector | None = None


@dataclass(frozen=True, slots=True)
class NetworkPeer:
    """Addresses of `network` without those of `holes`, a pod's and a node's address included (S11).

    A hole belongs to this one element; it denies nothing that another element allows.
    """

    network: Network
    holes: tuple[Network, ...] = ()

    def contains(self, address: Address) -> bool:
        return address in self.network and not any(address in hole for hole in self.holes)


@dataclass(frozen=True, slots=True)
class NodesPeer:
    """Nodes by labels: any of a Node's addresses."""

    nodes: Selector


@dataclass(frozen=True, slots=True)
class DomainPeer:
    """Addresses that cluster DNS answered for `name`; `*.` stands for one or more labels."""

    name: str


Peer: TypeAlias = PodsPeer | NetworkPeer | NodesPeer | DomainPeer


# --- ports --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """`first` to `last`, both included, of one IP protocol; 0-65535 is the whole protocol."""

    protocol: int
    first: int = 0
    last: int = LAST_PORT

    def contains(self, protocol: int, port: int) -> bool:
        return protocol == self.protocol and self.first <= port <= self.last


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A container port of the destination pod by name; `protocol` None: of whatever protocol."""

    name: str
    protocol: int | None = None


PortMatch: TypeAlias = PortRange | NamedPort


# --- policies -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """`peers` None means everybody, `ports` None every protocol and port, ICMP included.

    An empty tuple matches nothing: that is what is left of a rule whose peers nobody here knows
    and whose action is Accept (it fails closed).
    """

    policy: PolicyRef
    direction: Direction
    index: int
    action: Action = "Accept"
    peers: tuple[Peer, ...] | None = None
    ports: tuple[PortMatch, ...] | None = None
    name: str = ""

    @property
    def path(self) -> str:
        """The field it comes from: `spec.ingress[0]`."""
        return f"spec.{self.direction}[{self.index}]"

    def __str__(self) -> str:
        named = f" ({self.name})" if self.name else ""
        return f"{self.policy} {self.path}{named}"


@dataclass(frozen=True, slots=True)
class Policy:
    """`isolates`: in these directions nothing reaches the subjects but what a rule accepts.

    `staged` policies are judged beside the others and enforce nothing.
    """

    ref: PolicyRef
    tier: Tier
    subject: PodsPeer
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    isolates: frozenset[Direction] = frozenset()
    priority: int = 0
    staged: bool = False
    generation: int = 0

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        return self.ingress if direction == "ingress" else self.egress

    def concerns(self, direction: Direction) -> bool:
        """Whether it says anything about the direction."""
        return direction in self.isolates or bool(self.rules(direction))

    @property
    def order(self) -> tuple[int, int, str, PolicyRef]:
        """Tier, then ascending priority; equal priorities go by name, of whatever kind, which the
        API leaves open and Calico and kube-network-policies do."""
        return (self.tier, self.priority, self.ref.name, self.ref)


def in_order(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    return tuple(sorted(policies, key=lambda policy: policy.order))
