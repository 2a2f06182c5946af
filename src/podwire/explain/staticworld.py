"""A cluster read from manifests: pods, namespaces, Services, entries and policies. Pure.

    documents -> StaticWorld: what `reach --static`, `why -f` and `policy ...` are computed from

Nothing of it needs Linux, root or a running lab. What cannot mean anything is refused with file,
line, object and field; what says nothing about connections is skipped, and `warnings` say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from podwire.errors import PolicyError, UsageError
from podwire.explain import entries as entry_rules
from podwire.explain.entries import Entry
from podwire.explain.policyfiles import (
    CLUSTER_POLICIES,
    NETWORK_POLICY,
    policy_doubts,
    read_policy,
)
from podwire.explain.reading import (
    check_port,
    check_protocol,
    convert,
    name_of,
    without_nulls,
)
from podwire.explain.workloads import TEMPLATES, Gathered, Owner, Talker
from podwire.objects.core import Namespace, Node, Service
from podwire.objects.documents import Document, refuse_duplicates, repeated_keys
from podwire.objects.meta import Key
from podwire.policy.evaluate import PolicySet
from podwire.policy.model import Policy, PolicyRef, Rule
from podwire.policy.staging import is_staged, stage_namespaces
from podwire.policy.world import NodeView, World, make_world, view_node

_POLICY_GROUP: Final = "policy.networking.k8s.io"
_GROUPS: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset({"Pod", "ReplicationController", "Namespace", "Node", "Service"}),
    "apps": frozenset({"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"}),
    "extensions": frozenset({"Deployment", "DaemonSet", "ReplicaSet", "Ingress", "NetworkPolicy"}),
    "batch": frozenset({"Job", "CronJob"}),
    "networking.k8s.io": frozenset({"NetworkPolicy", "Ingress"}),
    "route.openshift.io": frozenset({"Route"}),
    "gateway.networking.k8s.io": entry_rules.ROUTES,
    _POLICY_GROUP: CLUSTER_POLICIES,
}
_POLICIES: Final = CLUSTER_POLICIES | {NETWORK_POLICY}
_SHOWN: Final = 3


@dataclass(frozen=True)
class Origins:
    """Where each policy was read; empty for those of a live API."""

    documents: Mapping[PolicyRef, Document] = field(default_factory=dict)

    def of(self, ref: PolicyRef, path: str = "") -> str:
        """`file:line` of a field of a policy, "" where it is not from a file."""
        document = self.documents.get(ref)
        return document.line_of(path) if document is not None else ""

    def find(self, said: str) -> str:
        """The same for what a flow log names: `KIND name`, or that and a rule's path."""
        for ref, document in self.documents.items():
            name, _, rule = said.partition(str(ref))
            if not name and rule[:1] in ("", " "):
                return document.line_of(rule.strip().partition(" ")[0])
        return ""

    def tell(self, rule: Rule) -> str:
        """The rule in words, with its place where there is one."""
        place = self.of(rule.policy, rule.path)
        return f"{rule} ({place})" if place else str(rule)


NOWHERE: Final = Origins()


@dataclass(frozen=True)
class StaticWorld:
    world: World
    talkers: tuple[Talker, ...] = ()
    policies: tuple[Policy, ...] = ()
    services: Mapping[Key, Service] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    origins: Origins = NOWHERE
    warnings: tuple[str, ...] = ()

    @property
    def policy_set(self) -> PolicySet:
        return PolicySet(self.policies)

    def workloads(self) -> dict[Owner, list[Talker]]:
        """Talkers by owner, sorted by what they are called."""
        found: dict[Owner, list[Talker]] = {}
        for talker in self.talkers:
            found.setdefault(talker.owner, []).append(talker)
        return {owner: found[owner] for owner in sorted(found, key=str)}


def read_world(
    documents: Sequence[Document],
    *,
    namespace: str = "default",
    host_network_as_pods: bool = False,
    warnings: Iterable[str] = (),
) -> StaticWorld:
    """`namespace` is where objects are that name none; `warnings` are earlier ones, kept.

    `host_network_as_pods`: policies meet hostNetwork pods by their labels, as they do with plugins
    that can tell these pods' traffic from their node's; else they are their node. Kubernetes
    permits both. Raises `UsageError`.
    """
    reader = _Reader(namespace, list(warnings))
    single = list(_without_copies(documents, namespace, reader.warnings))
    refuse_duplicates((d for d in single if _is_read(d)), namespace)
    for document in single:
        reader.read(document)
    return reader.world(host_network_as_pods)


def _is_read(document: Document) -> bool:
    return document.kind in _GROUPS.get(document.group, ())


def _without_copies(
    documents: Iterable[Document], namespace: str, warnings: list[str]
) -> Iterator[Document]:
    """Folders often repeat a Namespace, and two dumps a Pod: where they say the same, nothing is
    left to chance. A policy that is there twice is a slip all the same, most likely of its name."""
    seen: dict[tuple[str, str], list[Document]] = {}
    for document in documents:
        if not _is_read(document) or document.kind in _POLICIES or not document.name:
            yield document
            continue
        alike = seen.setdefault((document.kind, document.name), [])
        own = _essence(document, namespace)
        first = next((other for other in alike if _essence(other, namespace) == own), None)
        if first is not None:
            text = f"says the same as in {first.origin}; it counts once"
            warnings.append(f"{document.origin}: {name_of(document)}: {text}")
            continue
        alike.append(document)
        yield document


_TOLD: Final = frozenset({"labels", "ownerReferences"})
_STATUS: Final = frozenset({"phase", "podIP", "podIPs", "addresses"})


