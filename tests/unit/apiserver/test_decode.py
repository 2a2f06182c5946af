"""Decoding: strictness, the Go decoder's words, what is dropped and rewritten."""

# Each table row is a line as kubectl prints it; wrapping would hide what is compared.
# ruff: noqa: E501, ISC004

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from podwire.apiserver.body import parse_body
from podwire.apiserver.decode import decode, decode_object
from podwire.apiserver.pathwalk import Walk
from podwire.apiserver.schema import builtin, schema_from_crd
from podwire.apiserver.walk import compiled
from podwire.errors import BadRequestError

JSON = "application/json"


def schema_of(group: str, version: str, kind: str) -> Any:
    found = builtin(group, version, kind)
    assert found is not None
    return found


def deployment(spec: Any, validation: Any = "Strict") -> tuple[dict[str, Any], list[str]]:
    body = json.dumps({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec}).encode()
    return _decode(body, "apps", "v1", "Deployment", validation)


def _decode(
    body: bytes, group: str, version: str, kind: str, validation: Any = "Strict", media: str = JSON
) -> tuple[dict[str, Any], list[str]]:
    return decode(
        body,
        media,
        schema_of(group, version, kind),
        group=group,
        version=version,
        kind=kind,
        field_validation=validation,
    )


def pod(**spec: Any) -> dict[str, Any]:
    return _decode(json.dumps({"spec": spec}).encode(), "", "v1", "Pod")[0]


PREFIX = 'Deployment in version "v1" cannot be handled as a Deployment: '


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            {"replicas": "3"},
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas "
            "of type int32",
        ),
        (
            {"replicas": 1.5},
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas "
            "of type int32",
        ),
        (
            {"replicas": 2**31},
            "json: cannot unmarshal number 2147483648 into Go struct field "
            "DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "x",
            "json: cannot unmarshal string into Go struct field Deployment.spec of type "
            "v1.DeploymentSpec",
        ),
        (
            {"template": {"spec": {"containers": [{"image": 1}]}}},
            "json: cannot unmarshal number into Go struct field "
            "Container.spec.template.spec.containers.image of type string",
        ),
        (
            {"template": {"spec": {"containers": {}}}},
            "json: cannot unmarshal object into Go struct field "
            "PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            {"template": {"metadata": {"labels": {"a": True}}}},
            "json: cannot unmarshal bool into Go struct field "
            "ObjectMeta.spec.template.metadata.labels of type string",
        ),
        (
            {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "1x"}}}]}}},
            "quantities must match the regular expression "
            "'^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            {"foo": 1, "template": {"spec": {"containers": [{"imagee": 1}]}}},
            'strict decoding error: unknown field "spec.foo", unknown field '
            '"spec.template.spec.containers[0].imagee"',
        ),
    ],
)
def test_what_go_would_say(spec: Any, text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        deployment(spec)
    assert str(caught.value) == PREFIX + text


def test_unknown_and_duplicate_fields_in_the_three_modes() -> None:
    body = b'{"spec": {"foo": 1, "replicas": 1, "replicas": 2}}'
    with pytest.raises(BadRequestError, match=r'unknown field "spec\.foo", duplicate field "spec'):
        _decode(body, "apps", "v1", "Deployment")
    obj, warnings = _decode(body, "apps", "v1", "Deployment", "Warn")
    assert warnings == ['unknown field "spec.foo"', 'duplicate field "spec.replicas"']
    assert obj["spec"] == {"replicas": 2}
    assert _decode(body, "apps", "v1", "Deployment", "Ignore")[1] == []


@pytest.mark.parametrize(
    "body",
    [
        rb'{"metadata": {"annotations": {"x": "{\"a\":1,\"a\":2}"}}}',
        rb'{"metadata": {"annotations": {"x": ":", "y\\": "\":"}}}',
        b'{"metadata" : {"labels" :\n{"a" : "b"}}}',
        b'{"metadata": {"annotations": {"": ""}}}',
    ],
)
def test_quotes_and_colons_in_values_are_not_duplicates(body: bytes) -> None:
    assert parse_body(body, JSON)[1] == []


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        (b'{"a":1,"a":2}', ["a"]),
        (b'{"a\\\\":1,"a\\\\":2}', ["a\\"]),
        (b'{"l":[{"x":1},{"x":1,"x" : 2}]}', ["l[1].x"]),
    ],
)
def test_duplicate_keys_are_found(body: bytes, paths: list[str]) -> None:
    assert parse_body(body, JSON)[1] == [f'duplicate field "{path}"' for path in paths]


def test_nulls_and_empty_collections_go_as_omitempty_does() -> None:
    obj = pod(containers=[{"name": "a", "env": [], "ports": None}], nodeSelector={}, volumes=[])
    assert obj["spec"] == {"containers": [{"name": "a"}]}
    # A required list stays, and an empty object is a value.
    assert pod(containers=[], securityContext={})["spec"] == {
        "containers": [],
        "securityContext": {},
    }


def test_quantities_are_written_canonically() -> None:
    obj = pod(containers=[{"resources": {"limits": {"cpu": 0.5, "memory": "1024Mi", "x": 1}}}])
    limits = obj["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "500m", "memory": "1Gi", "x": "1"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("yesterday", 'parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse '
         '"yesterday" as "2006"'),
        ("2024-13-01T00:00:00Z", 'parsing time "2024-13-01T00:00:00Z": month out of range'),
    ],
)  # fmt: skip
def test_times(value: str, text: str) -> None:
    body = json.dumps({"metadata": {"creationTimestamp": value}}).encode()
    with pytest.raises(BadRequestError) as caught:
        _decode(body, "", "v1", "Pod")
    assert str(caught.value).endswith(f"as a Pod: {text}")


