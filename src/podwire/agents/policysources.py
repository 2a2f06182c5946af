"""What the API says of policies and of whom they speak, fed to the compiler change by change.

NetworkPolicies, ClusterNetworkPolicies and their ancestors   followed always
Pods of all nodes, Namespaces, Nodes                          followed from the first policy on
  -> NodePolicies, LiveWorld, NameWatch -> `changed`
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from podwire.agents.policynamefile import NameFile
from podwire.agents.policynames import NameWatch
from podwire.client import Api, Change, EventRecorder, Informer
from podwire.errors import PolicyError
from podwire.objects import kinds
from podwire.objects.core import Namespace, Node, Pod
from podwire.objects.meta import Key, Kind, Object
from podwire.objects.policy import ClusterPolicy, NetworkPolicy, PeerPod
from podwire.policy.model import OBSERVE_ANNOTATION, STAGE_ANNOTATION, DomainPeer, Policy, PolicyRef
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.parse import parse_network_policy
from podwire.policy.parse_cluster import parse_cluster_policy
from podwire.policy.verdicts import Verdicts
from podwire.policy.world import (
    LiveWorld,
    NodeView,
    PodView,
    view_namespace,
    view_node,
    view_pod,
)
from podwire.telemetry.progress import Progress

_LOG = logging.getLogger(__name__)
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


class _Admitted(NamedTuple):
    """A pod of this node as it was at a resourceVersion, with the addresses it was given."""

    uid: str
    revision: int
    view: PodView


class PolicySources:
    """`touched` are policies that changed since somebody took them; `changed` is called after
    every change of anything, `commit` where somebody waits for it to be in force, `moved` after
    everything that was heard."""

    def __init__(
        self,
        api: Api,
        node_name: str,
        nodes: Informer[Node],
        state: NodePolicies,
        *,
        changed: Callable[[], None],
        commit: Callable[[], None],
        moved: Callable[[], None],
        names: NameFile | None = None,
    ) -> None:
        self._name = node_name
        self._nodes = nodes
        self._state = state
        self._changed = changed
        self._commit = commit
        self._moved = moved
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
        self._own: dict[Key, str] = {}
        self._admitted: dict[Key, _Admitted] = {}
        self.names = NameWatch(self._is_dns, self._names_changed, names)
        self.standing: dict[PolicyRef, Standing] = {}
        self.progress: Progress[PolicyRef] = Progress()
        self.touched: set[PolicyRef] = set()
        self.heard: dict[str, int] = {"Pod": 0, "Namespace": 0}
        """The newest resourceVersion of each kind of peers."""
        self.heard_policies = dict.fromkeys(self._informers, 0)
        """And of each kind of policies: what is older and not in `standing` was deleted."""
        self.asked = False
        """Whether this Node carries `OBSERVE_ANNOTATION`."""

    # --- run ------------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether there is anything to enforce or to note."""
        return self.asked or any(informer.objects for informer in self._informers.values())

    @property
    def observed(self) -> bool:
        """Whether connections that pass are to be noted: somebody asked, or they are what staged
        policies are held against."""
        return self.asked or any(policy.staged for policy in self.policies())

    @property
    def node_count(self) -> int:
        return len(self._nodes.objects)

    async def follow_policies(self, group: asyncio.TaskGroup) -> None:
        """Return when those that are there are known, and the nodes."""
        for informer in self._informers.values():
            group.create_task(informer.run())
        for informer in self._informers.values():
            await informer.synced.wait()
        for kind, informer in self._informers.items():
            informer.on_change(partial(self._policy_changed, kind))
        await self._nodes.synced.wait()
        self._nodes.on_change(self._node_changed)

    async def follow_peers(self, group: asyncio.TaskGroup) -> None:
        """Return when everybody that policies may speak of is known."""
        group.create_task(self._pods.run())
        group.create_task(self._namespaces.run())
        for informer in (self._pods, self._namespaces):
            await informer.synced.wait()
        self._namespaces.on_change(self._namespace_changed)
        self._pods.on_change(self._pod_changed)
        for key in self._admitted:
            self.place_admitted(key)

    def close(self) -> None:
        self.names.close()

    # --- a pod of this node -----------------------------------------------------------------------

    def admit(self, pod: Pod, view: PodView) -> None:
        """The pod has its addresses from now on, whatever its status says yet. One that was deleted
        while its sandbox was made is told of no more, so it must not come in behind its end."""
        if self._own.get(pod.key) == pod.metadata.uid:
            self._admitted[pod.key] = _Admitted(pod.metadata.uid, _revision(pod), view)

    def place_admitted(self, key: Key) -> None:
        """It is to be judged as what it is before the watch of all pods tells of its addresses; of
        its labels that watch may know more."""
        admitted = self._admitted.get(key)
        if admitted is None:
            return
        view: PodView | None = admitted.view
        now = self._pods.objects.get(key)
        known = now is not None and now.metadata.uid == admitted.uid
        if now is not None and known and _revision(now) >= admitted.revision:
            view = self._view(now)
        if view is not None:
            self._place(view)

    def own_pod_changed(self, change: Change[Pod]) -> None:
        """Of this node's own watch, by which pods are admitted: one that is gone is not any more.

        What the other watch said of its name meanwhile was left aside, see `_pod_changed`.
        """
        if change.new is not None:
            self._own[change.key] = change.new.metadata.uid
            return
        old = change.old
        assert old is not None
        self._own.pop(old.key, None)
        admitted = self._admitted.get(old.key)
        if admitted is None or admitted.uid != old.metadata.uid:
            return
        del self._admitted[old.key]
        now = self._pods.objects.get(old.key)
        if now is None:
            self._remove(old.key)
        elif now.metadata.uid != old.metadata.uid:
            self._pod_changed(Change(None, now))

    def _place(self, view: PodView) -> None:
        if self._world.set_pod(view):
            self._state.set_pod(view)
            self._changed()

    def _remove(self, key: Key) -> None:
        if self._world.remove_pod(key):
            self._state.remove_pod(key)
            self._changed()

    # --- policies -------------------------------------------------------------------------------

    def _policy_changed(self, kind: str, change: Change[Any]) -> None:
        obj = change.new or change.old
        assert obj is not None
        ref = PolicyRef(kind, obj.metadata.namespace, obj.metadata.name)
        self.heard_policies[kind] = max(self.heard_policies[kind], _revision(obj))
        self.progress.told(ref, _revision(obj))
        self.touched.add(ref)
        if change.new is None:
            self.standing.pop(ref, None)
            self._state.remove_policy(ref)
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
        self._state.set_policy(policy)

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

    def verdicts(self, *, staged: bool = False) -> Verdicts:
        """What the policies say of any connection now."""
        world = self._world.view(self.names.table.names)
        return Verdicts(world, self.policies(), staged=staged, owners=self._world.owners)

    def standing_verdicts(self) -> Verdicts:
        """What they say of connections that stand: a domain name's address whose time has passed is
        no reason to end one."""
        world = self._world.view(self.names.table.ever)
        return Verdicts(world, self.policies(), owners=self._world.owners)

    def staged_verdicts(self) -> Verdicts | None:
        """What they would say with the staged ones in force; None where there are none."""
        if any(policy.staged for policy in self.policies()):
            return self.verdicts(staged=True)
        return None

    # --- whom they speak of -----------------------------------------------------------------------

    def _pod_changed(self, change: Change[PeerPod]) -> None:
        """The name of an admitted pod is that pod's, whatever is still told of one before it: the
        two watches are not in step."""
        self._hear("Pod", change)
        pod = change.new or change.old
        assert pod is not None
        admitted = self._admitted.get(pod.key)
        if admitted is not None and admitted.uid != pod.metadata.uid:
            return
        view = None if change.new is None else self._view(change.new)
        if view is not None:
            self._place(view)
        else:
            self._remove(pod.key)

    def _hear(self, kind: str, change: Change[Any]) -> None:
        """What changes nothing counts, too: who waits for it would wait for ever."""
        self.heard[kind] = max(self.heard[kind], _revision(change.new or change.old))
        self._moved()

    def _view(self, pod: PeerPod) -> PodView | None:
        """A pod of this node has its addresses from its admission: before its status has them."""
        admitted = self._admitted.get(pod.key)
        if admitted is not None and admitted.uid == pod.metadata.uid:
            return view_pod(pod, map(str, admitted.view.ips))
        return view_pod(pod)

    def _namespace_changed(self, change: Change[Namespace]) -> None:
        self._hear("Namespace", change)
        name = change.key.name
        if change.new is None:
            changed = self._world.set_namespace(name, None)
            self._state.remove_namespace(name)
        else:
            labels = view_namespace(change.new)[1]
            changed = self._world.set_namespace(name, labels)
            self._state.set_namespace(name, labels)
        staged = change.new is not None and _stages(change.new)
        if staged != (name in self._staged_namespaces):
            self._staged_namespaces ^= {name}
            for ref, standing in self.standing.items():
                if ref.namespace == name:
                    self.touched.add(ref)
                    self._set_policy(standing)
                    changed = True
        if changed:
            self._changed()

    def _node_changed(self, change: Change[Node]) -> None:
        node = change.new
        if node is None:
            changed = self._world.remove_node(change.key.name)
            self._state.remove_node(change.key.name)
        elif changed := self._world.set_node(view_node(node)):
            self._state.set_node(view_node(node))
        if change.key.name == self._name:
            asked = node is not None and node.metadata.annotations.get(OBSERVE_ANNOTATION) == "true"
            changed = changed or asked != self.asked
            self.asked = asked
        if changed:
            self._changed()

    def _is_dns(self, address: bytes) -> bool:
        """A pod of cluster DNS, or this node's own cache."""
        owner = self._world.owners.get(ip_address(address))
        if isinstance(owner, PodView):
            key, value = _DNS_LABELS
            return owner.key.namespace == _DNS_NAMESPACE and owner.labels.get(key) == value
        return isinstance(owner, NodeView) and owner.name == self._name

    def _names_changed(self) -> None:
        self._state.set_names(self.names.table.names)
        self._changed()
        self._commit()

    def restore_names(self) -> None:
        """Those of an agent before this one, to be in force with everything else."""
        self.names.restore(self.domain_names())
        self._state.set_names(self.names.table.names)

    def domain_names(self) -> set[str]:
        """Those policies speak of."""
        return {
            peer.name
            for standing in self.standing.values()
            if standing.policy is not None
            for rule in standing.policy.egress
            for peer in rule.peers or ()
            if isinstance(peer, DomainPeer)
        }

    def _tell(self, ref: PolicyRef, obj: Object, reason: str, message: str) -> None:
        """Only one node tells: all of them find the same problem."""
        names = sorted(key.name for key in self._nodes.objects)
        if names[:1] != [self._name]:
            return
        kind = next(kind for kind in KINDS if kind.kind == ref.kind)
        task = asyncio.ensure_future(self._events.record(kind, obj, "Warning", reason, message))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def _parse(ref: PolicyRef, obj: Object) -> Policy:
    if isinstance(obj, NetworkPolicy):
        return parse_network_policy(obj)
    assert isinstance(obj, ClusterPolicy)
    return parse_cluster_policy(obj, ref.kind)


def _stages(namespace: Namespace) -> bool:
    """Whether all NetworkPolicies of the namespace are staged."""
    return namespace.metadata.annotations.get(STAGE_ANNOTATION) == "true"


def _revision(obj: Object | None) -> int:
    if obj is None:
        return 0
    text = obj.metadata.resource_version
    return int(text) if text.isdigit() else 0
