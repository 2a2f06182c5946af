"""Semantic validation: each rule by the line kubectl prints for it."""

# Each table row is a line as kubectl prints it; wrapping would hide what is compared.
# ruff: noqa: E501, ISC004

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from podwire.apiserver.decode import decode_object
from podwire.apiserver.defaults import apply_defaults
from podwire.apiserver.schema import builtin, schema_from_crd
from podwire.apiserver.validation import FieldError, invalid, validate_create, validate_update
from podwire.apiserver.validation.crd import structural_errors
from podwire.apiserver.validation.cronjobs import schedule_problem

SAMPLES = Path(__file__).resolve().parents[4] / "shared/samples"
BASE = """
Pod: {apiVersion: v1, spec: {containers: [{name: a, image: i}]}}
Deployment: {apiVersion: apps/v1, spec: {selector: {matchLabels: {app: x}},
  template: {metadata: {labels: {app: x}}, spec: {containers: [{name: a, image: i}]}}}}
StatefulSet: {apiVersion: apps/v1, spec: {serviceName: s, selector: {matchLabels: {app: x}},
  template: {metadata: {labels: {app: x}}, spec: {containers: [{name: a, image: i}]}}}}
DaemonSet: {apiVersion: apps/v1, spec: {selector: {matchLabels: {app: x}},
  template: {metadata: {labels: {app: x}}, spec: {containers: [{name: a, image: i}]}}}}
Job: {apiVersion: batch/v1, spec:
  {template: {spec: {restartPolicy: Never, containers: [{name: a, image: i}]}}}}
CronJob: {apiVersion: batch/v1, spec: {schedule: "* * * * *", jobTemplate: {spec:
  {template: {spec: {restartPolicy: Never, containers: [{name: a, image: i}]}}}}}}
Service: {apiVersion: v1, spec: {ports: [{port: 80}]}}
Ingress: {apiVersion: networking.k8s.io/v1, spec: {rules: [{http: {paths: [{path: /,
  pathType: Prefix, backend: {service: {name: s, port: {number: 80}}}}]}}]}}
NetworkPolicy: {apiVersion: networking.k8s.io/v1, spec: {ingress: [{from: [{ipBlock:
  {cidr: 10.0.0.0/8}}], ports: [{port: 80}]}]}}
ConfigMap: {apiVersion: v1, data: {a: b}}
Secret: {apiVersion: v1, data: {a: YQ==}}
Namespace: {apiVersion: v1}
Node: {apiVersion: v1, spec: {podCIDR: 10.0.0.0/24, podCIDRs: [10.0.0.0/24]}}
EndpointSlice: {apiVersion: discovery.k8s.io/v1, addressType: IPv4,
  endpoints: [{addresses: [10.0.0.1]}], ports: [{name: http, port: 80}]}
"""
OBJECTS: dict[str, Any] = yaml.safe_load(BASE)
POD_IN = {"Pod": "spec", "Deployment": "spec.template.spec"}


def made(kind: str, **changes: Any) -> dict[str, Any]:
    """The kind's good object, defaulted, with the values at dotted paths changed."""
    obj = copy.deepcopy(OBJECTS[kind]) | {"kind": kind, "metadata": {"name": "x"}}
    for path, value in changes.items():
        at: Any = obj
        *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        for key in parents:
            at = at[key] if isinstance(key, int) else at.setdefault(key, {})
        if value is None and isinstance(at, dict):
            at.pop(last, None)
        else:
            at[last] = value
    group, _, version = obj["apiVersion"].rpartition("/")
    schema = builtin(group, version, kind)
    assert schema is not None
    obj, _ = decode_object(obj, schema, group=group, version=version, kind=kind)
    apply_defaults(group, kind, obj)
    return obj


def lines(errors: list[FieldError]) -> list[str]:
    return [str(error) for error in errors]


@pytest.mark.parametrize("kind", OBJECTS)
def test_good_objects_pass_and_may_be_written_back(kind: str) -> None:
    obj = made(kind)
    assert validate_create(kind, obj) == []
    assert validate_update(kind, copy.deepcopy(obj), obj) == []


