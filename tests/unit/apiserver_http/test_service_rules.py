"""Every rule of a Service by the very lines a client is told, in upstream's order."""

# Each table row is a line as kubectl prints it; wrapping would hide what is compared.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import SERVICES, Api, config_for, serving

IPV4, IPV6 = IPv4Network("10.96.0.0/16"), IPv6Network("fd00:96::/112")


def manifest(text: str, name: str = "x") -> dict[str, Any]:
    """A Service with one port and a selector, but for what the text says; null takes away."""
    spec: dict[str, Any] = {"selector": {"app": "x"}, "ports": [{"port": 80}]}
    given = yaml.safe_load("{" + text + "}") or {}
    annotations = given.pop("annotations", None)
    spec = {k: v for k, v in (spec | given).items() if v is not None}
    meta: dict[str, Any] = {"name": name} | ({"annotations": annotations} if annotations else {})
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def lines(status: dict[str, Any]) -> list[str]:
    return [f"{c['field']}: {c['message']}" for c in status["details"]["causes"]]


LB = "type: LoadBalancer"
LOCAL = f"{LB}, externalTrafficPolicy: Local"
TAKEN = "spec.ports[{}].nodePort: Invalid value: {}: provided port is already allocated"
RANGE = "provided port is not in the valid range. The range of valid ports is 30000-32767"
QUALIFIED = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for "
    "validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
