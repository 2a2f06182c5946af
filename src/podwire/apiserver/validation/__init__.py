"""Semantic validation: Kubernetes' rules, field paths and texts, per kind.

    validate_create(kind, obj) --> [FieldError] --invalid()--> the 422 that kubectl prints

Objects come here decoded and defaulted. `_KINDS` names each kind's rule for its name, and its own
validator, which gets the old object on updates. Kinds without one have their metadata checked only,
and so have most status updates (`_STATUS`). Custom resources are checked against their schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import FieldError, invalid
from podwire.apiserver.ipsyntax import ip_problems
from podwire.apiserver.schema import Schema
from podwire.apiserver.validation import (
    addresses,
    config,
    crd,
    crdrules,
    cronjobs,
    endpoints,
    jobs,
    network,
    pod,
    podupdate,
    service,
    workloads,
)
from podwire.apiserver.validation.meta import (
    NameRule,
    path_segment,
    validate_meta,
    validate_meta_update,
)

__all__ = ["FieldError", "invalid", "validate_create", "validate_update"]

Raw = dict[str, Any]
Validator = Callable[[Raw, Raw | None], list[FieldError]]


def _metadata_only(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    return []


def _pod(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    return pod.validate_pod(obj) if old is None else podupdate.validate_pod_update(obj, old)


@dataclass(frozen=True)
class _Rules:
    validate: Validator = _metadata_only
    name: NameRule = names.is_dns_subdomain
    namespaced: bool | None = True


def _cluster(
    validate: Validator = _metadata_only, name: NameRule = names.is_dns_subdomain
) -> _Rules:
    return _Rules(validate, name, False)


_RBAC = "rbac.authorization.k8s.io"
_NETWORKING = "networking.k8s.io"
_KINDS: dict[tuple[str, str], _Rules] = {
    ("", "Pod"): _Rules(_pod),
    ("", "Service"): _Rules(service.validate_service, names.is_dns_1035_label),
    ("", "Endpoints"): _Rules(endpoints.validate_endpoints),
    ("", "Namespace"): _cluster(config.validate_namespace, names.is_dns_label),
    ("", "Node"): _cluster(config.validate_node),
    ("", "PersistentVolume"): _cluster(),
    ("", "ConfigMap"): _Rules(config.validate_config_map),
    ("", "Secret"): _Rules(config.validate_secret),
    ("", "PersistentVolumeClaim"): _Rules(config.validate_claim),
    ("apps", "Deployment"): _Rules(workloads.validate_deployment),
    ("apps", "ReplicaSet"): _Rules(workloads.validate_replica_set),
    ("apps", "StatefulSet"): _Rules(workloads.validate_stateful_set),
    ("apps", "DaemonSet"): _Rules(workloads.validate_daemon_set),
    ("batch", "Job"): _Rules(jobs.validate_job),
    ("batch", "CronJob"): _Rules(cronjobs.validate_cron_job),
    ("autoscaling", "HorizontalPodAutoscaler"): _Rules(config.validate_autoscaler),
    ("policy", "PodDisruptionBudget"): _Rules(config.validate_budget),
    ("coordination.k8s.io", "Lease"): _Rules(config.validate_lease),
    ("discovery.k8s.io", "EndpointSlice"): _Rules(endpoints.validate_endpoint_slice),
    (_NETWORKING, "NetworkPolicy"): _Rules(network.validate_network_policy),
    (_NETWORKING, "Ingress"): _Rules(network.validate_ingress),
    (_NETWORKING, "IngressClass"): _cluster(network.validate_ingress_class),
    (_NETWORKING, "IPAddress"): _cluster(addresses.validate_ip_address, ip_problems),
    (_NETWORKING, "ServiceCIDR"): _cluster(addresses.validate_service_cidr),
    (_RBAC, "Role"): _Rules(name=path_segment),
    (_RBAC, "RoleBinding"): _Rules(name=path_segment),
    (_RBAC, "ClusterRole"): _cluster(name=path_segment),
    (_RBAC, "ClusterRoleBinding"): _cluster(name=path_segment),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _cluster(crd.validate_crd),
}
_ANY_KIND = _Rules(namespaced=None)
_STATUS: dict[tuple[str, str], Callable[[Raw, Raw], list[FieldError]]] = {
    ("", "Service"): service.validate_service_status,
}
"""What is looked at in an update of a built-in kind's status, besides its metadata."""
_EXTENSION_GROUPS = frozenset({"apiextensions.k8s.io", "apiregistration.k8s.io"})
"""Groups outside k8s.io/kubernetes: like custom kinds, theirs are not held to core's own rules."""


def _group(obj: Raw) -> str:
    group, slash, _ = (obj.get("apiVersion") or "").rpartition("/")
    return group if slash else ""


def _rules(kind: str, obj: Raw) -> _Rules:
    return _KINDS.get((_group(obj), kind), _ANY_KIND)


def _is_core(obj: Raw, schema: Schema | None) -> bool:
    return not (schema is not None and schema.custom) and _group(obj) not in _EXTENSION_GROUPS


def _custom(obj: Raw, schema: Schema) -> list[FieldError]:
    errors = crd.validate_value(obj, schema)
    return errors + crdrules.validate_rules(obj, schema, errors)


def validate_create(
    kind: str, obj: dict[str, Any], schema: Schema | None = None
) -> list[FieldError]:
    """What forbids creating a defaulted object; empty when nothing does.

    The group is read from the object's apiVersion. `schema` is needed for custom resources only.
    """
    rules = _rules(kind, obj)
    out = validate_meta(
        obj.get("metadata") or {}, rules.name, rules.namespaced, core=_is_core(obj, schema)
    )
    if schema is not None and schema.custom:
        return out + _custom(obj, schema)
    return out + rules.validate(obj, None)


def validate_update(
    kind: str,
    new: dict[str, Any],
    old: dict[str, Any],
    schema: Schema | None = None,
    *,
    subresource: str = "",
) -> list[FieldError]:
    """What forbids replacing `old` by `new` (both defaulted).

    A built-in kind's subresource (status, scale) has its metadata checked, and what `_STATUS` says.
    """
    out = validate_meta_update(
        new.get("metadata") or {}, old.get("metadata") or {}, core=_is_core(new, schema)
    )
    if schema is not None and schema.custom:
        return out + _custom(new, schema)
    if subresource:
        check = _STATUS.get((_group(new), kind)) if subresource == "status" else None
        return out if check is None else out + check(new, old)
    return out + _rules(kind, new).validate(new, old)
