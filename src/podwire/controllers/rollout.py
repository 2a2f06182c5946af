"""The arithmetic of a Deployment's rollout: who grows, who shrinks, what is said about it.

Pure. Source: pkg/controller/deployment (rolling.go, sync.go, progress.go) and util.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from podwire.controllers.conditions import Board
from podwire.controllers.podstate import condition, since_s
from podwire.objects.apps import Deployment, ReplicaSet, RollingUpdate, TimedCondition
from podwire.objects.core import Condition

REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
HASH_LABEL = "pod-template-hash"
_NOT_COPIED = (LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED, MAXIMUM)
_NO_DEADLINE = 2**31 - 1
_SAFE = "bcdfghjklmnpqrstvwxz2456789"


def template_hash(template: Mapping[str, Any], collisions: int = 0) -> str:
    """Ten characters that name a pod template: the same in every process and version."""
    encoded = msgspec.json.encode(template, order="deterministic")
    digest = hashlib.sha256(encoded + (b"%d" % collisions if collisions else b"")).digest()
    return "".join(_SAFE[byte % len(_SAFE)] for byte in digest[:10])


def same_template(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Equal but for the hash label."""
    return _unhashed(one) == _unhashed(other)


def _unhashed(template: Mapping[str, Any]) -> dict[str, Any]:
    meta = template.get("metadata") or {}
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k != HASH_LABEL}
    rest = {k: v for k, v in meta.items() if k not in ("labels", "creationTimestamp") and v}
    return {**template, "metadata": {**rest, "labels": labels}}


def scaled(value: int | str | None, total: int, *, up: bool, default: int | str) -> int:
    """An IntOrString of `total`; percentages round up or down."""
    value = default if value is None else value
    if isinstance(value, int):
        return value
    if not value.endswith("%"):
        return int(value)
    share = int(value[:-1]) * total / 100
    return math.ceil(share) if up else math.floor(share)


