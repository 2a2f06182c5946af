"""Which ConfigMaps and Secrets a pod refers to, for its volumes and for its environment."""

from __future__ import annotations

import msgspec
import pytest

from podwire.objects.core import Pod
from podwire.runtime.references import Reference, references_of

SPEC = {
    "containers": [
        {
            "name": "c",
            "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "env-map", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "env-secret", "key": "k"}}},
                {"name": "C", "value": "plain"},
            ],
            "envFrom": [{"configMapRef": {"name": "all-map"}}],
        }
    ],
    "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "all-secret"}}]}],
    "volumes": [
        {"name": "scratch", "emptyDir": {}},
        {"name": "conf", "configMap": {"name": "map"}},
        {"name": "keys", "secret": {"secretName": "secret"}},
        {
            "name": "kube-api-access-x",
            "projected": {
                "sources": [
                    {"serviceAccountToken": {"path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt"}},
                    {"secret": {"name": "projected"}},
                ]
            },
        },
    ],
}
MOUNTED = {
    Reference("configmaps", "shop", "map"),
    Reference("secrets", "shop", "secret"),
    Reference("configmaps", "shop", "kube-root-ca.crt"),
    Reference("secrets", "shop", "projected"),
}
NAMED = {
    Reference("configmaps", "shop", "env-map"),
    Reference("secrets", "shop", "env-secret"),
    Reference("configmaps", "shop", "all-map"),
    Reference("secrets", "shop", "all-secret"),
}


@pytest.mark.parametrize(("mounted_only", "found"), [(True, MOUNTED), (False, MOUNTED | NAMED)])
def test_every_place_that_names_one_is_read(mounted_only: bool, found: set[Reference]) -> None:
    body = {"metadata": {"name": "p", "namespace": "shop"}, "spec": SPEC}
    pod = msgspec.convert(body, Pod)
    assert references_of(pod, mounted_only=mounted_only) == found
