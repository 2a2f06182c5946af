"""Rules of Jobs, their indexes and policies. Source: pkg/apis/batch/validation."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    GoValue,
    duplicate,
    go_label_selector,
    go_string_map,
    go_value,
    invalid_field,
    invalid_value,
    not_supported,
    required,
    too_long,
    too_many,
)
from podwire.apiserver.validation.meta import (
    Raw,
    each,
    immutable,
    invalid_each,
    non_negative,
    selector_matches,
    validate_selector,
)
from podwire.apiserver.validation.workloads import validate_template

_MANY, _FEWER = 100_000, 10_000
_MAX_RULES = 20
_MAX_EXIT_CODES = 255
_MAX_INDEXES_TEXT = 64 * 1024
_MAX_MANAGED_BY = 63
_NEEDS_INDEXES = "requires indexed completion mode"
_REPLACEMENTS = ("Failed", "TerminatingOrFailed")
_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")
_STATUSES = ("False", "True", "Unknown")
_FIXED = (
    "completionMode",
    "podFailurePolicy",
    "backoffLimitPerIndex",
    "managedBy",
    "successPolicy",
)


def validate_job(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out = validate_job_spec(spec, "spec")
    selector = spec.get("selector")
    if selector is not None:
        labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
        out += validate_selector(selector, "spec.selector")
        if not selector_matches(selector, labels):
            shown = GoValue(go_string_map(labels or None))
            text = "`selector` does not match template `labels`"
            out.append(invalid_value("spec.template.metadata.labels", shown, text))
    if old is not None:
        out += _job_update(spec, old.get("spec") or {})
    return out


def validate_job_spec(spec: Raw, path: str) -> list[FieldError]:
    out = non_negative(
        spec,
        path,
        *("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit"),
        *("ttlSecondsAfterFinished", "backoffLimitPerIndex", "maxFailedIndexes"),
    )
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        out.append(required(f"{path}.backoffLimitPerIndex", "when maxFailedIndexes is specified"))
    if manager := spec.get("managedBy"):
        out += _managed_by(manager, f"{path}.managedBy")
    mode = spec.get("completionMode")
    if mode not in (None, "Indexed", "NonIndexed"):
        out.append(not_supported(f"{path}.completionMode", mode, ("NonIndexed", "Indexed")))
    out += _indexed(spec, path) if mode == "Indexed" else _not_indexed(spec, path, mode)
    if spec.get("podFailurePolicy") is not None:
        out += _failure_policy(spec, f"{path}.podFailurePolicy")
    if (policy := spec.get("successPolicy")) is not None:
        at = f"{path}.successPolicy"
        if mode == "Indexed":
            out += _success_policy(policy, spec.get("completions") or 0, at)
        else:
            out.append(invalid_value(at, policy, _NEEDS_INDEXES))
    replacement = spec.get("podReplacementPolicy")
    allowed = ("Failed",) if spec.get("podFailurePolicy") is not None else _REPLACEMENTS
    if replacement is not None and replacement not in allowed:
        out.append(not_supported(f"{path}.podReplacementPolicy", replacement, allowed))
    return out + _job_template(spec, path)


def _job_template(spec: Raw, path: str) -> list[FieldError]:
    template = spec.get("template") or {}
    out = validate_template(template, f"{path}.template")
    policy = (template.get("spec") or {}).get("restartPolicy") or ""
    at = f"{path}.template.spec.restartPolicy"
    # Always is what the defaults make of none, so both are answered as upstream answers them.
    if policy in ("", "Always"):
        out.append(required(at, 'valid values: "OnFailure", "Never"'))
    elif policy not in ("OnFailure", "Never"):
        out.append(not_supported(at, policy, ("OnFailure", "Never")))
    elif spec.get("podFailurePolicy") is not None and policy != "Never":
        text = 'only "Never" is supported when podFailurePolicy is specified'
        out.append(invalid_value(at, policy, text))
    return out


def _managed_by(manager: str, path: str) -> list[FieldError]:
    """A domain-prefixed path, as IsDomainPrefixedPath has it."""
    domain, slash, rest = manager.partition("/")
    out: list[FieldError] = []
    if not slash or not domain or not rest:
        text = 'must be a domain-prefixed path (such as "acme.io/foo")'
        out.append(invalid_value(path, manager, text))
    else:
        out += invalid_each(path, domain, names.is_dns_subdomain(domain))
    if len(manager) > _MAX_MANAGED_BY:
        out.append(too_long(path, _MAX_MANAGED_BY))
    return out


# --- indexes ---------------------------------------------------------------------------------


def _indexed(spec: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    completions, parallelism = spec.get("completions"), spec.get("parallelism") or 0
    most = spec.get("maxFailedIndexes")
    if completions is None:
        out.append(required(f"{path}.completions", "when completion mode is Indexed"))
    if parallelism > _MANY:
        text = f"must be less than or equal to {_MANY} when completion mode is Indexed"
        out.append(invalid_value(f"{path}.parallelism", parallelism, text))
    if most is not None and completions is not None and most > completions:
        text = "must be less than or equal to completions"
        out.append(invalid_value(f"{path}.maxFailedIndexes", most, text))
    if most is not None and most > _MANY:
        text = f"must be less than or equal to {_MANY}"
        out.append(invalid_value(f"{path}.maxFailedIndexes", most, text))
    if (completions or 0) > _MANY and spec.get("backoffLimitPerIndex") is not None:
        if most is None:
            text = f"must be specified when completions is above {_MANY}"
            out.append(required(f"{path}.maxFailedIndexes", text))
        for key in ("parallelism", "maxFailedIndexes"):
            if (spec.get(key) or 0) > _FEWER:
                text = (
                    f"must be less than or equal to {_FEWER} when completions are above {_MANY} "
                    "and used with backoff limit per index"
                )
                out.append(invalid_value(f"{path}.{key}", spec[key], text))
    return out


def _not_indexed(spec: Raw, path: str, mode: str | None) -> list[FieldError]:
    if mode not in (None, "NonIndexed"):
        return []
    return [
        invalid_value(f"{path}.{key}", spec[key], _NEEDS_INDEXES)
        for key in ("backoffLimitPerIndex", "maxFailedIndexes")
        if spec.get(key) is not None
    ]


def count_indexes(text: str, completions: int) -> int:
    """How many indexes `1,3-5` names. Raises ValueError with upstream's words."""
    total, last = 0, -1
    for part in text.split(",") if text else ():
        limits = part.split("-")
        if len(limits) > 2:
            raise ValueError(
                f"the fragment {go_value(part)} violates the requirement that an index interval "
                "can have at most two parts separated by '-'"
            )
        low, high = _index(limits[0], completions), _index(limits[-1], completions)
        if len(limits) == 2 and low >= high:
            raise ValueError(f"non-increasing order, previous: {low}, current: {high}")
        if last >= low:
            raise ValueError(f"non-increasing order, previous: {last}, current: {low}")
        total, last = total + high - low + 1, high
    return total