LABEL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must "
    "start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for "
    "validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "and must start and end with an alphanumeric character (e.g. 'example.com', regex used for "
    "validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
BAD_IP = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
BAD_CIDR = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
ONLY_LB = "may only be used when `type` is 'LoadBalancer'"

CREATE: list[tuple[str, list[str]]] = [
    # type
    ("type: Odd", ['spec.type: Unsupported value: "Odd": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"']),
    # ports
    ("ports: null", ["spec.ports: Required value"]),
    ("ports: []", ["spec.ports: Required value"]),
    ("ports: null, clusterIP: None", []),
    ("ports: [{port: 0}]", ["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                            "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive"]),
    ("ports: [{port: 65536}]", ["spec.ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive",
                                "spec.ports[0].targetPort: Invalid value: 65536: must be between 1 and 65535, inclusive"]),
    ("ports: [{port: 1}, {port: 2}]", ["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"]),
    ("ports: [{port: 1, name: a}, {port: 2, name: a}]", ['spec.ports[1].name: Duplicate value: "a"']),
    ("ports: [{port: 1, name: A}]", [f'spec.ports[0].name: Invalid value: "A": {LABEL}']),
    ("ports: [{port: 1, name: a}, {port: 1, name: b}]",
     ['spec.ports[1]: Duplicate value: core.ServicePort{Name:"", Protocol:"TCP", AppProtocol:(*string)(nil), Port:1, TargetPort:intstr.IntOrString{Type:0, IntVal:0, StrVal:""}, NodePort:0}']),
    ("ports: [{port: 1, name: a}, {port: 1, name: b, protocol: UDP}]", []),
    ("ports: [{port: 1, protocol: ICMP}]", ['spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"']),
    ("ports: [{port: 1, targetPort: -}]", ['spec.ports[0].targetPort: Invalid value: "-": must contain at least one letter (a-z)',
                                           'spec.ports[0].targetPort: Invalid value: "-": must not begin or end with a hyphen']),
    ("ports: [{port: 1, targetPort: http, appProtocol: kubernetes.io/h2c}]", []),
    ("ports: [{port: 1, appProtocol: '-'}]", [f'spec.ports[0].appProtocol: Invalid value: "-": {QUALIFIED}']),
    ("selector: {'-': a}", [f'spec.selector: Invalid value: "-": {QUALIFIED}']),
    # node ports
    ("ports: [{port: 1, nodePort: 30080}]", ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]),
    ("type: NodePort, ports: [{port: 1, nodePort: 80}]", [f"spec.ports[0].nodePort: Invalid value: 80: {RANGE}"]),
    ("type: NodePort, ports: [{port: 1, name: a, nodePort: 30001}, {port: 2, name: b, nodePort: 30001}]", [TAKEN.format(1, 30001)]),
    ("type: NodePort, ports: [{port: 1, name: a, nodePort: 30001}, {port: 1, name: b, protocol: UDP, nodePort: 30001}]", []),
    ("type: NodePort, ports: [{port: 1, name: a, nodePort: 31111}]", [TAKEN.format(0, 31111)]),
    # ExternalName
    ("type: ExternalName, ports: null", ["spec.externalName: Required value"]),
    ("type: ExternalName, externalName: a.example.com., ports: null", []),
    ("type: ExternalName, externalName: a_b", [f'spec.externalName: Invalid value: "a_b": {SUBDOMAIN}']),
    ("type: ExternalName, externalName: a.b, clusterIP: 10.96.0.9", ["spec.clusterIPs: Forbidden: may not be set for ExternalName services"]),
    ("type: ExternalName, externalName: a.b, ipFamilies: [IPv4], ipFamilyPolicy: SingleStack",
     ["spec.ipFamilies: Forbidden: may not be set for ExternalName services",
      "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services"]),
    # clusterIP and clusterIPs
    ("clusterIP: 1.2.3", [f'spec.clusterIPs[0]: Invalid value: "1.2.3": {BAD_IP}']),
    ("clusterIP: 010.96.0.9", ['spec.clusterIPs[0]: Invalid value: "010.96.0.9": must not have leading 0s']),
    ("clusterIP: '::ffff:10.96.0.9'", ['spec.clusterIPs[0]: Invalid value: "::ffff:10.96.0.9": must not be an IPv4-mapped IPv6 address']),
    ("clusterIP: 10.96.0.9, clusterIPs: [10.96.0.8]",
     ['spec.clusterIPs: Invalid value: []string{"10.96.0.8"}: first value must match `clusterIP`']),
    ("clusterIPs: [10.96.0.8]",
     ['spec.clusterIPs: Invalid value: []string{"10.96.0.8"}: must be empty when `clusterIP` is not specified']),
    ("clusterIP: None, clusterIPs: [None, 10.96.0.8]",
     ["spec.clusterIPs: Invalid value: []string{\"None\", \"10.96.0.8\"}: 'None' must be the first and only value"]),
    ("clusterIP: 10.96.0.8, clusterIPs: [10.96.0.8, None]", [f'spec.clusterIPs[1]: Invalid value: "None": {BAD_IP}']),
    ("clusterIP: 10.96.0.8, clusterIPs: [10.96.0.8, 'fd00:96::8', 10.96.0.9]",
     ['spec.clusterIPs: Invalid value: []string{"10.96.0.8", "fd00:96::8", "10.96.0.9"}: may only hold up to 2 values',
      'spec.clusterIPs: Invalid value: []string{"10.96.0.8", "fd00:96::8", "10.96.0.9"}: may specify no more than one IP for each IP family']),
    ("clusterIP: 10.96.0.8, clusterIPs: [10.96.0.8, 10.96.0.9]",
     ['spec.clusterIPs: Invalid value: []string{"10.96.0.8", "10.96.0.9"}: may specify no more than one IP for each IP family']),
    ("clusterIP: 10.96.0.8, ipFamilies: [IPv6]",
     ['spec.clusterIPs[0]: Invalid value: "10.96.0.8": expected an IPv6 value as indicated by `ipFamilies[0]`']),
    ("clusterIP: 10.96.200.200",
     ['spec.clusterIPs: Invalid value: []string{"10.96.200.200"}: failed to allocate IP 10.96.200.200: provided IP is already allocated']),
    ("clusterIP: 192.0.2.1",
     ['spec.clusterIPs: Invalid value: []string{"192.0.2.1"}: failed to allocate IP 192.0.2.1: the provided network does not match the current range']),
    ("clusterIP: 10.96.0.0",
     ['spec.clusterIPs: Invalid value: []string{"10.96.0.0"}: failed to allocate IP 10.96.0.0: the provided network does not match the current range']),
    ("clusterIP: 10.96.255.255",
     ['spec.clusterIPs: Invalid value: []string{"10.96.255.255"}: failed to allocate IP 10.96.255.255: the provided network does not match the current range']),
    ("type: NodePort, clusterIP: None", ["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"]),
    (f"{LB}, clusterIP: None", ["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for LoadBalancer services"]),
    # families and policy, on a cluster with IPv4 only
    ("ipFamilies: [IPv5]", ['spec.ipFamilies[0]: Unsupported value: "IPv5": supported values: "IPv4", "IPv6"']),
    ("ipFamilies: [IPv4, IPv4]", ['spec.ipFamilies[1]: Duplicate value: "IPv4"']),
    ("ipFamilies: [IPv4, IPv6]", ["spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"]),
    ("ipFamilies: [IPv6]", ['spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster']),
    ("ipFamilyPolicy: Odd", ['spec.ipFamilyPolicy: Unsupported value: "Odd": supported values: "PreferDualStack", "RequireDualStack", "SingleStack"']),
    ("ipFamilyPolicy: RequireDualStack", ['spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services']),
    ("clusterIP: 10.96.0.8, clusterIPs: [10.96.0.8, 'fd00:96::8']",
     ["spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
      'spec.clusterIPs[1]: Invalid value: []string{"10.96.0.8", "fd00:96::8"}: IPv6 is not configured on this cluster']),
    ("clusterIP: 'fd00:96::8'", ['spec.clusterIPs[0]: Invalid value: []string{"fd00:96::8"}: IPv6 is not configured on this cluster']),
    # session affinity
    ("sessionAffinity: Odd", ['spec.sessionAffinity: Unsupported value: "Odd": supported values: "ClientIP", "None"']),
    ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
     ["spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400"]),
    ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
     ["spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400"]),
    ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}", []),
    # external IPs
    ("externalIPs: [1.2.3]", [f'spec.externalIPs[0]: Invalid value: "1.2.3": {BAD_IP}']),
    ("externalIPs: [0.0.0.0]", ['spec.externalIPs[0]: Invalid value: "0.0.0.0": may not be unspecified (0.0.0.0)']),
    ("externalIPs: [127.0.0.1]", ['spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)']),
    ("externalIPs: [169.254.1.1]", ['spec.externalIPs[0]: Invalid value: "169.254.1.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)']),
    ("externalIPs: [224.0.0.1]", ['spec.externalIPs[0]: Invalid value: "224.0.0.1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)']),
    ("externalIPs: ['ff02::1']", ['spec.externalIPs[0]: Invalid value: "ff02::1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)']),
    ("externalIPs: [01.2.3.4]", ['spec.externalIPs[0]: Invalid value: "01.2.3.4": must not have leading 0s']),
    # source ranges
    ("loadBalancerSourceRanges: [10.0.0.0/8]", [f"spec.LoadBalancerSourceRanges: Forbidden: {ONLY_LB}"]),
    (f"{LB}, loadBalancerSourceRanges: [' 10.0.0.0/8 ']", []),
    (f"{LB}, loadBalancerSourceRanges: [10.0.0.1/8]", ['spec.LoadBalancerSourceRanges[0]: Invalid value: "10.0.0.1/8": must not have bits set beyond the prefix length']),
    (f"{LB}, loadBalancerSourceRanges: [10.0.0.0/08]", ['spec.LoadBalancerSourceRanges[0]: Invalid value: "10.0.0.0/08": must not have leading 0s in IP or prefix length']),
    (f"{LB}, loadBalancerSourceRanges: ['::ffff:10.0.0.0/104']", ['spec.LoadBalancerSourceRanges[0]: Invalid value: "::ffff:10.0.0.0/104": must not have an IPv4-mapped IPv6 address']),
    (f"{LB}, loadBalancerSourceRanges: [10.0.0.0]", [f'spec.LoadBalancerSourceRanges[0]: Invalid value: "10.0.0.0": {BAD_CIDR}']),
    ("annotations: {service.beta.kubernetes.io/load-balancer-source-ranges: 10.0.0.0/8}",
     [f"metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Forbidden: {ONLY_LB}"]),
    (f"{LB}, annotations: {{service.beta.kubernetes.io/load-balancer-source-ranges: '10.0.0.0/8, x'}}",
     [f'metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Invalid value: "x": {BAD_CIDR}']),
    (f"{LB}, annotations: {{service.beta.kubernetes.io/load-balancer-source-ranges: ' 10.0.0.0/8 , 11.0.0.0/8'}}", []),
    # load balancer fields
    ("allocateLoadBalancerNodePorts: true", [f"spec.allocateLoadBalancerNodePorts: Forbidden: {ONLY_LB}"]),
    ("loadBalancerClass: a/b", [f"spec.loadBalancerClass: Forbidden: {ONLY_LB}"]),
    (f"{LB}, loadBalancerClass: '-'", [f'spec.loadBalancerClass: Invalid value: "-": {QUALIFIED}']),
    (f"{LB}, loadBalancerClass: a/b", []),
    (f"{LOCAL}, ports: [{{port: 1}}], healthCheckNodePort: 32000", []),
    (f"{LB}, healthCheckNodePort: 32000",
     ["spec.healthCheckNodePort: Invalid value: 32000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"]),
    # traffic
    ("externalTrafficPolicy: Local", ['spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services']),
    ("externalIPs: [203.0.113.9], externalTrafficPolicy: Local", []),
    ("type: NodePort, externalTrafficPolicy: Odd", ['spec.externalTrafficPolicy: Unsupported value: "Odd": supported values: "Cluster", "Local"']),
    ("internalTrafficPolicy: Odd", ['spec.internalTrafficPolicy: Unsupported value: "Odd": supported values: "Cluster", "Local"']),
    ("trafficDistribution: Odd", ['spec.trafficDistribution: Unsupported value: "Odd": supported values: "PreferClose", "PreferSameZone", "PreferSameNode"']),
    ("trafficDistribution: PreferSameNode", []),
    ("annotations: {service.kubernetes.io/topology-mode: Auto, service.kubernetes.io/topology-aware-hints: Disabled}",
     ['metadata.annotations[service.kubernetes.io/topology-mode]: Invalid value: "Auto": must match annotations[service.kubernetes.io/topology-aware-hints] when both are specified']),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CREATE)
