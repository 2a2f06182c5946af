"""The policy part of an agent's `/metrics`, in Prometheus' text form. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from podwire.policy.classes import Outcome
from podwire.telemetry.exposition import Histogram, Page


@dataclass(frozen=True)
class PolicyNumbers:
    """`counts` are connections by what decided them, `dropped` packets by why no policy did."""

    counts: Mapping[Outcome, int]
    dropped: Mapping[str, int]
    cut: int
    lost: int
    forgotten: int
    disagreed: int
    mended: int
    refused: int
    revision: int
    allow: Histogram
    deny: Histogram


def render_metrics(numbers: PolicyNumbers) -> str:
    page = Page()
    connections: Counter[tuple[str, str, str, str]] = Counter()
    for outcome, count in numbers.counts.items():
        verdict = "allowed" if outcome.allowed else "denied"
        who = str(outcome.policy or "")
        connections[outcome.direction, verdict, outcome.reason, who] += count
    page.add(
        "podwire_policy_connections_total",
        "counter",
        "Connections of this node's pods, by what decided them.",
        [
            (
                {"direction": direction, "verdict": verdict, "reason": reason, "policy": policy},
                count,
            )
            for (direction, verdict, reason, policy), count in sorted(connections.items())
        ],
    )
    page.add(
        "podwire_policy_dropped_packets_total",
        "counter",
        "Packets that were dropped though no policy says so.",
        [({"reason": reason}, count) for reason, count in sorted(numbers.dropped.items())],
    )
    for name, text, value in (
        ("cut_connections_total", "Connections a change denied and ended.", numbers.cut),
        ("flow_log_lost_total", "Packets the flow log never saw.", numbers.lost),
        ("flow_log_forgotten_total", "Records the flow log dropped.", numbers.forgotten),
        ("disagreements_total", "Kernel verdicts the evaluator contradicts.", numbers.disagreed),
        ("mended_total", "Times somebody else's change was repaired.", numbers.mended),
    ):
        page.add(f"podwire_policy_{name}", "counter", text, [({}, value)])
    for name, text, value in (
        ("refused", "Policies whose newest state the kernel refused.", numbers.refused),
        ("revision", "Changes up to this resourceVersion are in the kernel.", numbers.revision),
    ):
        page.add(f"podwire_policy_{name}", "gauge", text, [({}, value)])
    page.add_histogram(
        "podwire_policy_allow_seconds",
        "From a policy's watch event until the kernel allows what it allows.",
        numbers.allow,
    )
    page.add_histogram(
        "podwire_policy_deny_seconds",
        "From a policy's watch event until the last connection it denies is cut.",
        numbers.deny,
    )
    return page.render()