CONTAINER = "spec.containers.0"
BAD: list[tuple[str, dict[str, Any], list[str]]] = [
    ("Pod", {"metadata.name": None}, ["metadata.name: Required value: name or generateName is required"]),
    ("Pod", {"spec.containers": []}, ["spec.containers: Required value"]),
    ("Pod", {f"{CONTAINER}.image": None}, ["spec.containers[0].image: Required value"]),
    ("Pod", {f"{CONTAINER}.ports": [{"containerPort": 70000}]},
     ["spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"]),
    ("Pod", {f"{CONTAINER}.ports": [{"containerPort": 1, "protocol": "tcp"}]},
     ['spec.containers[0].ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"']),
    ("Pod", {"spec.containers": [{"name": "a", "image": "i"}] * 2},
     ['spec.containers[1].name: Duplicate value: "a"']),
    ("Pod", {f"{CONTAINER}.volumeMounts": [{"name": "v", "mountPath": "/v"}]},
     ['spec.containers[0].volumeMounts[0].name: Not found: "v"']),
    ("Pod", {"spec.volumes": [{"name": "v"}, {"name": "v"}]}, ['spec.volumes[1].name: Duplicate value: "v"']),
    ("Pod", {f"{CONTAINER}.livenessProbe": {}},
     ["spec.containers[0].livenessProbe: Required value: must specify a handler type"]),
    ("Pod", {f"{CONTAINER}.livenessProbe": {"tcpSocket": {"port": 1}, "exec": {"command": ["x"]}}},
     ["spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"]),
    ("Pod", {f"{CONTAINER}.resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
     ['spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1']),
    ("Pod", {"spec.restartPolicy": "Sometimes"},
     ['spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"']),
    ("Pod", {"spec.dnsPolicy": "None"},
     ["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"]),
    ("Pod", {"spec.hostnameOverride": "www.example.com", "spec.setHostnameAsFQDN": True},
     ["spec.setHostnameAsFQDN: Forbidden: may not be true when hostnameOverride is specified"]),
    ("Pod", {"spec.hostnameOverride": f"{'a' * 60}.abcd"},
     ["spec.hostnameOverride: Too long: may not be more than 64 bytes"]),
    ("Pod", {"spec.hostNetwork": True, f"{CONTAINER}.ports": [{"containerPort": 1, "hostPort": 2}]},
     ["spec.containers[0].ports[0].containerPort: Invalid value: 1: must match `hostPort` when `hostNetwork` is true"]),
    ("Deployment", {"spec.selector": {}},
     ["spec.selector: Invalid value: v1.LabelSelector{MatchLabels:map[string]string(nil), "
      "MatchExpressions:[]v1.LabelSelectorRequirement(nil)}: empty selector is invalid for deployment"]),
    ("Deployment", {"spec.selector.matchLabels": {"app": "y"}},
     ['spec.template.metadata.labels: Invalid value: map[string]string{"app":"x"}: `selector` does not match template `labels`']),
    ("Deployment", {"spec.template.spec.restartPolicy": "Never"},
     ['spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"']),
    ("Deployment", {"spec.strategy.rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}},
     ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"]),
    ("Deployment", {"spec.replicas": -1}, ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]),
    ("DaemonSet", {"spec.updateStrategy.type": "Never"},
     ['spec.updateStrategy.type: Unsupported value: "Never": supported values: "RollingUpdate", "OnDelete"']),
    ("StatefulSet", {"spec.podManagementPolicy": "X"},
     ["spec.podManagementPolicy: Invalid value: \"X\": must be 'OrderedReady' or 'Parallel'"]),
    ("Job", {"spec.template.spec.restartPolicy": None},
     ['spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"']),
    ("Job", {"spec.maxFailedIndexes": 1},
     ["spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
      "spec.maxFailedIndexes: Invalid value: 1: requires indexed completion mode"]),
    ("Job", {"spec.completionMode": "Indexed", "spec.completions": 2, "spec.backoffLimitPerIndex": 1, "spec.maxFailedIndexes": 3},
     ["spec.maxFailedIndexes: Invalid value: 3: must be less than or equal to completions"]),
    ("Job", {"spec.podReplacementPolicy": "Never"},
     ['spec.podReplacementPolicy: Unsupported value: "Never": supported values: "Failed", "TerminatingOrFailed"']),
    ("Job", {"spec.managedBy": "me"},
     ['spec.managedBy: Invalid value: "me": must be a domain-prefixed path (such as "acme.io/foo")']),
    ("Job", {"spec.podReplacementPolicy": "TerminatingOrFailed", "spec.podFailurePolicy": {"rules": [
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [0, 3, 2, 3], "containerName": "z"}},
        {"action": "Ignore"}]}},
     ['spec.podFailurePolicy.rules[0].action: Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set',
      'spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: "z": must be one of the container or initContainer names in the pod template',
      "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
      "spec.podFailurePolicy.rules[0].onExitCodes.values[3]: Duplicate value: 3",
      "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [0,3,2,3]: must be ordered",
      "spec.podFailurePolicy.rules[1]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
      'spec.podReplacementPolicy: Unsupported value: "TerminatingOrFailed": supported values: "Failed"']),
    ("Job", {"spec.podFailurePolicy": {"rules": [{"onPodConditions": [{"type": "D", "status": "No"}]}]}},
     ['spec.podFailurePolicy.rules[0].action: Required value: valid values: ["Count" "FailIndex" "FailJob" "Ignore"]',
      'spec.podFailurePolicy.rules[0].onPodConditions[0].status: Unsupported value: "No": supported values: "False", "True", "Unknown"']),
    ("Job", {"spec.completionMode": "Indexed", "spec.completions": 4, "spec.successPolicy": {"rules": [
        {"succeededIndexes": "0,2-3", "succeededCount": 4}, {"succeededIndexes": "1-9"}, {"succeededIndexes": "2,1"},
        {"succeededIndexes": "1-2-3"}, {"succeededCount": 5}, {}]}},
     ["spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 "
      "(the number of indexes in the specified succeededIndexes field)",
      'spec.successPolicy.rules[1].succeededIndexes: Invalid value: "1-9": error parsing succeededIndexes: too large index: "9"',
      'spec.successPolicy.rules[2].succeededIndexes: Invalid value: "2,1": error parsing succeededIndexes: '
      "non-increasing order, previous: 2, current: 1",
      'spec.successPolicy.rules[3].succeededIndexes: Invalid value: "1-2-3": error parsing succeededIndexes: the fragment '
      "\"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
      "spec.successPolicy.rules[4].succeededCount: Invalid value: 5: must be less than or equal to 4 (the number of specified completions)",
      "spec.successPolicy.rules[5]: Required value: at least one of succeededCount or succeededIndexes must be specified"]),
    ("ConfigMap", {"data": {"a": "x" * (1024 * 1024 + 1)}}, ["[]: Too long: may not be more than 1048576 bytes"]),
    ("CronJob", {"spec.schedule": "daily"},
     ['spec.schedule: Invalid value: "daily": expected exactly 5 fields, found 1: [daily]']),
    ("CronJob", {"spec.timeZone": "Mars/Base"}, ['spec.timeZone: Invalid value: "Mars/Base": unknown time zone Mars/Base']),
    ("Service", {"spec.ports": None}, ["spec.ports: Required value"]),
    ("Service", {"spec.ports": [{"port": 1}, {"port": 2}]},
     ["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"]),
    ("Service", {"spec.ports.0.nodePort": 30080},
     ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]),
    ("Service", {"spec.type": "ExternalName"}, ["spec.externalName: Required value"]),
    ("Service", {"spec.type": "Odd"},
     ['spec.type: Unsupported value: "Odd": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"']),
    ("Ingress", {"spec.rules": None},
     ["spec: Invalid value: []networking.IngressRule(nil): either `defaultBackend` or `rules` must be specified"]),
    ("Ingress", {"spec.rules.0.http.paths.0.path": "x"},
     ['spec.rules[0].http.paths[0].path: Invalid value: "x": must be an absolute path']),
    ("Secret", {"type": "kubernetes.io/tls"}, ["data[tls.crt]: Required value", "data[tls.key]: Required value"]),
    ("EndpointSlice", {"addressType": "IPv6"},
     ['endpoints[0].addresses: Invalid value: "10.0.0.1": must be an IPv6 address']),
    ("Namespace", {"metadata.namespace": "y"}, ["metadata.namespace: Forbidden: not allowed on this type"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "expected"), BAD)
