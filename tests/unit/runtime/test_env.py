"""Environment variables, as kubelet composes them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podwire.errors import ConfigError
from podwire.objects.core import Container, Pod
from podwire.runtime.env import PodFacts, environment, expand

FACTS = PodFacts(("10.244.0.5", "fd00::5"), ("172.30.0.2",), "node-1", {"cpu": "4"})
MAPS = {"cm": {"a": "1", "b": "two"}}
SECRETS = {"s": {"password": "hunter2"}}


def compose(*, lenient: bool = False, **container: Any) -> dict[str, str]:
    pod = msgspec.convert(
        {
            "metadata": {
                "name": "p",
                "namespace": "ns",
                "uid": "u",
                "labels": {"app": "web", "tier": "x"},
            },
            "spec": {"serviceAccountName": "sa"},
        },
        Pod,
    )
    view = msgspec.convert({"name": "c", **container}, Container)
    return environment(pod, view, FACTS, MAPS.get, SECRETS.get, lenient=lenient)


def of_field(path: str) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)-$(B)", "1-$(B)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
    ],
)
def test_expand(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels", 'app="web"\ntier="x"'),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "sa"),
        ("status.podIP", "10.244.0.5"),
        ("status.podIPs", "10.244.0.5,fd00::5"),
        ("status.hostIP", "172.30.0.2"),
    ],
)
def test_field_ref(path: str, value: str) -> None:
    assert compose(env=[of_field(path)]) == {"X": value}


def test_later_variables_win_and_see_earlier_ones() -> None:
    env = compose(
        envFrom=[{"configMapRef": {"name": "cm"}, "prefix": "P_"}, {"secretRef": {"name": "s"}}],
        env=[{"name": "P_a", "value": "own"}, {"name": "U", "value": "$(P_a)/$(password)"}],
    )
    assert env == {"P_a": "own", "P_b": "two", "password": "hunter2", "U": "own/hunter2"}


def test_resource_refs_round_up_and_fall_back_to_the_node() -> None:
    def ref(resource: str, divisor: str) -> dict[str, Any]:
        source = {"resource": resource, "divisor": divisor}
        return {"name": resource, "valueFrom": {"resourceFieldRef": source}}

    env = compose(
        resources={"limits": {"memory": "1500Ki"}, "requests": {"cpu": "250m"}},
        env=[ref("limits.memory", "1Mi"), ref("requests.cpu", "1"), ref("limits.cpu", "1m")],
    )
    assert env == {"limits.memory": "2", "requests.cpu": "1", "limits.cpu": "4000"}


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"envFrom": [{"configMapRef": {"name": "no"}}]}, 'configmap "no" not found'),
        (
            {"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "nope"}}}]},
            "couldn't find key nope in Secret ns/s",
        ),
        ({"env": [of_field("status.nope")]}, "unsupported fieldPath: status.nope"),
    ],
)
def test_missing_references(container: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(**container)
    assert compose(lenient=True, **container) == {}


def test_optional_references_are_left_out() -> None:
    ref = {"name": "no", "key": "k", "optional": True}
    assert compose(env=[{"name": "X", "valueFrom": {"configMapKeyRef": ref}}]) == {}
    assert compose(envFrom=[{"secretRef": {"name": "no", "optional": True}}]) == {}
