"""Protobuf bodies: the same documents as JSON bodies, and refusals for everything else."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.apiserver import protobuf, schema
from podwire.apiserver.body import parse_body
from podwire.apiserver.decode import decode
from podwire.apiserver.registry import Registry
from podwire.errors import BadRequestError

JSON_ONLY = {"CustomResourceDefinition", "APIService"}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


Value = int | str | bytes | list[Any]


def message(*fields: tuple[int, Value]) -> bytes:
    """A message of (number, value); a list is a message within it."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
            continue
        raw = message(*value) if isinstance(value, list) else value
        raw = raw.encode() if isinstance(raw, str) else raw
        out += varint(number << 3 | 2) + varint(len(raw)) + raw
    return out


def body(api_version: str, kind: str, *fields: tuple[int, Value]) -> bytes:
    unknown = message((1, [(1, api_version), (2, kind)]), (2, message(*fields)), (3, ""), (4, ""))
    return protobuf.MAGIC + unknown


def parsed(api_version: str, kind: str, *fields: tuple[int, Value]) -> dict[str, Any]:
    out = protobuf.parse(body(api_version, kind, *fields))
    assert (out.pop("apiVersion"), out.pop("kind")) == (api_version, kind)
    return out


# ObjectMeta as Go writes it: empty values of fields that are no pointers are there.
META: list[Any] = [
    *((1, "web"), (2, ""), (3, "team"), (4, ""), (5, ""), (6, ""), (7, 0), (8, [])),
    (11, [(1, "app"), (2, "web")]),
    (11, [(1, "tier"), (2, "")]),
]
META_JSON = {"name": "web", "namespace": "team", "labels": {"app": "web", "tier": ""}}


def test_every_served_kind_has_numbers() -> None:
    for resource in Registry.builtin():
        if resource.kind in JSON_ONLY:
            continue
        assert protobuf.parse(body(resource.api_version, resource.kind)) == {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
        }


def test_every_plan_can_be_made() -> None:
    for (group, version, kind), name in schema.kind_definitions().items():
        if name.removeprefix("io.k8s.") in protobuf._numbers():
            assert protobuf.parse(body(f"{group}/{version}" if group else version, kind))


def test_deployment_equals_json() -> None:
    container: list[Any] = [
        *((1, "main"), (2, "nginx:1"), (5, "")),
        (6, [(1, ""), (2, 0), (3, 8080), (4, "TCP"), (5, "")]),
        (7, [(1, "A"), (2, ""), (3, [(3, [(1, [(1, "cfg")]), (2, "key"), (3, 0)])])]),
        (8, [(1, [(1, "cpu"), (2, [(1, "0.5")])])]),
        (10, [(1, [(2, [(1, "/"), (2, [(1, 1), (2, 0), (3, "http")])])]), (2, 0), (6, 0)]),
        (16, 0),
    ]
    volume: list[Any] = [(1, "scratch"), (2, [(2, [(1, "")])])]
    pod_spec: list[Any] = [(1, volume), (2, container), (4, 0), (11, 0), (14, [])]
    spec: list[Any] = [
        *((1, 0), (2, [(1, [(1, "app"), (2, "web")])])),
        (3, [(1, [(1, ""), (8, [])]), (2, pod_spec)]),
        (4, [(1, ""), (2, [(1, [(1, 1), (2, 0), (3, "25%")]), (2, [(1, 0), (2, 1), (3, "")])])]),
        *((5, 0), (7, 0)),
    ]
    raw = body("apps/v1", "Deployment", (1, META), (2, spec), (3, []))
    text = json.dumps(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": META_JSON,
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {},
                    "spec": {
                        "volumes": [{"name": "scratch", "emptyDir": {}}],
                        "containers": [
                            {
                                "name": "main",
                                "image": "nginx:1",
                                "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                                "env": [
                                    {
                                        "name": "A",
                                        "valueFrom": {
                                            "configMapKeyRef": {
                                                "name": "cfg",
                                                "key": "key",
                                                "optional": False,
                                            }
                                        },
                                    }
                                ],
                                "resources": {"limits": {"cpu": "500m"}},
                                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}},
                            }
                        ],
                        "terminationGracePeriodSeconds": 0,
                        "securityContext": {},
                    },
                },
                "strategy": {"rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 1}},
            },
            "status": {},
        }
    ).encode()
    kind = schema.builtin("apps", "v1", "Deployment")
    assert kind is not None
    decoded = [
        decode(data, media, kind, group="apps", version="v1", kind="Deployment")
        for data, media in ((raw, protobuf.CONTENT_TYPE), (text, "application/json"))
    ]
    assert decoded[0] == decoded[1]


