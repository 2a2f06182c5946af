"""Random worlds are worlds the API accepts: the parser must read what the server stores."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from policy_worlds import PolicyWorld, worlds

from podwire.apiserver.decode import decode_object
from podwire.apiserver.defaults import apply_defaults
from podwire.apiserver.definitions import DEFINITIONS, definition
from podwire.apiserver.schema import Schema, builtin, schema_from_crd
from podwire.apiserver.validation import validate_create


def _schemas() -> dict[str, Schema]:
    found = builtin("networking.k8s.io", "v1", "NetworkPolicy")
    assert found is not None
    schemas = {"NetworkPolicy": found}
    for plural in DEFINITIONS:
        spec = definition(plural)["spec"]
        document = spec["versions"][0]["schema"]["openAPIV3Schema"]
        schemas[spec["names"]["kind"]] = schema_from_crd(document)
    return schemas


SCHEMAS = _schemas()


def refused(raw: dict[str, Any]) -> list[str]:
    kind, (group, _, version) = raw["kind"], raw["apiVersion"].partition("/")
    obj, _ = decode_object(
        copy.deepcopy(raw), SCHEMAS[kind], group=group, version=version, kind=kind
    )
    apply_defaults(group, kind, obj, SCHEMAS[kind])
    return [str(error) for error in validate_create(kind, obj, SCHEMAS[kind])]


@given(worlds())
def test_worlds_are_valid(world: PolicyWorld) -> None:
    for raw in world.raw.policies:
        assert refused(dict(raw)) == []
    assert len(world.policies) == len(world.raw.policies)
