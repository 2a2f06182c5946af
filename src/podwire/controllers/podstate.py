"""Pure questions about one pod: is it active, available, and which of several goes first."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from podwire.controllers.views import Pod
from podwire.objects.core import Condition
from podwire.objects.meta import parse_time

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASE_ORDER = {"Pending": 0, "Unknown": 1, "Running": 2}


def is_active(pod: Pod) -> bool:
    """Neither finished nor on its way out."""
    return pod.metadata.deletion_timestamp is None and not pod.finished


def condition(conditions: Iterable[Condition], kind: str) -> Condition | None:
    return next((c for c in conditions if c.type == kind), None)


def since_s(text: str | None, now: dt.datetime) -> float:
    """Seconds since an API time; 0 for none."""
    return (now - parse_time(text)).total_seconds() if text else 0.0


def available_in_s(pod: Pod, min_ready_s: int, now: dt.datetime) -> float | None:
    """0 when available, seconds until it will be when Ready for too short, None when not Ready."""
    for c in pod.status.conditions:
        if c.type == "Ready" and c.status == "True":
            if min_ready_s == 0:
                return 0.0
            if c.last_transition_time is None:
                return float(min_ready_s)
            return max(0.0, min_ready_s - since_s(c.last_transition_time, now))
    return None


def rank_for_deletion(
    pods: Sequence[Pod], related: Iterable[Pod], now: dt.datetime
) -> Sequence[Pod]:
    """`pods` with the first to go first. `related` are the pods whose doubling-up on one node
    counts (all of the Deployment's). Source: ActivePodsWithRanks in pkg/controller."""
    on_node = Counter(pod.spec.node_name for pod in related if is_active(pod))

    def rank(pod: Pod) -> tuple[float, ...]:
        ready = condition(pod.status.conditions, "Ready")
        is_ready = ready is not None and ready.status == "True"
        ready_s = since_s(ready.last_transition_time, now) if ready and is_ready else 0.0
        restarts = max((c.restart_count for c in pod.status.container_statuses), default=0)
        return (
            pod.spec.node_name != "",
            _PHASE_ORDER.get(pod.status.phase, 3),
            is_ready,
            _cost(pod),
            -on_node[pod.spec.node_name],
            _magnitude(ready_s) if is_ready else 0,
            -restarts,
            _magnitude(since_s(pod.metadata.creation_timestamp, now)),
        )

    return sorted(pods, key=rank)


def _magnitude(seconds: float) -> int:
    """Ages compare by powers of two (LogarithmicScaleDown): younger ones go first."""
    return int(math.log2(seconds)) if seconds >= 1 else -1


def _cost(pod: Pod) -> int:
    try:
        return int(pod.metadata.annotations.get(DELETION_COST, "0"))
    except ValueError:
        return 0
