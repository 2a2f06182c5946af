"""Policies of files: read, refused where they mean nothing, told of where in doubt. Pure.

    document -> read_policy -> Policy, or an error with file, line, object and field
    document + Policy -> policy_doubts -> warnings with the same

An API server would refuse more, and drop unknown fields without a word where nobody asks it to be
strict. Files were not seen by one: a policy is read as it would mean, and the doubts are told.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import msgspec

from podwire.apiserver.definitions import DEFINITIONS, definition
from podwire.apiserver.fields import FieldError, invalid_field
from podwire.apiserver.schema import Schema, builtin, prune, schema_from_crd
from podwire.apiserver.validation.crd import validate_value
from podwire.apiserver.validation.crdrules import validate_rules
from podwire.apiserver.validation.meta import validate_selector
from podwire.apiserver.validation.network import validate_network_policy
from podwire.errors import PolicyError
from podwire.explain.reading import place_of, without_nulls
from podwire.objects.documents import Document
from podwire.objects.meta import JsonObject
from podwire.objects.policy import ClusterPolicy, NetworkPolicy
from podwire.policy.model import (
    DIRECTIONS,
    Direction,
    NamedPort,
    NetworkPeer,
    Policy,
    PolicyRef,
    Rule,
    Tier,
)
from podwire.policy.parse import parse_network_policy
from podwire.policy.parse_cluster import parse_cluster_policy

NETWORK_POLICY: Final = "NetworkPolicy"
_SETTLED: Final = frozenset({"AdminNetworkPolicy", "BaselineAdminNetworkPolicy"})
"""Their v1alpha1 has an end: nothing is added any more."""
CLUSTER_POLICIES: Final = frozenset({"ClusterNetworkPolicy", *_SETTLED})
_PEERS: Final = ("namespaces", "pods", "nodes", "networks", "domainNames")
_PROTOCOLS: Final = ("tcp", "udp", "sctp", "destinationNamedPort")
_SHOWN: Final = 3
_OLD: Final = "extensions/v1beta1"
"""NetworkPolicies were there once, with the same fields."""


def read_policy(document: Document, namespace: str = "default") -> Policy:
    """Any policy kind; the error names file, line, object and field.

    Beyond what would mean nothing, what an API server refuses is refused, in its words.
    """
    cluster = document.kind in CLUSTER_POLICIES
    scope = "" if cluster else (document.namespace or namespace)
    ref = PolicyRef(document.kind, scope, document.name)
    cause: Exception
    try:
        raw = without_nulls(document.obj)
        if cluster:
            policy = parse_cluster_policy(msgspec.convert(raw, ClusterPolicy))
        else:
            obj = msgspec.convert(raw, NetworkPolicy)
            metadata = msgspec.structs.replace(obj.metadata, namespace=scope)
            policy = parse_network_policy(msgspec.structs.replace(obj, metadata=metadata))
        for broken in _broken_rules(raw, document.kind):
            raise PolicyError(ref, broken.field, broken.message)
        return policy
    except PolicyError as error:
        path, text, cause = error.path, error.message, error
    except msgspec.ValidationError as error:
        (text, path), cause = place_of(error), error
    raise PolicyError(f"{document.line_of(path)}: {ref}", path, text) from cause


def _broken_rules(raw: JsonObject, kind: str) -> Iterator[FieldError]:
    """Of cluster policies the selectors and unions: their schema is stricter than their v1alpha1
    clients."""
    if kind == NETWORK_POLICY:
        yield from validate_network_policy(raw)
        return
    for selector, path in _selectors(raw.get("spec"), "spec"):
        yield from validate_selector(selector, path)
    for direction, word in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(raw["spec"].get(direction) or ()):
            for field, members in ((word, _PEERS), ("protocols", _PROTOCOLS)):
                for j, union in enumerate(rule.get(field) or ()):
                    # A later version than v1alpha2 may have members that are not known here.
                    said = union.keys() & members if kind in _SETTLED else union.keys()
                    if not said:
                        text = f"want exactly one of {', '.join(members)}"
                        yield invalid_field(f"spec.{direction}[{i}].{field}[{j}]", text)


def _selectors(value: Any, path: str) -> Iterator[tuple[JsonObject, str]]:
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _selectors(inner, f"{path}[{index}]")
    elif isinstance(value, dict):
        if "matchLabels" in value or "matchExpressions" in value:
            yield value, path
        for key, inner in value.items():
            yield from _selectors(inner, f"{path}.{key}")


# --- doubts -------------------------------------------------------------------------------------


def policy_doubts(document: Document, policy: Policy) -> Iterator[str]:
    """In the order of versions, fields, rules."""
    raw: JsonObject = without_nulls(copy.deepcopy(document.obj))
    for path, text in _doubts(document, policy, raw):
        yield f"{document.line_of(path)}: {policy.ref}: {text}"


def _doubts(document: Document, policy: Policy, raw: JsonObject) -> Iterator[tuple[str, str]]:
    version, schema = _schema(policy.ref.kind)
    if document.api_version not in (version, _OLD):
        text = f"no API server has it in {document.api_version}; it is read as of {version}"
        yield "apiVersion", text
    closed = {rule.path: rule for direction in DIRECTIONS for rule in _closed(policy, direction)}
    for path in prune(raw, schema):
        if path != "status":  # of older servers, which wrote one
            meant = _around(path, closed) is not None
            yield path, f'unknown field "{path}"' + ("" if meant else " means nothing")
    for path, rule in closed.items():
        effect = "nothing" if rule.action == "Accept" else "everything"
        verb = "accepts" if rule.action == "Accept" else "denies"
        text = f"{path}: has a peer or protocol that is not known here, so it {verb} {effect}"
        yield path, text
    if policy.tier is not Tier.NETWORK_POLICY:
        yield from _empty_ranges(raw)
        broken = [e for e in _broken(raw, schema) if _around(e.field, closed) is None]
        for error in broken[:_SHOWN]:
            yield error.field, f"an API server refuses it: {error}"
        if len(broken) > _SHOWN:
            yield "spec", f"an API server refuses {len(broken) - _SHOWN} more of its fields"
        return
    yield from _names_of_addresses(policy)
    spec = raw.get("spec") or {}
    for direction in DIRECTIONS:
        if spec.get(direction) and direction not in policy.isolates:
            word = direction.capitalize()
            text = f"spec.{direction} means nothing: spec.policyTypes does not have {word}"
            yield f"spec.{direction}", text


def _empty_ranges(raw: JsonObject) -> Iterator[tuple[str, str]]:
    """v1alpha1 asks for start before end in words only, so clusters have them the other way."""
    for direction in DIRECTIONS:
        for i, rule in enumerate(raw["spec"].get(direction) or ()):
            for j, port in enumerate(rule.get("ports") or ()):
                span = port.get("portRange")
                if span and span["start"] > span["end"]:
                    path = f"spec.{direction}[{i}].ports[{j}].portRange"
                    yield path, f"{path} ends before it starts: no port is in it"


def _names_of_addresses(policy: Policy) -> Iterator[tuple[str, str]]:
    """Named ports are of pods: of cluster policies an API server refuses them elsewhere."""
    for rule in policy.egress:
        blocks = [i for i, peer in enumerate(rule.peers or ()) if isinstance(peer, NetworkPeer)]
        for number, port in enumerate(rule.ports or ()):
            if blocks and isinstance(port, NamedPort):
                path = f"{rule.path}.ports[{number}]"
                text = f"{path}: addresses have no port {port.name!r}: {rule.path}.to[{blocks[0]}]"
                yield path, f"{text} is an ipBlock, to which it accepts nothing"


def _closed(policy: Policy, direction: Direction) -> Iterator[Rule]:
    """Rules of cluster policies that fail closed: others have peers."""
    if policy.tier is not Tier.NETWORK_POLICY:
        yield from (rule for rule in policy.rules(direction) if not rule.peers)


def _around(path: str, rules: Mapping[str, Rule]) -> Rule | None:
    return next((rule for own, rule in rules.items() if path.startswith(f"{own}.")), None)


def _broken(raw: JsonObject, schema: Schema) -> list[FieldError]:
    errors = validate_value(raw, schema)
    rules = validate_rules(raw, schema, errors)
    return errors + [error for error in rules if error.field.startswith("spec")]


@cache
def _schema(kind: str) -> tuple[str, Schema]:
    """The version in which a kind is read, and what it may say."""
    if kind == NETWORK_POLICY:
        found = builtin("networking.k8s.io", "v1", kind)
        assert found is not None
        return "networking.k8s.io/v1", found
    spec = next(
        spec
        for plural in DEFINITIONS
        if (spec := definition(plural)["spec"])["names"]["kind"] == kind
    )
    (version,) = spec["versions"]
    schema = schema_from_crd(version["schema"]["openAPIV3Schema"])
    return f"{spec['group']}/{version['name']}", schema