async def test_what_may_not_be_created(api: Api, text: str, expected: list[str]) -> None:
    held = "type: NodePort, clusterIP: 10.96.200.200, ports: [{port: 1, nodePort: 31111}]"
    await api.post(SERVICES, manifest(held, "holder"))
    before = snapshot(api)
    code, answer = await api.call("POST", f"{SERVICES}?dryRun=All", manifest(text))
    assert (lines(answer) if code == 422 else [], code) == (expected, 422 if expected else 201)
    assert snapshot(api) == before, "neither a failure nor a dry run takes anything"


def snapshot(api: Api) -> tuple[Any, ...]:
    pool = api.server.context.addresses
    return dict(pool.addresses.by), dict(pool.ports.by), api.server.context.store._next


async def test_a_busy_health_check_port_is_no_field_of_the_client(api: Api) -> None:
    await api.post(SERVICES, manifest("type: NodePort, ports: [{port: 1, nodePort: 31111}]"))
    answer = await api.post(SERVICES, manifest(f"{LOCAL}, healthCheckNodePort: 31111", "y"), 500)
    assert answer["message"] == (
        "Internal error occurred: failed to allocate requested HealthCheck NodePort 31111: "
        "provided port is already allocated"
    )


UPDATE: list[tuple[str, str, list[str] | dict[str, Any]]] = [
    # addresses
    ("clusterIP: 10.96.0.9", "clusterIP: 10.96.0.8, clusterIPs: [10.96.0.8]",
     ['spec.clusterIPs[0]: Invalid value: []string{"10.96.0.8"}: may not change once set']),
    ("clusterIP: 10.96.0.9", "clusterIP: None",
     ['spec.clusterIPs[0]: Invalid value: []string{"None"}: may not change once set']),
    ("clusterIP: None", "clusterIP: 10.96.0.9",
     ['spec.clusterIPs[0]: Invalid value: []string{"10.96.0.9"}: may not change once set']),
    ("clusterIP: 10.96.0.9", "clusterIP: '', clusterIPs: []", {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}),
    # families, on a dual-stack cluster
    ("ipFamilyPolicy: PreferDualStack", "clusterIPs: [10.96.1.1]",
     ["spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary cluster IP"]),
    ("ipFamilyPolicy: PreferDualStack", "ipFamilies: [IPv4]",
     ["spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary IP family"]),
    ("ipFamilyPolicy: RequireDualStack", "ipFamilyPolicy: SingleStack", {"clusterIPs": ["10.96.1.1"], "ipFamilies": ["IPv4"]}),
    ("ipFamilyPolicy: RequireDualStack", "ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], clusterIPs: [10.96.1.1]",
     {"clusterIPs": ["10.96.1.1"], "ipFamilies": ["IPv4"]}),
    ("ipFamilies: [IPv4]", "ipFamilyPolicy: PreferDualStack", {"clusterIPs": ["10.96.1.1", "fd00:96::101"], "ipFamilies": ["IPv4", "IPv6"]}),
    ("ipFamilies: [IPv4]", "ipFamilyPolicy: RequireDualStack, clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, 'fd00:96::77']",
     {"clusterIPs": ["10.96.1.1", "fd00:96::77"], "ipFamilies": ["IPv4", "IPv6"]}),
    ("ipFamilies: [IPv6, IPv4], ipFamilyPolicy: PreferDualStack", "ipFamilies: [IPv4, IPv6]",
     ['spec.clusterIPs[0]: Invalid value: "fd00:96::101": expected an IPv4 value as indicated by `ipFamilies[0]`',
      'spec.clusterIPs[1]: Invalid value: "10.96.1.1": expected an IPv6 value as indicated by `ipFamilies[1]`']),
    ("clusterIP: None", "ipFamilies: [IPv6]", {"ipFamilies": ["IPv6"], "clusterIPs": ["None"]}),
    # type transitions
    ("ports: [{port: 1}]", "type: ExternalName, externalName: a.b",
     {"clusterIP": None, "clusterIPs": None, "ipFamilies": None, "ipFamilyPolicy": None, "internalTrafficPolicy": None, "ports": [{"port": 1, "protocol": "TCP", "targetPort": 1}]}),
    ("type: ExternalName, externalName: a.b", "type: ClusterIP, externalName: null",
     {"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster"}),
    ("type: NodePort, ports: [{port: 1, nodePort: 30001}]", "type: ClusterIP",
     {"ports": [{"port": 1, "protocol": "TCP", "targetPort": 1}], "externalTrafficPolicy": None}),
    ("type: NodePort, ports: [{port: 1, nodePort: 30001}]", "type: ClusterIP, ports: [{port: 1, nodePort: 30002}]",
     ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]),
    ("type: NodePort, ports: [{port: 1, nodePort: 30001}]", "type: ExternalName, externalName: a.b",
     {"ports": [{"port": 1, "protocol": "TCP", "targetPort": 1}], "clusterIP": None}),
    ("type: NodePort, externalTrafficPolicy: Local", "type: ClusterIP, externalTrafficPolicy: Cluster",
     ['spec.externalTrafficPolicy: Invalid value: "Cluster": may only be set for externally-accessible services']),
    (f"{LB}, loadBalancerClass: a/b", "type: ClusterIP",
     {"loadBalancerClass": None, "allocateLoadBalancerNodePorts": None, "externalTrafficPolicy": None}),
    (f"{LB}, loadBalancerClass: a/b", "loadBalancerClass: a/c", ['spec.loadBalancerClass: Invalid value: "a/c": may not change once set']),
    (f"{LB}, loadBalancerClass: a/b", "loadBalancerClass: null", ['spec.loadBalancerClass: Invalid value: "null": may not change once set']),
    (LB, "loadBalancerClass: a/b", ['spec.loadBalancerClass: Invalid value: "a/b": may not change once set']),
    (f"{LB}, loadBalancerSourceRanges: [10.0.0.0/8]", "type: ClusterIP", [f"spec.LoadBalancerSourceRanges: Forbidden: {ONLY_LB}"]),
    ("ports: [{port: 1}]", f"{LB}, loadBalancerClass: a/b", {"loadBalancerClass": "a/b", "allocateLoadBalancerNodePorts": True}),
    # node ports
    ("type: NodePort, ports: [{port: 1, nodePort: 30001}]", "ports: [{port: 1}]", {"ports": [{"port": 1, "protocol": "TCP", "targetPort": 1, "nodePort": 30001}]}),
    ("type: NodePort, ports: [{port: 1, nodePort: 30001}]", "ports: [{port: 2, nodePort: 30002}]",
     {"ports": [{"port": 2, "protocol": "TCP", "targetPort": 2, "nodePort": 30002}]}),
    ("type: NodePort, ports: [{port: 1, name: a, nodePort: 30001}]",
     "ports: [{port: 1, name: a}, {port: 1, name: b, protocol: UDP, nodePort: 30001}]",
     {"ports": [{"port": 1, "name": "a", "protocol": "TCP", "targetPort": 1, "nodePort": 30086},
                {"port": 1, "name": "b", "protocol": "UDP", "targetPort": 1, "nodePort": 30001}]}),
    ("type: NodePort, ports: [{port: 1, nodePort: 30001}]", "ports: [{port: 1, nodePort: 30000000}]",
     [f"spec.ports[0].nodePort: Invalid value: 30000000: {RANGE}"]),
    (f"{LB}, ports: [{{port: 1, nodePort: 30001}}]", "allocateLoadBalancerNodePorts: false",
     {"ports": [{"port": 1, "protocol": "TCP", "targetPort": 1, "nodePort": 30001}]}),
    (f"{LB}, ports: [{{port: 1, nodePort: 30001}}], allocateLoadBalancerNodePorts: false", "ports: [{port: 1}]",
     {"ports": [{"port": 1, "protocol": "TCP", "targetPort": 1}]}),
    (f"{LB}, allocateLoadBalancerNodePorts: false", "allocateLoadBalancerNodePorts: true, ports: [{port: 80}]",
     {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30086}]}),
    # health checks
    (f"{LOCAL}, healthCheckNodePort: 32000", "healthCheckNodePort: 32001", ["spec.healthCheckNodePort: Forbidden: field is immutable"]),
    (f"{LOCAL}, healthCheckNodePort: 32000", "healthCheckNodePort: 0", {"healthCheckNodePort": 32000}),
    (f"{LOCAL}, healthCheckNodePort: 32000", "externalTrafficPolicy: Cluster", {"healthCheckNodePort": None}),
    (f"{LOCAL}, healthCheckNodePort: 32000", "type: ClusterIP", {"healthCheckNodePort": None, "externalTrafficPolicy": None}),
    (f"{LB}, ports: [{{port: 1, nodePort: 30001}}]", "externalTrafficPolicy: Local", {"healthCheckNodePort": 30086}),
    # what is stored may stay (KEP-4858); what is new may not come
    ("externalIPs: [203.0.113.9]", "externalIPs: [203.0.113.9, 0203.0.113.8]",
     ['spec.externalIPs[1]: Invalid value: "0203.0.113.8": must not have leading 0s']),
    # affinity
    ("sessionAffinity: ClientIP", "sessionAffinity: None", {"sessionAffinity": "None", "sessionAffinityConfig": None}),
    ("ports: [{port: 1}]", "sessionAffinity: ClientIP", {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}),
]  # fmt: skip


