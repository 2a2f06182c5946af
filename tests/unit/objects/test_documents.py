"""Documents know the line of each field; what is no object can be told instead of refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from podwire.errors import UsageError
from podwire.objects.documents import load, parse, repeated_keys

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 80}]
  - from:
    - podSelector: {}
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("", 1),
        ("spec", 4),
        ("spec.ingress[0]", 7),
        ("spec.ingress[0].ports[0].port", 7),
        ("spec.ingress[1].from[0]", 9),
        ("spec.ingress[1].from[7]", 8),
        ("spec.ingress[1].to", 8),
        ("spec.egress[3].to", 4),
    ],
)
def test_a_field_has_a_line_or_that_of_what_is_around_it(path: str, line: int) -> None:
    (found,) = parse(POLICY, "dir/web.yaml", marks=True)
    assert found.line_of(path) == f"dir/web.yaml:{line}"


def test_without_marks_a_field_is_where_its_object_is() -> None:
    (found,) = parse(POLICY, "web.yaml")
    assert found.line_of("spec.ingress[1]") == "web.yaml:1"


def test_items_of_a_list_have_their_own_lines_and_need_no_kind() -> None:
    text = "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n"
    found = list(parse(text, "f"))
    assert [(d.origin, d.kind, d.api_version, d.name) for d in found] == [
        ("f:4", "Pod", "v1", "a"),
        ("f:5", "Pod", "v1", "b"),
    ]


def test_what_is_no_object_is_told_and_skipped() -> None:
    told: list[str] = []
    text = f"image: nginx\n---\n[1, 2]\n---\n{POLICY}"
    assert [d.name for d in parse(text, "values.yaml", stray=told.append)] == ["web"]
    assert told == [
        "values.yaml:1: Object 'apiVersion' is missing",
        "values.yaml:3: expected a Kubernetes object, found list",
    ]


def test_what_is_no_yaml_is_refused_all_the_same() -> None:
    with pytest.raises(UsageError, match="f:1: not YAML"):
        list(parse("a: b: c", "f", stray=lambda _: None))


def test_a_marker_that_concatenation_glued_to_a_line_is_seen() -> None:
    """As in `cat a.yaml b.yaml`; what is YAML already keeps its dashes."""
    glued = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  x:\n  - {}---\n# next\n" + POLICY
    )
    found = list(parse(glued, "f", marks=True))
    assert [(d.name, d.line_of("spec")) for d in found] == [("a", "f:4"), ("web", "f:11")]
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: |\n  x---\n  # y\n"
    assert [d.obj["spec"] for d in parse(text, "f")] == ["x---\n# y\n"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("spec: &s {a: [*s]}", "contains itself"),
        ("spec: " + "{a: " * 201 + "1" + "}" * 201, "nested more than 200 times"),
        (
            "spec:\n" + "\n".join(f"{' ' * n}a:" for n in range(1, 250)),
            "nested more than 200 times",
        ),
        (
            "a0: &a0 x\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)),
            "document contains excessive aliasing",
        ),
    ],
    ids=["cycle", "flow", "block", "aliases"],
)
def test_what_is_too_much_once_aliases_are_followed_is_refused(text: str, problem: str) -> None:
    head = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n"
    with pytest.raises(UsageError, match=rf"f.yaml:\d+: not YAML: {problem}"):
        list(parse(head + text + "\n", "f.yaml"))


@pytest.mark.parametrize("text", ["2020-01-01", "2020-01-01T00:00:00Z", "12:34:56", "2020-13-45"])
def test_what_is_text_to_kubectl_is_text(text: str) -> None:
    head = "apiVersion: v1\nkind: Pod\nmetadata: "
    (document,) = parse(f"{head}{{name: p, annotations: {{a: {text}}}}}\n", "f.yaml")
    assert document.obj["metadata"]["annotations"] == {"a": text}


def test_keys_are_texts() -> None:
    (document,) = parse("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {1: a}}\n", "f")
    assert document.obj["metadata"]["labels"] == {"1": "a"}


@pytest.mark.parametrize("value", ["!!int x", "!!int ''", "!!float x", "!!bool x", "!!timestamp x"])
def test_a_tag_that_does_not_fit_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"f.yaml:1: not YAML: a value is not what its tag says"):
        list(parse(f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {value}}}\n", "f.yaml"))


def test_templates_are_known_by_their_braces() -> None:
    with pytest.raises(UsageError, match=r"f.yaml:1: not YAML: .*; is it a template\? `helm temp"):
        list(parse("{{- if .Values.a }}\na: 1\n{{- end }}\n", "f.yaml"))


def test_aliases_are_followed() -> None:
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: &l {a: b}, annotations: *l}\n"
    (document,) = parse(text, "f.yaml")
    assert document.obj["metadata"]["annotations"] == {"a": "b"}


def test_a_list_without_items_is_empty() -> None:
    assert list(parse("apiVersion: v1\nkind: PodList\nitems: null\n", "f.yaml")) == []


def test_fields_that_are_there_twice() -> None:
    spec = "spec:\n  x:\n  - {a: 1}\n  - {a: 1, a: 2}\n"
    (document,) = parse(
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n{spec}", "f.yaml", marks=True
    )
    assert list(repeated_keys(document.node)) == [("spec.x[1].a", 7)]
    assert document.line_of("spec.x[1].a") == "f.yaml:7"


def test_what_is_no_text_on_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for errors in ("strict", "surrogateescape"):
        stream = io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8", errors=errors)
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(UsageError, match="<stdin>: not YAML: is not UTF-8"):
            load(["-"])


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that fails to be read")
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("/proc/self/mem")
    with pytest.raises(UsageError, match=r"a\.yaml: Input/output error"):
        load([tmp_path])