def test_what_may_not_be_created(kind: str, changes: dict[str, Any], expected: list[str]) -> None:
    assert lines(validate_create(kind, made(kind, **changes))) == expected


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("Upper", "Pod", "a lowercase RFC 1123 subdomain must consist"),
        ("a.b", "Namespace", "must not contain dots"),
        ("1a", "Service", "a DNS-1035 label must consist"),
        ("a" * 64, "Namespace", "must be no more than 63 characters"),
    ],
)
def test_names(name: str, kind: str, part: str) -> None:
    errors = lines(validate_create(kind, made(kind, **{"metadata.name": name})))
    assert any(
        line.startswith(f'metadata.name: Invalid value: "{name}": {part}') for line in errors
    )


def test_the_regex_text_has_kubernetes_own_spacing() -> None:
    (error,) = validate_create("Service", made("Service", **{"metadata.name": "A"}))
    assert "(e.g. 'my-name',  or 'abc-123', regex used for validation is" in error.message


UPDATES: list[tuple[str, dict[str, Any], str]] = [
    ("Deployment", {"spec.selector.matchLabels": {"app": "y"}, "spec.template.metadata.labels": {"app": "y"}},
     'spec.selector: Invalid value: v1.LabelSelector{MatchLabels:map[string]string{"app":"y"}, '
     "MatchExpressions:[]v1.LabelSelectorRequirement(nil)}: field is immutable"),
    ("StatefulSet", {"spec.serviceName": "t"},
     "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "
     "'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"),
    ("Pod", {"spec.hostname": "h"}, "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"),
    ("Pod", {"spec.containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]},
     "spec.containers: Forbidden: pod updates may not add or remove containers"),
    ("Node", {"spec.podCIDRs": ["10.0.1.0/24"], "spec.podCIDR": "10.0.1.0/24"},
     'spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid'),
    ("Secret", {"type": "a/b"}, 'type: Invalid value: "a/b": field is immutable'),
    ("ConfigMap", {"metadata.name": "y"}, 'metadata.name: Invalid value: "y": field is immutable'),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "expected"), UPDATES)
