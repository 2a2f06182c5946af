"""What a write is answered with although it is accepted: the Warning headers of the service kinds
and of NetworkPolicy.

Source: pkg/api/service/warnings.go, pkg/registry/core/endpoint/strategy.go,
pkg/registry/discovery/endpointslice/strategy.go,
pkg/registry/networking/networkpolicy/strategy.go; KEP-4858, KEP-4974, KEP-5707.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from podwire.apiserver.ipsyntax import cidr_warnings, ip_warnings
from podwire.apiserver.service_families import NONE
from podwire.apiserver.validation.network import policy_cidrs
from podwire.apiserver.validation.service import TOPOLOGY_HINTS, TOPOLOGY_MODE

Raw = dict[str, Any]
_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
_CONTROLLERS = frozenset(
    {"endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"}
)
"""Their slices are many and well written, and nobody reads the answers."""


def write_warnings(storage: str, obj: Raw) -> tuple[str, ...]:
    """Warnings for an object that is about to be stored."""
    warn = _WARN.get(storage)
    return tuple(warn(obj)) if warn is not None else ()


def _service(obj: Raw) -> Iterator[str]:
    spec = obj.get("spec") or {}
    kind, headless = spec.get("type"), spec.get("clusterIP") == NONE
    if TOPOLOGY_HINTS in (obj["metadata"].get("annotations") or {}):
        yield f"annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"
    if not headless and kind != "ExternalName":
        yield from _addresses(spec, "clusterIPs")
    if headless and kind == "ClusterIP":
        if spec.get("loadBalancerIP"):
            yield "spec.loadBalancerIP is ignored for headless services"
        if spec.get("externalIPs"):
            yield "spec.externalIPs is ignored for headless services"
        if spec.get("sessionAffinity") != "None":
            yield "spec.SessionAffinity is ignored for headless services"
    yield from _addresses(spec, "externalIPs")
    if spec.get("externalIPs") and not headless and kind != "ExternalName":
        yield "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
    if spec.get("loadBalancerIP"):
        yield from ip_warnings("spec.loadBalancerIP", spec["loadBalancerIP"])
    for index, text in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        yield from cidr_warnings(f"spec.loadBalancerSourceRanges[{index}]", text)
    if kind == "ExternalName" and spec.get("externalIPs"):
        yield 'spec.externalIPs is ignored when spec.type is "ExternalName"'
    if kind != "ExternalName" and spec.get("externalName"):
        yield 'spec.externalName is ignored when spec.type is not "ExternalName"'
    if spec.get("trafficDistribution") == "PreferClose":
        yield 'spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"'


def _addresses(spec: Raw, key: str) -> Iterator[str]:
    for index, text in enumerate(spec.get(key) or ()):
        yield from ip_warnings(f"spec.{key}[{index}]", text)


def _endpoints(obj: Raw) -> Iterator[str]:
    for index, subset in enumerate(obj.get("subsets") or ()):
        for key in ("addresses", "notReadyAddresses"):
            for below, row in enumerate(subset.get(key) or ()):
                at = f"subsets[{index}].{key}[{below}].ip"
                yield from ip_warnings(at, row.get("ip") or "")


def _endpoint_slice(obj: Raw) -> Iterator[str]:
    if obj.get("addressType") == "FQDN":
        yield "spec.addressType: FQDN endpoints are deprecated"
    if (obj["metadata"].get("labels") or {}).get(_MANAGED_BY) in _CONTROLLERS:
        return
    for index, row in enumerate(obj.get("endpoints") or ()):
        for below, text in enumerate(row.get("addresses") or ()):
            yield from ip_warnings(f"endpoints[{index}].addresses[{below}]", text)


def _network_policy(obj: Raw) -> Iterator[str]:
    for path, text in policy_cidrs(obj):
        yield from cidr_warnings(path, text)


_WARN: dict[str, Callable[[Raw], Iterator[str]]] = {
    "services": _service,
    "endpoints": _endpoints,
    "discovery.k8s.io/endpointslices": _endpoint_slice,
    "networking.k8s.io/networkpolicies": _network_policy,
}
