"""NetworkPolicies that leave open what was seen or is asked for, and close the rest. Pure.

    workloads + needs -> one policy per workload, default deny per namespace -> checked

Three things are promised. What must be possible is judged possible by `evaluate`, under the very
manifests that are printed; a recommendation that fails this is an error. Nobody without needs is
isolated, unless asked to: a pod that was merely idle would be cut off (kguardian#1496). Ports are
those of the pods, never a Service's (kubescape/node-agent#943).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from podwire.errors import RecommendationError
from podwire.objects.meta import JsonObject
from podwire.objects.policy import NetworkPolicy
from podwire.policy import intervals, ports
from podwire.policy.evaluate import PolicySet, selects
from podwire.policy.intervals import Intervals
from podwire.policy.model import (
    DIRECTIONS,
    STAGE_ANNOTATION,
    Direction,
    Peer,
    PodsPeer,
    Policy,
    PortRange,
)
from podwire.policy.needs import Need, Observed, Workload, WorkloadRef, in_namespace
from podwire.policy.parse import parse_network_policy
from podwire.policy.reach import Reach
from podwire.policy.render import render_policy
from podwire.policy.selector import EVERYTHING, Expression, Selector
from podwire.policy.verdicts import Verdicts
from podwire.policy.world import PodView, World

DEFAULT_DENY: Final = "default-deny"
_SHOWN: Final = 5
_EVERY_POD: Final = PodsPeer(namespaces=EVERYTHING)


@dataclass(frozen=True)
class DnsServers:
    """Who answers names, at its pods' own ports."""

    peer: PodsPeer
    ports: Intervals


CLUSTER_DNS: Final = DnsServers(
    PodsPeer(
        Selector((Expression("k8s-app", "In", ("kube-dns",)),)),
        namespaces=in_namespace("kube-system"),
    ),
    ports.of_ranges([PortRange(17, 53, 53), PortRange(6, 53, 53)]),
)
"""As kubeadm, kops and podwire label it."""


@dataclass(frozen=True)
class Options:
    """`namespaces` None: all that `workloads` are in. `directions`: ingress first is the field's
    advice for a gradual roll-out. `close_quiet`: leave nothing open out of doubt."""

    directions: tuple[Direction, ...] = DIRECTIONS
    include_idle: bool = False
    close_quiet: bool = False
    namespaces: frozenset[str] | None = None
    staged: bool = False


DEFAULT_OPTIONS: Final = Options()


@dataclass(frozen=True)
class Wanted:
    """What a recommendation is made from.

    `complete`: these are all workloads there are, so that default deny of a namespace surprises
    nobody. `unsure`: directions in which needing nothing proves nothing; they are left open.
    `policies` are those there now.
    """

    world: World
    workloads: Sequence[Workload]
    needs: Sequence[Need]
    observed: Sequence[Observed] = ()
    dns: DnsServers = CLUSTER_DNS
    complete: bool = True
    unsure: frozenset[tuple[WorkloadRef, Direction]] = frozenset()
    policies: Sequence[Policy] = ()
    warnings: Sequence[str] = ()


class Effect(msgspec.Struct, frozen=True, rename="camel"):
    """Ordered pairs of different pods: open at any port now and then, and those with fewer ports
    then than now."""

    pairs: int = 0
    open_before: int = 0
    open_after: int = 0
    narrowed: int = 0

    @property
    def closed(self) -> int:
        return self.open_before - self.open_after


@dataclass(frozen=True)
class Recommendation:
    """`manifests` for kubectl; `idle` workloads are left alone, and so are those of `unselected`,
    with the reason. `quiet` are closed in a direction in which they need nothing, `left_open` are
    open in one because nobody can be sure of that."""

    manifests: tuple[JsonObject, ...] = ()
    policies: tuple[Policy, ...] = ()
    subjects: tuple[WorkloadRef, ...] = ()
    idle: tuple[WorkloadRef, ...] = ()
    unselected: Mapping[WorkloadRef, str] = field(default_factory=dict)
    quiet: tuple[str, ...] = ()
    left_open: tuple[str, ...] = ()
    open_namespaces: Mapping[str, str] = field(default_factory=dict)
    checked: int = 0
    effect: Effect = field(default_factory=Effect)
    warnings: tuple[str, ...] = ()


