"""Rules of Services, in upstream's order: what may not change, then what may not be.

Allocation has run by then: clusterIPs, families and node ports are filled in.
Source: pkg/apis/core/validation (ValidateServiceCreate, ValidateServiceUpdate, validateService,
ValidateLoadBalancerStatus).
"""

from __future__ import annotations

from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    GoValue,
    duplicate,
    forbidden,
    go_strings,
    go_value,
    invalid_value,
    not_supported,
    required,
)
from podwire.apiserver.ipsyntax import (
    family_of,
    parse_ip,
    validate_endpoint_ip,
    validate_legacy_cidr,
    validate_legacy_ip,
)
from podwire.apiserver.validation.meta import Raw, each, invalid_each, validate_labels
from podwire.apiserver.validation.pod import PROTOCOLS, validate_port_or_name

SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
TOPOLOGY_HINTS = "service.kubernetes.io/topology-aware-hints"
TOPOLOGY_MODE = "service.kubernetes.io/topology-mode"
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
MAX_AFFINITY_S = 86400
_FAMILIES = ("IPv4", "IPv6")
_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
_TRAFFIC = ("Cluster", "Local")
_DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")
_ONLY_LOAD_BALANCER = "may only be used when `type` is 'LoadBalancer'"
_ONCE = "may not change once set"
_EXTERNAL_NAME = "may not be set for ExternalName services"


