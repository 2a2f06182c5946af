from __future__ import annotations

import copy
from typing import Any

import pytest

from podwire.apiserver.decode import decode_object
from podwire.apiserver.defaults import apply_defaults
from podwire.apiserver.schema import builtin, builtin_kinds


def defaulted(group: str, kind: str, **fields: Any) -> dict[str, Any]:
    obj = copy.deepcopy(fields)
    apply_defaults(group, kind, obj)
    return obj


def container(**fields: Any) -> dict[str, Any]:
    pod = defaulted("", "Pod", spec={"containers": [{"name": "a", "image": "i", **fields}]})
    found: dict[str, Any] = pod["spec"]["containers"][0]
    return found


def test_a_pod() -> None:
    spec = defaulted("", "Pod", spec={"containers": []})["spec"]
    assert spec == {
        "containers": [],
        "dnsPolicy": "ClusterFirst",
        "enableServiceLinks": True,
        "restartPolicy": "Always",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "terminationGracePeriodSeconds": 30,
    }


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("web", "Always"),
        ("web:latest", "Always"),
        ("reg:5000/web", "Always"),
        ("web:1", "IfNotPresent"),
        ("reg:5000/web:1", "IfNotPresent"),
        ("web@sha256:00", "IfNotPresent"),
    ],
)
def test_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    assert container(image=image)["imagePullPolicy"] == policy


def test_a_container() -> None:
    probe = {"httpGet": {"port": 80}}
    out = container(
        ports=[{"containerPort": 80}],
        livenessProbe=probe,
        resources={"limits": {"cpu": "1"}},
        env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    )
    assert out["terminationMessagePath"] == "/dev/termination-log"
    assert out["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert out["livenessProbe"] == {
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert out["resources"]["requests"] == {"cpu": "1"}
    assert out["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] == "v1"


def test_host_network_publishes_every_port() -> None:
    ports = [{"containerPort": 80}]
    spec = {"hostNetwork": True, "containers": [{"name": "a", "ports": ports}]}
    pod = defaulted("", "Pod", spec=spec)
    assert pod["spec"]["containers"][0]["ports"][0]["hostPort"] == 80


def test_a_deployment() -> None:
    spec = defaulted("apps", "Deployment", spec={"template": {}})["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
    }
    assert spec["progressDeadlineSeconds"] == 600
    assert spec["template"]["spec"]["restartPolicy"] == "Always"
    # Only a pod's own requests follow its limits, not a template's.
    assert "enableServiceLinks" not in spec["template"]["spec"]
    recreate = defaulted("apps", "Deployment", spec={"strategy": {"type": "Recreate"}})
    assert recreate["spec"]["strategy"] == {"type": "Recreate"}


def test_zero_replicas_stay_zero() -> None:
    assert defaulted("apps", "Deployment", spec={"replicas": 0})["spec"]["replicas"] == 0


def test_a_service() -> None:
    spec = defaulted("", "Service", spec={"ports": [{"port": 80}]})["spec"]
    assert spec == {
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        "sessionAffinity": "None",
        "type": "ClusterIP",
        "internalTrafficPolicy": "Cluster",
    }
    spec = defaulted("", "Service", spec={"type": "LoadBalancer", "sessionAffinity": "ClientIP"})[
        "spec"
    ]
    assert spec["externalTrafficPolicy"] == "Cluster"
    assert spec["allocateLoadBalancerNodePorts"] is True
    assert spec["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}


def test_policy_types_follow_the_rules() -> None:
    group = "networking.k8s.io"
    for spec, types in (
        ({}, ["Ingress"]),
        ({"egress": []}, ["Ingress"]),
        ({"egress": [{}]}, ["Ingress", "Egress"]),
        ({"policyTypes": ["Egress"]}, ["Egress"]),
    ):
        out = defaulted(group, "NetworkPolicy", spec=spec)["spec"]
        assert out["policyTypes"] == types
        assert out["podSelector"] == {}


def test_a_job_a_cron_job_and_a_namespace() -> None:
    job = defaulted("batch", "Job", spec={})["spec"]
    counts = [job[key] for key in ("completions", "parallelism", "backoffLimit")]
    assert counts == [1, 1, 6]
    work_queue = defaulted("batch", "Job", spec={"parallelism": 2})["spec"]
    assert "completions" not in work_queue
    cron = defaulted("batch", "CronJob", spec={})["spec"]
    assert cron["concurrencyPolicy"] == "Allow"
    namespace = defaulted("", "Namespace", metadata={"name": "a"})
    assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": "a"}
    assert namespace["spec"]["finalizers"] == ["kubernetes"]
    assert namespace["status"]["phase"] == "Active"


@pytest.mark.parametrize("gvk", sorted(builtin_kinds()))
def test_defaults_are_idempotent_and_fit_the_schema(gvk: tuple[str, str, str]) -> None:
    group, version, kind = gvk
    if kind.endswith("List"):
        return
    obj: dict[str, Any] = {"apiVersion": f"{group}/{version}" if group else version, "kind": kind}
    apply_defaults(group, kind, obj)
    once = copy.deepcopy(obj)
    apply_defaults(group, kind, obj)
    assert obj == once
    schema = builtin(*gvk)
    assert schema is not None
    decoded, _ = decode_object(obj, schema, group=group, version=version, kind=kind)
    assert decoded["kind"] == kind
