"""What every node says about policies, put together; and waiting until all say the same.

    policies (list)                          -> the revision each should have
    NodePolicyReport of every Ready node     -> PolicyRow, rows

`compile_rows` is pure; `read_policy_rows` and `wait_policies` ask the cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from podwire.client import Api
from podwire.errors import NotFoundError
from podwire.explain.nodes import ask_nodes, ready_nodes, wait_nodes
from podwire.explain.programmed import revision_of
from podwire.objects import kinds
from podwire.objects.meta import Kind, Object, View
from podwire.policy.report import NodePolicyReport, PolicyReport

KINDS: Final[tuple[Kind[Any], ...]] = (
    kinds.NETWORK_POLICY,
    kinds.CLUSTER_NETWORK_POLICY,
    kinds.ADMIN_NETWORK_POLICY,
    kinds.BASELINE_ADMIN_NETWORK_POLICY,
)


class PolicyOnNode(View):
    """One node's part: `problem` says why it has not the newest."""

    node: str
    revision: int = 0
    current: bool = False
    problem: str = ""
    report: PolicyReport | None = None


class PolicyRow(View):
    """One policy as `podwire status policies -o json` prints it."""

    kind: str
    namespace: str
    name: str
    generation: int
    revision: int
    staged: bool = False
    subjects: int = 0
    accepted: int = 0
    denied: int = 0
    nodes: tuple[PolicyOnNode, ...] = ()

    @property
    def in_force(self) -> int:
        return sum(node.current for node in self.nodes)

    @property
    def complete(self) -> bool:
        return self.in_force == len(self.nodes)

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(f"node {node.node}: {node.problem}" for node in self.nodes if node.problem)


def compile_rows(
    policies: Iterable[tuple[Kind[Any], Object]], reports: Mapping[str, NodePolicyReport | str]
) -> list[PolicyRow]:
    """One row per policy, sorted; a node that could not be asked has words instead of a report."""
    known = {
        node: {p.key: p for p in report.policies}
        if isinstance(report, NodePolicyReport)
        else report
        for node, report in sorted(reports.items())
    }
    rows = [_row(kind.kind, obj, known) for kind, obj in policies]
    return sorted(rows, key=lambda row: (row.namespace, row.kind, row.name))


def _row(
    kind: str, obj: Object, known: Mapping[str, dict[tuple[str, str, str], PolicyReport] | str]
) -> PolicyRow:
    meta = obj.metadata
    wanted = revision_of(obj)
    nodes = []
    for node, found in known.items():
        if isinstance(found, str):
            nodes.append(PolicyOnNode(node=node, problem=found))
            continue
        report = found.get((kind, meta.namespace, meta.name))
        if report is None:
            nodes.append(PolicyOnNode(node=node, problem="not in force"))
            continue
        current = report.revision >= wanted and not report.error
        nodes.append(
            PolicyOnNode(
                node=node,
                revision=report.revision,
                current=current,
                problem=report.error,
                report=report,
            )
        )
    reports = [node.report for node in nodes if node.report is not None]
    return PolicyRow(
        kind=kind,
        namespace=meta.namespace,
        name=meta.name,
        generation=meta.generation,
        revision=wanted,
        staged=any(report.staged for report in reports),
        subjects=sum(report.subjects for report in reports),
        accepted=sum(report.decided("Accept") for report in reports),
        denied=sum(report.denied + report.decided("Deny") for report in reports),
        nodes=tuple(nodes),
    )


# --- asking the cluster -------------------------------------------------------------------------


async def list_policies(api: Api, namespace: str = "") -> list[tuple[Kind[Any], Object]]:
    """Of a namespace with those of the cluster, or all."""
    lists = await asyncio.gather(*(_list(api, kind, namespace) for kind in KINDS))
    return [(kind, obj) for kind, (found, _) in zip(KINDS, lists, strict=True) for obj in found]


async def _list(api: Api, kind: Kind[Any], namespace: str = "") -> tuple[list[Object], int]:
    """With the version they were read at; a kind the cluster does not serve has none."""
    try:
        found, version = await api.list(kind, namespace if kind.namespaced else "")
    except NotFoundError:
        return [], 0
    return list(found), int(version) if version.isdigit() else 0


async def read_policy_rows(api: Api, namespace: str = "", name: str = "") -> list[PolicyRow]:
    found = await list_policies(api, namespace)
    if name:
        found = [(kind, obj) for kind, obj in found if obj.metadata.name == name]
        if not found:
            raise NotFoundError(f'policies "{name}" not found')
    # Agents are asked after the lists, so what they answer is not older.
    reports = await ask_nodes(api, await ready_nodes(api), "policies", NodePolicyReport)
    return compile_rows(found, reports)


async def wait_policies(
    api: Api,
    names: Collection[str] = (),
    timeout_s: float = 30.0,
    *,
    nodes: Collection[str] = (),
) -> dict[str, str]:
    """Return when every Ready node (or all of `nodes`) enforces what there is now.

    `names` are `namespace/name`, or `name` of those of the cluster; without it all are meant, those
    that were deleted too, and labels of pods and namespaces as they are now.
    Returns what is missing after `timeout_s`, by `NODE KIND name`; nothing when all is done.
    """
    lists = await asyncio.gather(*(_list(api, kind) for kind in KINDS))
    found = [(kind, obj) for kind, (some, _) in zip(KINDS, lists, strict=True) for obj in some]
    chosen = [(k, o) for k, o in found if not names or str(o.key) in names]
    if absent := set(names) - {str(obj.key) for _, obj in chosen}:
        raise NotFoundError(f'policies "{min(absent)}" not found')
    revisions = {f"{kind.kind} {obj.key}": revision_of(obj) for kind, obj in chosen}
    if not names:
        revisions |= {kind.kind: read for kind, (_, read) in zip(KINDS, lists, strict=True)}
        for peers in (kinds.PEER_POD, kinds.NAMESPACE):
            found_peers, _ = await _list(api, peers)
            revisions[peers.kind] = max(map(revision_of, found_peers), default=0)
    return await wait_nodes(
        api, list(nodes) or await ready_nodes(api), "policies", revisions, timeout_s
    )