def validate_service(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    before = None if old is None else old.get("spec") or {}
    out: list[FieldError] = []
    if before is not None:
        out += _cluster_ips_update(spec, before)
        out += _families_update(spec, before)
        out += _load_balancer_class(spec, before)
        out += _health_check_update(spec, before)
    annotations = obj["metadata"].get("annotations") or {}
    old_annotations = {} if old is None else old["metadata"].get("annotations") or {}
    out += _topology(annotations)
    out += _type_fields(spec)
    out += _ports(spec)
    out += validate_labels(spec.get("selector"), "spec.selector")
    out += _affinity(spec)
    out += validate_cluster_ips(spec, before)
    out += _external_ips(spec, before)
    out += _type(spec)
    out += _port_numbers(spec)
    out += _source_ranges(spec, before)
    if not spec.get("loadBalancerSourceRanges"):
        out += _source_annotation(spec, annotations, old_annotations)
    out += _allocate_node_ports(spec)
    out += _load_balancer_class(spec, None)
    out += _external_traffic(spec)
    return out + _other_traffic(spec)


def nullable(value: Any) -> Any:
    """A nil pointer is shown as the quoted word."""
    return GoValue('"null"') if value is None else value


def _headless(spec: Raw) -> bool:
    return list(spec.get("clusterIPs") or ()) == ["None"]


# -- type and ports ------------------------------------------------------------------------------


def _topology(annotations: Raw) -> list[FieldError]:
    mode, hints = annotations.get(TOPOLOGY_MODE), annotations.get(TOPOLOGY_HINTS)
    if mode is None or hints is None or mode == hints:
        return []
    text = f"must match annotations[{TOPOLOGY_HINTS}] when both are specified"
    return [invalid_value(f"metadata.annotations[{TOPOLOGY_MODE}]", mode, text)]


def _type_fields(spec: Raw) -> list[FieldError]:
    kind = spec.get("type")
    out: list[FieldError] = []
    if not spec.get("ports") and not _headless(spec) and kind != "ExternalName":
        out.append(required("spec.ports"))
    if kind in ("LoadBalancer", "NodePort") and _headless(spec):
        text = f"may not be set to 'None' for {kind} services"
        out.append(invalid_value("spec.clusterIPs[0]", "None", text))
    if kind != "ExternalName":
        return out
    for key in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if spec.get(key):
            out.append(forbidden(f"spec.{key}", _EXTERNAL_NAME))
    external = (spec.get("externalName") or "").removesuffix(".")
    if not external:
        return [*out, required("spec.externalName")]
    return out + invalid_each("spec.externalName", external, names.is_dns_subdomain(external))


def _type(spec: Raw) -> list[FieldError]:
    kind = spec.get("type") or ""
    if not kind:
        return [required("spec.type")]
    return [] if kind in SERVICE_TYPES else [not_supported("spec.type", kind, SERVICE_TYPES)]


def _ports(spec: Raw) -> list[FieldError]:
    out: list[FieldError] = []
    several = len(spec.get("ports") or ()) > 1
    seen: set[str] = set()
    for at, port in each(spec, "ports", "spec"):
        name, number = port.get("name") or "", port.get("port") or 0
        protocol, app = port.get("protocol") or "", port.get("appProtocol")
        if several and not name:
            out.append(required(f"{at}.name"))
        elif name:
            out += invalid_each(f"{at}.name", name, names.is_dns_label(name))
            if name in seen:
                out.append(duplicate(f"{at}.name", name))
            seen.add(name)
        out += invalid_each(f"{at}.port", number, names.is_port_number(number))
        if not protocol:
            out.append(required(f"{at}.protocol"))
        elif protocol not in PROTOCOLS:
            out.append(not_supported(f"{at}.protocol", protocol, PROTOCOLS))
        out += validate_port_or_name(port.get("targetPort", 0), f"{at}.targetPort")
        if app is not None:
            out += invalid_each(f"{at}.appProtocol", app, names.is_qualified_name(app))
    return out


def _port_numbers(spec: Raw) -> list[FieldError]:
    """Node ports where the type has none, and (protocol, number) pairs that repeat."""
    out: list[FieldError] = []
    rows = list(each(spec, "ports", "spec"))
    if spec.get("type") == "ClusterIP":
        out += [
            forbidden(f"{at}.nodePort", "may not be used when `type` is 'ClusterIP'")
            for at, port in rows
            if port.get("nodePort")
        ]
    node_ports: set[tuple[str, int]] = set()
    for at, port in rows:
        key = (port.get("protocol") or "", port.get("nodePort") or 0)
        if key[1] and key in node_ports:
            out.append(duplicate(f"{at}.nodePort", key[1]))
        node_ports.add(key)
    ports: set[tuple[str, int]] = set()
    for at, port in rows:
        key = (port.get("protocol") or "", port.get("port") or 0)
        if key in ports:
            out.append(duplicate(at, _go_port(*key)))
        ports.add(key)
    return out


def _go_port(protocol: str, number: int) -> GoValue:
    return GoValue(
        f'core.ServicePort{{Name:"", Protocol:{go_value(protocol)}, AppProtocol:(*string)(nil), '
        f'Port:{number}, TargetPort:intstr.IntOrString{{Type:0, IntVal:0, StrVal:""}}, NodePort:0}}'
    )


def _affinity(spec: Raw) -> list[FieldError]:
    affinity, config = spec.get("sessionAffinity") or "", spec.get("sessionAffinityConfig")
    at = "spec.sessionAffinityConfig"
    if not affinity:
        return [required("spec.sessionAffinity")]
    if affinity == "None":
        text = "must not be set when session affinity is None"
        return [] if config is None else [forbidden(at, text)]
    if affinity != "ClientIP":
        return [not_supported("spec.sessionAffinity", affinity, ("ClientIP", "None"))]
    text = "when session affinity type is ClientIP"
    if config is None:
        return [required(at, text)]
    if config.get("clientIP") is None:
        return [required(f"{at}.clientIP", text)]
    timeout = config["clientIP"].get("timeoutSeconds")
    if timeout is None:
        return [required(f"{at}.clientIP.timeoutSeconds", text)]
    if not 0 < timeout <= MAX_AFFINITY_S:
        text = f"must be greater than 0 and less than {MAX_AFFINITY_S}"
        return [invalid_value(f"{at}.clientIP.timeoutSeconds", timeout, text)]
    return []


# -- addresses and families ----------------------------------------------------------------------


def validate_cluster_ips(spec: Raw, old: Raw | None = None) -> list[FieldError]:
    """clusterIP, clusterIPs, ipFamilies and ipFamilyPolicy against each other."""
    if spec.get("type") == "ExternalName":
        return []
    at = "spec.clusterIPs"
    addresses: list[str] = spec.get("clusterIPs") or []
    out = _single_and_plural(spec.get("clusterIP") or "", addresses)
    seen: set[str] = set()
    for index, family in enumerate(spec.get("ipFamilies") or ()):
        if family not in _FAMILIES:
            out.append(not_supported(f"spec.ipFamilies[{index}]", family, _FAMILIES))
        if family in seen:
            out.append(duplicate(f"spec.ipFamilies[{index}]", family))
        seen.add(family)
    policy = spec.get("ipFamilyPolicy")
    if policy is not None and policy not in _POLICIES:
        out.append(not_supported("spec.ipFamilyPolicy", policy, _POLICIES))
    broken = _address_texts(addresses, (old or {}).get("clusterIPs") or ())
    out += broken
    if len(addresses) > 2:
        out.append(invalid_value(at, go_strings(addresses), "may only hold up to 2 values"))
    if broken:
        return out
    families = [family_of(text) for text in addresses]
    if len(addresses) > 1 and len(set(families)) < len(families):
        text = "may specify no more than one IP for each IP family"
        out.append(invalid_value(at, go_strings(addresses), text))
    return out if _headless(spec) else out + _expected_families(spec, addresses, families)


def _single_and_plural(single: str, plural: list[str]) -> list[FieldError]:
    at = "spec.clusterIPs"
    if single and not plural:
        return [required(at)]
    if single and plural[0] != single:
        return [invalid_value(at, go_strings(plural), "first value must match `clusterIP`")]
    if not single and plural:
        text = "must be empty when `clusterIP` is not specified"
        return [invalid_value(at, go_strings(plural), text)]
    return []


def _address_texts(addresses: list[str], kept: Any) -> list[FieldError]:
    out: list[FieldError] = []
    for index, text in enumerate(addresses):
        if index == 0 and text == "None":
            if len(addresses) > 1:
                why = "'None' must be the first and only value"
                out.append(invalid_value("spec.clusterIPs", go_strings(addresses), why))
            continue
        out += validate_legacy_ip(f"spec.clusterIPs[{index}]", text, kept)
    return out


def _expected_families(spec: Raw, addresses: list[str], actual: list[str]) -> list[FieldError]:
    return [
        invalid_value(
            f"spec.clusterIPs[{index}]",
            addresses[index],
            f"expected an {family} value as indicated by `ipFamilies[{index}]`",
        )
        for index, family in enumerate(spec.get("ipFamilies") or ())
        if index < len(addresses) and family in _FAMILIES and actual[index] != family
    ]


def _external_ips(spec: Raw, old: Raw | None) -> list[FieldError]:
    out: list[FieldError] = []
    kept = (old or {}).get("externalIPs") or ()
    for index, text in enumerate(spec.get("externalIPs") or ()):
        at = f"spec.externalIPs[{index}]"
        out += validate_legacy_ip(at, text, kept) or validate_endpoint_ip(at, text)
    return out


# -- load balancers and traffic ------------------------------------------------------------------


def _source_ranges(spec: Raw, old: Raw | None) -> list[FieldError]:
    ranges = spec.get("loadBalancerSourceRanges") or ()
    if not ranges:
        return []
    # Upstream's path has this capital.
    at = "spec.LoadBalancerSourceRanges"
    out: list[FieldError] = []
    if spec.get("type") != "LoadBalancer":
        out.append(forbidden(at, _ONLY_LOAD_BALANCER))
    kept = [text.strip() for text in (old or {}).get("loadBalancerSourceRanges") or ()]
    for index, text in enumerate(ranges):
        out += validate_legacy_cidr(f"{at}[{index}]", text.strip(), kept)
    return out


def _source_annotation(spec: Raw, annotations: Raw, old: Raw) -> list[FieldError]:
    """The older form of loadBalancerSourceRanges; the field wins where both are given."""
    value = annotations.get(SOURCE_RANGES)
    if value is None:
        return []
    at = f"metadata.annotations[{SOURCE_RANGES}]"
    out: list[FieldError] = []
    if spec.get("type") != "LoadBalancer":
        out.append(forbidden(at, _ONLY_LOAD_BALANCER))
    if value.strip() and old.get(SOURCE_RANGES) != value:
        for text in value.strip().split(","):
            out += validate_legacy_cidr(at, text.strip())
    return out


def _allocate_node_ports(spec: Raw) -> list[FieldError]:
    key, balanced = "allocateLoadBalancerNodePorts", spec.get("type") == "LoadBalancer"
    if spec.get(key) is not None and not balanced:
        return [forbidden(f"spec.{key}", _ONLY_LOAD_BALANCER)]
    return [required(key)] if spec.get(key) is None and balanced else []


def _load_balancer_class(spec: Raw, old: Raw | None) -> list[FieldError]:
    """Its form (and on an update that it stays); upstream asks twice on an update, and so do we."""
    at, name = "spec.loadBalancerClass", spec.get("loadBalancerClass")
    balanced = spec.get("type") == "LoadBalancer"
    out: list[FieldError] = []
    both = balanced and (old or {}).get("type") == "LoadBalancer"
    if both and old is not None and name != old.get("loadBalancerClass"):
        out.append(invalid_value(at, nullable(name), _ONCE))
    if name is None:
        return out
    if not balanced:
        return [*out, forbidden(at, _ONLY_LOAD_BALANCER)]
    return out + invalid_each(at, name, names.is_qualified_name(name))


def _external_traffic(spec: Raw) -> list[FieldError]:
    out: list[FieldError] = []
    at, policy = "spec.externalTrafficPolicy", spec.get("externalTrafficPolicy") or ""
    kind = spec.get("type")
    exposed = kind in ("LoadBalancer", "NodePort") or (
        kind == "ClusterIP" and bool(spec.get("externalIPs"))
    )
    if not exposed and policy:
        text = "may only be set for externally-accessible services"
        out.append(invalid_value(at, policy, text))
    elif exposed and not policy:
        out.append(required(at))
    elif exposed and policy not in _TRAFFIC:
        out.append(not_supported(at, policy, _TRAFFIC))
    at, port = "spec.healthCheckNodePort", spec.get("healthCheckNodePort") or 0
    if not _checks_health(spec):
        if port:
            text = (
                "may only be set when `type` is 'LoadBalancer' and "
                "`externalTrafficPolicy` is 'Local'"
            )
            out.append(invalid_value(at, port, text))
    elif not port:
        out.append(required(at))
    else:
        out += invalid_each(at, port, names.is_port_number(port))
    return out


def _checks_health(spec: Raw) -> bool:
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def _other_traffic(spec: Raw) -> list[FieldError]:
    out: list[FieldError] = []
    at, policy = "spec.internalTrafficPolicy", spec.get("internalTrafficPolicy")
    if policy is None and spec.get("type") in ("NodePort", "LoadBalancer", "ClusterIP"):
        out.append(required(at))
    if policy is not None and policy not in _TRAFFIC:
        out.append(not_supported(at, policy, _TRAFFIC))
    at, wanted = "spec.trafficDistribution", spec.get("trafficDistribution")
    if wanted is not None and wanted not in _DISTRIBUTIONS:
        out.append(not_supported(at, wanted, _DISTRIBUTIONS))
    return out


# -- updates -------------------------------------------------------------------------------------


def _was_external_name(spec: Raw, old: Raw) -> bool:
    return "ExternalName" in (spec.get("type"), old.get("type"))


def _cluster_ips_update(spec: Raw, old: Raw) -> list[FieldError]:
    if _was_external_name(spec, old) or (_headless(spec) and _headless(old)):
        return []
    now: list[str] = spec.get("clusterIPs") or []
    before: list[str] = old.get("clusterIPs") or []
    shown = go_strings(now)
    out: list[FieldError] = []
    if len(now) == len(before):
        return [
            invalid_value(f"spec.clusterIPs[{index}]", shown, _ONCE)
            for index, text in enumerate(before)
            if text != now[index]
        ]
    at = "spec.clusterIPs[0]"
    if not now:
        out.append(invalid_value(at, shown, "primary clusterIP can not be unset"))
    elif before and now[0] != before[0]:
        out.append(invalid_value(at, shown, _ONCE))
    if len(now) == 1 < len(before) and spec.get("ipFamilyPolicy") != "SingleStack":
        text = "must be set to 'SingleStack' when releasing the secondary clusterIP"
        out.append(invalid_value("spec.ipFamilyPolicy", nullable(spec.get("ipFamilyPolicy")), text))
    return out


def _families_update(spec: Raw, old: Raw) -> list[FieldError]:
    if _was_external_name(spec, old) or _headless(spec) or _headless(old):
        return []
    now: list[str] = spec.get("ipFamilies") or []
    before: list[str] = old.get("ipFamilies") or []
    at, shown = "spec.ipFamilies[0]", go_strings(now, "core.IPFamily")
    # Upstream shows the addresses here, not the families.
    addresses = go_strings(spec.get("clusterIPs"))
    out: list[FieldError] = []
    if len(now) == len(before):
        return [
            invalid_value(at, shown, _ONCE)
            for index, family in enumerate(before)
            if family != now[index]
        ]
    if len(now) < len(before) and not spec.get("clusterIPs"):
        out.append(invalid_value(at, shown, "primary ipFamily can not be unset"))
    if now and before and now[0] != before[0]:
        out.append(invalid_value(at, addresses, _ONCE))
    if len(now) == 1 < len(before) and spec.get("ipFamilyPolicy") != "SingleStack":
        text = "must be set to 'SingleStack' when releasing the secondary ipFamily"
        out.append(invalid_value("spec.ipFamilyPolicy", nullable(spec.get("ipFamilyPolicy")), text))
    return out


def _health_check_update(spec: Raw, old: Raw) -> list[FieldError]:
    if not (_checks_health(spec) and _checks_health(old)):
        return []
    if (spec.get("healthCheckNodePort") or 0) == (old.get("healthCheckNodePort") or 0):
        return []
    return [forbidden("spec.healthCheckNodePort", "field is immutable")]


# -- status --------------------------------------------------------------------------------------


def validate_service_status(obj: Raw, old: Raw) -> list[FieldError]:
    """`status.loadBalancer`; conditions are not looked at (KEP-1860 for ipMode)."""
    ingress = _ingress(obj)
    at = "status.loadBalancer.ingress"
    if ingress and (obj.get("spec") or {}).get("type") != "LoadBalancer":
        return [forbidden(at, "may only be used when `spec.type` is 'LoadBalancer'")]
    kept = [row["ip"] for row in _ingress(old) if row.get("ip")]
    out: list[FieldError] = []
    for index, row in enumerate(ingress):
        out += _ingress_row(row, f"{at}[{index}]", kept)
    return out


def _ingress(obj: Raw) -> list[Raw]:
    status = (obj.get("status") or {}).get("loadBalancer") or {}
    return list(status.get("ingress") or ())


def _ingress_row(row: Raw, at: str, kept: list[str]) -> list[FieldError]:
    ip, mode, host = row.get("ip") or "", row.get("ipMode"), row.get("hostname") or ""
    out = validate_legacy_ip(f"{at}.ip", ip, kept) if ip else []
    if mode is None:
        if ip:
            out.append(required(f"{at}.ipMode", "must be specified when `ip` is set"))
    elif not ip:
        out.append(forbidden(f"{at}.ipMode", "may not be specified when `ip` is not set"))
    elif mode not in ("Proxy", "VIP"):
        out.append(not_supported(f"{at}.ipMode", mode, ("Proxy", "VIP")))
    if host:
        out += invalid_each(f"{at}.hostname", host, names.is_dns_subdomain(host))
        if parse_ip(host) is not None:
            text = "must be a DNS name, not an IP address"
            out.append(invalid_value(f"{at}.hostname", host, text))
    return out
