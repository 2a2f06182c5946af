from __future__ import annotations

import json

from podwire.apiserver.openapi import (
    OPENAPI_V2,
    OpenApiResource,
    openapi_v3_document,
    openapi_v3_index,
)

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
DEPLOYMENTS = OpenApiResource("Deployment", "deployments", True, VERBS, ("status", "scale"))
STRATEGIC = "application/strategic-merge-patch+json"


def test_the_index_names_each_document() -> None:
    index = json.loads(openapi_v3_index([("", "v1", "AB"), ("apps", "v1", "CD")]))
    assert index["paths"] == {
        "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=AB"},
        "apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=CD"},
    }


def test_version_two_is_five_bytes() -> None:
    assert OPENAPI_V2 == b"\x0a\x032.0"


def test_what_apply_create_and_explain_look_for() -> None:
    document = json.loads(openapi_v3_document("apps", "v1", [DEPLOYMENTS]))
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    gvk = {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert patch["x-kubernetes-group-version-kind"] == gvk
    assert "fieldValidation" in {parameter["name"] for parameter in patch["parameters"]}
    assert STRATEGIC in patch["requestBody"]["content"]
    schemas = document["components"]["schemas"]
    assert schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"] == [gvk]
    containers = schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name"
    assert containers["x-kubernetes-patch-strategy"] == "merge"
    assert containers["description"].startswith("List of containers")


def test_every_reference_is_answered() -> None:
    text = openapi_v3_document("apps", "v1", [DEPLOYMENTS]).decode()
    document = json.loads(text)
    wanted = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert wanted <= set(document["components"]["schemas"])


def test_custom_kinds_take_no_strategic_patch() -> None:
    schema = {"type": "object", "properties": {"spec": {"type": "object", "description": "why"}}}
    resource = OpenApiResource("Gadget", "gadgets", False, VERBS, ("status",), schema)
    document = json.loads(openapi_v3_document("x.io", "v1", [resource]))
    patch = document["paths"]["/apis/x.io/v1/gadgets/{name}"]["patch"]
    assert STRATEGIC not in patch["requestBody"]["content"]
    component = document["components"]["schemas"]["io.x.v1.Gadget"]
    assert component["properties"]["spec"]["description"] == "why"
    assert component["properties"]["kind"]["type"] == "string"
