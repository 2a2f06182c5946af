"""Manifests: where they are wrong, and what applying them again changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.errors import UsageError
from podwire.lab.manifests import three_way_patch
from podwire.objects.documents import Document, load, parse, refuse_duplicates

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n"


def test_documents_know_their_line() -> None:
    text = f"# a comment\n{POD}---\n---\n{POD.replace('web', 'api')}"
    found = list(parse(text, "f.yaml"))
    assert [(d.origin, d.kind, d.name) for d in found] == [
        ("f.yaml:2", "Pod", "web"),
        ("f.yaml:7", "Pod", "api"),
    ]


def test_lists_are_taken_apart() -> None:
    text = (
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n"
        "- {apiVersion: v1, kind: Pod, metadata: {name: b}}\n"
    )
    assert [d.name for d in parse(text, "f")] == ["a", "b"]


def test_json_is_yaml() -> None:
    (found,) = parse('{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}', "f")
    assert found.name == "a"


@pytest.mark.parametrize("text", ["", "---\n", "# only words\n", "null\n"])
def test_nothing_is_nothing(text: str) -> None:
    assert list(parse(text, "f")) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "f:2: not YAML"),
        ("a: b\n\tc: d\n", "f:2: not YAML: found a tab character"),
        (POD + "---\n}", "f:5: not YAML"),
        ("word", "f:1: expected a Kubernetes object, found str"),
        ("- a", "f:1: expected a Kubernetes object, found list"),
        ("7", "f:1: expected a Kubernetes object, found int"),
        ("kind: Pod", "f:1: Object 'apiVersion' is missing"),
        ("apiVersion: v1\nkind: 7", "f:1: Object 'kind' is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}", "f:1: Pod: metadata.name is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: web", "f:1: Pod: metadata"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: [a]}", "f:1: Pod: metadata"),
        ("{[a]: b}", "f:1: "),
        ("!!python/object/apply:os.system [id]", "f:1: not YAML: could not determine a constr"),
    ],
)
def test_parse_errors(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        list(parse(text, "f"))
    assert str(refused.value).startswith(says)


def test_load(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.yml").write_text(POD.replace("web", "b"))
    (tmp_path / "a.yaml").write_text(POD)
    (tmp_path / "notes.txt").write_text("}")
    assert [d.name for d in load([tmp_path])] == ["web", "b"]
    with pytest.raises(UsageError, match="no such file or folder"):
        load([tmp_path / "none"])
    with pytest.raises(UsageError, match="is already in"):
        load([tmp_path, tmp_path / "a.yaml"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"holds no \.yaml, \.yml, \.json file"):
        load([empty])
    with pytest.raises(UsageError, match="does not reach out of the machine"):
        load(["https://example.com/x.yaml"])
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(UsageError, match=r"latin.yaml.*UTF-8"):
        load([tmp_path / "latin.yaml"])


def doc(name: str, namespace: str = "", kind: str = "Pod", version: str = "v1") -> Document:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return Document("f:1", {"apiVersion": version, "kind": kind, "metadata": metadata})


def test_duplicates() -> None:
    refuse_duplicates([doc("a"), doc("b"), doc("a", "other"), doc("a", kind="Service")])
    refuse_duplicates([doc("a", "x", "Event", "v1"), doc("a", "x", "Event", "events.k8s.io/v1")])
    generated = Document("f:1", {"kind": "Pod", "metadata": {"generateName": "x-"}})
    refuse_duplicates([generated, generated])
    for twin in (doc("a"), doc("a", "default")):
        with pytest.raises(UsageError, match=r"Pod (default/)?a: is already in f:1"):
            refuse_duplicates([doc("a"), twin])
    with pytest.raises(UsageError, match="Pod x/a"):
        refuse_duplicates([doc("a"), doc("a", "x")], "x")


# --- three-way ----------------------------------------------------------------------------------

CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    # last applied, new, live -> patch
    "nothing new": ({"a": 1}, {"a": 1}, {"a": 1}, {}),
    "added": ({}, {"a": 1}, {}, {"a": 1}),
    "changed": ({"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}),
    "changed by another": ({"a": 1}, {"a": 1}, {"a": 3}, {"a": 1}),
    "removed": ({"a": 1}, {}, {"a": 1}, {"a": None}),
    "removed, gone already": ({"a": 1}, {}, {}, {}),
    "another's is kept": ({}, {}, {"b": 1}, {}),
    "nested": (
        {"m": {"a": 1}},
        {"m": {"b": 2}},
        {"m": {"a": 1, "x": 9}},
        {"m": {"a": None, "b": 2}},
    ),
    "list replaced": ({"l": [1]}, {"l": [1, 2]}, {"l": [1]}, {"l": [1, 2]}),
    "defaults in a list": ({}, {"l": [{"a": 1}]}, {"l": [{"a": 1, "d": 0}]}, {}),
    "shorter list": ({"l": [1, 2]}, {"l": [1]}, {"l": [1, 2]}, {"l": [1]}),
    "map becomes scalar": ({"a": {"b": 1}}, {"a": 1}, {"a": {"b": 1}}, {"a": 1}),
    "null means absent": ({}, {"a": None}, {}, {}),
    "null removes": ({}, {"a": None}, {"a": 1}, {"a": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_three_way_table(case: str) -> None:
    last, new, live, wanted = CASES[case]
    assert three_way_patch(last, new, live) == wanted


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386, as its appendix writes it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


scalars = st.integers(0, 3) | st.sampled_from(["x", "y"]) | st.booleans()
values = st.recursive(
    scalars | st.lists(scalars, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


def says(found: Any, wanted: Any) -> bool:
    """Whether `found` holds all of `wanted`; what else is in a map is others'."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            key in found and says(found[key], value) for key, value in wanted.items()
        )
    return bool(found == wanted)


@given(last=objects, new=objects, live=objects)
def test_patched_is_what_new_says(last: Any, new: Any, live: Any) -> None:
    given_live = copy.deepcopy(live)
    patched = merge(live, three_way_patch(last, new, live))
    assert live == given_live
    assert says(patched, new)
    assert not any(key in patched for key in last if key not in new)
    assert all(patched[key] == live[key] for key in live if key not in new and key not in last)
    assert three_way_patch(new, new, patched) == {}, "a second time there is nothing to do"