def test_what_may_not_be_changed(kind: str, changes: dict[str, Any], expected: str) -> None:
    errors = lines(validate_update(kind, made(kind, **changes), made(kind)))
    assert errors
    assert errors[0].startswith(expected)


def test_what_a_pod_update_may_change() -> None:
    changed = made("Pod", **{f"{CONTAINER}.image": "j", "spec.activeDeadlineSeconds": 5})
    assert validate_update("Pod", changed, made("Pod")) == []


def test_an_immutable_config_map_keeps_its_data() -> None:
    old = made("ConfigMap", immutable=True)
    errors = lines(validate_update("ConfigMap", made("ConfigMap", data={"a": "c"}), old))
    text = "Forbidden: field is immutable when `immutable` is set"
    assert errors == [f"immutable: {text}", f"data: {text}"]


def test_the_message_and_details_of_an_invalid_error() -> None:
    errors = [FieldError("FieldValueRequired", "spec.b", "Required value")] * 2
    one = invalid("Deployment", "apps", "x", errors)
    assert str(one) == 'Deployment.apps "x" is invalid: spec.b: Required value'
    assert len(one.causes) == 2
    assert one.details == {"name": "x", "group": "apps", "kind": "Deployment"}
    other = FieldError("FieldValueInvalid", "spec.a", 'Invalid value: "q": no')
    two = invalid("Pod", "", "x", [other, errors[0]])
    assert (
        str(two) == 'Pod "x" is invalid: [spec.a: Invalid value: "q": no, spec.b: Required value]'
    )
    assert two.status()["code"] == 422


@pytest.mark.parametrize(
    "text", ["* * * * *", "*/5 0-6 1,15 * MON-FRI", "0 0 ? * 7", "@hourly", "@every 1h30m"]
)
def test_good_schedules(text: str) -> None:
    assert schedule_problem(text) is None


