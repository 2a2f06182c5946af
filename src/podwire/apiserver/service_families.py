"""What a Service's own fields say of each other: pure, no allocator is asked.

    keep_allocated   an update that leaves assigned values out keeps them
    normalize        clusterIP <-> clusterIPs
    drop_dependent   a change of type drops what the new type cannot have
    init_families    ipFamilyPolicy and ipFamilies from each other, the addresses and the cluster

`spec` is changed in place; `old` is the stored spec, None on create.
Source: pkg/registry/core/service/{strategy.go,storage/storage.go,storage/alloc.go}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from podwire.apiserver.fields import FieldError, go_strings, invalid_value
from podwire.apiserver.ipsyntax import family_of
from podwire.apiserver.validation.service import nullable, validate_cluster_ips

Spec = dict[str, Any]

NONE = "None"
_BOTH = ("IPv4", "IPv6")
_POLICY = "spec.ipFamilyPolicy"


def is_headless(spec: Spec) -> bool:
    return spec.get("clusterIP") == NONE or list(spec.get("clusterIPs") or ())[:1] == [NONE]


def needs_cluster_ip(spec: Spec) -> bool:
    return spec.get("type") != "ExternalName"


def exposes_nodes(spec: Spec) -> bool:
    """Whether the type can have node ports."""
    return spec.get("type") in ("NodePort", "LoadBalancer")


def wants_node_ports(spec: Spec) -> bool:
    """Whether node ports are assigned unasked (KEP-1864)."""
    if spec.get("type") == "LoadBalancer":
        return spec.get("allocateLoadBalancerNodePorts") is not False
    return spec.get("type") == "NodePort"


def needs_health_check(spec: Spec) -> bool:
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def externally_accessible(spec: Spec) -> bool:
    return exposes_nodes(spec) or bool(spec.get("type") == "ClusterIP" and spec.get("externalIPs"))


def addresses_of(spec: Spec) -> list[str]:
    """The texts of the cluster IPs a Service has, none for headless ones."""
    if not needs_cluster_ip(spec) or is_headless(spec):
        return []
    return list(spec.get("clusterIPs") or ())


def node_ports_of(spec: Spec) -> list[int]:
    """None for types without: what an ExternalName Service names is not its own."""
    ports = (spec.get("ports") or ()) if exposes_nodes(spec) else ()
    return list(dict.fromkeys(port["nodePort"] for port in ports if port.get("nodePort")))


def ports_of(spec: Spec) -> list[int]:
    """Every number of the node port range a Service has, each once."""
    ports = node_ports_of(spec)
    if needs_health_check(spec) and spec.get("healthCheckNodePort"):
        ports.append(spec["healthCheckNodePort"])
    return list(dict.fromkeys(ports))


def _set(spec: Spec, key: str, value: Any) -> None:
    """Empty is absent."""
    if value:
        spec[key] = value
    else:
        spec.pop(key, None)


def _same(new: Spec, old: Spec, *keys: str) -> bool:
    return all((new.get(key) or None) == (old.get(key) or None) for key in keys)


# -- updates that say less than is stored --------------------------------------------------------


def keep_allocated(new: Spec, old: Spec) -> None:
    """`patchAllocatedValues`: the same manifest again must not fail or reassign."""
    if needs_cluster_ip(old) and needs_cluster_ip(new):
        for key in ("clusterIP", "clusterIPs"):
            if not new.get(key) and old.get(key):
                new[key] = old[key]
    if wants_node_ports(old) and wants_node_ports(new):
        _keep_node_ports(new, old)
    if needs_health_check(old) and needs_health_check(new) and not new.get("healthCheckNodePort"):
        _set(new, "healthCheckNodePort", old.get("healthCheckNodePort"))


def _keep_node_ports(new: Spec, old: Spec) -> None:
    """By port name, and not where the number already serves another port of the new object."""
    before = [port["nodePort"] for port in old.get("ports") or () if port.get("nodePort")]
    asked = {port["nodePort"] for port in new.get("ports") or () if port.get("nodePort")}
    known = {port.get("name", ""): port.get("nodePort") for port in old.get("ports") or ()}
    used = asked & set(before)
    for port in new.get("ports") or ():
        number = known.get(port.get("name", ""))
        if not port.get("nodePort") and number and number not in used:
            port["nodePort"] = number


def normalize(new: Spec, old: Spec | None) -> None:
    """clusterIPs follows clusterIP for clients that know only the latter."""
    single = new.get("clusterIP") or ""
    if old is None:
        if single and not new.get("clusterIPs"):
            new["clusterIPs"] = [single]
        return
    before = old.get("clusterIP") or ""
    if old.get("clusterIPs") and not new.get("clusterIPs") and single == before:
        new["clusterIPs"] = old["clusterIPs"]
    if single != before and _same(new, old, "clusterIPs"):
        _set(new, "clusterIPs", [single] if single else None)


def drop_dependent(new: Spec, old: Spec) -> None:
    """`dropTypeDependentFields`: what was assigned for the old type and the user left alone."""
    if needs_cluster_ip(old) and not needs_cluster_ip(new):
        if _same(new, old, "clusterIP", "clusterIPs"):
            new.pop("clusterIP", None)
            new.pop("clusterIPs", None)
        for key in ("ipFamilies", "ipFamilyPolicy"):
            if _same(new, old, key):
                new.pop(key, None)
    if exposes_nodes(old) and not exposes_nodes(new) and _no_new_node_ports(new, old):
        for port in new.get("ports") or ():
            port.pop("nodePort", None)
    rows = (
        ("healthCheckNodePort", needs_health_check),
        ("allocateLoadBalancerNodePorts", _is_load_balancer),
        ("loadBalancerClass", _is_load_balancer),
        ("externalTrafficPolicy", externally_accessible),
    )
    for key, applies in rows:
        if applies(old) and not applies(new) and new.get(key) == old.get(key):
            new.pop(key, None)


def _is_load_balancer(spec: Spec) -> bool:
    return spec.get("type") == "LoadBalancer"


def _no_new_node_ports(new: Spec, old: Spec) -> bool:
    before = {port.get("nodePort") for port in old.get("ports") or ()}
    return all(p["nodePort"] in before for p in new.get("ports") or () if p.get("nodePort"))


# -- families ------------------------------------------------------------------------------------


def unchanged_prefer_dual_stack(new: Spec, old: Spec | None) -> bool:
    """Such a Service stays as it is when the cluster's own families change."""
    if old is None or not new.get("ipFamilyPolicy") or new.get("type") != old.get("type"):
        return False
    if new.get("type") not in ("ClusterIP", "NodePort", "LoadBalancer"):
        return False
    if new["ipFamilyPolicy"] != "PreferDualStack":
        return False
    if old.get("ipFamilyPolicy") not in (None, "PreferDualStack"):
        return False
    return _same(new, old, "clusterIP", "clusterIPs", "ipFamilies")


