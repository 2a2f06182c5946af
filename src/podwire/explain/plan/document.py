"""The `AddressPlan` document: what was decided, what it can hold, what to look out for.

camelCase on the wire, as Kubernetes writes; nothing is left out, so that people can edit it.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
import yaml

from podwire.errors import AddressError, UsageError
from podwire.explain.plan.carve import Network, overlap, parse_cidr

API_VERSION: Final = "podwire.dev/v1alpha1"
KIND: Final = "AddressPlan"


class FamilyPlan(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One family's blocks. `pods` is "" where pods live in the nodes' network (EKS, AKS).

    `node_prefix` is the length of one node's share of `pods`, 0 where nodes have none.
    `addresses_per_node` is what one node's pods can use.
    """

    family: Literal[4, 6]
    nodes: str
    pods: str
    services: str
    node_prefix: int
    addresses_per_node: int

    @property
    def blocks(self) -> dict[str, Network]:
        named = {"nodes": self.nodes, "pods": self.pods, "services": self.services}
        return {name: parse_cidr(text) for name, text in named.items() if text}


class Limit(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Something that runs out. `soft` limits are tested sizes, not walls."""

    name: str
    capacity: int
    needed: int
    source: str
    soft: bool = False

    @property
    def exceeded(self) -> bool:
        return self.needed > self.capacity

    @property
    def headroom_percent(self) -> int:
        """What is left of the capacity; negative when it does not suffice."""
        if not self.capacity:
            return -100 if self.needed else 0
        return (self.capacity - self.needed) * 100 // self.capacity


class Capacity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    nodes: int
    pods_per_node: int
    pods: int
    services: int


class Overlap(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`fatal`: the plan does not work; else it works until both meet on one machine."""

    cidr: str
    role: str
    other: str
    owner: str
    fatal: bool


class AddressPlan(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`first_limit` names the limit with the least room, exceeded or not."""

    api_version: str = API_VERSION
    kind: str = KIND
    cloud: str
    mode: str
    families: tuple[FamilyPlan, ...]
    capacity: Capacity
    limits: tuple[Limit, ...]
    first_limit: str
    headroom_percent: int
    overlaps: tuple[Overlap, ...]
    reuse_gap_s: float
    mtu: int
    warnings: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        """No wall is hit and no overlap is fatal."""
        return not any(o.fatal for o in self.overlaps) and not any(
            limit.exceeded for limit in self.limits if not limit.soft
        )

    def cidrs(self, role: Literal["nodes", "pods", "services"]) -> tuple[Network, ...]:
        """The blocks of one role, the primary family first."""
        return tuple(f.blocks[role] for f in self.families if role in f.blocks)


def render_plan(plan: AddressPlan, form: Literal["json", "yaml"] = "json") -> str:
    """The document `parse_plan` reads back."""
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(plan), indent=2).decode() + "\n"
    return str(yaml.safe_dump(msgspec.to_builtins(plan), sort_keys=False))


def parse_plan(text: str | bytes) -> AddressPlan:
    """Read a plan, JSON or YAML.

    Raises `UsageError` for what is not a plan and `AddressError` for CIDRs that are none or that
    overlap each other (somebody edited the file).
    """
    try:
        document: Any = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UsageError(f"address plan: is neither JSON nor YAML: {e}") from e
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise UsageError(f"address plan: kind is not {KIND}; write one with `podwire plan -o yaml`")
    if document.get("apiVersion") != API_VERSION:
        raise UsageError(
            f"address plan: apiVersion {document.get('apiVersion')!r} is not {API_VERSION}"
        )
    try:
        plan = msgspec.convert(document, AddressPlan)
    except msgspec.ValidationError as e:
        raise UsageError(f"address plan: {e}") from e
    _check(plan)
    return plan


def _check(plan: AddressPlan) -> None:
    if not plan.families:
        raise UsageError("address plan: has no families")
    named = [
        (f"{role} {cidr}", cidr) for family in plan.families for role, cidr in family.blocks.items()
    ]
    for number, (left, left_cidr) in enumerate(named):
        for right, right_cidr in named[number + 1 :]:
            if overlap(left_cidr, right_cidr):
                raise AddressError(f"address plan: {left} overlaps {right}; give each its own")
    for family in plan.families:
        for role, cidr in family.blocks.items():
            if cidr.version != family.family:
                raise AddressError(f"address plan: {role} {cidr} is not IPv{family.family}")
            if role == "pods" and not cidr.prefixlen <= family.node_prefix <= cidr.max_prefixlen:
                raise AddressError(f"address plan: /{family.node_prefix} per node is not in {cidr}")


def plan_rows(plan: AddressPlan) -> list[tuple[str, str]]:
    """The plan as (name, value) rows for a table."""
    rows = [("cloud", f"{plan.cloud} ({plan.mode})")]
    for family in plan.families:
        prefix = f"IPv{family.family}"
        rows.append((f"{prefix} nodes", family.nodes))
        share = f"{family.pods}, /{family.node_prefix} per node ({_many(family)} addresses)"
        rows.append((f"{prefix} pods", share if family.pods else "from the nodes' network"))
        rows.append((f"{prefix} services", family.services))
    capacity = plan.capacity
    rows += [
        (
            "capacity",
            f"{capacity.nodes:,} nodes x {capacity.pods_per_node} = {capacity.pods:,} pods",
        ),
        ("capacity of services", f"{capacity.services:,}"),
        ("first limit", f"{plan.first_limit} ({plan.headroom_percent} % left)"),
        ("MTU of pods", str(plan.mtu)),
        ("address reuse after", _duration(plan.reuse_gap_s)),
    ]
    rows += [
        (
            "limit" + (" (tested size)" if limit.soft else ""),
            f"{limit.name}: needs {limit.needed:,} of {limit.capacity:,}"
            + (", EXCEEDED" if limit.exceeded else ""),
        )
        for limit in plan.limits
    ]
    rows += [("overlap", f"{o.role} {o.cidr} with {o.other}: {o.owner}") for o in plan.overlaps]
    return rows + [("warning", text) for text in plan.warnings]


def _many(family: FamilyPlan) -> str:
    return f"{family.addresses_per_node:,}" if family.family == 4 else "2^64"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
