"""When a ServiceCIDR may go, and what is wrong between a Service and its IPAddress."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from podwire.controllers.servicecidrs import evaluate_release
from podwire.controllers.serviceips import evaluate_address, evaluate_service, ip_address_for
from podwire.objects.core import Service
from podwire.objects.discovery import IpAddress, ServiceCidr

NETWORKS = [ip_network("10.96.0.0/16")]
ADDRESS = ip_address("10.96.0.9")


def cidr(name: str, *cidrs: str, deleting: bool = False) -> ServiceCidr:
    meta = {"name": name, "uid": name}
    if deleting:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return msgspec.convert({"metadata": meta, "spec": {"cidrs": list(cidrs)}}, ServiceCidr)


def service(name: str = "a", *addresses: str, **spec: Any) -> Service:
    first = addresses[0] if addresses else ""
    raw = {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": first, "clusterIPs": list(addresses)} | spec,
    }
    return msgspec.convert(raw, Service)


def address_of(owner: Service, text: str = "10.96.0.9", **changes: Any) -> IpAddress:
    raw = ip_address_for(owner, ip_address(text))
    raw["spec"]["parentRef"] |= changes
    return msgspec.convert(raw, IpAddress)


USED = address_of(service("a", "10.97.0.9"), "10.97.0.9")
MADE_BY_HAND = msgspec.convert({"metadata": {"name": "10.97.0.9"}}, IpAddress)
LEAVING = cidr("leaving", "10.97.0.0/24", deleting=True)


@pytest.mark.parametrize(
    ("others", "addresses", "released"),
    [
        ([], [], True),
        ([], [USED], False),
        ([], [MADE_BY_HAND], True),
        ([cidr("same", "10.97.0.0/24")], [USED], True),
        ([cidr("wider", "10.96.0.0/15", "fd00::/112")], [USED], True),
        ([cidr("part", "10.97.0.0/29")], [USED], False),
        ([cidr("part", "10.97.0.8/29")], [USED], True),
        ([cidr("edge", "10.97.0.9/32")], [USED], False),
        ([cidr("going", "10.97.0.0/24", deleting=True)], [USED], False),
        ([], [address_of(service("b", "10.98.0.9"), "10.98.0.9")], True),
    ],
)
def test_release(others: list[ServiceCidr], addresses: list[IpAddress], released: bool) -> None:
    assert evaluate_release(LEAVING, [LEAVING, *others], addresses) is released


A, B = service("a", "10.96.0.9"), service("b", "10.96.0.9")
OTHER = service("b", "10.96.0.8")


@pytest.mark.parametrize(
    ("found", "owner", "reason", "action"),
    [
        (address_of(A), A, None, None),
        (None, None, "ClusterIPNotAllocated", "create"),
        (address_of(A, group="example.com"), None, "ClusterIPNotAllocated", "recreate"),
        (address_of(A, name="gone"), None, "ClusterIPNotAllocated", "recreate"),
        (address_of(B), B, "ClusterIPAlreadyAllocated", "tell"),
        (address_of(OTHER), OTHER, None, None),
        (msgspec.structs.replace(address_of(A), metadata=MADE_BY_HAND.metadata), A, "", "recreate"),
    ],
)
def test_a_cluster_ip(
    found: IpAddress | None, owner: Service | None, reason: str | None, action: str | None
) -> None:
    finding = evaluate_service(A, ADDRESS, NETWORKS, found, owner)
    assert (finding and finding.reason) == reason
    assert (finding and finding.action) == action


def test_a_cluster_ip_outside() -> None:
    finding = evaluate_service(A, ip_address("10.95.0.1"), NETWORKS, None, None)
    assert finding is not None
    assert (finding.reason, finding.action) == ("ClusterIPOutOfRange", "tell")


@pytest.mark.parametrize(
    ("found", "owner", "reason"),
    [
        (address_of(A), A, None),
        (MADE_BY_HAND, None, None),
        (address_of(A), None, "IPAddressNotAllocated"),
        (address_of(A, resource="lbs"), None, "IPAddressNotAllocated"),
        (address_of(A), service("a", "10.96.0.8"), "IPAddressWrongReference"),
        (address_of(A), service("a", "None"), "IPAddressWrongReference"),
        (address_of(A), service("a", type="ExternalName"), "IPAddressWrongReference"),
    ],
)
def test_an_ip_address(found: IpAddress, owner: Service | None, reason: str | None) -> None:
    finding = evaluate_address(found, owner)
    assert (finding and finding.reason) == reason
