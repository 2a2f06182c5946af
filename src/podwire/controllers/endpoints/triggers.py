"""The time of the change that led to a write: `endpoints.kubernetes.io/last-change-trigger-time`.

Consumers subtract it from their clock to know how long programming took (the SLI "network
programming latency"). It is the earliest time of what changed since the last look: a pod's Ready
transition, or the Service's creation. API times are all written in one form, so that they compare
as text. Source: k8s.io/endpointslice util/trigger_time_tracker.go.
"""

from __future__ import annotations

from collections.abc import Iterable

from podwire.controllers.views import Pod
from podwire.objects.core import Service


class TriggerTimes:
    """What one Service's last pass saw."""

    def __init__(self) -> None:
        self._pods: dict[str, str] = {}
        self._known = False

    def observe(self, service: Service, pods: Iterable[Pod]) -> str:
        """The trigger time of this pass, "" where nothing that has a time changed."""
        seen: dict[str, str] = {}
        earliest = ""
        for pod in pods:
            at = _ready_since(pod)
            if not at:
                continue
            uid = pod.metadata.uid
            seen[uid] = at
            if at > self._pods.get(uid, "") and (not earliest or at < earliest):
                earliest = at
        self._pods = seen
        if self._known:
            return earliest
        self._known = True
        return service.metadata.creation_timestamp or ""


def _ready_since(pod: Pod) -> str:
    for condition in pod.status.conditions:
        if condition.type == "Ready":
            return condition.last_transition_time or ""
    return ""
