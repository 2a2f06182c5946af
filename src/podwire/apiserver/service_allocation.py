"""Fills a Service's clusterIPs, ipFamilies and node ports, on create and on update.

Source: pkg/registry/core/service/storage/{alloc,storage}.go of Kubernetes 1.33, kept to what one
process needs: no reservations, no repair loop.
"""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

from podwire.apiserver.context import Context
from podwire.apiserver.service_addresses import (
    NODE_PORTS,
    AddressRange,
    ServiceAddresses,
    held_addresses,
    held_ports,
)
from podwire.apiserver.validation import FieldError, invalid
from podwire.errors import ApiError, ExhaustedError, InvalidError
from podwire.objects.meta import JsonObject

NEEDS_NODE_PORT = ("NodePort", "LoadBalancer")


def allocate(ctx: Context, new: JsonObject, old: JsonObject | None, *, dry_run: bool) -> None:
    """Assign what is missing; what was taken is given back if the write does not come true."""
    addresses = ctx.addresses
    if old is not None:
        _keep_assigned(new["spec"], old["spec"])
    _assign_defaults(addresses, new)
    try:
        _assign_addresses(addresses, new, old)
        _assign_ports(addresses, new, old)
    except ApiError:
        addresses.release(new, keep=old)
        raise
    except ExhaustedError as error:
        addresses.release(new, keep=old)
        raise ApiError(f"service {new['metadata']['name']}: {error}", code=500) from error
    if dry_run:
        addresses.release(new, keep=old)
    else:
        ctx.store.on_rollback(lambda: addresses.release(new, keep=old))


def _keep_assigned(new: JsonObject, old: JsonObject) -> None:
    """An update that leaves assigned values out keeps them (`patchAllocatedValues`)."""
    if new.get("type") == "ExternalName":
        return
    if old.get("clusterIP") and not new.get("clusterIP") and not new.get("clusterIPs"):
        new["clusterIP"], new["clusterIPs"] = old["clusterIP"], old.get("clusterIPs", [])
    for key in ("ipFamilies", "ipFamilyPolicy"):
        if old.get(key) and not new.get(key):
            new[key] = old[key]
    if new.get("type") in NEEDS_NODE_PORT and old.get("type") in NEEDS_NODE_PORT:
        known = {_port_key(p): p["nodePort"] for p in old.get("ports") or () if p.get("nodePort")}
        wanted = {p["nodePort"] for p in new.get("ports") or () if p.get("nodePort")}
        for port in new.get("ports") or ():
            number = known.get(_port_key(port))
            if not port.get("nodePort") and number and number not in wanted:
                port["nodePort"] = number
        if old.get("healthCheckNodePort") and "healthCheckNodePort" not in new:
            new["healthCheckNodePort"] = old["healthCheckNodePort"]


def _port_key(port: JsonObject) -> tuple[Any, ...]:
    return (port.get("protocol", "TCP"), port["port"])


