"""Rules of tolerations, affinity and spreading. Source: pkg/apis/core/validation/validation.go."""

from __future__ import annotations

from podwire.apiserver import names
from podwire.apiserver.fields import FieldError, forbidden, invalid_value, not_supported, required
from podwire.apiserver.validation.meta import Raw, check_enum, each, invalid_each, validate_selector

_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def validate_tolerations(spec: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, row in each(spec, "tolerations", path):
        key, operator, value = row.get("key") or "", row.get("operator") or "", row.get("value")
        if key:
            out += invalid_each(f"{at}.key", key, names.is_qualified_name(key))
        elif operator != "Exists":
            text = (
                'operator must be Exists when `key` is empty, which means "match all values and '
                'all keys"'
            )
            out.append(invalid_value(f"{at}.operator", operator, text))
        if row.get("tolerationSeconds") is not None and row.get("effect") != "NoExecute":
            text = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            out.append(invalid_value(f"{at}.effect", row.get("effect") or "", text))
        if operator in ("Equal", ""):
            out += invalid_each(f"{at}.operator", value or "", names.is_label_value(value or ""))
        elif operator == "Exists":
            if value:
                text = "value must be empty when `operator` is 'Exists'"
                out.append(invalid_value(f"{at}.operator", row, text))
        else:
            out.append(not_supported(f"{at}.operator", operator, ("Equal", "Exists")))
        out += check_enum(row, at, "effect", _EFFECTS, needed=False)
    return out


def validate_affinity(affinity: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    node = affinity.get("nodeAffinity") or {}
    hard, soft = "requiredDuringSchedulingIgnoredDuringExecution", _SOFT
    at = f"{path}.nodeAffinity"
    if isinstance(node.get(hard), dict):
        terms = node[hard].get("nodeSelectorTerms")
        if not terms:
            text = "must have at least one node selector term"
            out.append(required(f"{at}.{hard}.nodeSelectorTerms", text))
        for below, term in each(node[hard], "nodeSelectorTerms", f"{at}.{hard}"):
            out += _node_term(term, below)
    for below, row in each(node, soft, at):
        out += _weight(row, below) + _node_term(row.get("preference") or {}, f"{below}.preference")
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind) or {}
        for below, term in each(rules, hard, f"{path}.{kind}"):
            out += _pod_term(term, below)
        for below, row in each(rules, soft, f"{path}.{kind}"):
            out += _weight(row, below)
            out += _pod_term(row.get("podAffinityTerm") or {}, f"{below}.podAffinityTerm")
    return out


_SOFT = "preferredDuringSchedulingIgnoredDuringExecution"


def _weight(row: Raw, path: str) -> list[FieldError]:
    weight = row.get("weight") or 0
    if 1 <= weight <= 100:
        return []
    return [invalid_value(f"{path}.weight", weight, "must be in the range 1-100")]


def _node_term(term: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, row in each(term, "matchExpressions", path):
        operator, values = row.get("operator") or "", row.get("values")
        if operator in ("In", "NotIn"):
            if not values:
                text = "must be specified when `operator` is 'In' or 'NotIn'"
                out.append(required(f"{at}.values", text))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                out.append(forbidden(f"{at}.values", text))
        elif operator in ("Gt", "Lt"):
            if len(values or ()) != 1:
                text = "must be specified single value when `operator` is 'Lt' or 'Gt'"
                out.append(required(f"{at}.values", text))
        else:
            out.append(invalid_value(f"{at}.operator", operator, "not a valid selector operator"))
        key = row.get("key") or ""
        out += invalid_each(f"{at}.key", key, names.is_qualified_name(key))
    return out


def _pod_term(term: Raw, path: str) -> list[FieldError]:
    out = validate_selector(term.get("labelSelector"), f"{path}.labelSelector")
    out += validate_selector(term.get("namespaceSelector"), f"{path}.namespaceSelector")
    for index, name in enumerate(term.get("namespaces") or ()):
        out += invalid_each(f"{path}.namespaces[{index}]", name, names.is_dns_label(name))
    key = term.get("topologyKey") or ""
    if not key:
        out.append(required(f"{path}.topologyKey", "can not be empty"))
        return out
    return out + invalid_each(f"{path}.topologyKey", key, names.is_qualified_name(key))


def validate_spread(spec: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, row in each(spec, "topologySpreadConstraints", path):
        if (row.get("maxSkew") or 0) <= 0:
            text = "must be greater than zero"
            out.append(invalid_value(f"{at}.maxSkew", row.get("maxSkew") or 0, text))
        if not row.get("topologyKey"):
            out.append(required(f"{at}.topologyKey", "can not be empty"))
        actions = ("DoNotSchedule", "ScheduleAnyway")
        if row.get("whenUnsatisfiable") not in actions:
            value = row.get("whenUnsatisfiable") or ""
            out.append(not_supported(f"{at}.whenUnsatisfiable", value, actions))
        out += validate_selector(row.get("labelSelector"), f"{at}.labelSelector")
    return out
