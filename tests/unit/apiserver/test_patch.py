"""Patches: the RFCs' rules, and the strategic merge cases upstream tests under these names."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from podwire.apiserver.patch import (
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_PATCH,
    apply_json_patch,
    apply_merge_patch,
    apply_patch,
    apply_strategic_patch,
)
from podwire.apiserver.schema import Schema, builtin, schema_from_crd
from podwire.errors import ApiError, BadRequestError, InvalidError


def list_of(items: Schema, key: str = "") -> Schema:
    return Schema(type="array", items=items, patch_strategy=("merge",), patch_merge_key=key)


def item_schema() -> Schema:
    """Upstream's MergeItem: every strategy in one recursive type."""
    text = Schema(type="string")
    node = Schema(type="object")
    node.properties |= {
        "name": text,
        "value": text,
        "other": text,
        "mergingList": list_of(node, "name"),
        "nonMergingList": Schema(type="array", items=node),
        "mergingIntList": list_of(Schema(type="integer")),
        "nonMergingIntList": Schema(type="array", items=Schema(type="integer")),
        "simpleMap": Schema(type="object", additional=text),
        "replacingItem": Schema(type="object", preserve_unknown=True, patch_strategy=("replace",)),
        "retainKeysMap": Schema(
            type="object", properties={"name": text, "value": text}, patch_strategy=("retainKeys",)
        ),
        "retainKeysMergingList": Schema(
            type="array",
            items=node,
            patch_strategy=("merge", "retainKeys"),
            patch_merge_key="name",
        ),
    }
    return node


ITEM = item_schema()


def named(*rows: str) -> list[dict[str, str]]:
    """`"a=1"` is {"name": "a", "value": "1"}."""
    return [
        dict(zip(("name", "value"), row.split("=", 1), strict=False))
        if "=" in row
        else {"name": row}
        for row in rows
    ]


