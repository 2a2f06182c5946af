"""Conditions of what controllers write: a condition's times move only when its state does.

conditions as read -> Board.put, Board.drop -> conditions to write (equal when nothing moved)
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Literal

from podwire.objects.apps import TimedCondition
from podwire.objects.meta import JsonObject, format_time

Looked = Literal["last_update_time", "last_probe_time"]


@dataclass
class Board:
    """`looked` is the field that says when a condition was last looked at: Deployments have
    lastUpdateTime, Jobs lastProbeTime."""

    conditions: list[TimedCondition]
    now: dt.datetime
    looked: Looked = field(default="last_update_time", kw_only=True)

    def get(self, kind: str) -> TimedCondition | None:
        return next((c for c in self.conditions if c.type == kind), None)

    def drop(self, kind: str) -> None:
        self.conditions = [c for c in self.conditions if c.type != kind]

    def put(
        self, kind: str, status: str, reason: str, message: str, *, touch: bool = False
    ) -> bool:
        """Whether it was written: a condition of the same status and reason stays as it is, unless
        `touch`; of a ReplicaFailure the message counts too."""
        old = self.get(kind)
        same = old is not None and (old.status, old.reason) == (status, reason)
        if old and same and not touch and (kind != "ReplicaFailure" or old.message == message):
            return False
        now = format_time(self.now)
        fresh = TimedCondition(
            type=kind,
            status=status,
            reason=reason,
            message=message,
            last_transition_time=(
                old.last_transition_time if old and old.status == status else now
            ),
            **{self.looked: now},
        )
        self.conditions = [c for c in self.conditions if c.type != kind] + [fresh]
        return True


def disruption_target(reason: str, message: str, now: dt.datetime) -> JsonObject:
    """The pod condition that says a pod was ended from outside, not by itself (KEP-3329)."""
    return {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": format_time(now),
    }