@pytest.mark.parametrize(
    "text", ["", "x * * * *", "60 * * * *", "* * * * * *", "@often", "TZ=UTC * * * * *", "@every x"]
)
def test_bad_schedules(text: str) -> None:
    assert schedule_problem(text)


GADGET = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 5},
                "color": {"type": "string", "enum": ["red", "blue"]},
                "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
                "port": {"x-kubernetes-int-or-string": True},
                "rows": {
                    "type": "array",
                    "maxItems": 2,
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["k"],
                    "items": {"type": "object", "properties": {"k": {"type": "string"}}},
                },
            },
        }
    },
}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"size": 3, "color": "red", "name": "abc", "port": "http", "rows": [{"k": "a"}]}, []),
        ({"size": "3"}, ['spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"']),
        ({"size": 0}, ["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"]),
        ({"color": "grey"}, ['spec.color: Unsupported value: "grey": supported values: "red", "blue"']),
        ({"name": "A"}, ["spec.name: Invalid value: \"A\": spec.name in body should match '^[a-z]+$'"]),
        ({"name": "abcd"}, ["spec.name: Too long: may not be more than 3 bytes"]),
        ({"rows": [{"k": "a"}, {"k": "a"}]}, ['spec.rows[1]: Duplicate value: map[string]interface {}{"k":"a"}']),
        ({"rows": [{}, {"k": "b"}, {"k": "c"}]}, ["spec.rows: Too many: 3: must have at most 2 items"]),
        (None, ["spec: Required value"]),
    ],
)  # fmt: skip
def test_values_of_custom_resources(spec: Any, expected: list[str]) -> None:
    obj: dict[str, Any] = {"apiVersion": "x.io/v1", "kind": "Gadget", "metadata": {"name": "g"}}
    if spec is not None:
        obj["spec"] = spec
    assert lines(validate_create("Gadget", obj, schema_from_crd(GADGET))) == expected


def test_schemas_must_be_structural() -> None:
    bad = {
        "properties": {
            "a": {"properties": {"b": {"type": "array"}}},
            "c": {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
        }
    }
    assert lines(structural_errors(bad, "s")) == [
        "s.type: Required value: must not be empty at the root",
        "s.properties[a].type: Required value: must not be empty for specified object fields",
        "s.properties[a].properties[b].items: Required value: must be specified",
        "s.properties[c].additionalProperties: Forbidden: additionalProperties and properties are "
        "mutual exclusive",
    ]


@pytest.mark.skipif(not SAMPLES.exists(), reason="the sample manifests are not here")
@pytest.mark.parametrize(
    "name", ["online-boutique/kubernetes-manifests.yaml", "bookinfo/kube-bookinfo.yaml"]
)
def test_published_manifests_are_valid(name: str) -> None:
    for document in yaml.safe_load_all((SAMPLES / name).read_text()):
        if not document:
            continue
        group, _, version = document["apiVersion"].rpartition("/")
        kind = document["kind"]
        schema = builtin(group, version, kind)
        assert schema is not None
        obj, _ = decode_object(document, schema, group=group, version=version, kind=kind)
        apply_defaults(group, kind, obj)
        assert validate_create(kind, obj) == []


@pytest.mark.parametrize(
    ("api_version", "core"),
    [
        ("v1", True),
        ("apps/v1", True),
        ("apiextensions.k8s.io/v1", False),
        ("example.com/v1", False),
    ],
)
def test_only_cores_own_kinds_need_qualified_finalizers(api_version: str, core: bool) -> None:
    custom = schema_from_crd({"type": "object"}) if api_version.startswith("example") else None
    meta = {"name": "a", "finalizers": ["plain", "example.com/x", "-"]}
    obj = {"apiVersion": api_version, "kind": "Thing", "metadata": meta}
    found = [e.field for e in validate_create("Thing", obj, custom)]
    assert found == [f"metadata.finalizers[{index}]" for index in ((0, 2) if core else (2,))]
    assert found == [e.field for e in validate_update("Thing", obj, obj, custom)]