def recommend(wanted: Wanted, options: Options = DEFAULT_OPTIONS) -> Recommendation:
    """Raises `RecommendationError` when its own policies would deny what must be possible."""
    plan = _Plan(wanted, options)
    manifests = plan.manifests()
    policies = tuple(read_back(manifest) for manifest in manifests)
    check(policies, wanted.observed, wanted.world)
    touched = plan.accidents(policies)
    if touched:
        raise RecommendationError(f"{touched[0]}: would be isolated, though it was idle")
    return Recommendation(
        manifests=tuple(manifests),
        policies=policies,
        subjects=tuple(w.ref for w in plan.subjects),
        idle=tuple(w.ref for w in plan.idle),
        unselected=plan.unselected,
        quiet=tuple(plan.quiet(unsure=False)),
        left_open=tuple(plan.quiet(unsure=True)),
        open_namespaces=plan.open_namespaces(),
        checked=len(wanted.observed),
        effect=measure(wanted, policies),
        warnings=tuple(dict.fromkeys(wanted.warnings)),
    )


def read_back(manifest: JsonObject) -> Policy:
    """What the manifest means, read as any other."""
    policy = parse_network_policy(msgspec.convert(manifest, NetworkPolicy))
    return replace(policy, staged=False)


def check(policies: Sequence[Policy], observed: Iterable[Observed], world: World) -> None:
    """Raises for connections that the policies would deny."""
    verdicts = Verdicts(world, policies)
    denied = [each.text for each in observed if not verdicts.decide(each.flow).allowed]
    if denied:
        shown = "; ".join(denied[:_SHOWN])
        more = f"; and {len(denied) - _SHOWN} more" if len(denied) > _SHOWN else ""
        raise RecommendationError(f"the recommended policies would deny {shown}{more}")


def measure(wanted: Wanted, added: Sequence[Policy]) -> Effect:
    """Of all workloads' pods, as if `added` were applied to what is there: policies add up, and
    one of the same name is replaced."""
    world, before = wanted.world, wanted.policies
    ours = {pod.key for workload in wanted.workloads for pod in workload.pods}
    names = {policy.ref for policy in added}
    after = [policy for policy in before if policy.ref not in names] + list(added)
    addresses = [ip.version for pod in world.pods.values() for ip in pod.ips]
    version = 6 if addresses and 4 not in addresses else 4
    now, then = (Reach(world, PolicySet(each), version=version) for each in (before, after))
    members: dict[tuple[int, int], int] = {}
    for pod in then.pods:
        if pod.key in ours and not pod.host_network:
            place = now.group_of[pod.key], then.group_of[pod.key]
            members[place] = members.get(place, 0) + 1
    counts = [0, 0, 0, 0]
    for source, some in members.items():
        for destination, others in members.items():
            weight = some * (others - (source == destination))
            if not weight:
                continue
            old = now.ports(source[0], destination[0])
            new = then.ports(source[1], destination[1])
            counts[0] += weight
            counts[1] += weight * bool(old)
            counts[2] += weight * bool(new)
            counts[3] += weight * bool(new and intervals.subtract(old, new))
    return Effect(*counts)


