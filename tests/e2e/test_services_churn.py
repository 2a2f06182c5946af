"""Services, endpoints and processes come and go at random; afterwards every node's kernel is as if
an agent had compiled the last state from nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import service_fresh
from aiohttp import ClientError
from labtools import Tools

from podwire.client import PatchType
from podwire.errors import ApiError, PodwireError
from podwire.kernel import guard
from podwire.lab import Lab
from podwire.objects import kinds

NODES = ("node-1", "node-2", "node-3")
SERVICES = 12
# `./test --all` churns for five minutes.
CHURN_S = 300.0 if os.environ.get("PODWIRE_ALL") == "1" else 15.0
_PORTS = (
    {"name": "http", "port": 80, "targetPort": 8080},
    {"name": "udp", "port": 80, "protocol": "UDP", "targetPort": 8081},
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("churn", nodes=3, ip_family="dual") as lab:
        for number in range(3):
            lab.call(lambda api, n=number: api.create(kinds.DEPLOYMENT, deployment(n), "default"))
        lab.wait_ready(60)
        yield lab


def deployment(number: int) -> dict[str, Any]:
    app = {"app": f"app-{number}"}
    ports = [{"containerPort": 8080}, {"containerPort": 8081, "protocol": "UDP"}]
    host = {"containerPort": 8082, "hostPort": 8082 + number}
    container = {"name": "main", "image": "example.com/x:1", "ports": [*ports, host]}
    template = {"terminationGracePeriodSeconds": 1, "containers": [container]}
    return {
        "metadata": {"name": app["app"]},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": app},
            "template": {"metadata": {"labels": app}, "spec": template},
        },
    }


def service(name: str, chance: random.Random) -> dict[str, Any]:
    kind = chance.choice(["ClusterIP", "NodePort", "LoadBalancer"])
    spec: dict[str, Any] = {
        "type": kind,
        "selector": {"app": f"app-{chance.randrange(4)}"},
        "ports": list(_PORTS[: chance.randint(1, 2)]),
        "ipFamilyPolicy": chance.choice(["SingleStack", "PreferDualStack"]),
        "sessionAffinity": chance.choice(["None", "None", "ClientIP"]),
        "internalTrafficPolicy": chance.choice(["Cluster", "Cluster", "Local"]),
    }
    if kind != "ClusterIP":
        spec["externalTrafficPolicy"] = chance.choice(["Cluster", "Local"])
    if kind == "LoadBalancer":
        spec["loadBalancerSourceRanges"] = chance.choice([[], ["203.0.113.0/24", "10.0.0.0/8"]])
    balancing = chance.choice(["random", "random", "maglev"])
    annotations = {"networking.podwire.dev/balancing": balancing}
    return {"metadata": {"name": name, "annotations": annotations}, "spec": spec}


def change(lab: Lab, chance: random.Random) -> None:
    """One random change; what the moment does not allow is left out."""
    name = f"svc-{chance.randrange(SERVICES)}"
    what = chance.choice(["create", "create", "delete", "replace", "scale", "policy"])
    if what in ("delete", "replace"):
        lab.call(lambda api: api.delete(kinds.SERVICE, name, "default"))
    if what in ("create", "replace"):
        lab.call(lambda api: api.create(kinds.SERVICE, service(name, chance), "default"))
    if what == "scale":
        patch(lab, kinds.DEPLOYMENT, f"app-{chance.randrange(3)}", replicas=chance.randrange(4))
    if what == "policy":
        wish = chance.choice(["None", "ClientIP"])
        patch(lab, kinds.SERVICE, name, sessionAffinity=wish, sessionAffinityConfig=None)


def patch(lab: Lab, kind: Any, name: str, **spec: Any) -> None:
    body = {"spec": spec}
    lab.call(lambda api: api.patch(kind, name, body, "default", patch_type=PatchType.MERGE))


def objects_of(lab: Lab) -> bytes:
    def every(path: str) -> Any:
        return json.loads(lab.call(lambda api: api.request("GET", path)))["items"]

    pools = lab.spec.pools()
    return json.dumps(
        {
            "services": every("/api/v1/services"),
            "slices": every("/apis/discovery.k8s.io/v1/endpointslices"),
            "nodes": every("/api/v1/nodes"),
            "pods": every("/api/v1/pods"),
            "pools": [(str(r.first), str(r.last)) for r in (*pools.external, *pools.internal)],
        }
    ).encode()


def wrong(lab: Lab, tools: Tools, scratch: Path) -> list[str]:
    """Every difference between a node's kernel and a fresh compile."""
    file = scratch / "objects.json"
    file.write_bytes(objects_of(lab))
    # The script does not begin in the host's namespaces, and so has to be told which those are.
    told = [f"{name}={value}" for name, value in guard.environment().items()]
    command = ("env", *told, sys.executable, service_fresh.__file__)
    found = [(n, tools.inside(lab, n, *command, n, str(file)).splitlines()) for n in NODES]
    return [f"{node}: {line}" for node, lines in found for line in lines]


@pytest.mark.parametrize("seed", [1, 2])
def test_after_churn_the_kernel_is_as_compiled_anew(
    lab: Lab, tools: Tools, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    victims = ["apiserver", "controllers", *(f"agent-{node}" for node in NODES)]
    end, due = time.monotonic() + CHURN_S, 0.0
    while time.monotonic() < end:
        # Refused while the API server is away, or because the object is there (or is not).
        with contextlib.suppress(ApiError, PodwireError, ClientError):
            change(lab, chance)
        if time.monotonic() > due:
            pid = tools.pids(lab)[chance.choice(victims)]
            if pid:
                os.kill(pid, signal.SIGKILL)
            due = time.monotonic() + chance.uniform(0.2, 2)
    tools.wait(lambda: lab.wait_ready(30).complete, 60)
    tools.podwire("wait", "services", "--lab", lab.name)

    def none_wrong() -> bool:
        found = wrong(lab, tools, tmp_path)
        assert not found, "\n".join(found[:20])
        return True

    tools.wait(none_wrong)
