"""Recommendations for a cluster, from flows that were seen or from hints in manifests. Pure.

    FlowLogDocument + Cluster ─ needs_of_flows ─┬─▶ recommend ─▶ manifests, Report
    Cluster ─ HintReader ───────────────────────┘

The report says what the manifests rest on and whom they leave out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec

from podwire.explain.hintneeds import Cluster, HintReader
from podwire.policy.flowdocument import API_VERSION, FlowLogDocument
from podwire.policy.flowneeds import DEFAULT_FLOWS, FlowOptions, Known, needs_of_flows
from podwire.policy.needs import SYSTEM_NAMESPACES, Workload
from podwire.policy.recommend import (
    DnsServers,
    Effect,
    Options,
    Recommendation,
    Wanted,
    recommend,
)


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """What was recommended and how sure it is. `checked` connections stay possible by the policies'
    own word; `denied` and `portless` records of a flow log asked for nothing."""

    source: str
    policies: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    unselected: Mapping[str, str] = {}
    quiet: tuple[str, ...] = ()
    left_open: tuple[str, ...] = ()
    without_default_deny: Mapping[str, str] = {}
    checked: int = 0
    denied: int = 0
    portless: int = 0
    effect: Effect = Effect()
    window: str = ""
    doubts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    api_version: str = API_VERSION
    kind: str = "PolicyRecommendation"


def spare_system(cluster: Iterable[Workload], chosen: Sequence[str]) -> frozenset[str]:
    """The namespaces policies are made for: those asked for, else all but Kubernetes' own."""
    if chosen:
        return frozenset(chosen)
    return frozenset({workload.ref.namespace for workload in cluster} - SYSTEM_NAMESPACES)


# --- from flows ---------------------------------------------------------------------------------


def recommend_from_flows(
    log: FlowLogDocument,
    cluster: Cluster,
    options: Options,
    flows: FlowOptions = DEFAULT_FLOWS,
) -> tuple[Recommendation, Report]:
    known = Known(
        cluster.static.world,
        cluster.workloads(),
        cluster.complete,
        cluster.static.policies,
        cluster.dns(),
    )
    found = needs_of_flows(log.records, known, flows)
    chosen = spare_system(found.wanted.workloads, sorted(options.namespaces or ()))
    result = recommend(found.wanted, replace(options, namespaces=chosen))
    report = _report("flows", result)
    return result, msgspec.structs.replace(
        report,
        denied=found.denied,
        portless=found.portless,
        window=log.window(),
        doubts=tuple(log.doubts()),
    )


def _report(source: str, result: Recommendation) -> Report:
    return Report(
        source=source,
        policies=tuple(str(policy.ref) for policy in result.policies),
        subjects=tuple(map(str, result.subjects)),
        idle=tuple(map(str, result.idle)),
        unselected={str(ref): why for ref, why in result.unselected.items()},
        quiet=result.quiet,
        left_open=result.left_open,
        without_default_deny=result.open_namespaces,
        checked=result.checked,
        effect=result.effect,
        warnings=result.warnings,
    )


# --- from hints ---------------------------------------------------------------------------------


def recommend_from_hints(
    cluster: Cluster, options: Options, dns: DnsServers | None = None
) -> tuple[Recommendation, Report]:
    """The policies under which all that the manifests hint at works."""
    reader = HintReader(cluster)
    reader.read()
    wanted = Wanted(
        reader.world,
        reader.workloads,
        reader.needs,
        reader.observed,
        dns or cluster.dns(),
        complete=True,
        unsure=reader.unsure(),
        policies=cluster.static.policies,
        warnings=reader.warnings,
    )
    chosen = spare_system(reader.workloads, sorted(options.namespaces or ()))
    result = recommend(wanted, replace(options, namespaces=chosen))
    return result, _report("hints", result)


# --- words --------------------------------------------------------------------------------------


def summary(report: Report) -> Iterator[str]:
    """What a person is to know before applying it."""
    yield f"{len(report.policies)} policies for {len(report.subjects)} workloads"
    effect = report.effect
    if effect.pairs:
        share = 100 * effect.closed / effect.pairs
        yield (
            f"pod x pod: {effect.closed} of {effect.pairs} pairs become denied ({share:.0f} %), "
            f"{effect.narrowed} of {effect.open_after} open ones are open at fewer ports"
        )
    kind = "seen" if report.source == "flows" else "hinted"
    yield f"checked: all {report.checked} {kind} connections stay allowed"
    if report.denied:
        yield f"{report.denied} kinds of connections were denied when they were seen: left out"
    if report.window:
        yield f"seen: {report.window}"
    for doubt in report.doubts:
        yield f"doubt: {doubt}"
    for ref in report.idle:
        yield f"idle, left alone: {ref} (--include-idle isolates it)"
    for name, why in report.unselected.items():
        yield f"not selected: {name}: {why}"
    for namespace, why in report.without_default_deny.items():
        yield f"no default deny in {namespace}: {why}"
    for text in report.quiet:
        yield f"closed, for nothing was {kind}: {text}"
    for text in report.left_open:
        yield f"left open, for nothing was {kind}: {text} (--close-quiet closes it)"
