"""What a cluster adds to or forbids of a write, beyond the object's own rules.

A table of small functions in the order they run. Each gets the write's `Attributes` and changes
`obj` in place or raises. Webhooks, quotas and policies become rows here.

Source: plugin/pkg/admission/* of Kubernetes 1.33, under the plug-ins' names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from podwire.apiserver.context import Context
from podwire.apiserver.registry import Resource
from podwire.apiserver.request import User, not_found
from podwire.apiserver.strategy import generated_name
from podwire.errors import Cause, ForbiddenError
from podwire.objects.meta import JsonObject, Key


@dataclass(frozen=True)
class Attributes:
    """One write on its way to the store; `obj` is None for deletes, `old` for creates."""

    operation: str
    resource: Resource
    namespace: str
    name: str
    subresource: str
    obj: JsonObject | None
    old: JsonObject | None
    user: User
    dry_run: bool

    def forbidden(self, why: str, *causes: Cause) -> ForbiddenError:
        return ForbiddenError(
            f'{self.resource.qualified} "{self.name}" is forbidden: {why}',
            causes=causes,
            details={"name": self.name, "kind": self.resource.plural}
            | ({"group": self.resource.group} if self.resource.group else {}),
        )


Plugin = Callable[[Context, Attributes], None]

IMMORTAL = frozenset({"default", "kube-system", "kube-public"})
PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
TOLERATION_S = 300
TOKEN_VOLUME = "kube-api-access-"
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_NAMESPACE_FIELD = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
_TOKEN_SOURCES: JsonObject = {
    "sources": [
        # An hour and seven seconds: upstream's mark of tokens that nobody asked for.
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {
            "configMap": {
                "name": "kube-root-ca.crt",
                "items": [{"key": "ca.crt", "path": "ca.crt"}],
            }
        },
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": _NAMESPACE_FIELD}]}},
    ],
    "defaultMode": 420,
}
_NOT_READY = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def namespace_lifecycle(ctx: Context, attributes: Attributes) -> None:
    """Creates need a namespace that exists and stays; three namespaces cannot be deleted."""
    resource = attributes.resource
    if attributes.operation == "DELETE":
        if resource.storage == "namespaces" and attributes.name in IMMORTAL:
            raise attributes.forbidden("this namespace may not be deleted")
        return
    if attributes.operation != "CREATE" or not resource.namespaced:
        return
    namespaces = ctx.registry.find("", "v1", "namespaces")
    assert namespaces is not None
    record = ctx.latest(namespaces, "", attributes.namespace)
    if record is None:
        raise not_found(namespaces, attributes.namespace)
    if record.deleting and resource.storage != "events":
        why = f"namespace {attributes.namespace} is being terminated"
        raise attributes.forbidden(
            f"unable to create new content in namespace {attributes.namespace} "
            "because it is being terminated",
            Cause("NamespaceTerminating", why, "metadata.namespace"),
        )


def service_account(ctx: Context, attributes: Attributes) -> None:
    """Every pod has a ServiceAccount, `default` where it names none, and a token of it.

    `default` may be missing: it is made a moment after its namespace, and upstream waits for it.
    """
    if (spec := _new_pod_spec(attributes)) is None:
        return
    name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    spec["serviceAccountName"] = spec["serviceAccount"] = name
    table = ctx.builtin_table("", "v1", "serviceaccounts")
    record = ctx.store.latest(table, Key(attributes.namespace, name))
    if record is None and name != "default":
        raise attributes.forbidden(
            f"error looking up service account {attributes.namespace}/{name}: "
            f'serviceaccount "{name}" not found'
        )
    account = record.object() if record is not None else {}
    automount = spec.get("automountServiceAccountToken")
    if automount is None:
        automount = account.get("automountServiceAccountToken", True)
    if automount:
        _mount_token(spec)
    if account.get("imagePullSecrets") and not spec.get("imagePullSecrets"):
        spec["imagePullSecrets"] = account["imagePullSecrets"]


def _mount_token(spec: JsonObject) -> None:
    """Mount the account's token in every container that has nothing at its path."""
    volumes = spec.get("volumes") or []
    present = next((v["name"] for v in volumes if v.get("name", "").startswith(TOKEN_VOLUME)), None)
    name = present or generated_name(TOKEN_VOLUME)
    mount = {"name": name, "readOnly": True, "mountPath": TOKEN_PATH}
    used = False
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        mounts = container.get("volumeMounts") or []
        if all(other.get("mountPath") != TOKEN_PATH for other in mounts):
            container["volumeMounts"] = [*mounts, mount]
            used = True
    if used and present is None:
        spec["volumes"] = [*volumes, {"name": name, "projected": _TOKEN_SOURCES}]