def test_times_bytes_and_raw_json() -> None:
    lease = parsed("coordination.k8s.io/v1", "Lease", (2, [(1, ""), (3, [(1, 60), (2, 1500000)])]))
    spec = lease["spec"]
    assert spec == {"holderIdentity": "", "acquireTime": "1970-01-01T00:01:00.001500Z"}
    secret = parsed("v1", "Secret", (2, [(1, "k"), (2, b"\0\1")]), (2, [(1, "e")]), (3, "Opaque"))
    assert secret == {"data": {"k": base64.b64encode(b"\0\1").decode(), "e": ""}, "type": "Opaque"}
    revision = parsed("apps/v1", "ControllerRevision", (2, [(1, '{"a": [1]}')]), (3, -1))
    assert revision == {"data": {"a": [1]}, "revision": -1}
    deleted = parsed("v1", "Pod", (1, [(9, [(1, 1700000000)]), (10, 30)]))
    assert deleted["metadata"] == {
        "deletionTimestamp": "2023-11-14T22:13:20Z",
        "deletionGracePeriodSeconds": 30,
    }


def test_extra_and_repeated_scalars() -> None:
    extra = [(5, [(1, "scopes"), (2, [(1, "a"), (1, "b")])])]
    review = parsed(
        "authorization.k8s.io/v1", "SubjectAccessReview", (2, [(3, "bob"), (4, "g1"), *extra])
    )
    assert review["spec"] == {"user": "bob", "groups": ["g1"], "extra": {"scopes": ["a", "b"]}}
    unpacked = parsed("v1", "Pod", (3, []), (2, [(14, [(4, 1), (4, 2)])]))
    packed = parsed("v1", "Pod", (3, []), (2, [(14, [(4, b"\1\2")])]))
    assert unpacked == packed
    assert packed["spec"]["securityContext"]["supplementalGroups"] == [1, 2]


def test_a_struct_that_comes_twice_is_merged() -> None:
    assert parsed("v1", "Pod", (1, [(1, "a")]), (1, [(3, "b")]))["metadata"] == {
        "name": "a",
        "namespace": "b",
    }


def test_unknown_fields_are_skipped() -> None:
    fields: list[Any] = [(900, 1), (901, "x"), (1, [(1, "a")])]
    assert parsed("v1", "ConfigMap", *fields) == {"metadata": {"name": "a"}}
    fixed = protobuf.MAGIC + message((1, [(1, "v1"), (2, "ConfigMap")]))
    raw = varint(900 << 3 | 1) + bytes(8) + varint(901 << 3 | 5) + bytes(4)
    assert protobuf.parse(fixed + message((2, raw))) == {"apiVersion": "v1", "kind": "ConfigMap"}


def test_delete_options_of_any_group() -> None:
    fields: list[Any] = [(1, 0), (2, [(1, "uid")]), (4, "Background")]
    options, _ = parse_body(body("apps/v1", "DeleteOptions", *fields), protobuf.CONTENT_TYPE)
    assert options == {
        "apiVersion": "apps/v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": 0,
        "preconditions": {"uid": "uid"},
        "propagationPolicy": "Background",
    }


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"{}", "expected prefix [107 56 115 0]"),
        (protobuf.MAGIC, "Object 'Kind' is missing"),
        (body("v1", "Gizmo"), 'no kind "Gizmo" is registered for version "v1"'),
        (body("v1", "Pod", (1, 7)), "wrong wireType = 0 for field metadata"),
        (body("v1", "Pod", (1, b"\x0a\x05a")), "unexpected EOF"),
        (body("v1", "Pod", (1, b"\x0f")), "illegal wireType 7"),
        (body("v1", "Pod", (1, b"\xff" * 11)), "integer overflow"),
        (body("v1", "Pod", (1, [(1, b"\xff")])), "invalid start byte"),
        (body("apps/v1", "ControllerRevision", (2, [(1, "{")])), "Input data was truncated"),
        (body("v1", "Pod", (1, [(8, [(1, 1 << 60)])])), "out of range"),
    ],
)
def test_refusals(raw: bytes, text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        protobuf.parse(raw)
    assert text in str(caught.value)


@given(st.binary(max_size=60), st.sampled_from([("v1", "Pod"), ("apps/v1", "Deployment")]))
def test_any_bytes_are_a_document_or_a_bad_request(raw: bytes, kind: tuple[str, str]) -> None:
    with contextlib.suppress(BadRequestError):
        assert protobuf.parse(body(*kind, (1, raw), (2, raw)))["kind"] == kind[1]
