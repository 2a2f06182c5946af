"""The controller: what changes wake which Service, and one pass over a Service.

    pod change     -> the Services that select it      -> pass after `endpoint_batch_s`
    Service change                                     -> pass now
    Node change    -> the Services of the node's pods  -> pass after `endpoint_batch_s`
    slice, Endpoints changed by others                 -> pass after `foreign_delay_s`

One Service is passed over by one worker at a time and its writes follow each other; what changes
meanwhile is one more pass. A pass costs in proportion to the Service's own pods, and compiles only
those that changed; a Service with many is therefore looked at a little later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from podwire.client import Change, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.controllers.endpoints import hints, mirror, slices
from podwire.controllers.endpoints.legacycontroller import LegacyEndpoints
from podwire.controllers.endpoints.members import (
    WEIGHT_ANNOTATION,
    ZONE_LABEL,
    Member,
    compile_member,
    weight_of,
)
from podwire.controllers.endpoints.membership import Membership
from podwire.controllers.endpoints.slices import SlicePlan, Topology
from podwire.controllers.endpoints.slicestore import SliceStore
from podwire.controllers.endpoints.triggers import TriggerTimes
from podwire.controllers.podcontrol import is_namespace_going
from podwire.controllers.views import POD, Pod
from podwire.errors import ApiError, ConflictError
from podwire.objects import kinds
from podwire.objects.core import Endpoints, Node, Service
from podwire.objects.meta import Key, Kind, Object

COMPONENT = "endpoint-slice-controller"
# A pass compares every endpoint of its Service: bigger ones are looked at less often.
_PER_POD_S = 2e-5


@dataclass
class _State:
    """What is remembered of one Service between passes; all of it can be made anew."""

    service: Service
    members: dict[Key, tuple[Pod, Node | None, Member | None]] = field(default_factory=dict)
    triggers: TriggerTimes = field(default_factory=TriggerTimes)
    hinted: frozenset[str] = frozenset()
    trigger: str = ""
    """The earliest change that is not written yet."""


class ServiceEndpoints:
    """EndpointSlices, mirrored slices and, through `LegacyEndpoints`, Endpoints."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._config = cluster.config
        self._services = cluster.informer(kinds.SERVICE).objects
        self._nodes = cluster.informer(kinds.NODE).objects
        self._node_pods = cluster.node_pods
        self._states: dict[Key, _State] = {}
        self._auto: set[Key] = set()
        """Services with `topology-mode: Auto`: a change of nodes concerns all their endpoints."""
        self._ratios: dict[str, float] | None = None
        self._queue: WorkQueue[Key] = WorkQueue(COMPONENT, self._reconcile)
        self._slices = SliceStore(cluster, self._foreign)
        services = cluster.informer(kinds.SERVICE)
        self._membership = Membership(cluster.pods, services, self._pod_changed)
        self._legacy = LegacyEndpoints(cluster, self._endpoints_changed, self.members)
        services.on_change(self._service_changed)
        cluster.informer(kinds.NODE).on_change(self._node_changed)

    async def run(self) -> None:
        await self._legacy.run_with(self._queue.run())

    # --- what wakes a Service ---

    def _service_changed(self, change: Change[Service]) -> None:
        key, new = change.key, change.new
        if new is None:
            self._states.pop(key, None)
            self._auto.discard(key)
            self._legacy.service_gone(key)
        elif hints.topology_mode_auto(new):
            self._auto.add(key)
        else:
            self._auto.discard(key)
        self._queue.add(key)

    def _pod_changed(
        self, change: Change[Pod], before: frozenset[Key], after: frozenset[Key]
    ) -> None:
        if after and change.new is not None:
            self._check_weight(change.old, change.new)
        changed = before | after if _is_other(change.old, change.new) else before ^ after
        self._wake(changed)

    def _wake(self, services: Iterable[Key]) -> None:
        for key in services:
            delay_s = self._config.endpoint_batch_s + len(self._membership.pods(key)) * _PER_POD_S
            self._queue.add_after(key, delay_s)

    def _check_weight(self, old: Pod | None, new: Pod) -> None:
        text = new.metadata.annotations.get(WEIGHT_ANNOTATION)
        if text is None or (old and old.metadata.annotations.get(WEIGHT_ANNOTATION) == text):
            return
        problem = weight_of(new)[1]
        if problem:
            self._cluster.events.say(COMPONENT, POD, new, "Warning", "InvalidWeight", problem)

    def _node_changed(self, change: Change[Node]) -> None:
        old, new = change.old, change.new
        if old is None or new is None or _zone(old) != _zone(new):
            pods = self._node_pods.on(change.key.name)
            self._wake({key for pod in pods for key in self._membership.services(pod.key)})
        if old is None or new is None or _capacity(old) != _capacity(new):
            self._ratios = None
            self._wake(self._auto)

    def _foreign(self, service: Key) -> None:
        self._queue.add_after(service, self._config.foreign_delay_s)

    def _endpoints_changed(self, old: Endpoints | None, new: Endpoints | None) -> None:
        """Of a Service without a selector they are what is mirrored."""
        obj = new or old
        if obj is None or self._selects(self._services.get(obj.key)):
            return
        if any(one is not None and mirror.is_mirrored(one) for one in (old, new)):
            self._queue.add_after(obj.key, self._config.endpoint_batch_s)

    @staticmethod
    def _selects(service: Service | None) -> bool:
        return service is not None and bool(service.spec.selector)

    # --- one pass ---

    async def _reconcile(self, key: Key) -> None:
        service = self._services.get(key)
        if service is not None and service.spec.selector:
            if service.spec.type != "ExternalName":
                await self._sync(key, service)
            # Only now: the slices that take their place are written.
            await self._clear(key, mirror.MANAGER)
        else:
            await self._mirror(key, service)

    async def _sync(self, key: Key, service: Service) -> None:
        pods = self._membership.pods(key)
        members = [member for _, member in self.members(key, service)]
        state = self._states[key]
        at = state.triggers.observe(service, pods.values())
        if at and (not state.trigger or at < state.trigger):
            state.trigger = at
        topology = Topology(self._shares() if key in self._auto else {}, state.hinted)
        existing = self._slices.of(key, slices.MANAGER)
        plan = slices.plan_slices(
            service, members, existing, trigger=state.trigger, topology=topology
        )
        await self._apply(kinds.SERVICE, service, plan)
        self._legacy.wake(key, state.trigger)
        state.hinted, state.trigger = plan.hinted, ""

    def members(self, key: Key, service: Service) -> list[tuple[Pod, Member]]:
        """The Service's members; only pods that changed are compiled."""
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = _State(service)
        elif state.service is not service:
            state.service, state.members = service, {}
        known, fresh = state.members, {}
        for pod_key, pod in self._membership.pods(key).items():
            node = self._nodes.get(Key("", pod.spec.node_name))
            entry = known.get(pod_key)
            if entry is None or entry[0] is not pod or not _same_place(entry[1], node):
                entry = (pod, node, compile_member(service, pod, node))
            fresh[pod_key] = entry
        state.members = fresh
        return [(pod, member) for pod, _, member in fresh.values() if member is not None]

    def _shares(self) -> dict[str, float]:
        if self._ratios is None:
            self._ratios = hints.zone_ratios(self._nodes.values())
        return self._ratios

    async def _mirror(self, key: Key, service: Service | None) -> None:
        """Slices for what was written by hand; none where there is no Service or nothing to
        mirror."""
        self._states.pop(key, None)
        endpoints = self._legacy.get(key)
        if service is None or endpoints is None or not mirror.is_mirrored(endpoints):
            await self._clear(key, mirror.MANAGER)
            return
        plan = mirror.plan_mirror(endpoints, self._slices.of(key, mirror.MANAGER))
        await self._apply(kinds.ENDPOINTS, endpoints, plan)
        # Left over from when the Service had a selector; nobody would mend them any more.
        await self._clear(key, slices.MANAGER)

    async def _clear(self, key: Key, manager: str) -> None:
        for piece in self._slices.of(key, manager):
            if not piece.deleting:
                await self._slices.delete(piece)

    async def _apply(
        self, kind: Kind[Service] | Kind[Endpoints], obj: Object, plan: SlicePlan
    ) -> None:
        for event_type, reason, message in plan.says:
            self._cluster.events.say(COMPONENT, kind, obj, event_type, reason, message)
        try:
            await self._slices.apply(plan)
        except ConflictError:
            raise
        except ApiError as error:
            if is_namespace_going(error):
                return
            text = f"Error updating Endpoint Slices for {kind.kind} {obj.key}: {error.message}"
            self._cluster.events.say(
                COMPONENT, kind, obj, "Warning", "FailedToUpdateEndpointSlices", text
            )
            raise


# --- what of an object matters ---


def _is_other(old: Pod | None, new: Pod | None) -> bool:
    """Whether a pod's change can change its endpoint (podEndpointsChanged, and its weight)."""
    if old is None or new is None:
        return True
    return _facts(old) != _facts(new)


def _facts(pod: Pod) -> tuple[object, ...]:
    return (
        pod.status.pod_ips,
        pod.ready,
        pod.deleting,
        pod.finished,
        pod.spec.node_name,
        pod.spec.hostname,
        pod.spec.subdomain,
        pod.metadata.annotations.get(WEIGHT_ANNOTATION),
    )


def _zone(node: Node | None) -> str | None:
    return None if node is None else node.metadata.labels.get(ZONE_LABEL, "")


def _same_place(one: Node | None, other: Node | None) -> bool:
    return one is other or _zone(one) == _zone(other)


def _capacity(node: Node) -> tuple[object, ...]:
    """What the zones' shares are made from."""
    return node.ready, _zone(node), node.status.allocatable.get("cpu"), node.metadata.labels
