"""One node's network policies, kept in the kernel as the API says.

    policies, Pods of all nodes, Namespaces, Nodes, DNS answers
      -> NodePolicies (what changed) -> PolicyKernel -> connections that are denied now -> who waits

A pod's first process starts after `admit` returned: then everything that selects it is committed.
A cluster without any policy costs a node a few quiet watches: pods and namespaces are followed, and
the table is made, from the first policy on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from typing import Any, Final

from podwire.agents.config import PolicyConfig
from podwire.agents.policyflows import FlowCutter, FlowNotes
from podwire.agents.policykernel import PolicyKernel
from podwire.agents.policynames import NameWatch
from podwire.agents.progressing import Watchers
from podwire.client import Api, Change, EventRecorder, Informer
from podwire.errors import KernelError, PolicyError
from podwire.objects import kinds
from podwire.objects.core import Namespace, Node, Pod
from podwire.objects.meta import Key, Kind, Object
from podwire.objects.policy import ClusterPolicy, NetworkPolicy, PeerPod
from podwire.policy.model import STAGE_ANNOTATION, DomainPeer, Policy, PolicyRef
from podwire.policy.nftables import NAMES_LOG, POLICY_LOG, Logging
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.parse import parse_network_policy
from podwire.policy.parse_cluster import parse_cluster_policy
from podwire.policy.verdicts import Verdicts
from podwire.policy.world import LiveWorld, NodeView, PodView, view_namespace, view_node, view_pod
from podwire.telemetry.exposition import Histogram
from podwire.telemetry.progress import Progress

_LOG = logging.getLogger(__name__)
_RETRY_S: Final = 1.0
_REFUSED_RETRY_MAX_S: Final = 60.0
# Cluster DNS: whose answers say what a domain name means.
_DNS_NAMESPACE: Final = "kube-system"
_DNS_LABELS: Final = ("k8s-app", "kube-dns")
KINDS: Final[tuple[Kind[Any], ...]] = (
    kinds.NETWORK_POLICY,
    kinds.CLUSTER_NETWORK_POLICY,
    kinds.ADMIN_NETWORK_POLICY,
    kinds.BASELINE_ADMIN_NETWORK_POLICY,
)


@dataclass
class Standing:
    """What this node has of one policy: `policy` is its newest meaning, `error` says why the
    newest object has none. `revision` is the object's resourceVersion."""

    generation: int
    revision: int
    policy: Policy | None = None
    error: str = ""


@dataclass
class _Pending:
    """Changes since the last commit: policies, and when the first was heard of."""

    policies: set[PolicyRef] = field(default_factory=set)
    since: float = 0.0


