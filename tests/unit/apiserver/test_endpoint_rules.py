"""Every rule of Endpoints, EndpointSlices, ServiceCIDRs and IPAddresses, by its line."""

# Each table row is a line as kubectl prints it; wrapping would hide what is compared.
# ruff: noqa: E501, ISC004

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from podwire.apiserver.ipsyntax import cidr_warnings, ip_warnings, parse_cidr, parse_ip
from podwire.apiserver.service_warnings import write_warnings
from podwire.apiserver.validation import validate_create, validate_update

LABEL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must "
    "start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for "
    "validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
BAD_IP = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
LOOPBACK = "may not be in the loopback range (127.0.0.0/8, ::1/128)"
LINK_LOCAL = "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
PROTOCOLS = 'supported values: "SCTP", "TCP", "UDP"'


def made(kind: str, text: str) -> dict[str, Any]:
    version = {"Endpoints": "v1", "EndpointSlice": "discovery.k8s.io/v1"}
    obj = yaml.safe_load("{" + text + "}")
    meta = {"name": obj.pop("name", "x")}
    return {
        "apiVersion": version.get(kind, "networking.k8s.io/v1"),
        "kind": kind,
        "metadata": meta,
        **obj,
    }


def rows(count: int, text: str) -> str:
    return "[" + ", ".join([text] * count) + "]"


