from __future__ import annotations

from typing import Any

import pytest

from podwire.apiserver.selectors import parse_field_selector, parse_label_selector
from podwire.errors import BadRequestError


def labelled(**labels: str) -> dict[str, Any]:
    return {"metadata": {"labels": labels}}


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("", [{}], []),
        ("a=b", [{"a": "b"}], [{}, {"a": "c"}]),
        ("a == b", [{"a": "b"}], [{}]),
        ("a!=b", [{}, {"a": "c"}], [{"a": "b"}]),
        ("a in (x,y)", [{"a": "x"}, {"a": "y"}], [{}, {"a": "z"}]),
        ("a notin (x,y)", [{}, {"a": "z"}], [{"a": "x"}]),
        ("a in (,x)", [{"a": ""}], [{}]),
        ("a", [{"a": ""}], [{}]),
        ("!a", [{}], [{"a": ""}]),
        ("a>5", [{"a": "6"}], [{"a": "5"}, {"a": "x"}, {}]),
        ("a<5", [{"a": "4"}], [{"a": "5"}]),
        ("a=", [{"a": ""}], [{}]),
        ("a=b,c!=d,e in (x,y),!f,g", [{"a": "b", "e": "x", "g": ""}], [{"a": "b", "e": "x"}]),
        ("in=x", [{"in": "x"}], [{}]),
    ],
)
def test_labels(text: str, yes: list[dict[str, str]], no: list[dict[str, str]]) -> None:
    selector = parse_label_selector(text)
    assert all(selector.matches(labelled(**labels)) for labels in yes)
    assert not any(selector.matches(labelled(**labels)) for labels in no)
    assert selector.empty == (text == "")
    assert selector.matches({}) == selector.matches(labelled())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a in x", "unable to parse requirement: found 'x' expected: '('"),
        ("a,", "found '', expected: identifier after ','"),
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("=x", "found '=', expected: !, identifier, or 'end of string'"),
        ("a=b=c", "found '=', expected: ',' or 'end of string'"),
        ("-a=b", 'unable to parse requirement: key: Invalid value: "-a": name part must consist'),
        ("a=-", 'unable to parse requirement: values[0][a]: Invalid value: "-": a valid label'),
        ("a>x", "for 'Gt', 'Lt' operators, the value must be an integer"),
    ],
)
def test_labels_that_cannot_be_parsed(text: str, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_label_selector(text)
    assert message in str(caught.value)


POD = {
    "metadata": {"name": "a", "namespace": "b"},
    "spec": {"nodeName": "n", "restartPolicy": "Always"},
    "status": {"phase": "Running", "podIP": "10.0.0.1"},
}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("metadata.name=a,metadata.namespace=b", True),
        ("spec.nodeName==n", True),
        ("spec.nodeName!=n", False),
        ("status.phase=Failed", False),
        ("spec.hostNetwork=false", True),
        ("status.nominatedNodeName=", True),
    ],
)
def test_fields(text: str, matches: bool) -> None:
    assert parse_field_selector(text, "", "v1", "Pod").matches(POD) is matches


def test_the_exact_value_of_a_field() -> None:
    selector = parse_field_selector("metadata.name=a,status.phase!=x", "", "v1", "Pod")
    assert selector.exact("metadata.name") == "a"
    assert selector.exact("status.phase") is None


def test_a_crd_brings_its_own_fields() -> None:
    ids = ("x.io", "v1", "X")
    selector = parse_field_selector("spec.color=red", *ids, selectable=["spec.color"])
    assert selector.matches({"spec": {"color": "red"}})
    with pytest.raises(BadRequestError) as caught:
        parse_field_selector("spec.color=red", *ids)
    assert str(caught.value) == "field label not supported: spec.color"


def test_fields_that_are_not_selected_by() -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_field_selector("spec.foo=1", "", "v1", "Pod")
    assert str(caught.value) == "field label not supported: spec.foo"
    with pytest.raises(BadRequestError, match="is not a known field selector: only"):
        parse_field_selector("spec.foo=1", "apps", "v1", "Deployment")
    with pytest.raises(BadRequestError, match="invalid selector"):
        parse_field_selector("nonsense", "", "v1", "Pod")
