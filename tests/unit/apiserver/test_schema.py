"""Schemas: the compiled table, nodes of built-in kinds, CRD documents."""

from __future__ import annotations

import importlib.util
import lzma
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from podwire.apiserver import schema
from podwire.apiserver.schema import apply_schema_defaults, builtin, prune, schema_from_crd

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    pytest.importorskip("kubernetes_validate", reason="the schemas' source is not installed")
    spec = importlib.util.spec_from_file_location("compile", ROOT / "tools/compile_schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compiling_again_gives_the_committed_tables(tool: ModuleType) -> None:
    release, definitions = tool.newest_definitions()
    # Compared before compression: another zlib may pack the same text differently.
    structure = zlib.decompress((tool.DATA / tool.STRUCTURE).read_bytes())
    assert tool.compile_structure(release, definitions) == structure
    descriptions = lzma.decompress((tool.DATA / tool.DESCRIPTIONS).read_bytes())
    assert tool.compile_descriptions(definitions) == descriptions


def test_the_tables_stay_small(tool: ModuleType) -> None:
    assert sum(path.stat().st_size for path in tool.DATA.iterdir()) < 1_500_000


def test_a_built_in_kind_knows_its_merge_keys() -> None:
    deployment = builtin("apps", "v1", "Deployment")
    assert deployment is not None
    pod = deployment.properties["spec"].properties["template"].properties["spec"]
    containers = pod.properties["containers"]
    assert containers.patch_strategy == ("merge",)
    assert containers.patch_merge_key == "name"
    assert containers.list_map_keys == ("name",)
    assert pod.properties["volumes"].patch_strategy == ("merge", "retainKeys")
    assert deployment.properties["spec"].properties["strategy"].patch_strategy == ("retainKeys",)


def test_kinds_kubernetes_does_not_have_are_none() -> None:
    assert builtin("apps", "v1", "Nonsense") is None


def test_every_built_in_kind_builds_and_recursion_ends() -> None:
    for group, version, kind in sorted(schema.builtin_kinds()):
        assert builtin(group, version, kind) is not None
    props = schema.definition(
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
    )
    assert props.properties["properties"].additional is props


CRD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "size": {"type": "integer", "default": 3},
                "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "rows": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"on": {"type": "boolean", "default": True}},
                    },
                },
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }
    },
}


def test_pruning_removes_unknown_fields_only() -> None:
    obj = {
        "apiVersion": "x/v1",
        "kind": "X",
        "metadata": {"name": "a"},
        "spec": {"open": {"any": 1}, "rows": [{"off": 1}], "bad": 1, "labels": {"k": "v"}},
    }
    assert prune(obj, schema_from_crd(CRD)) == ["spec.rows[0].off", "spec.bad"]
    assert obj["spec"] == {"open": {"any": 1}, "rows": [{}], "labels": {"k": "v"}}


def test_defaults_reach_list_items_but_make_no_parents() -> None:
    root = schema_from_crd(CRD)
    obj: dict[str, Any] = {"spec": {"rows": [{}], "size": None}}
    apply_schema_defaults(obj, root)
    assert obj["spec"] == {"rows": [{"on": True}], "size": 3}
    empty: dict[str, Any] = {}
    apply_schema_defaults(empty, root)
    assert empty == {}


def test_a_null_field_counts_as_left_out_but_a_null_in_a_list_or_map_stays() -> None:
    obj: dict[str, Any] = {
        "spec": {"size": None, "open": None, "rows": [None, {"on": None}], "labels": {"k": None}}
    }
    apply_schema_defaults(obj, schema_from_crd(CRD))
    assert obj["spec"] == {"size": 3, "rows": [None, {"on": True}], "labels": {"k": None}}


def test_null_stays_where_the_schema_allows_it() -> None:
    properties = {"a": {"type": "string", "nullable": True}, "b": {"type": "string"}}
    obj: dict[str, Any] = {"a": None, "b": None}
    apply_schema_defaults(obj, schema_from_crd({"type": "object", "properties": properties}))
    assert obj == {"a": None}