@pytest.mark.parametrize(("value", "offset"), [("a", 0), ("abc", 0), ("ab!d", 2), ("YWJj*", 4)])
def test_bytes(value: str, offset: int) -> None:
    body = json.dumps({"data": {"k": value}}).encode()
    with pytest.raises(BadRequestError) as caught:
        _decode(body, "", "v1", "Secret")
    assert f"illegal base64 data at input byte {offset}" in str(caught.value)


def test_int_or_string_takes_both_and_nothing_else() -> None:
    def service(target: Any) -> dict[str, Any]:
        body = json.dumps({"spec": {"ports": [{"port": 1, "targetPort": target}]}}).encode()
        return _decode(body, "", "v1", "Service")[0]

    assert service("http")["spec"]["ports"][0]["targetPort"] == "http"
    assert service(80)["spec"]["ports"][0]["targetPort"] == 80
    with pytest.raises(BadRequestError, match="cannot unmarshal bool into Go struct field Service"):
        service(True)


def test_yaml_bodies() -> None:
    body = b"spec:\n  replicas: 2\n  paused: yes\n  template:\n    metadata:\n      labels:\n        1: '2'\n"
    obj, _ = _decode(body, "apps", "v1", "Deployment", media="application/yaml")
    assert obj["spec"]["replicas"] == 2
    assert obj["spec"]["paused"] is True
    assert obj["spec"]["template"]["metadata"]["labels"] == {"1": "2"}
    assert parse_body(b"a: 2024-01-02\nb: 010\nc: 1e3\n", "application/yaml")[0] == {
        "a": "2024-01-02",
        "b": 8,
        "c": 1000.0,
    }


def test_yaml_duplicates_name_their_line() -> None:
    with pytest.raises(BadRequestError, match='line 3: key "replicas" already set in map'):
        _decode(b"spec:\n  replicas: 1\n  replicas: 2\n", "apps", "v1", "Deployment",
                media="application/yaml")  # fmt: skip


def test_alias_bombs_and_deep_nesting_are_refused() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(BadRequestError, match="excessive aliasing"):
        parse_body("\n".join(rows).encode(), "application/yaml")
    with pytest.raises(BadRequestError):
        parse_body(b"[" * 100_000, JSON)


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"[]", b"3", b'"x"', b"\xff"])
def test_bodies_that_are_no_object(body: bytes) -> None:
    for media in (JSON, "application/yaml"):
        with pytest.raises(BadRequestError):
            _decode(body, "", "v1", "Pod", media=media)


def test_the_body_must_be_of_the_resource_asked_for() -> None:
    with pytest.raises(BadRequestError) as caught:
        _decode(b'{"apiVersion": "v1", "kind": "Deployment"}', "apps", "v1", "Deployment")
    assert str(caught.value) == (
        "the API version in the data (v1) does not match the expected API version (apps/v1)"
    )
    with pytest.raises(BadRequestError, match='no kind "Pod" is registered'):
        _decode(b'{"kind": "Pod"}', "apps", "v1", "Deployment")


def test_decoding_an_object_leaves_it_alone() -> None:
    obj = {"spec": {"containers": [{"name": "a", "env": []}], "nodeSelector": None}}
    before = copy.deepcopy(obj)
    decode_object(obj, schema_of("", "v1", "Pod"), group="", version="v1", kind="Pod")
    assert obj == before


def test_both_walks_agree() -> None:
    schema = schema_of("", "v1", "Pod")
    obj = {
        "metadata": {"name": "a", "labels": {"x": None}, "finalizers": [None, "b/c"]},
        "spec": {
            "containers": [None, {"name": "a", "args": [], "resources": {"limits": {"cpu": 1}}}],
            "tolerations": [],
        },
    }
    walk = Walk()
    assert walk.value(obj, schema, "", "", "") == compiled(schema)(obj)
    assert not walk.error
    assert not walk.strict


def test_custom_resources_report_unknown_fields_and_leave_types_to_validation() -> None:
    document = {"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer"}}}}}  # fmt: skip
    schema = schema_from_crd(document)
    ids: dict[str, Any] = {"group": "x.io", "version": "v1", "kind": "X"}
    body = b'{"metadata": {"creationTimestamp": null}, "spec": {"size": "big", "foo": 1}}'
    obj, warnings = decode(body, JSON, schema, **ids, field_validation="Warn")
    assert warnings == ['unknown field "spec.foo"']
    assert obj["spec"] == {"size": "big"}
    assert obj["metadata"] == {}
    with pytest.raises(BadRequestError, match="cannot unmarshal number into Go struct field Obj"):
        decode(b'{"metadata": {"name": 1}}', JSON, schema, **ids)


@pytest.mark.parametrize("value", ["!!int x", "!!int ''", "!!bool x", "!!timestamp x", "[*a]"])
def test_yaml_that_says_what_it_is_not_is_a_bad_request(value: str) -> None:
    with pytest.raises(BadRequestError, match="error converting YAML to JSON: yaml: "):
        parse_body(f"a: {value}\n".encode(), "application/yaml")