def _essence(document: Document, namespace: str) -> tuple[object, ...]:
    """What of an object connections depend on; the rest changes from one dump to the next."""
    obj = without_nulls(document.obj)
    metadata = obj.get("metadata") or {}
    annotations, spec, status = metadata.get("annotations"), obj.get("spec"), obj.get("status")
    if document.kind == "Namespace":
        spec = status = None
    if not isinstance(status, dict):
        status = {}
    return (
        document.group,
        document.namespace or namespace,
        {key: metadata[key] for key in _TOLD & metadata.keys()},
        is_staged(annotations) if isinstance(annotations, dict) else annotations,
        spec,
        {key: status[key] for key in _STATUS & status.keys()},
    )


@dataclass
class _Reader:
    namespace: str
    warnings: list[str]
    namespaces: dict[str, Mapping[str, str]] = field(default_factory=dict)
    nodes: list[NodeView] = field(default_factory=list)
    services: dict[Key, Service] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    policies: dict[PolicyRef, Policy] = field(default_factory=dict)
    origins: dict[PolicyRef, Document] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    staged: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.workloads = Gathered(self.namespace)

    def read(self, document: Document) -> None:
        kind = document.kind
        if _is_read(document):
            self._tell_repeated(document)
        if not _is_read(document):
            self.skipped.setdefault(kind, []).append(f"{document.origin}: {name_of(document)}")
        elif kind in TEMPLATES or kind == "Pod":
            self.workloads.add(document)
        elif kind in entry_rules.KINDS:
            self.entries += entry_rules.read_entries(document, self.namespace, self.warnings)
        else:
            _READERS.get(kind, _Reader.policy)(self, document)

    def _tell_repeated(self, document: Document) -> None:
        file = document.origin.rpartition(":")[0]
        for path, line in repeated_keys(document.node):
            text = f'"{path}" is there more than once; only the last one counts'
            self.warnings.append(f"{file}:{line}: {name_of(document)}: {text}")

    def namespace_(self, document: Document) -> None:
        found = convert(document, document.obj, Namespace)
        self.namespaces[found.metadata.name] = found.metadata.labels
        if is_staged(found.metadata.annotations):
            self.staged.add(found.metadata.name)

    def node(self, document: Document) -> None:
        self.nodes.append(view_node(convert(document, document.obj, Node)))

    def service(self, document: Document) -> None:
        found = convert(document, document.obj, Service)
        for index, port in enumerate(found.spec.ports):
            target = port.target_port if isinstance(port.target_port, int) else None
            check_port(document, f"spec.ports[{index}].port", port.port)
            check_port(document, f"spec.ports[{index}].targetPort", target or port.port)
            check_protocol(document, f"spec.ports[{index}].protocol", port.protocol)
        place = found.metadata.namespace or self.namespace
        metadata = msgspec.structs.replace(found.metadata, namespace=place)
        self.services[Key(place, document.name)] = msgspec.structs.replace(found, metadata=metadata)

    # --- policies ---

    def policy(self, document: Document) -> None:
        policy = read_policy(document, self.namespace)
        if policy.ref in self.policies:
            text = f"is already in {self.origins[policy.ref].origin}; keep one of them"
            raise UsageError(f"{document.origin}: {policy.ref}: {text}")
        self.warnings += policy_doubts(document, policy)
        self.policies[policy.ref] = policy
        self.origins[policy.ref] = document
        if policy.ref.kind == "AdminNetworkPolicy":
            self._refuse_tie(document, policy)

    def _refuse_tie(self, document: Document, policy: Policy) -> None:
        """v1alpha1 leaves the order of equal priorities to chance; later versions are lint's."""
        for ref, other in self.policies.items():
            same_kind = ref.kind == policy.ref.kind and ref != policy.ref
            if same_kind and other.priority == policy.priority:
                text = f"{policy.priority}: {ref} has it too, so neither of them comes first"
                raise PolicyError(
                    f"{document.line_of('spec.priority')}: {policy.ref}", "spec.priority", text
                )

    # --- together ---

    def world(self, host_network_as_pods: bool) -> StaticWorld:
        talkers = self.workloads.talkers()
        hosts = [talker for talker in talkers if talker.view.host_network]
        if hosts:
            reading = "by their labels" if host_network_as_pods else "as their node's"
            self.warnings.append(
                f"{hosts[0].origin}: {hosts[0]}: {len(hosts)} of the pods use the host's network; "
                f"policies are read to treat their traffic {reading} (see --host-network)"
            )
        if host_network_as_pods:
            talkers = [
                replace(talker, view=replace(talker.view, host_network=False)) for talker in talkers
            ]
        self.warnings += entry_rules.lead_nowhere(self.entries, self.services, talkers)
        return StaticWorld(
            world=make_world([talker.view for talker in talkers], self.namespaces, self.nodes),
            talkers=tuple(talkers),
            policies=stage_namespaces(self.policies.values(), self.staged),
            services=self.services,
            entries=tuple(self.entries),
            origins=Origins(self.origins),
            warnings=tuple(self.warnings) + tuple(self._skips()),
        )

    def _skips(self) -> Iterable[str]:
        for kind, places in self.skipped.items():
            for place in places[:_SHOWN]:
                yield f"{place}: skipped, no connections are read from this kind"
            if len(places) > _SHOWN:
                yield f"{len(places) - _SHOWN} more objects of kind {kind} are skipped"


_READERS: Final[Mapping[str, Callable[[_Reader, Document], None]]] = {
    "Namespace": _Reader.namespace_,
    "Node": _Reader.node,
    "Service": _Reader.service,
}