class PolicyAgent:
    """`synced` is set while everything known at the start is in force."""

    def __init__(
        self, api: Api, node_name: str, config: PolicyConfig, nodes: Informer[Node]
    ) -> None:
        self._name = node_name
        self.config = config
        self._nodes = nodes
        self._informers: dict[str, Informer[Any]] = {
            # A cluster may lack the definitions of the policy group.
            kind.kind: Informer(api, kind, optional=kind is not kinds.NETWORK_POLICY)
            for kind in KINDS
        }
        self._pods: Informer[PeerPod] = Informer(api, kinds.PEER_POD)
        self._namespaces: Informer[Namespace] = Informer(api, kinds.NAMESPACE)
        self._events = EventRecorder(api, "podwire-agent", node_name)
        self._telling: set[asyncio.Task[None]] = set()
        self._world = LiveWorld()
        self._staged_namespaces: set[str] = set()
        self.state = NodePolicies(
            node_name,
            config.families,
            (config.guarded,) if config.guarded else (),
            Logging(POLICY_LOG),
        )
        self.kernel = PolicyKernel(self.state)
        self.names = NameWatch(NAMES_LOG, self._is_dns, self._names_changed)
        self.cutter = FlowCutter(node_name, config.families, self.verdicts)
        self.notes = FlowNotes(node_name, POLICY_LOG, self._verdicts_for_notes, self.state.passed)
        self._admitted: dict[Key, tuple[str, PodView]] = {}
        self.standing: dict[PolicyRef, Standing] = {}
        self._pending = _Pending()
        self._wake = asyncio.Event()
        self._mend = False
        self._refused_s = 0.0
        self.watchers = Watchers()
        self.known = asyncio.Event()
        self.synced = asyncio.Event()
        self.enforcing = False
        self.progress: Progress[PolicyRef] = Progress()
        self.allow_latency, self.deny_latency = Histogram(), Histogram()
        self.mended = 0

    # --- observe: policies ----------------------------------------------------------------------

    def _policy_changed(self, kind: str, change: Change[Any]) -> None:
        obj = change.new or change.old
        assert obj is not None
        ref = PolicyRef(kind, obj.metadata.namespace, obj.metadata.name)
        self.progress.told(ref, _revision(obj))
        self._pending.policies.add(ref)
        if change.new is None:
            self.standing.pop(ref, None)
            self.state.remove_policy(ref)
        else:
            self._read_policy(ref, change.new)
        self._changed()

    def _read_policy(self, ref: PolicyRef, obj: Object) -> None:
        """One that means nothing as it is written keeps its former meaning, and says so."""
        standing = Standing(obj.metadata.generation, _revision(obj))
        former = self.standing.get(ref)
        self.standing[ref] = standing
        try:
            standing.policy = _parse(ref, obj)
        except PolicyError as error:
            standing.policy, standing.error = former.policy if former else None, str(error)
            self._tell(ref, obj, "InvalidPolicy", str(error))
        self._set_policy(standing)

    def _set_policy(self, standing: Standing) -> None:
        policy = standing.policy
        if policy is None:
            return
        if policy.ref.namespace in self._staged_namespaces:
            policy = replace(policy, staged=True)
        self.state.set_policy(policy)

    def policies(self) -> list[Policy]:
        """As they stand, staged ones included."""
        found = [s.policy for s in self.standing.values() if s.policy is not None]
        staged = self._staged_namespaces
        return [replace(p, staged=True) if p.ref.namespace in staged else p for p in found]

    def is_staged(self, ref: PolicyRef) -> bool:
        """By its own annotation or its namespace's."""
        standing = self.standing.get(ref)
        policy = standing.policy if standing else None
        return policy is not None and (policy.staged or ref.namespace in self._staged_namespaces)

    @property
    def node_count(self) -> int:
        return len(self._nodes.objects)

    def verdicts(self, *, staged: bool = False) -> Verdicts:
        """What the policies say of any connection now."""
        world = self._world.view(self.names.table.names)
        return Verdicts(world, self.policies(), staged=staged, owners=self._world.owners)

    def _verdicts_for_notes(self, staged: bool) -> Verdicts | None:
        if staged and not any(policy.staged for policy in self.policies()):
            return None
        return self.verdicts(staged=staged)

    # --- observe: whom they speak of ------------------------------------------------------------

    def _pod_changed(self, change: Change[PeerPod]) -> None:
        view = None
        if change.new is None:
            self._admitted.pop(change.key, None)
        else:
            view = self._view(change.new)
        if view is None:
            self._world.remove_pod(change.key)
            self.state.remove_pod(change.key)
        else:
            self._world.set_pod(view)
            self.state.set_pod(view)
        self._changed()

    def _view(self, pod: PeerPod) -> PodView | None:
        """A pod of this node has its addresses from its admission: before its status has them."""
        uid, admitted = self._admitted.get(pod.key, ("", None))
        if admitted is not None and uid == pod.metadata.uid:
            return view_pod(pod, map(str, admitted.ips))
        return view_pod(pod)

    def _namespace_changed(self, change: Change[Namespace]) -> None:
        name = change.key.name
        if change.new is None:
            self._world.set_namespace(name, None)
            self.state.remove_namespace(name)
        else:
            labels = view_namespace(change.new)[1]
            self._world.set_namespace(name, labels)
            self.state.set_namespace(name, labels)
        staged = change.new is not None and _stages(change.new)
        if staged != (name in self._staged_namespaces):
            self._staged_namespaces ^= {name}
            for ref, standing in self.standing.items():
                if ref.namespace == name:
                    self._pending.policies.add(ref)
                    self._set_policy(standing)
        self._changed()

    def _node_changed(self, change: Change[Node]) -> None:
        if change.new is None:
            self._world.remove_node(change.key.name)
            self.state.remove_node(change.key.name)
        else:
            view = view_node(change.new)
            self._world.set_node(view)
            self.state.set_node(view)
        self._changed()

    def _is_dns(self, address: bytes) -> bool:
        """A pod of cluster DNS, or this node's own cache."""
        owner = self._world.owners.get(ip_address(address))
        if isinstance(owner, PodView):
            key, value = _DNS_LABELS
            return owner.key.namespace == _DNS_NAMESPACE and owner.labels.get(key) == value
        return isinstance(owner, NodeView) and owner.name == self._name

    def _names_changed(self) -> None:
        self.state.set_names(self.names.table.names)
        self._changed()

    def _want_names(self) -> None:
        """The domain names policies speak of."""
        patterns = {
            peer.name
            for standing in self.standing.values()
            if standing.policy is not None
            for rule in standing.policy.egress
            for peer in rule.peers or ()
            if isinstance(peer, DomainPeer)
        }
        try:
            self.names.want(patterns)
        except KernelError as error:
            _LOG.error("policies: domainNames have no addresses: %s", error)

    def _changed(self) -> None:
        self.notes.changed()
        self._pending.since = self._pending.since or time.monotonic()
        self._wake.set()

    def _foreign(self) -> None:
        found = self.kernel.foreign()
        if found:
            _LOG.warning("policies: changed by others, mending: %.200s", "; ".join(found))
            self._mend = True
            self._wake.set()

    # --- a pod's first packet -------------------------------------------------------------------

    async def admit(self, pod: Pod, ips: Sequence[str]) -> None:
        """Return once what selects the pod is in the kernel. `KernelError`: it may not start."""
        view = view_pod(pod, ips)
        if view is None or view.host_network or self.config.mode == "none":
            return
        self._admitted[pod.key] = pod.metadata.uid, view
        await self.known.wait()
        if not self._wanted:
            return
        await self.synced.wait()
        self._world.set_pod(view)
        self.state.set_pod(view)
        self._changed()
        self._commit()

    # --- run ------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> bool:
        """Whether there is, or has been, a policy."""
        return self.enforcing or any(i.objects for i in self._informers.values())

    async def run(self) -> None:
        """Follow the API until cancelled."""
        if self.config.mode == "none":
            self._clear_leftovers()
            return
        async with asyncio.TaskGroup() as group:
            for informer in self._informers.values():
                group.create_task(informer.run())
            for informer in self._informers.values():
                await informer.synced.wait()
            for kind, informer in self._informers.items():
                informer.on_change(partial(self._policy_changed, kind))
            if not self._wanted:
                self._clear_leftovers()
                self.known.set()
                while not self._wanted:
                    await self._wake.wait()
                    self._wake.clear()
            self.known.set()
            group.create_task(self.cutter.run())
            await self._begin(group)
            self.synced.set()
            self.watchers.moved()
            await self._follow()

    def _clear_leftovers(self) -> None:
        """Policies that went while no agent was there."""
        try:
            self.kernel.remove()
        except KernelError as error:
            _LOG.error("policies: what an earlier agent left stays: %s", error)

    async def _begin(self, group: asyncio.TaskGroup) -> None:
        """The first policy: everybody it may speak of, then all of it in one go."""
        group.create_task(self._pods.run())
        group.create_task(self._namespaces.run())
        for informer in (self._pods, self._namespaces, self._nodes):
            await informer.synced.wait()
        self._namespaces.on_change(self._namespace_changed)
        self._nodes.on_change(self._node_changed)
        self._pods.on_change(self._pod_changed)
        for _uid, view in self._admitted.values():
            self._world.set_pod(view)
            self.state.set_pod(view)
        while True:
            try:
                self.kernel.open()
                break
            except KernelError as error:
                _LOG.error("policies: not in force: %s; trying again", error)
                await asyncio.sleep(_RETRY_S)
        self.enforcing = True
        self._done(self._take())
        if self.kernel.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self.kernel.fileno(), self._foreign)
        try:
            self.notes.open()
        except KernelError as error:
            _LOG.error("policies: no flow log: %s", error)

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                if self._mend:
                    self.kernel.mend()
                    self._mend = False
                    self.mended += 1
                self._commit()
                self._refused_s = 0.0
            except KernelError as error:
                self._refused(error)

    def _refused(self, error: KernelError) -> None:
        """The former state stays in force; all of it is made anew and tried again, ever rarer."""
        self._refused_s = min(max(self._refused_s * 2, _RETRY_S), _REFUSED_RETRY_MAX_S)
        _LOG.warning("policies: not programmed: %s; again in %.0f s", error, self._refused_s)
        self._mend = True
        asyncio.get_running_loop().call_later(self._refused_s, self._wake.set)

    # --- apply ----------------------------------------------------------------------------------

    def _take(self) -> _Pending:
        pending, self._pending = self._pending, _Pending()
        return pending

    def _commit(self) -> None:
        """All that is known goes to the kernel; then what it denies now is cut."""
        pending = self._take()
        try:
            self.kernel.commit()
        except KernelError as error:
            pending.policies |= self._pending.policies
            self._pending = pending
            for ref in pending.policies:
                self.progress.refuse(ref, str(error))
            self.watchers.moved()
            raise
        self._done(pending)

    def _done(self, pending: _Pending) -> None:
        since = pending.since
        if pending.policies:
            self.allow_latency.observe(time.monotonic() - since)
            self._want_names()
        for ref in pending.policies:
            self.progress.done(ref)
        self.watchers.moved()
        if self.config.denied_flows == "keep":
            if pending.policies:
                self._cut_until(since)
        elif since:
            self.cutter.request(partial(self._cut_until, since) if pending.policies else None)

    def _cut_until(self, since: float) -> None:
        """What a change denies has ended."""
        self.deny_latency.observe(time.monotonic() - since)

    def _tell(self, ref: PolicyRef, obj: Object, reason: str, message: str) -> None:
        """Only one node tells: all of them find the same problem."""
        names = sorted(key.name for key in self._nodes.objects)
        if names[:1] != [self._name]:
            return
        kind = next(kind for kind in KINDS if kind.kind == ref.kind)
        task = asyncio.ensure_future(self._events.record(kind, obj, "Warning", reason, message))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def close(self) -> None:
        self.names.close()
        self.notes.close()
        self.kernel.close()


def _parse(ref: PolicyRef, obj: Object) -> Policy:
    if isinstance(obj, NetworkPolicy):
        return parse_network_policy(obj)
    assert isinstance(obj, ClusterPolicy)
    return parse_cluster_policy(obj, ref.kind)


def _stages(namespace: Namespace) -> bool:
    """Whether all NetworkPolicies of the namespace are staged."""
    return namespace.metadata.annotations.get(STAGE_ANNOTATION) == "true"


def _revision(obj: Object) -> int:
    text = obj.metadata.resource_version
    return int(text) if text.isdigit() else 0