def _assign_defaults(addresses: ServiceAddresses, service: JsonObject) -> None:
    """clusterIPs mirrors clusterIP; families and policy follow from both and the cluster."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            spec.pop(key, None)
        return
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    if spec.get("clusterIPs") and not spec.get("clusterIP"):
        spec["clusterIP"] = spec["clusterIPs"][0]
    families = list(spec.get("ipFamilies") or ())
    asked: list[str] = spec.get("clusterIPs") or []
    if not families:
        families = [f"IPv{ip_address(a).version}" for a in asked if a != "None"]
    headless = asked[:1] == ["None"]
    served = [each.family for each in addresses.ranges]
    both = ["IPv4", "IPv6"] if headless and not spec.get("selector") else served
    if not spec.get("ipFamilyPolicy"):
        dual = len(families) > 1 or (headless and not spec.get("selector"))
        spec["ipFamilyPolicy"] = "RequireDualStack" if dual else "SingleStack"
    if not families:
        families = served[:1]
    if spec["ipFamilyPolicy"] == "RequireDualStack" and len(both) < 2:
        raise _invalid(
            service,
            FieldError(
                "FieldValueInvalid",
                "spec.ipFamilyPolicy",
                'Invalid value: "RequireDualStack": this cluster is not configured for dual-stack '
                "services",
            ),
        )
    if spec["ipFamilyPolicy"] == "SingleStack":
        families = families[:1]
    else:
        families += [family for family in both if family not in families]
    spec["ipFamilies"] = families


def _assign_addresses(
    addresses: ServiceAddresses, service: JsonObject, old: JsonObject | None
) -> None:
    spec = service["spec"]
    if spec.get("type") == "ExternalName" or spec.get("clusterIP") == "None":
        return
    held = held_addresses(old) if old else set()
    chosen: list[str] = list(spec.get("clusterIPs") or ())[: len(spec["ipFamilies"])]
    for index, family in enumerate(spec["ipFamilies"]):
        pool = addresses.of_family(family)
        if pool is None:
            raise _invalid(
                service,
                FieldError(
                    "FieldValueInvalid",
                    f"spec.ipFamilies[{index}]",
                    f'Invalid value: "{family}": not configured on this cluster',
                ),
            )
        if index >= len(chosen):
            chosen.append(str(pool.allocate()))
        elif ip_address(chosen[index]) not in held:
            _take(service, pool, chosen, index)
    spec["clusterIPs"] = chosen
    spec["clusterIP"] = chosen[0]


def _take(service: JsonObject, pool: AddressRange, chosen: list[str], index: int) -> None:
    address = ip_address(chosen[index])
    if not pool.usable(address):
        why = f"the provided IP is not in the valid range. The range of valid IPs is {pool.network}"
    elif address in pool.taken:
        why = "provided IP is already allocated"
    else:
        pool.taken.add(address)
        return
    message = f"failed to allocate IP {chosen[index]}: {why}"
    value = json.dumps(chosen, separators=(",", ":"))
    # The caller's undo gives back what the object names: another Service's address must go.
    service["spec"]["clusterIPs"] = chosen[:index]
    service["spec"].pop("clusterIP", None)
    raise _invalid(
        service,
        FieldError("FieldValueInvalid", "spec.clusterIPs", f"Invalid value: {value}: {message}"),
    )


def _assign_ports(addresses: ServiceAddresses, service: JsonObject, old: JsonObject | None) -> None:
    spec = service["spec"]
    kind = spec.get("type")
    if kind not in NEEDS_NODE_PORT:
        for port in spec.get("ports") or ():
            port.pop("nodePort", None)
        return
    held = held_ports(old) if old else set()
    mine: set[tuple[str, int]] = set()
    wants = kind == "NodePort" or spec.get("allocateLoadBalancerNodePorts", True)
    for index, port in enumerate(spec.get("ports") or ()):
        protocol, number = port.get("protocol", "TCP"), port.get("nodePort")
        if not number:
            if wants:
                port["nodePort"] = addresses.ports.allocate(protocol)
                mine.add((protocol, port["nodePort"]))
            continue
        problem = ""
        if number not in NODE_PORTS:
            problem = (
                "provided port is not in the valid range. "
                f"The range of valid ports is {NODE_PORTS.start}-{NODE_PORTS[-1]}"
            )
        elif (protocol, number) in addresses.ports.taken - held | mine:
            problem = "provided port is already allocated"
        if problem:
            for later in (spec.get("ports") or ())[index:]:
                later.pop("nodePort", None)
            raise _invalid(
                service,
                FieldError(
                    "FieldValueInvalid",
                    f"spec.ports[{index}].nodePort",
                    f"Invalid value: {number}: {problem}",
                ),
            )
        addresses.ports.taken.add((protocol, number))
        mine.add((protocol, number))
    if kind == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
        if not spec.get("healthCheckNodePort"):
            spec["healthCheckNodePort"] = addresses.ports.allocate("TCP")
        else:
            addresses.ports.taken.add(("TCP", spec["healthCheckNodePort"]))


def _invalid(service: JsonObject, error: FieldError) -> InvalidError:
    return invalid("Service", "", service["metadata"]["name"], [error])