def _index(text: str, completions: int) -> int:
    if not re.fullmatch("[0-9]+", text, re.ASCII):
        raise ValueError(f"cannot convert string to integer for index: {go_value(text)}")
    if int(text) >= completions:
        raise ValueError(f"too large index: {go_value(text)}")
    return int(text)


# --- policies --------------------------------------------------------------------------------


def _success_policy(policy: Raw, completions: int, path: str) -> list[FieldError]:
    rules = policy.get("rules") or []
    out: list[FieldError] = []
    if not rules:
        text = "at least one rules must be specified when the successPolicy is specified"
        out.append(required(f"{path}.rules", text))
    if len(rules) > _MAX_RULES:
        out.append(too_many(f"{path}.rules", len(rules), _MAX_RULES))
    for at, rule in each(policy, "rules", path):
        out += _success_rule(rule, completions, at)
    return out


def _success_rule(rule: Raw, completions: int, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    indexes, enough = rule.get("succeededIndexes"), rule.get("succeededCount")
    if indexes is None and enough is None:
        text = "at least one of succeededCount or succeededIndexes must be specified"
        out.append(required(path, text))
    total = 0
    if indexes is not None:
        at = f"{path}.succeededIndexes"
        if len(indexes) > _MAX_INDEXES_TEXT:
            out.append(too_long(at, _MAX_INDEXES_TEXT))
        try:
            total = count_indexes(indexes, completions)
        except ValueError as error:
            out.append(invalid_value(at, indexes, f"error parsing succeededIndexes: {error}"))
    if enough is not None:
        at = f"{path}.succeededCount"
        out += non_negative(rule, path, "succeededCount")
        least = "must be less than or equal to"
        if enough > completions:
            text = f"{least} {completions} (the number of specified completions)"
            out.append(invalid_value(at, enough, text))
        if indexes is not None and enough > total:
            text = (
                f"{least} {total} (the number of indexes in the specified succeededIndexes field)"
            )
            out.append(invalid_value(at, enough, text))
    return out


def _failure_policy(spec: Raw, path: str) -> list[FieldError]:
    policy = spec["podFailurePolicy"]
    pod = (spec.get("template") or {}).get("spec") or {}
    groups = (pod.get("containers") or (), pod.get("initContainers") or ())
    containers = {container.get("name") for group in groups for container in group}
    rules = policy.get("rules") or ()
    out: list[FieldError] = []
    if len(rules) > _MAX_RULES:
        out.append(too_many(f"{path}.rules", len(rules), _MAX_RULES))
    for at, rule in each(policy, "rules", path):
        out += _failure_rule(spec, rule, containers, at)
    return out


def _failure_rule(spec: Raw, rule: Raw, containers: Set[Any], path: str) -> list[FieldError]:
    out: list[FieldError] = []
    action = rule.get("action") or ""
    if action == "FailIndex":
        if spec.get("backoffLimitPerIndex") is None:
            text = "requires the backoffLimitPerIndex to be set"
            out.append(invalid_value(f"{path}.action", action, text))
    else:
        out += _one_of(action, _ACTIONS, f"{path}.action")
    codes, patterns = rule.get("onExitCodes"), rule.get("onPodConditions") or ()
    if codes is not None:
        out += _exit_codes(codes, containers, f"{path}.onExitCodes")
    if len(patterns) > _MAX_RULES:
        out.append(too_many(f"{path}.onPodConditions", len(patterns), _MAX_RULES))
    for at, pattern in each(rule, "onPodConditions", path):
        kind = pattern.get("type") or ""
        out += invalid_each(f"{at}.type", kind, names.is_qualified_name(kind))
        out += _one_of(pattern.get("status") or "", _STATUSES, f"{at}.status")
    if codes is not None and patterns:
        text = "specifying both OnExitCodes and OnPodConditions is not supported"
        out.append(invalid_field(path, text))
    if codes is None and not patterns:
        text = "specifying one of OnExitCodes and OnPodConditions is required"
        out.append(invalid_field(path, text))
    return out


def _exit_codes(codes: Raw, containers: Set[Any], path: str) -> list[FieldError]:
    operator = codes.get("operator") or ""
    out = _one_of(operator, ("In", "NotIn"), f"{path}.operator")
    name = codes.get("containerName")
    if name is not None and name not in containers:
        text = "must be one of the container or initContainer names in the pod template"
        out.append(invalid_value(f"{path}.containerName", name, text))
    at, values = f"{path}.values", codes.get("values") or []
    if not values:
        out.append(invalid_value(at, codes.get("values"), "at least one value is required"))
    elif len(values) > _MAX_EXIT_CODES:
        out.append(too_many(at, len(values), _MAX_EXIT_CODES))
    for number, value in enumerate(values):
        if operator == "In" and value == 0:
            text = "must not be 0 for the In operator"
            out.append(invalid_value(f"{at}[{number}]", value, text))
        if value in values[:number]:
            out.append(duplicate(f"{at}[{number}]", value))
    if values != sorted(values):
        out.append(invalid_value(at, values, "must be ordered"))
    return out


def _one_of(value: str, allowed: Sequence[str], path: str) -> list[FieldError]:
    if value in allowed:
        return []
    if not value:
        shown = " ".join(go_value(each_) for each_ in allowed)
        return [required(path, f"valid values: [{shown}]")]
    return [not_supported(path, value, allowed)]


# --- updates ---------------------------------------------------------------------------------


_SUSPENDED_MUTABLE = ("nodeSelector", "affinity", "tolerations", "schedulingGates")


def _job_update(new: Raw, old: Raw) -> list[FieldError]:
    out: list[FieldError] = []
    elastic = new.get("completionMode") == "Indexed" and new.get("completions") == new.get(
        "parallelism"
    )
    if not elastic:
        out += immutable("spec.completions", new.get("completions"), old.get("completions"))
    fresh, before = new.get("selector"), old.get("selector")
    out += immutable("spec.selector", fresh, before, go_label_selector(fresh))
    template, previous = new.get("template") or {}, old.get("template") or {}
    if old.get("suspend"):
        # A suspended job that never started may still be told where to run.
        template, previous = (_without_scheduling(each) for each in (template, previous))
    out += immutable("spec.template", template, previous)
    for key in _FIXED:
        out += immutable(f"spec.{key}", new.get(key), old.get(key))
    return out


def _without_scheduling(template: Raw) -> Raw:
    spec = {k: v for k, v in (template.get("spec") or {}).items() if k not in _SUSPENDED_MUTABLE}
    return {"spec": spec}
