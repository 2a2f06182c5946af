"""Cluster DNS as a lab has it: the objects a cluster's installer would apply, in kube-system.

    spec -> documents (pure) -> ensure: created where missing, never changed

They carry the names and labels every cluster has (`k8s-app: kube-dns`, Service `kube-dns`), so that
policies and dashboards written for one work here. Only the image is podwire's own. What is there
already is the user's: an edited Corefile outlives `up`. Source: coredns/deployment
kubernetes/coredns.yaml.sed, kubernetes cluster/addons/dns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, Final

from podwire.client import Api
from podwire.errors import AlreadyExistsError, InvalidError, NotFoundError
from podwire.lab.spec import LabSpec
from podwire.objects import kinds
from podwire.objects.meta import Kind, Object

NAMESPACE: Final = "kube-system"
DEPLOYMENT: Final = "coredns"
SERVICE: Final = "kube-dns"
IMAGE: Final = "podwire.dev/dns"
_LABELS: Final = {"k8s-app": "kube-dns"}
_NAMED: Final = _LABELS | {"kubernetes.io/name": "CoreDNS"}
_RBAC: Final = "rbac.authorization.k8s.io"
_ROLE: Final = "system:coredns"

COREFILE: Final = """\
.:53 {
    errors
    health {
        lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }
    prometheus :9153
    forward . /etc/resolv.conf {
        max_concurrent 1000
    }
    cache 30
    loop
    reload
    loadbalance
}
"""

Document = dict[str, Any]
_CLUSTER_ROLE: Final = Kind(_RBAC, "v1", "ClusterRole", "clusterroles", False, Object)
_CLUSTER_ROLE_BINDING: Final = Kind(
    _RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", False, Object
)


def render_addon(spec: LabSpec) -> list[tuple[Kind[Any], Document]]:
    """Everything but the Deployment first, which needs its account and its ConfigMap."""
    account = {"kind": "ServiceAccount", "name": DEPLOYMENT, "namespace": NAMESPACE}
    return [
        (kinds.SERVICE_ACCOUNT, {"metadata": _meta(DEPLOYMENT)}),
        (
            _CLUSTER_ROLE,
            {
                "metadata": {"name": _ROLE},
                "rules": [
                    _rule("", "endpoints", "services", "pods", "namespaces"),
                    _rule("discovery.k8s.io", "endpointslices"),
                ],
            },
        ),
        (
            _CLUSTER_ROLE_BINDING,
            {
                "metadata": {"name": _ROLE},
                "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": _ROLE},
                "subjects": [account],
            },
        ),
        (kinds.CONFIG_MAP, {"metadata": _meta(DEPLOYMENT), "data": {"Corefile": COREFILE}}),
        (kinds.SERVICE, _service(spec)),
        (kinds.DEPLOYMENT, _deployment()),
    ]


def _meta(name: str, labels: Mapping[str, str] | None = None, **more: Any) -> Document:
    found: Document = {"name": name, "namespace": NAMESPACE, **more}
    return found | ({"labels": dict(labels)} if labels else {})


def _rule(group: str, *resources: str) -> Document:
    return {"apiGroups": [group], "resources": list(resources), "verbs": ["list", "watch"]}


def _service(spec: LabSpec) -> Document:
    addresses = [str(address) for address in spec.cluster_dns]
    labels = _NAMED | {"kubernetes.io/cluster-service": "true"}
    scraped = {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"}
    return {
        "metadata": _meta(SERVICE, labels, annotations=scraped),
        "spec": {
            "selector": _LABELS,
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": [f"IPv{family}" for family in spec.families],
            "ipFamilyPolicy": "RequireDualStack" if len(addresses) > 1 else "SingleStack",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                {"name": "metrics", "port": 9153, "protocol": "TCP"},
            ],
        },
    }


def _deployment() -> Document:
    return {
        "metadata": _meta(DEPLOYMENT, _NAMED),
        "spec": {
            "replicas": 2,
            # One at a time, the new one first: there are never fewer than two that answer.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
            "selector": {"matchLabels": _LABELS},
            "template": {"metadata": {"labels": _LABELS}, "spec": _pod_spec()},
        },
    }


def _pod_spec() -> Document:
    config = {"name": DEPLOYMENT, "items": [{"key": "Corefile", "path": "Corefile"}]}
    return {
        "priorityClassName": "system-cluster-critical",
        "serviceAccountName": DEPLOYMENT,
        "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "affinity": {"podAntiAffinity": _apart()},
        # Its own names come from the node: asking itself would be a loop.
        "dnsPolicy": "Default",
        "containers": [_container()],
        "volumes": [{"name": "config-volume", "configMap": config}],
    }


def _apart() -> Document:
    selector = {"matchExpressions": [{"key": "k8s-app", "operator": "In", "values": ["kube-dns"]}]}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    wish = {"weight": 100, "podAffinityTerm": term}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}


def _container() -> Document:
    ports = (("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9153, "TCP"))
    probed = (("liveness-probe", 8080, "TCP"), ("readiness-probe", 8181, "TCP"))
    return {
        "name": DEPLOYMENT,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "resources": {
            "limits": {"memory": "170Mi"},
            "requests": {"cpu": "100m", "memory": "70Mi"},
        },
        "volumeMounts": [
            {"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": True}
        ],
        "ports": [
            {"name": name, "containerPort": port, "protocol": protocol}
            for name, port, protocol in (*ports, *probed)
        ],
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": "liveness-probe", "scheme": "HTTP"},
            "initialDelaySeconds": 60,
            "timeoutSeconds": 5,
            "failureThreshold": 5,
        },
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": "readiness-probe", "scheme": "HTTP"},
            "timeoutSeconds": 5,
            "periodSeconds": 2,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }  # fmt: skip


async def ensure_addon(api: Api, spec: LabSpec, nodes_ready: Awaitable[None]) -> None:
    """Create what is missing; the pods once there are nodes, or all would be on the first."""
    *first, last = render_addon(spec)
    await asyncio.gather(nodes_ready, *(_create(api, kind, document) for kind, document in first))
    await _create(api, *last)


async def _create(api: Api, kind: Kind[Any], document: Document) -> None:
    meta = document["metadata"]
    try:
        await api.create(kind, document)
    except AlreadyExistsError:
        return
    except InvalidError:
        # A Service's address is allocated before its name is looked up: it may have its own.
        try:
            await api.get(kind, meta["name"], meta.get("namespace", ""))
        except NotFoundError:
            pass
        else:
            return
        raise