def fenceposts(d: Deployment) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods; both zero would never move, so unavailable is 1 then."""
    if d.spec.strategy.type != "RollingUpdate":
        return 0, 0
    rolling = d.spec.strategy.rolling_update
    rolling = rolling or RollingUpdate()
    surge = scaled(rolling.max_surge, d.spec.replicas, up=True, default="25%")
    unavailable = scaled(rolling.max_unavailable, d.spec.replicas, up=False, default="25%")
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, d.spec.replicas) if d.spec.replicas else unavailable


def by_age(sets: Sequence[ReplicaSet]) -> list[ReplicaSet]:
    return sorted(sets, key=lambda s: (s.metadata.creation_timestamp or "", s.metadata.name))


def revision_of(obj: ReplicaSet | Deployment) -> int:
    try:
        return int(obj.metadata.annotations.get(REVISION, "0"))
    except ValueError:
        return 0


def find_new(d: Deployment, sets: Sequence[ReplicaSet]) -> ReplicaSet | None:
    """The oldest set of the current template."""
    return next((s for s in by_age(sets) if same_template(s.spec.template, d.spec.template)), None)


def total(sets: Sequence[ReplicaSet]) -> int:
    return sum(s.spec.replicas for s in sets)


def available(sets: Sequence[ReplicaSet]) -> int:
    return sum(s.status.available_replicas for s in sets)


def new_replicas(d: Deployment, sets: Sequence[ReplicaSet], new: int) -> int:
    """How many the new set may have now (NewRSNewReplicas); `new` is what it has."""
    if d.spec.strategy.type == "Recreate":
        return d.spec.replicas
    room = d.spec.replicas + fenceposts(d)[0] - total(sets)
    return new if room <= 0 else new + min(room, d.spec.replicas - new)


Scales = dict[str, int]
"""New `spec.replicas` by ReplicaSet name."""


def plan_rolling(d: Deployment, new: ReplicaSet, old: Sequence[ReplicaSet]) -> Scales:
    """One step of a rolling update: first up, else down; empty when nothing may move now."""
    every = [*old, new]
    want = d.spec.replicas
    if new.spec.replicas > want:
        return {new.metadata.name: want}
    grown = new_replicas(d, every, new.spec.replicas)
    if new.spec.replicas < want and grown != new.spec.replicas:
        return {new.metadata.name: grown}
    return _plan_shrink(d, new, old)


def _plan_shrink(d: Deployment, new: ReplicaSet, old: Sequence[ReplicaSet]) -> Scales:
    if total(old) == 0:
        return {}
    least = d.spec.replicas - fenceposts(d)[1]
    new_unavailable = new.spec.replicas - new.status.available_replicas
    budget = total(old) + new.spec.replicas - least - new_unavailable
    if budget <= 0:
        return {}
    sizes = {s.metadata.name: s.spec.replicas for s in old}
    # Pods that are not available cost nothing to remove.
    for s in by_age(old):
        unhealthy = s.spec.replicas - s.status.available_replicas
        step = min(budget, unhealthy) if unhealthy > 0 else 0
        sizes[s.metadata.name] -= step
        budget -= step
    budget = available([*old, new]) - least
    for s in by_age(old):
        if budget <= 0:
            break
        step = min(sizes[s.metadata.name], budget)
        sizes[s.metadata.name] -= step
        budget -= step
    return {s.metadata.name: sizes[s.metadata.name] for s in old if _moves(s, sizes)}


def _moves(s: ReplicaSet, sizes: Scales) -> bool:
    return sizes[s.metadata.name] != s.spec.replicas


def plan_proportional(d: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> Scales:
    """Follow a changed `replicas` while no rollout may progress (scaling, pause)."""
    every = [*old, *([new] if new else [])]
    active = [s for s in every if s.spec.replicas > 0]
    if len(active) <= 1:
        only = active[0] if active else new or (by_age(old)[-1] if old else None)
        if only is None or only.spec.replicas == d.spec.replicas:
            return {}
        return {only.metadata.name: d.spec.replicas}
    if new is not None and _saturated(d, new):
        return {s.metadata.name: 0 for s in old if s.spec.replicas}
    if d.spec.strategy.type != "RollingUpdate":
        return {}
    return _share_out(d, active)


def _saturated(d: Deployment, new: ReplicaSet) -> bool:
    want = d.spec.replicas
    return (
        new.spec.replicas == want
        and new.metadata.annotations.get(DESIRED) == str(want)
        and new.status.available_replicas == want
    )


def _share_out(d: Deployment, active: Sequence[ReplicaSet]) -> Scales:
    allowed = d.spec.replicas + fenceposts(d)[0] if d.spec.replicas else 0
    left = allowed - total(active)
    growing = left > 0
    # Bigger sets first; of equal ones the newer when growing, the older when shrinking.
    order = by_age(active)
    if growing:
        order.reverse()
    order.sort(key=lambda s: -s.spec.replicas)
    sizes = {s.metadata.name: s.spec.replicas for s in order}
    to_add = left
    for s in order:
        if left == 0:
            break
        had = int(s.metadata.annotations.get(MAXIMUM) or d.status.replicas or allowed) or 1
        part = math.floor(s.spec.replicas * allowed / had + 0.5) - s.spec.replicas
        part = min(part, left) if growing else max(part, left)
        if (to_add > 0) != (part > 0):
            part = 0
        sizes[s.metadata.name] += part
        left -= part
    if left and order:
        first = order[0].metadata.name
        sizes[first] = max(0, sizes[first] + left)
    return {s.metadata.name: sizes[s.metadata.name] for s in order if _moves(s, sizes)}


def is_scaling(d: Deployment, sets: Sequence[ReplicaSet]) -> bool:
    """Some active set was sized for another number of replicas."""
    return any(
        DESIRED in s.metadata.annotations
        and s.metadata.annotations[DESIRED] != str(d.spec.replicas)
        for s in sets
        if s.spec.replicas > 0
    )


def size_annotations(d: Deployment) -> dict[str, str]:
    return {DESIRED: str(d.spec.replicas), MAXIMUM: str(d.spec.replicas + fenceposts(d)[0])}


def new_annotations(d: Deployment, new: ReplicaSet | None, revision: int) -> dict[str, str]:
    """What changes in the new set's annotations when it becomes `revision`."""
    current = dict(new.metadata.annotations) if new else {}
    wanted = {k: v for k, v in d.metadata.annotations.items() if k not in _NOT_COPIED}
    old = revision_of(new) if new else 0
    if old < revision:
        wanted[REVISION] = str(revision)
        if old:
            history = [r for r in current.get(REVISION_HISTORY, "").split(",") if r]
            wanted[REVISION_HISTORY] = ",".join([*history, str(old)])
    if new is None:
        wanted |= size_annotations(d)
    return {k: v for k, v in wanted.items() if current.get(k) != v}


