"""Trying policies on what really happens: nothing is blocked, a report says what would be. Pure.

    annotation policy.podwire.dev/stage: "true" on a policy, or on the Namespace of NetworkPolicies
      -> Policy.staged -> each flow judged twice (flowlog) -> FlowLogDocument -> StagedReport

Staging and promoting is one annotation, so the manifest that was tried is the one that is enforced.
A report repeats what its flow log did not see: the window, losses, nodes that did not answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

import msgspec

from podwire.objects.meta import JsonObject
from podwire.policy.flowdocument import API_VERSION, FlowLogDocument, clock
from podwire.policy.flowlog import FlowRecord
from podwire.policy.model import STAGE_ANNOTATION, Policy, Tier

Change: TypeAlias = Literal["newly denied", "newly allowed"]
CHANGES: tuple[Change, ...] = ("newly denied", "newly allowed")


# --- which policies -----------------------------------------------------------------------------


def is_staged(annotations: Mapping[str, str]) -> bool:
    return annotations.get(STAGE_ANNOTATION) == "true"


def stage_namespaces(policies: Iterable[Policy], staged: Collection[str]) -> tuple[Policy, ...]:
    """The policies, where every NetworkPolicy of a `staged` namespace is staged."""
    return tuple(
        replace(policy, staged=True)
        if policy.tier is Tier.NETWORK_POLICY and policy.ref.namespace in staged
        else policy
        for policy in policies
    )


def with_stage(obj: JsonObject) -> JsonObject:
    """The manifest with the annotation."""
    metadata = dict(obj.get("metadata") or {})
    metadata["annotations"] = {**(metadata.get("annotations") or {}), STAGE_ANNOTATION: "true"}
    return {**obj, "metadata": metadata}


PROMOTION: JsonObject = {"metadata": {"annotations": {STAGE_ANNOTATION: None}}}
"""The merge patch that puts a staged object in force."""


# --- what they would do -------------------------------------------------------------------------


class StagedFlow(msgspec.Struct, frozen=True, rename="camel"):
    """Connections whose verdict would change; `by` are the rules or policies that make it."""

    change: Change
    source: str
    destination: str
    protocol: str
    port: int
    count: int
    first_seen: float
    last_seen: float
    by: tuple[str, ...] = ()


class StagedReport(msgspec.Struct, frozen=True, rename="camel"):
    """`flows` change, `unchanged` kinds of connections do not, of `unjudged` nobody knows: they
    were last seen before anything was staged. The rest is the flow log's own word of itself."""

    flows: tuple[StagedFlow, ...] = ()
    unchanged: int = 0
    unjudged: int = 0
    window: str = ""
    since: float | None = None
    until: float | None = None
    nodes: tuple[str, ...] = ()
    silent: Mapping[str, str] = {}
    lost: int | None = None
    forgotten: int | None = None
    doubts: tuple[str, ...] = ()
    api_version: str = API_VERSION
    kind: str = "StagedReport"

    def of(self, change: Change) -> list[StagedFlow]:
        return [flow for flow in self.flows if flow.change == change]


def report_staged(document: FlowLogDocument) -> StagedReport:
    """Denials first, each the most frequent first."""
    judged = [record for record in document.records if record.staged]
    flows = [_flow(record) for record in judged if record.staged != record.verdict]
    flows.sort(key=lambda f: (CHANGES.index(f.change), -f.count, f.source, f.destination, f.port))
    return StagedReport(
        flows=tuple(flows),
        unchanged=len(judged) - len(flows),
        unjudged=len(document.records) - len(judged),
        window=document.window(),
        since=document.first_seen,
        until=document.last_seen,
        nodes=document.nodes,
        silent=document.silent,
        lost=document.lost,
        forgotten=document.forgotten,
        doubts=tuple(document.doubts()),
    )


def _flow(record: FlowRecord) -> StagedFlow:
    return StagedFlow(
        "newly denied" if record.staged == "denied" else "newly allowed",
        str(record.source),
        str(record.destination),
        record.protocol,
        record.port,
        record.count,
        record.first_seen,
        record.last_seen,
        record.staged_by,
    )


# --- words --------------------------------------------------------------------------------------

COLUMNS = ("Change", "Source", "Destination", "Port", "Count", "First-Seen", "Last-Seen", "By")


def rows(report: StagedReport) -> list[list[str]]:
    """A table's rows under `COLUMNS`."""
    return [
        [
            flow.change,
            flow.source,
            flow.destination,
            f"{flow.protocol} {flow.port}",
            str(flow.count),
            clock(flow.first_seen),
            clock(flow.last_seen),
            "; ".join(flow.by),
        ]
        for flow in report.flows
    ]


def summary(report: StagedReport) -> Iterator[str]:
    """What the table is to be read with."""
    denied, allowed = (len(report.of(change)) for change in CHANGES)
    judged = len(report.flows) + report.unchanged
    yield (
        f"{denied} of {judged} kinds of connections would newly be denied, {allowed} newly allowed"
    )
    if report.unjudged:
        yield (
            f"{report.unjudged} more were last seen before anything was staged: nobody knows of "
            "them"
        )
    told = f" by {len(report.nodes)} nodes" if report.nodes else ""
    yield f"watched{told}: {report.window}"
    yield from report.doubts
    if not report.doubts:
        yield "nothing was lost, every node answered"