@pytest.mark.parametrize(("old", "change", "expected"), UPDATE)
async def test_what_an_update_does(
    tmp_path: Path, old: str, change: str, expected: list[str] | dict[str, Any]
) -> None:
    config = replace(config_for(tmp_path), service_cidrs=(IPV4, IPV6))
    async with serving(config) as api:
        made = await api.post(SERVICES, manifest(old))
        before = snapshot(api)
        patch = {"spec": yaml.safe_load("{" + change + "}")}
        code, answer = await api.call(
            "PATCH", f"{SERVICES}/x", patch, content="application/merge-patch+json"
        )
        if isinstance(expected, list):
            assert (code, lines(answer)) == (422, expected)
            assert snapshot(api) == before
            assert await api.get(f"{SERVICES}/x") == made
            return
        assert code == 200, answer
        spec = {key: answer["spec"].get(key) for key in expected}
        assert spec == expected
        again = {**answer, "metadata": {"name": "x"}}
        code, same = await api.call("PUT", f"{SERVICES}/x", again)
        assert (code, same["metadata"]["resourceVersion"]) == (
            200,
            answer["metadata"]["resourceVersion"],
        ), "the same manifest again changes nothing"


async def test_headless_without_selector_has_both_families(api: Api) -> None:
    made = await api.post(SERVICES, manifest("clusterIP: None, selector: null"))
    assert made["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
    assert made["spec"]["ipFamilyPolicy"] == "RequireDualStack"


async def test_stored_forms_may_stay(api: Api) -> None:
    """What an older server took in: an update that leaves it alone is not refused."""
    await api.post(SERVICES, manifest(f"{LB}, externalIPs: [203.0.113.9]"))
    store, table = api.server.context.store, api.server.context.builtin_table("", "v1", "services")
    obj = next(r for r in table.snapshot("default") if r.key.name == "x").object()
    obj["spec"] |= {"externalIPs": ["0203.0.113.9"], "loadBalancerSourceRanges": ["10.0.0.1/8"]}
    store.stage_put(table, obj)
    await store.committed()
    kept = await api.merge(f"{SERVICES}/x", {"metadata": {"labels": {"a": "b"}}})
    assert kept["spec"]["externalIPs"] == ["0203.0.113.9"]
    ranges = {"spec": {"loadBalancerSourceRanges": ["10.0.0.1/8", "10.0.0.2/8"]}}
    refused = await api.merge(f"{SERVICES}/x", ranges, 422)
    assert [c["field"] for c in refused["details"]["causes"]] == [
        "spec.LoadBalancerSourceRanges[1]"
    ]


WARNINGS: list[tuple[str, list[str]]] = [
    ("ports: [{port: 1}]", []),
    ("externalIPs: [203.0.113.9]", ["spec.externalIPs is deprecated and may no longer be implemented in some clusters"]),
    ("clusterIP: None, externalIPs: [203.0.113.9], sessionAffinity: ClientIP, loadBalancerIP: 203.0.113.9",
     ["spec.loadBalancerIP is ignored for headless services", "spec.externalIPs is ignored for headless services",
      "spec.SessionAffinity is ignored for headless services"]),
    ("type: ExternalName, externalName: a.b, externalIPs: [203.0.113.9]", ['spec.externalIPs is ignored when spec.type is "ExternalName"']),
    ("externalName: a.b", ['spec.externalName is ignored when spec.type is not "ExternalName"']),
    ("trafficDistribution: PreferClose", ['spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"']),
    ("annotations: {service.kubernetes.io/topology-aware-hints: Auto}",
     ["annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead"]),
    (f"{LB}, loadBalancerIP: 010.0.0.1",
     ['spec.loadBalancerIP: non-standard IP address "010.0.0.1" will be considered invalid in a future Kubernetes release: use "10.0.0.1"']),
    (f"{LB}, loadBalancerSourceRanges: ['FD00::/8']",
     ['spec.loadBalancerSourceRanges[0]: IPv6 CIDR value "FD00::/8" should be in RFC 5952 canonical format ("fd00::/8")']),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), WARNINGS)
