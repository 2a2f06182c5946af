"""What tests of load balancer addresses share: pods on every node, Services before them, cables."""

from __future__ import annotations

from typing import Any

import yaml
from labtools import Tools
from outsideclient import run_in

from podwire.lab import Lab
from podwire.objects import kinds

NODES = ("node-1", "node-2", "node-3")


def workload(kind: str, name: str, **pod: Any) -> dict[str, Any]:
    """Pods labelled `app: NAME` that answer on port 8080."""
    container = {
        "name": "main",
        "image": "example.com/web:1",
        "ports": [{"containerPort": 8080}],
    }
    labels = {"app": name}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container]} | pod
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def balancer(
    name: str, app: str = "", annotations: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    """A Service of type LoadBalancer, port 80, before the pods of `app` (its own name)."""
    common = {
        "type": "LoadBalancer",
        "selector": {"app": app or name},
        "ports": [{"port": 80, "targetPort": 8080}],
    }
    metadata = {"name": name, "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": common | spec}


def apply(lab: Lab, *objects: dict[str, Any]) -> None:
    lab.apply_text(yaml.safe_dump_all(objects))


def addresses(lab: Lab, tools: Tools, name: str) -> list[str]:
    """The Service's addresses, once it has them."""
    ingress = tools.wait(
        lambda: (
            lab.call(
                lambda api: api.get(kinds.SERVICE, name, "default")
            ).status.load_balancer.ingress
        )
    )
    return [entry.ip for entry in ingress]


def wire(lab: Lab, node: str, state: str) -> None:
    """Plug a node's cable out (`down`) or in (`up`)."""
    spec = lab.spec.node(node)
    assert spec is not None
    run_in(lab, "", "ip", "link", "set", f"n{spec.number}", state)