BAD: list[tuple[str, str, list[str]]] = [
    ("Endpoints", "subsets: [{addresses: [{ip: 10.0.0.1, nodeName: n, hostname: h}], ports: [{port: 80, protocol: TCP}]}]", []),
    ("Endpoints", "subsets: [{ports: [{port: 80, protocol: TCP}]}]", ["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"]),
    ("Endpoints", "subsets: [{addresses: [{ip: x}]}]", [f'subsets[0].addresses[0].ip: Invalid value: "x": {BAD_IP}', 'subsets[0].addresses[0].ip: Invalid value: "x": must be a valid IP address']),
    ("Endpoints", "subsets: [{addresses: [{ip: 127.0.0.1}]}]", [f'subsets[0].addresses[0].ip: Invalid value: "127.0.0.1": {LOOPBACK}']),
    ("Endpoints", "subsets: [{notReadyAddresses: [{ip: 169.254.0.1}]}]", [f'subsets[0].notReadyAddresses[0].ip: Invalid value: "169.254.0.1": {LINK_LOCAL}']),
    ("Endpoints", "subsets: [{addresses: [{ip: '::'}]}]", ['subsets[0].addresses[0].ip: Invalid value: "::": may not be unspecified (::)']),
    ("Endpoints", "subsets: [{addresses: [{ip: 010.0.0.1}]}]", ['subsets[0].addresses[0].ip: Invalid value: "010.0.0.1": must not have leading 0s']),
    ("Endpoints", "subsets: [{addresses: [{ip: 10.0.0.1, hostname: A}]}]", [f'subsets[0].addresses[0].hostname: Invalid value: "A": {LABEL}']),
    ("Endpoints", "subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 0, protocol: TCP}, {port: 1, name: a, protocol: ICMP}]}]",
     ["subsets[0].ports[0].name: Required value", "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
      f'subsets[0].ports[1].protocol: Unsupported value: "ICMP": {PROTOCOLS}']),
    # slices
    ("EndpointSlice", "addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{name: a, protocol: TCP, port: 70000}]", []),
    ("EndpointSlice", "endpoints: []", ["addressType: Required value"]),
    ("EndpointSlice", "addressType: IPv5", ['addressType: Unsupported value: "IPv5": supported values: "FQDN", "IPv4", "IPv6"']),
    ("EndpointSlice", "addressType: IPv4, endpoints: [{addresses: ['fd00::1']}]", ['endpoints[0].addresses: Invalid value: "fd00::1": must be an IPv4 address']),
    ("EndpointSlice", "addressType: IPv6, endpoints: [{addresses: ['FD00::1']}]", ['endpoints[0].addresses[0]: Invalid value: "FD00::1": must be in canonical form ("fd00::1")']),
    ("EndpointSlice", "addressType: IPv6, endpoints: [{addresses: ['fe80::1', '::1']}]",
     [f'endpoints[0].addresses[0]: Invalid value: "fe80::1": {LINK_LOCAL}', f'endpoints[0].addresses[1]: Invalid value: "::1": {LOOPBACK}']),
    ("EndpointSlice", "addressType: IPv4, endpoints: [{addresses: []}]", ["endpoints[0].addresses: Required value: must contain at least 1 address"]),
    ("EndpointSlice", "addressType: IPv4, endpoints: " + rows(1001, "{addresses: [10.0.0.1]}"), ["endpoints: Too many: 1001: must have at most 1000 items"]),
    ("EndpointSlice", "addressType: IPv4, endpoints: [{addresses: " + rows(101, "10.0.0.1") + "}]", ["endpoints[0].addresses: Too many: 101: must have at most 100 items"]),
    ("EndpointSlice", "addressType: IPv4, ports: " + rows(20001, "{}"), ["ports: Too many: 20001: must have at most 20000 items"]),
    ("EndpointSlice", "addressType: IPv4, ports: [{name: a, protocol: TCP}, {name: a, protocol: TCP}, {name: '', protocol: TCP}, {name: '', protocol: X}]",
     ['ports[1].name: Duplicate value: "a"', 'ports[3].name: Duplicate value: ""', f'ports[3].protocol: Unsupported value: "X": {PROTOCOLS}']),
    ("EndpointSlice", "addressType: IPv4, ports: [{name: A, protocol: TCP, appProtocol: '-'}]",
     [f'ports[0].name: Invalid value: "A": {LABEL}',
      "ports[0].appProtocol: Invalid value: \"-\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
      "(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"]),
    ("EndpointSlice", "addressType: FQDN, endpoints: [{addresses: [a.example.com., alone, '']}]",
     ['endpoints[0].addresses[1]: Invalid value: "alone": should be a domain with at least two segments separated by dots', "endpoints[0].addresses[2]: Required value"]),
    ("EndpointSlice", "addressType: IPv4, endpoints: [{addresses: [10.0.0.1], hostname: A}]", [f'endpoints[0].hostname: Invalid value: "A": {LABEL}']),
    ("EndpointSlice", "addressType: IPv4, endpoints: [{addresses: [10.0.0.1], hints: {forZones: [{name: a}, {name: a}], forNodes: [{name: n}, {name: n}]}}]",
     ['endpoints[0].hints.forZones[1].name: Duplicate value: "a"', 'endpoints[0].hints.forNodes[1].name: Duplicate value: "n"']),
    ("EndpointSlice", "addressType: IPv4, endpoints: [{addresses: [10.0.0.1], hints: {forZones: " + rows(9, "{name: a}") + "}}]",
     ["endpoints[0].hints.forZones: Too many: 9: must have at most 8 items"]),
    # ServiceCIDRs
    ("ServiceCIDR", "spec: {cidrs: [10.0.0.0/24, 'fd00::/112']}", []),
    ("ServiceCIDR", "spec: {}", ["spec.cidrs: Required value: at least one CIDR required"]),
    ("ServiceCIDR", "spec: {cidrs: [10.0.0.1/24]}", ['spec.cidrs[0]: Invalid value: "10.0.0.1/24": must not have bits set beyond the prefix length']),
    ("ServiceCIDR", "spec: {cidrs: ['FD00::/112']}", ['spec.cidrs[0]: Invalid value: "FD00::/112": must be in canonical form ("fd00::/112")']),
    ("ServiceCIDR", "spec: {cidrs: [10.0.0.0/24, 10.0.1.0/24]}",
     ['spec.cidrs: Invalid value: []string{"10.0.0.0/24", "10.0.1.0/24"}: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64']),
    ("ServiceCIDR", "spec: {cidrs: [a, b, c]}",
     ['spec.cidrs: Invalid value: networking.ServiceCIDRSpec{CIDRs:[]string{"a", "b", "c"}}: may only hold up to 2 values']),
    # IPAddresses
    ("IPAddress", "name: 10.0.0.1, spec: {parentRef: {resource: services, namespace: d, name: s}}", []),
    ("IPAddress", "name: x, spec: {parentRef: {resource: services, name: s}}", [f'metadata.name: Invalid value: "x": {BAD_IP}']),
    ("IPAddress", "name: 'fd00::0', spec: {parentRef: {resource: services, name: s}}", ['metadata.name: Invalid value: "fd00::0": must be in canonical form ("fd00::")']),
    ("IPAddress", "name: 10.0.0.1, spec: {}", ["spec.parentRef: Required value"]),
    ("IPAddress", "name: 10.0.0.1, spec: {parentRef: {}}", ["spec.parentRef.resource: Required value", "spec.parentRef.name: Required value"]),
    ("IPAddress", "name: 10.0.0.1, spec: {parentRef: {resource: a/b, name: '..'}}",
     ["spec.parentRef.resource: Invalid value: \"a/b\": may not contain '/'", "spec.parentRef.name: Invalid value: \"..\": may not be '..'"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "expected"), BAD)
def test_what_may_not_be_created(kind: str, text: str, expected: list[str]) -> None:
    assert [str(e) for e in validate_create(kind, made(kind, text))] == expected


UPDATES: list[tuple[str, str, str, list[str]]] = [
    # What is there may stay as it is.
    ("Endpoints", "subsets: [{addresses: [{ip: 127.0.0.1}]}]", "subsets: [{addresses: [{ip: 127.0.0.1}]}]", []),
    ("Endpoints", "subsets: [{addresses: [{ip: 127.0.0.1}]}]", "subsets: [{addresses: [{ip: 127.0.0.1}, {ip: 10.0.0.1}]}]",
     [f'subsets[0].addresses[0].ip: Invalid value: "127.0.0.1": {LOOPBACK}']),
    ("EndpointSlice", "addressType: IPv4, endpoints: [{addresses: [127.0.0.1]}]", "addressType: IPv4, endpoints: [{addresses: [127.0.0.1]}]", []),
    ("EndpointSlice", "addressType: IPv4", "addressType: IPv6", ['addressType: Invalid value: "IPv6": field is immutable']),
    ("ServiceCIDR", "spec: {cidrs: [10.0.0.0/24]}", "spec: {cidrs: [10.0.1.0/24]}", ['spec.cidrs[0]: Invalid value: "10.0.1.0/24": field is immutable']),
    ("ServiceCIDR", "spec: {cidrs: [10.0.0.0/24]}", "spec: {cidrs: [10.0.0.0/24, 'fd00::/112']}", []),
    ("ServiceCIDR", "spec: {cidrs: [10.0.0.0/24]}", "spec: {cidrs: [10.0.1.0/24, 'fd00::/112']}", ['spec.cidrs[0]: Invalid value: "10.0.1.0/24": field is immutable']),
    ("ServiceCIDR", "spec: {cidrs: [10.0.0.0/24, 'fd00::/112']}", "spec: {cidrs: [10.0.0.0/24]}", ['spec.cidrs: Invalid value: []string{"10.0.0.0/24"}: field is immutable']),
    ("IPAddress", "name: 10.0.0.1, spec: {parentRef: {resource: services, name: s}}", "name: 10.0.0.1, spec: {parentRef: {resource: services, name: t}}",
     ['spec.parentRef: Invalid value: networking.ParentReference{Group:"", Resource:"services", Namespace:"", Name:"t"}: field is immutable']),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "old", "new", "expected"), UPDATES)