def default_toleration_seconds(ctx: Context, attributes: Attributes) -> None:
    """Pods stay 300 s on a node that is not ready or unreachable."""
    if (spec := _new_pod_spec(attributes)) is None:
        return
    tolerations = list(spec.get("tolerations") or ())
    for key in _NOT_READY:
        if not any(t.get("key") in (key, None, "") and _no_execute(t) for t in tolerations):
            tolerations.append(
                {
                    "key": key,
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": TOLERATION_S,
                }
            )
    spec["tolerations"] = tolerations


def _no_execute(toleration: JsonObject) -> bool:
    return toleration.get("effect") in ("NoExecute", None, "")


def priority(ctx: Context, attributes: Attributes) -> None:
    """priorityClassName becomes a number, 0 without one."""
    if (spec := _new_pod_spec(attributes)) is None:
        return
    name, value, policy = spec.get("priorityClassName", ""), 0, "PreemptLowerPriority"
    if name in PRIORITIES:
        value = PRIORITIES[name]
    elif name:
        table = ctx.builtin_table("scheduling.k8s.io", "v1", "priorityclasses")
        record = ctx.store.latest(table, Key("", name))
        if record is None:
            raise attributes.forbidden(f"no PriorityClass with name {name} was found")
        found = record.object()
        value = found.get("value", 0)
        policy = found.get("preemptionPolicy", policy)
    spec["priority"] = value
    spec.setdefault("preemptionPolicy", policy)


def default_ingress_class(ctx: Context, attributes: Attributes) -> None:
    """An Ingress without a class gets the one marked as default."""
    if attributes.operation != "CREATE" or attributes.obj is None:
        return
    if attributes.resource.storage != "networking.k8s.io/ingresses":
        return
    spec = attributes.obj.setdefault("spec", {})
    annotations = attributes.obj["metadata"].get("annotations") or {}
    if spec.get("ingressClassName") or "kubernetes.io/ingress.class" in annotations:
        return
    table = ctx.builtin_table("networking.k8s.io", "v1", "ingressclasses")
    marked = [r.key.name for r in table.snapshot() if _is_default_class(r.object())]
    if marked:
        spec["ingressClassName"] = marked[0]


def _is_default_class(obj: JsonObject) -> bool:
    annotations = obj["metadata"].get("annotations") or {}
    return annotations.get("ingressclass.kubernetes.io/is-default-class") == "true"


def _new_pod_spec(attributes: Attributes) -> JsonObject | None:
    if attributes.operation != "CREATE" or attributes.resource.storage != "pods":
        return None
    if attributes.obj is None or attributes.subresource:
        return None
    spec: JsonObject = attributes.obj["spec"]
    return spec


MUTATING: tuple[Plugin, ...] = (
    namespace_lifecycle,
    service_account,
    default_toleration_seconds,
    priority,
    default_ingress_class,
)
VALIDATING: tuple[Plugin, ...] = ()


def mutate(ctx: Context, attributes: Attributes) -> None:
    for plugin in MUTATING:
        plugin(ctx, attributes)


def check(ctx: Context, attributes: Attributes) -> None:
    for plugin in VALIDATING:
        plugin(ctx, attributes)