def init_families(spec: Spec, old: Spec | None, served: Sequence[str]) -> list[FieldError]:
    """Fill policy and families; `served` are the cluster's families, its default first."""
    if not needs_cluster_ip(spec) or unchanged_prefer_dual_stack(spec, old):
        return []
    selectorless = is_headless(spec) and not spec.get("selector")
    if not spec.get("ipFamilyPolicy"):
        default = "RequireDualStack" if selectorless else "SingleStack"
        spec["ipFamilyPolicy"] = (old or {}).get("ipFamilyPolicy") or default
    if errors := validate_cluster_ips(spec, old):
        return errors
    errors = [] if old is None else _release_secondary(spec, old)
    errors += _single_stack_has_one(spec)
    errors += _infer_families(spec, served)
    if errors:
        return errors
    if selectorless:
        _fill(spec, served[0], _BOTH)
        return []
    if errors := _served_families(spec, served):
        return errors
    _fill(spec, served[0], served)
    return []


def _release_secondary(spec: Spec, old: Spec) -> list[FieldError]:
    """SingleStack alone is clear intent; fewer addresses or families without it is not."""
    policy, out = spec["ipFamilyPolicy"], []
    for key, what in (("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")):
        now, before = spec.get(key) or [], old.get(key) or []
        if policy == "SingleStack":
            unchanged = _same(spec, old, "clusterIP", key) if key == "clusterIPs" else now == before
            if unchanged and len(now) > 1:
                spec[key] = now[:1]
        elif now and len(now) < len(before):
            text = f"must be 'SingleStack' to release the secondary {what}"
            out.append(invalid_value(_POLICY, policy, text))
    return out


def _single_stack_has_one(spec: Spec) -> list[FieldError]:
    policy = spec["ipFamilyPolicy"]
    rows = (("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families"))
    return [
        invalid_value(
            _POLICY,
            policy,
            f"must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified",
        )
        for key, what in rows
        if policy == "SingleStack" and len(spec.get(key) or ()) == 2
    ]


def _infer_families(spec: Spec, served: Sequence[str]) -> list[FieldError]:
    out: list[FieldError] = []
    addresses: list[str] = spec.get("clusterIPs") or []
    families: list[str] = list(spec.get("ipFamilies") or ())
    for index, text in enumerate(addresses):
        if text == NONE:
            break
        if index < len(families):
            continue
        family = family_of(text)
        if family in served:
            families.append(family)
        else:
            why = f"{family} is not configured on this cluster"
            out.append(invalid_value(f"spec.clusterIPs[{index}]", go_strings(addresses), why))
    _set(spec, "ipFamilies", families)
    return out


def _served_families(spec: Spec, served: Sequence[str]) -> list[FieldError]:
    out: list[FieldError] = []
    policy = spec["ipFamilyPolicy"]
    if policy == "RequireDualStack" and len(served) < 2:
        why = "this cluster is not configured for dual-stack services"
        out.append(invalid_value(_POLICY, nullable(policy), why))
    for index, family in enumerate(spec.get("ipFamilies") or ()):
        if family not in served:
            why = "not configured on this cluster"
            out.append(invalid_value(f"spec.ipFamilies[{index}]", family, why))
    return out


def _fill(spec: Spec, default: str, possible: Sequence[str]) -> None:
    families = list(spec.get("ipFamilies") or (default,))
    if spec["ipFamilyPolicy"] != "SingleStack" and len(families) == 1:
        families += [family for family in possible if family not in families]
    spec["ipFamilies"] = families