CASES: dict[str, tuple[Any, Any, Any]] = {
    "unset scalar": ({"name": "a", "value": "b"}, {"value": None}, {"name": "a"}),
    "add and delete fields of a map": (
        {"simpleMap": {"a": "1", "b": "2"}},
        {"simpleMap": {"a": None, "c": "3"}},
        {"simpleMap": {"b": "2", "c": "3"}},
    ),
    "nulls vanish where there was nothing": ({}, {"simpleMap": {"a": None}}, {"simpleMap": {}}),
    "delete all items of a map": (
        {"simpleMap": {"a": "1"}},
        {"simpleMap": {"$patch": "delete"}},
        {"simpleMap": {}},
    ),
    "replace a map": (
        {"simpleMap": {"a": "1"}},
        {"simpleMap": {"b": "2", "$patch": "replace"}},
        {"simpleMap": {"b": "2"}},
    ),
    "merge is the default directive": (
        {"simpleMap": {"a": "1"}},
        {"simpleMap": {"b": "2", "$patch": "merge"}},
        {"simpleMap": {"a": "1", "b": "2"}},
    ),
    "map whose strategy is replace": (
        {"replacingItem": {"a": "1"}},
        {"replacingItem": {"b": "2"}},
        {"replacingItem": {"b": "2"}},
    ),
    "replace a list without strategy": (
        {"nonMergingIntList": [1, 2]},
        {"nonMergingIntList": [3]},
        {"nonMergingIntList": [3]},
    ),
    "merge lists of scalars": (
        {"mergingIntList": [1, 2]},
        {"mergingIntList": [2, 3]},
        {"mergingIntList": [1, 2, 3]},
    ),
    "delete from a list of scalars": (
        {"mergingIntList": [1, 2, 3]},
        {"$deleteFromPrimitiveList/mergingIntList": [1, 3]},
        {"mergingIntList": [2]},
    ),
    "add and delete in a list of scalars": (
        {"mergingIntList": [1, 2, 3]},
        {"$deleteFromPrimitiveList/mergingIntList": [1], "mergingIntList": [4]},
        {"mergingIntList": [2, 3, 4]},
    ),
    "order of a list of scalars": (
        {"mergingIntList": [1, 2, 3]},
        {"$setElementOrder/mergingIntList": [3, 1, 2, 4], "mergingIntList": [4]},
        {"mergingIntList": [3, 1, 2, 4]},
    ),
    "merge lists of objects by key": (
        {"mergingList": named("a=1", "b=2")},
        {"mergingList": named("a=9", "c=3")},
        {"mergingList": named("a=9", "b=2", "c=3")},
    ),
    "delete from a list of objects": (
        {"mergingList": named("a", "b")},
        {"mergingList": [{"name": "a", "$patch": "delete"}]},
        {"mergingList": named("b")},
    ),
    "delete what is not there": (
        {"mergingList": named("b")},
        {"mergingList": [{"name": "a", "$patch": "delete"}]},
        {"mergingList": named("b")},
    ),
    "replace a merging list": (
        {"mergingList": named("a", "b")},
        {"mergingList": [*named("c"), {"$patch": "replace"}]},
        {"mergingList": named("c")},
    ),
    "replace an element": (
        {"mergingList": named("a=1")},
        {"mergingList": [{"name": "a", "other": "2", "$patch": "merge"}]},
        {"mergingList": [{"name": "a", "value": "1", "other": "2"}]},
    ),
    "reorder a list of objects": (
        {"mergingList": named("a", "b", "c")},
        {"$setElementOrder/mergingList": named("c", "a", "b")},
        {"mergingList": named("c", "a", "b")},
    ),
    "order with an element the server added": (
        {"mergingList": named("a", "server", "b")},
        {"$setElementOrder/mergingList": named("b", "a")},
        {"mergingList": named("server", "b", "a")},
    ),
    "order, add and delete": (
        {"mergingList": named("a", "b", "c")},
        {
            "$setElementOrder/mergingList": named("d", "c", "b"),
            "mergingList": [{"name": "a", "$patch": "delete"}, *named("d=4")],
        },
        {"mergingList": [*named("d=4"), *named("c", "b")]},
    ),
    "nested lists": (
        {"mergingList": [{"name": "a", "mergingList": named("x=1", "y")}]},
        {"mergingList": [{"name": "a", "mergingList": named("x=2")}]},
        {"mergingList": [{"name": "a", "mergingList": named("x=2", "y")}]},
    ),
    "retain keys of a map": (
        {"retainKeysMap": {"name": "a", "value": "1"}},
        {"retainKeysMap": {"$retainKeys": ["name"], "name": "b"}},
        {"retainKeysMap": {"name": "b"}},
    ),
    "retain keys in a merging list": (
        {"retainKeysMergingList": [{"name": "a", "value": "1", "other": "2"}]},
        {"retainKeysMergingList": [{"$retainKeys": ["name", "other"], "name": "a", "other": "3"}]},
        {"retainKeysMergingList": [{"name": "a", "other": "3"}]},
    ),
    "replace at the root": ({"name": "a"}, {"$patch": "replace", "value": "b"}, {"value": "b"}),
}


@pytest.mark.parametrize("case", CASES)
def test_strategic_merge(case: str) -> None:
    original, patch, expected = CASES[case]
    before = copy.deepcopy((original, patch))
    assert apply_strategic_patch(original, patch, ITEM) == expected
    assert (original, patch) == before


@pytest.mark.parametrize(
    ("original", "patch", "text"),
    [
        ({}, {"mergingList": [{"value": "1"}]}, "does not contain declared merge key: name"),
        ({}, {"simpleMap": {"$patch": "shred"}}, "unknown patch type found: shred"),
        ({}, {"retainKeysMap": {"$retainKeys": ["name"], "value": "1"}}, "retainKeys list"),
        ({}, {"$deleteFromPrimitiveList/mergingIntList": 1}, "invalid patch format of primitive"),
        (
            {},
            {"$setElementOrder/mergingIntList": [1], "mergingIntList": [2]},
            "doesn't match \\$setElementOrder list",
        ),
    ],
)
def test_contradictory_strategic_patches(original: Any, patch: Any, text: str) -> None:
    with pytest.raises(InvalidError, match=text):
        apply_strategic_patch(original, patch, ITEM)