def plan_history(d: Deployment, old: Sequence[ReplicaSet]) -> list[ReplicaSet]:
    """Old, empty sets beyond `revisionHistoryLimit`, oldest revision first."""
    idle = [
        s
        for s in old
        if not s.deleting
        and s.spec.replicas == 0
        and s.status.replicas == 0
        and s.metadata.generation <= s.status.observed_generation
    ]
    candidates = [s for s in old if not s.deleting]
    excess = len(candidates) - d.spec.revision_history_limit
    return sorted(idle, key=revision_of)[: max(0, excess)]


# --- status -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """The numbers and conditions to write; `check_s`: when the progress deadline is due."""

    numbers: dict[str, int]
    conditions: list[TimedCondition] = field(default_factory=list)
    check_s: float | None = None


def complete(d: Deployment, numbers: Mapping[str, int]) -> bool:
    want = d.spec.replicas
    return (
        numbers["updatedReplicas"] == want
        and numbers["replicas"] == want
        and numbers["availableReplicas"] == want
    )


def status_numbers(
    d: Deployment, new: ReplicaSet | None, sets: Sequence[ReplicaSet]
) -> dict[str, int]:
    replicas = sum(s.status.replicas for s in sets)
    return {
        "observedGeneration": d.metadata.generation,
        "replicas": replicas,
        "updatedReplicas": new.status.replicas if new else 0,
        "readyReplicas": sum(s.status.ready_replicas for s in sets),
        "availableReplicas": available(sets),
        "unavailableReplicas": max(0, total(sets) - available(sets)),
    }


def plan_status(
    d: Deployment,
    new: ReplicaSet | None,
    sets: Sequence[ReplicaSet],
    now: dt.datetime,
    note: TimedCondition | None = None,
) -> Status:
    """`note` is a Progressing condition of this very pass (a set created, found, refused)."""
    numbers = status_numbers(d, new, sets)
    board = Board(list(d.status.conditions), now)
    least = d.spec.replicas - fenceposts(d)[1]
    if numbers["availableReplicas"] >= least:
        board.put(
            "Available",
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    else:
        board.put(
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    if note is not None:
        board.put("Progressing", note.status, note.reason, note.message)
    check_s = None if d.spec.paused else _progress(d, new, numbers, board)
    _failure(sets, board)
    return Status(numbers, board.conditions, check_s)


def _progress(
    d: Deployment, new: ReplicaSet | None, numbers: dict[str, int], board: Board
) -> float | None:
    deadline = d.spec.progress_deadline_seconds
    if deadline == _NO_DEADLINE:
        board.drop("Progressing")
        return None
    current = board.get("Progressing")
    done = (
        numbers["replicas"] == numbers["updatedReplicas"]
        and current is not None
        and current.reason == "NewReplicaSetAvailable"
    )
    name = f'ReplicaSet "{new.metadata.name}"' if new else f'Deployment "{d.metadata.name}"'
    if not done:
        if complete(d, numbers):
            board.put(
                "Progressing",
                "True",
                "NewReplicaSetAvailable",
                f"{name} has successfully progressed.",
            )
            done = True
        elif _moved(d, numbers):
            board.put(
                "Progressing",
                "True",
                "ReplicaSetUpdated",
                f"{name} is progressing.",
                touch=True,
            )
        elif current is not None and current.reason != "ProgressDeadlineExceeded":
            looked = current.last_update_time or current.last_transition_time
            if since_s(looked, board.now) > deadline:
                board.put(
                    "Progressing",
                    "False",
                    "ProgressDeadlineExceeded",
                    f"{name} has timed out progressing.",
                )
    current = board.get("Progressing")
    if done or current is None or current.reason == "ProgressDeadlineExceeded":
        return None
    return max(0.0, deadline - since_s(current.last_update_time, board.now)) + 1.0


def _moved(d: Deployment, numbers: Mapping[str, int]) -> bool:
    was = d.status
    return (
        numbers["updatedReplicas"] > was.updated_replicas
        or numbers["replicas"] - numbers["updatedReplicas"] < was.replicas - was.updated_replicas
        or numbers["readyReplicas"] > was.ready_replicas
        or numbers["availableReplicas"] > was.available_replicas
    )


def _failure(sets: Sequence[ReplicaSet], board: Board) -> None:
    for s in reversed(by_age(sets)):
        failed: Condition | None = condition(s.status.conditions, "ReplicaFailure")
        if failed is not None:
            board.put("ReplicaFailure", failed.status, failed.reason, failed.message)
            return
    board.drop("ReplicaFailure")