def test_what_may_not_be_updated(kind: str, old: str, new: str, expected: list[str]) -> None:
    before, after = made(kind, old), made(kind, new)
    assert [str(e) for e in validate_update(kind, after, copy.deepcopy(before))] == expected


ADDRESSES: list[tuple[str, str, str]] = [
    ("10.9.8.7", "10.9.8.7", ""),
    ("0010.09.8.7", "10.9.8.7", 'non-standard IP address "0010.09.8.7" will be considered invalid in a future Kubernetes release: use "10.9.8.7"'),
    ("::ffff:10.9.8.7", "10.9.8.7", 'non-standard IP address "::ffff:10.9.8.7" will be considered invalid in a future Kubernetes release: use "10.9.8.7"'),
    ("::ffff:10.9.8.007", "10.9.8.7", 'non-standard IP address "::ffff:10.9.8.007" will be considered invalid in a future Kubernetes release: use "10.9.8.7"'),
    ("2001:DB8:0::1", "2001:db8::1", 'IPv6 address "2001:DB8:0::1" should be in RFC 5952 canonical format ("2001:db8::1")'),
    ("fe80::1%eth0", "None", ""),
    ("10.9.8", "None", ""),
    ("10.9.8.256", "None", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "parsed", "warning"), ADDRESSES)
def test_address_forms(text: str, parsed: str, warning: str) -> None:
    assert str(parse_ip(text)) == parsed
    assert ip_warnings("f", text) == ([f"f: {warning}"] if warning else [])


RANGES: list[tuple[str, str, list[str]]] = [
    ("10.0.0.0/8", "10.0.0.0/8", []),
    ("10.0.0.1/8", "10.0.0.0/8", ['CIDR value "10.0.0.1/8" is ambiguous in this context (should be "10.0.0.0/8" or "10.0.0.1/32"?)']),
    ("010.0.0.0/8", "10.0.0.0/8", ['non-standard CIDR value "010.0.0.0/8" will be considered invalid in a future Kubernetes release: use "10.0.0.0/8"']),
    ("::ffff:10.0.0.0/104", "10.0.0.0/8", ['non-standard CIDR value "::ffff:10.0.0.0/104" will be considered invalid in a future Kubernetes release: use "10.0.0.0/8"']),
    ("FD00::/8", "fd00::/8", ['IPv6 CIDR value "FD00::/8" should be in RFC 5952 canonical format ("fd00::/8")']),
    (" 10.0.0.0/8", "None", []),
    ("10.0.0.0/33", "None", []),
    ("10.0.0.0/", "None", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "parsed", "warnings"), RANGES)
def test_range_forms(text: str, parsed: str, warnings: list[str]) -> None:
    found = parse_cidr(text)
    assert str(found[1] if found else None) == parsed
    assert cidr_warnings("f", text) == [f"f: {warning}" for warning in warnings]


def test_warnings_of_slices_are_for_people() -> None:
    text = "addressType: IPv4, endpoints: [{addresses: [010.0.0.1]}]"
    obj = made("EndpointSlice", text)
    (told,) = write_warnings("discovery.k8s.io/endpointslices", obj)
    assert told.startswith('endpoints[0].addresses[0]: non-standard IP address "010.0.0.1"')
    managed = "endpointslice.kubernetes.io/managed-by"
    obj["metadata"]["labels"] = {managed: "endpointslice-controller.k8s.io"}
    assert write_warnings("discovery.k8s.io/endpointslices", obj) == ()
    named = made("EndpointSlice", "addressType: FQDN")
    assert write_warnings("discovery.k8s.io/endpointslices", named) == (
        "spec.addressType: FQDN endpoints are deprecated",
    )