def test_a_deployment_as_kubectl_patches_it() -> None:
    schema = builtin("apps", "v1", "Deployment")
    assert schema is not None
    container = {"name": "web", "image": "web:1", "env": [{"name": "A", "value": "1"}]}
    obj = {"spec": {"template": {"spec": {"containers": [container, {"name": "log"}]}}}}
    changes = {"name": "web", "image": "web:2", "env": [{"name": "B", "value": "2"}]}
    patch = {"spec": {"template": {"spec": {"containers": [changes]}}}}
    patched = apply_strategic_patch(obj, patch, schema)
    assert patched["spec"]["template"]["spec"]["containers"] == [
        {"name": "web", "image": "web:2", "env": [*container["env"], *changes["env"]]},  # type: ignore[misc]
        {"name": "log"},
    ]


@pytest.mark.parametrize(
    ("original", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_by_the_appendix_of_rfc_7386(original: Any, patch: Any, expected: Any) -> None:
    before = copy.deepcopy(original)
    assert apply_merge_patch(original, patch) == expected
    assert original == before


def test_json_patch() -> None:
    obj = {"metadata": {"labels": {"a/b": "1"}}, "list": [1, 3]}
    operations = [
        {"op": "test", "path": "/metadata/labels/a~1b", "value": "1"},
        {"op": "add", "path": "/list/1", "value": 2},
        {"op": "remove", "path": "/metadata/labels/a~1b"},
        {"op": "copy", "from": "/list", "path": "/copy"},
    ]
    before = copy.deepcopy(obj)
    patched = apply_json_patch(obj, operations)
    assert patched == {"metadata": {"labels": {}}, "list": [1, 2, 3], "copy": [1, 2, 3]}
    assert obj == before


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ([{"op": "test", "path": "/a", "value": 2}], 422),
        ([{"op": "remove", "path": "/nope"}], 422),
        ([{"op": "add", "path": "/x/y/z", "value": 1}], 422),
        ([{"op": "replace", "path": "", "value": []}], 422),
        ([{"op": "shred", "path": "/a"}], 400),
        ([{"path": "/a"}], 400),
        ({"op": "add"}, 400),
        ([{"op": "test", "path": "/a", "value": 1}] * 10_001, 413),
    ],
)
def test_json_patches_that_fail(operations: Any, code: int) -> None:
    with pytest.raises(ApiError) as caught:
        apply_json_patch({"a": 1}, operations)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        ({"op": "test", "path": "/a", "value": 2}, "testing value /a failed: test failed"),
        (
            {"op": "replace", "path": "/x/y", "value": 2},
            "replace operation does not apply: doc is missing path: /x/y",
        ),
        (
            {"op": "move", "from": "/nope", "path": "/b"},
            "move operation does not apply: doc is missing path: /nope",
        ),
    ],
)
def test_a_json_patch_that_fails_names_the_operation(operation: Any, says: str) -> None:
    """And not the object, which may hold a Secret."""
    with pytest.raises(ApiError) as caught:
        apply_json_patch({"a": 1}, [{"op": "add", "path": "/b", "value": 1}, operation])
    assert str(caught.value).endswith(f"due to an error in our request: {says}")


def test_content_types() -> None:
    pod, custom = builtin("", "v1", "Pod"), schema_from_crd({"type": "object"})
    body = json.dumps({"metadata": {"labels": {"a": "b"}}}).encode()
    expected = {"metadata": {"labels": {"a": "b"}}}
    assert apply_patch(MERGE_PATCH, {}, body, custom) == expected
    assert apply_patch(f"{STRATEGIC_PATCH}; charset=utf-8", {}, body, pod) == expected
    operations = b'[{"op": "add", "path": "/a", "value": 1}]'
    assert apply_patch(JSON_PATCH, {}, operations, custom) == {"a": 1}
    for media, schema in ((STRATEGIC_PATCH, custom), ("text/plain", pod)):
        with pytest.raises(ApiError) as caught:
            apply_patch(media, {}, body, schema)
        assert caught.value.code == 415
    for broken in (b"{", b"[]", b"3"):
        with pytest.raises(BadRequestError):
            apply_patch(MERGE_PATCH, {}, broken, pod)
