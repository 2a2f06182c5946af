"""What an update of a pod may change. Source: pkg/apis/core/validation (ValidatePodUpdate)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import FieldError, forbidden, invalid_value, required
from podwire.apiserver.validation.meta import Raw, each
from podwire.apiserver.validation.scheduling import validate_tolerations

_MAX_ID = 2**31 - 1
_MUTABLE = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set "
    "to 1 if it was previously negative)"
)


def validate_pod_update(new: Raw, old: Raw) -> list[FieldError]:
    """What an update of a pod itself may change; status and binding have their own ways."""
    fresh, before = new.get("spec") or {}, old.get("spec") or {}
    out: list[FieldError] = []
    for kind in ("containers", "initContainers"):
        if len(fresh.get(kind) or ()) != len(before.get(kind) or ()):
            text = "pod updates may not add or remove containers"
            return [forbidden(f"spec.{kind}", text)]
        for at, container in each(fresh, kind, "spec"):
            if not container.get("image"):
                out.append(required(f"{at}.image"))
    out += _deadline_update(fresh, before) + _toleration_update(fresh, before)
    if out:
        return out
    changed = list(_differences(_masked(fresh, before), before, ""))
    return [forbidden("spec", f"{_MUTABLE}\n{chr(10).join(changed)}\n")] if changed else []


def _masked(fresh: Raw, before: Raw) -> Raw:
    """The new spec with everything that may change set back."""
    out = copy.deepcopy(fresh)
    for kind in ("containers", "initContainers"):
        for container, old in zip(out.get(kind) or (), before.get(kind) or (), strict=True):
            _copy_key(container, old, "image")
    for key in ("activeDeadlineSeconds", "tolerations"):
        _copy_key(out, before, key)
    if (before.get("terminationGracePeriodSeconds") or 0) < 0:
        _copy_key(out, before, "terminationGracePeriodSeconds")
    if out.get("schedulingGates") != before.get("schedulingGates"):
        kept = before.get("schedulingGates") or []
        if all(gate in kept for gate in out.get("schedulingGates") or ()):
            _copy_key(out, before, "schedulingGates")
    return out


def _copy_key(to: Raw, source: Raw, key: str) -> None:
    if key in source:
        to[key] = source[key]
    else:
        to.pop(key, None)


def _deadline_update(fresh: Raw, before: Raw) -> list[FieldError]:
    new, old = fresh.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    path = "spec.activeDeadlineSeconds"
    if new is None:
        if old is None:
            return []
        return [invalid_value(path, None, "must not update from a positive integer to nil value")]
    if not 0 <= new <= _MAX_ID:
        return [invalid_value(path, new, names.in_range(0, _MAX_ID))]
    if old is not None and old < new:
        return [invalid_value(path, new, "must be less than or equal to previous value")]
    return []


def _toleration_update(fresh: Raw, before: Raw) -> list[FieldError]:
    def bare(row: Raw) -> Raw:
        return {key: value for key, value in row.items() if key != "tolerationSeconds"}

    kept = [bare(row) for row in fresh.get("tolerations") or ()]
    if all(bare(row) in kept for row in before.get("tolerations") or ()):
        return validate_tolerations(fresh, "spec")
    text = "existing toleration can not be modified except its tolerationSeconds"
    return [forbidden("spec.tolerations", text)]


def _differences(new: Any, old: Any, path: str) -> Iterator[str]:
    """Changed fields, one line each way: `- old` and `+ new`."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key in sorted(new.keys() | old.keys()):
            yield from _differences(new.get(key), old.get(key), f"{path}.{key}" if path else key)
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for index, (left, right) in enumerate(zip(new, old, strict=True)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif (new or None) != (old or None):
        yield f"- {path}: {old}"
        yield f"+ {path}: {new}"