async def test_warnings(api: Api, text: str, expected: list[str]) -> None:
    async with api.session.post(f"http://x{SERVICES}", json=manifest(text)) as answer:
        assert answer.status == 201
        told = answer.headers.getall("Warning", [])
    assert told == ['299 - "{}"'.format(t.replace('"', '\\"')) for t in expected]
    async with api.session.put(f"http://x{SERVICES}/x", json=manifest(text)) as answer:
        assert answer.headers.getall("Warning", []) == told


STATUS: list[tuple[str, str, list[str] | list[dict[str, Any]]]] = [
    (LB, "[{ip: 203.0.113.9}]", [{"ip": "203.0.113.9", "ipMode": "VIP"}]),
    (LB, "[{ip: 203.0.113.9, ipMode: Proxy}]", [{"ip": "203.0.113.9", "ipMode": "Proxy"}]),
    (LB, "[{hostname: lb.example.com, ports: [{port: 80, protocol: TCP, error: 'no'}]}]",
     [{"hostname": "lb.example.com", "ports": [{"port": 80, "protocol": "TCP", "error": "no"}]}]),
    (LB, "[{hostname: a.b, ipMode: VIP}]", ["status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set"]),
    (LB, "[{ip: 203.0.113.9, ipMode: Odd}]", ['status.loadBalancer.ingress[0].ipMode: Unsupported value: "Odd": supported values: "Proxy", "VIP"']),
    (LB, "[{ip: 0203.0.113.9}]", ['status.loadBalancer.ingress[0].ip: Invalid value: "0203.0.113.9": must not have leading 0s']),
    (LB, "[{hostname: 203.0.113.9}]", ['status.loadBalancer.ingress[0].hostname: Invalid value: "203.0.113.9": must be a DNS name, not an IP address']),
    ("type: NodePort", "[{ip: 203.0.113.9}]", ["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "ingress", "expected"), STATUS)
async def test_status(api: Api, spec: str, ingress: str, expected: list[Any]) -> None:
    made = await api.post(SERVICES, manifest(spec))
    wrong = bool(expected) and isinstance(expected[0], str)
    patch = {"status": {"loadBalancer": {"ingress": yaml.safe_load(ingress)}}, "spec": {"a": 1}}
    answer = await api.merge(f"{SERVICES}/x/status", patch, 422 if wrong else 200)
    if wrong:
        assert lines(answer) == expected
        return
    assert answer["status"]["loadBalancer"]["ingress"] == expected
    assert answer["spec"] == made["spec"]


async def test_a_service_status_lifecycle(api: Api) -> None:
    """As the conformance test of that name: patch, update and watch of conditions and addresses."""
    await api.post(SERVICES, manifest(LB))
    patch = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}, "metadata": {"annotations": {"patchedstatus": "true"}}}  # fmt: skip
    code, patched = await api.call(
        "PATCH", f"{SERVICES}/x/status", patch, content="application/strategic-merge-patch+json"
    )
    assert (code, patched["metadata"]["annotations"]) == (200, {"patchedstatus": "true"})
    patched["status"]["conditions"] = [
        {
            "type": "StatusUpdate",
            "status": "True",
            "reason": "E2E",
            "message": "Set from e2e test",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ]
    code, updated = await api.call("PUT", f"{SERVICES}/x/status", patched)
    assert (code, updated["status"]) == (200, patched["status"])
    code, kept = await api.call(
        "PUT", f"{SERVICES}/x", manifest(f"{LB}, sessionAffinity: ClientIP")
    )
    assert (code, kept["status"]) == (200, patched["status"])


async def test_deletecollection(api: Api) -> None:
    for name in ("a", "b", "c"):
        body = manifest("type: NodePort", name)
        body["metadata"]["labels"] = {"keep": str(name == "c")}
        await api.post(SERVICES, body)
    await api.delete(f"{SERVICES}?labelSelector=keep=False")
    left = {i["metadata"]["name"] for i in (await api.get(SERVICES))["items"]}
    assert left == {"kubernetes", "c"}
    assert {key.name for key in api.server.context.addresses.addresses.by.values()} == left


async def test_a_finalizer_holds_what_a_service_has(api: Api) -> None:
    body = manifest("type: LoadBalancer, ports: [{port: 1, nodePort: 30001}]")
    body["metadata"]["finalizers"] = ["service.kubernetes.io/load-balancer-cleanup"]
    address = (await api.post(SERVICES, body))["spec"]["clusterIP"]
    await api.delete(f"{SERVICES}/x")
    again = manifest(f"type: NodePort, clusterIP: {address}, ports: [{{port: 1}}]", "y")
    assert "already allocated" in (await api.post(SERVICES, again, 422))["message"]
    await api.merge(f"{SERVICES}/x/status", {"metadata": {"finalizers": None}})
    assert (await api.call("GET", f"{SERVICES}/x"))[0] == 404
    await api.post(SERVICES, again)


async def test_a_service_takes_its_endpoints_with_it(api: Api) -> None:
    endpoints = "/api/v1/namespaces/default/endpoints"
    await api.post(SERVICES, manifest("ports: [{port: 1}]"))
    body = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "x"}, "subsets": []}
    await api.post(endpoints, body)
    await api.delete(f"{SERVICES}/x?dryRun=All")
    await api.get(f"{endpoints}/x")
    await api.delete(f"{SERVICES}/x")
    assert (await api.call("GET", f"{endpoints}/x"))[0] == 404