class _Plan:
    """Who is selected, by which labels, and what is then needed."""

    def __init__(self, wanted: Wanted, options: Options) -> None:
        self._wanted = wanted
        self._options = options
        self._world = wanted.world
        self.unselected: dict[WorkloadRef, str] = {}
        self._needs: dict[WorkloadRef, list[Need]] = {}
        for need in wanted.needs:
            self._needs.setdefault(need.subject, []).append(need)
        self._needed = {(need.subject, need.direction) for need in wanted.needs}
        inside = [w for w in wanted.workloads if self._is_inside(w) and not _on_host(w)]
        self.idle = (
            [w for w in inside if w.ref not in self._needs] if not options.include_idle else []
        )
        left = {w.ref for w in self.idle}
        self._spared = [pod for w in self.idle for pod in w.pods]
        candidates = [w for w in inside if w.ref not in left]
        self.subjects = self._choose(candidates)
        while len(self.subjects) + len(self.unselected) < len(candidates):
            self.subjects = self._choose(candidates)

    def _is_inside(self, workload: Workload) -> bool:
        chosen = self._options.namespaces
        return chosen is None or workload.ref.namespace in chosen

    def _choose(self, candidates: Sequence[Workload]) -> list[Workload]:
        """Those that can be selected alone; one that cannot is spared as the idle ones are, which
        may leave others without a selector: then not all of them are answered for."""
        chosen: list[Workload] = []
        for workload in candidates:
            if workload.ref in self.unselected:
                continue
            selector = self._selector(workload)
            if selector is None:
                self._spared += workload.pods
                return []
            chosen.append(replace(workload, selector=selector))
        return chosen

    def _selector(self, workload: Workload) -> Selector | None:
        """Its own, or what all its pods have in common, if that spares who is to be spared."""
        reason = "its pods have no labels to select them by"
        for selector in (workload.selector, workload.common_labels):
            if selector.expressions:
                subject = PodsPeer(selector, workload.ref.namespace)
                if not any(selects(subject, pod, self._world) for pod in self._spared):
                    return selector
                reason = "its labels would select pods that are to be left alone"
        self.unselected[workload.ref] = reason
        return None

    # --- manifests ---

    def manifests(self) -> list[JsonObject]:
        """Per namespace: default deny, where it isolates nobody by accident, then workloads."""
        found: list[JsonObject] = []
        spread = self._by_namespace()
        undenied = self.open_namespaces()
        for namespace, subjects in spread.items():
            if namespace not in undenied:
                found.append(self._policy(DEFAULT_DENY, namespace, EVERYTHING, {}))
            names = _names(subjects)
            for workload in subjects:
                wants = self._wants(workload)
                name = names[workload.ref]
                found.append(self._policy(name, namespace, workload.selector, wants))
        return found

    def _policy(
        self,
        name: str,
        namespace: str,
        selector: Selector,
        wants: Mapping[Direction, Mapping[Peer | None, Intervals]],
    ) -> JsonObject:
        annotations = {STAGE_ANNOTATION: "true"} if self._options.staged else None
        return render_policy(
            name, namespace, selector, self._options.directions, wants, annotations
        )

    def _by_namespace(self) -> dict[str, list[Workload]]:
        found: dict[str, list[Workload]] = {}
        for workload in sorted(self.subjects, key=lambda w: w.ref):
            found.setdefault(workload.ref.namespace, []).append(workload)
        return found

    def open_namespaces(self) -> dict[str, str]:
        """Where there is no default deny, and why."""
        found: dict[str, str] = {}
        for namespace in self._by_namespace():
            idle = [w.ref for w in self.idle if w.ref.namespace == namespace]
            others = [ref for ref in self.unselected if ref.namespace == namespace]
            if idle:
                found[namespace] = f"would isolate what was idle: {_some(idle)}"
            elif others:
                found[namespace] = f"would isolate what cannot be selected: {_some(others)}"
            elif not self._wanted.complete and not self._options.include_idle:
                found[namespace] = "nobody knows which other pods it has"
        return found

    def _wants(self, workload: Workload) -> dict[Direction, dict[Peer | None, Intervals]]:
        wants: dict[Direction, dict[Peer | None, Intervals]] = {"ingress": {}, "egress": {}}
        for need in [*self._needs.get(workload.ref, ()), *self._names_to(workload)]:
            own = wants[need.direction]
            own[need.peer] = intervals.union(own.get(need.peer, ()), need.ports)
        for direction in wants:
            if self._is_left_open(workload.ref, direction):
                wants[direction] = {None: ports.ALL}
        return wants

    def _is_left_open(self, ref: WorkloadRef, direction: Direction) -> bool:
        unsure = (ref, direction) in self._wanted.unsure and not self._options.close_quiet
        return unsure and (ref, direction) not in self._needed

    def _names_to(self, workload: Workload) -> Iterator[Need]:
        """Who may not look names up can open nothing by name; who answers must be asked."""
        dns = self._wanted.dns
        yield Need(workload.ref, "egress", dns.peer, dns.ports)
        if any(selects(dns.peer, pod, self._world) for pod in workload.pods):
            yield Need(workload.ref, "ingress", _EVERY_POD, dns.ports)

    # --- what to tell ---

    def quiet(self, *, unsure: bool) -> Iterator[str]:
        """Directions in which nothing is needed: closed ones, or those left open out of doubt."""
        for workload in self.subjects:
            for direction in self._options.directions:
                if (workload.ref, direction) not in self._needed and unsure == self._is_left_open(
                    workload.ref, direction
                ):
                    yield f"{workload.ref} {direction}"

    def accidents(self, policies: Sequence[Policy]) -> list[PodView]:
        """Idle pods that the policies select after all: none."""
        return [
            pod
            for pod in self._spared
            if any(selects(policy.subject, pod, self._world) for policy in policies)
        ]


def _on_host(workload: Workload) -> bool:
    """Pods on their node's network are never selected (S13)."""
    return bool(workload.pods) and all(pod.host_network for pod in workload.pods)


def _names(workloads: Sequence[Workload]) -> dict[WorkloadRef, str]:
    """The workload's name, with its kind where two have it."""
    seen = [w.ref.name for w in workloads]
    return {
        w.ref: w.ref.name
        if seen.count(w.ref.name) == 1 and w.ref.name != DEFAULT_DENY
        else f"{w.ref.name}-{w.ref.kind.lower()}"
        for w in workloads
    }


def _some(refs: Sequence[WorkloadRef]) -> str:
    more = f" and {len(refs) - _SHOWN} more" if len(refs) > _SHOWN else ""
    return ", ".join(map(str, refs[:_SHOWN])) + more
