"""The policy kinds as a client meets them: there from the start, checked, shown, reported on."""

# Each table row is a line as kubectl prints it; wrapping would hide what is compared.
# ruff: noqa: E501

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from podwire.apiserver.definitions import DEFINITIONS, definition

from .conftest import Api, config_for, serving

GROUP = "/apis/policy.networking.k8s.io"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
KINDS = {
    "ClusterNetworkPolicy": ("v1alpha2", "clusternetworkpolicies", "cnp"),
    "AdminNetworkPolicy": ("v1alpha1", "adminnetworkpolicies", "anp"),
    "BaselineAdminNetworkPolicy": ("v1alpha1", "baselineadminnetworkpolicies", "banp"),
}
GOOD = {
    "ClusterNetworkPolicy": """
      tier: Admin, priority: 10, subject: {pods: {podSelector: {}}},
      ingress: [{name: in, action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}},
        {udp: {destinationPort: {range: {start: 1, end: 2}}}}, {destinationNamedPort: web}]}],
      egress: [{action: Deny, to: [{networks: [10.0.0.0/8, '2001:db8::/32', 10.1.2.3/8]}, {nodes: {}}]},
        {action: Accept, to: [{domainNames: ['*.example.com', example.com.]}]}]""",
    "AdminNetworkPolicy": """
      priority: 0, subject: {namespaces: {matchLabels: {a: b}}},
      ingress: [{action: Allow, from: [{pods: {podSelector: {}, namespaceSelector: {}}}],
        ports: [{portNumber: {port: 80}}, {portRange: {protocol: UDP, start: 1, end: 9}}, {namedPort: web}]}],
      egress: [{action: Pass, to: [{domainNames: [example.com]}, {networks: [0.0.0.0/0]}, {nodes: {}}]}]""",
    "BaselineAdminNetworkPolicy": """
      subject: {namespaces: {}},
      egress: [{action: Deny, to: [{networks: ['::/0']}], ports: [{portNumber: {protocol: SCTP, port: 9}}]}]""",
}


def policy(kind: str, spec: str | None = None, name: str = "default") -> dict[str, Any]:
    version = KINDS[kind][0]
    return {
        "apiVersion": f"policy.networking.k8s.io/{version}",
        "kind": kind,
        "metadata": {"name": name},
        "spec": yaml.safe_load("{" + (GOOD[kind] if spec is None else spec) + "}"),
    }


def url(kind: str) -> str:
    version, plural, _ = KINDS[kind]
    return f"{GROUP}/{version}/{plural}"


def lines(status: dict[str, Any]) -> list[str]:
    return [f"{c['field']}: {c['message']}" for c in status["details"]["causes"]]


@pytest.mark.parametrize("kind", KINDS)
async def test_served_from_the_start(api: Api, kind: str) -> None:
    version, plural, short = KINDS[kind]
    found = await api.get(f"{GROUP}/{version}")
    rows = {row["name"]: row for row in found["resources"]}
    assert rows[plural]["shortNames"] == [short]
    assert not rows[plural]["namespaced"]
    assert f"{plural}/status" in rows
    made = await api.post(url(kind), policy(kind))
    assert made["metadata"]["generation"] == 1


async def test_defaults(api: Api) -> None:
    made = await api.post(url("AdminNetworkPolicy"), policy("AdminNetworkPolicy"))
    ports = made["spec"]["ingress"][0]["ports"]
    assert ports[0] == {"portNumber": {"port": 80, "protocol": "TCP"}}
    assert ports[1]["portRange"]["protocol"] == "UDP"


@pytest.mark.parametrize(
    ("kind", "columns", "cells"),
    [
        ("ClusterNetworkPolicy", ["Name", "Tier", "Priority", "Age"], ["default", "Admin", "10"]),
        ("AdminNetworkPolicy", ["Name", "Priority", "Age"], ["default", "0"]),
        ("BaselineAdminNetworkPolicy", ["Name", "Age"], ["default"]),
    ],
)
async def test_columns(api: Api, kind: str, columns: list[str], cells: list[str]) -> None:
    await api.post(url(kind), policy(kind))
    table = await api.get(url(kind), TABLE)
    assert [c["name"] for c in table["columnDefinitions"]] == columns
    assert table["rows"][0]["cells"][:-1] == cells


async def test_status_is_its_own_subresource(api: Api) -> None:
    kind = "ClusterNetworkPolicy"
    at = f"{url(kind)}/default"
    made = await api.post(url(kind), policy(kind) | {"status": {"conditions": []}})
    assert not made.get("status")
    condition = {
        "type": "PodwireEnforced",
        "status": "True",
        "reason": "Programmed",
        "message": "in force on 3 of 3 nodes",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    written = await api.merge(f"{at}/status", {"status": {"conditions": [condition]}})
    assert written["status"]["conditions"] == [condition]
    assert written["metadata"]["generation"] == 1
    changed = await api.merge(at, {"spec": {"priority": 11}, "status": {"conditions": []}})
    assert changed["status"]["conditions"] == [condition]
    assert changed["metadata"]["generation"] == 2
    wrong = condition | {"status": "Perhaps"}
    refused = await api.merge(f"{at}/status", {"status": {"conditions": [wrong]}}, 422)
    assert lines(refused)[0] == (
        'status.conditions[0].status: Unsupported value: "Perhaps": supported values: "True", "False", "Unknown"'
    )


SUBJECT = "subject: {namespaces: {}}"
CNP = f"tier: Admin, priority: 1, {SUBJECT}"
NAMES_OUTSIDE = "networks/nodes/domainNames peer cannot be set with namedPorts since there are no namedPorts for networks/nodes/domainNames"
NAMES_OUTSIDE_BASELINE = "networks/nodes peer cannot be set with namedPorts since there are no namedPorts for networks/nodes"
ONE_FAMILY = "CIDR must be either an IPv4 or IPv6 address. IPv4 address embedded in IPv6 addresses are not supported"
ONLY_DEFAULT = 'Only one baseline admin network policy with metadata.name="default" can be created in the cluster'
UNCHECKED = "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"
WEB = "{destinationNamedPort: web}"
REFUSED: list[tuple[str, str, list[str]]] = [
    (
        "ClusterNetworkPolicy",
        "",
        [
            "spec.priority: Required value",
            "spec.subject: Required value",
            "spec.tier: Required value",
            UNCHECKED,
        ],
    ),
    (
        "ClusterNetworkPolicy",
        f"tier: Middle, priority: 1, {SUBJECT}",
        [
            'spec.tier: Unsupported value: "Middle": supported values: "Admin", "Baseline"',
            UNCHECKED,
        ],
    ),
    (
        "ClusterNetworkPolicy",
        f"tier: Admin, priority: 1001, {SUBJECT}",
        [
            "spec.priority: Invalid value: 1001: spec.priority in body should be less than or equal to 1000"
        ],
    ),
    (
        "ClusterNetworkPolicy",
        f"tier: Admin, priority: -1, {SUBJECT}",
        [
            "spec.priority: Invalid value: -1: spec.priority in body should be greater than or equal to 0"
        ],
    ),
    (
        "ClusterNetworkPolicy",
        "tier: Admin, priority: 1, subject: {}",
        ["spec.subject: Invalid value: 0: spec.subject in body should have at least 1 properties"],
    ),
    (
        "ClusterNetworkPolicy",
        "tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}",
        ["spec.subject: Too many: 2: must have at most 1 items", UNCHECKED],
    ),
    (
        "ClusterNetworkPolicy",
        "tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}}}",
        ["spec.subject.pods.podSelector: Required value", UNCHECKED],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", ingress: [{action: Allow, from: [{namespaces: {}}]}]",
        [
            'spec.ingress[0].action: Unsupported value: "Allow": supported values: "Accept", "Deny", "Pass"',
            UNCHECKED,
        ],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", ingress: [{action: Deny}]",
        ["spec.ingress[0].from: Required value", UNCHECKED],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", ingress: [{action: Deny, from: []}]",
        [
            "spec.ingress[0].from: Invalid value: 0: spec.ingress[0].from in body should have at least 1 items"
        ],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", ingress: [{action: Deny, from: [{namespaces: {}, pods: {podSelector: {}}}]}]",
        ["spec.ingress[0].from[0]: Too many: 2: must have at most 1 items", UNCHECKED],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", egress: [{action: Deny, to: [{}]}]",
        [
            "spec.egress[0].to[0]: Invalid value: 0: spec.egress[0].to[0] in body should have at least 1 properties"
        ],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", egress: [" + ", ".join(["{action: Deny, to: [{namespaces: {}}]}"] * 26) + "]",
        ["spec.egress: Too many: 26: must have at most 25 items", UNCHECKED],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", egress: [{name: " + "n" * 101 + ", action: Deny, to: [{namespaces: {}}]}]",
        ["spec.egress[0].name: Too long: may not be more than 100 bytes", UNCHECKED],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", egress: [{action: Deny, to: [{networks: [10.0.0.0]}]}]",
        ['spec.egress[0].to[0].networks[0]: Invalid value: "string": Invalid CIDR format provided'],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", egress: [{action: Deny, to: [{networks: ['::ffff:10.0.0.0/104']}]}]",
        ['spec.egress[0].to[0].networks[0]: Invalid value: "string": Invalid CIDR format provided'],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", egress: [{action: Deny, to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]}]",
        ['spec.egress[0].to[0].networks[1]: Duplicate value: "10.0.0.0/8"', UNCHECKED],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", egress: [{action: Accept, to: [{domainNames: ['a.*.com']}]}]",
        [
            "spec.egress[0].to[0].domainNames[0]: Invalid value: \"a.*.com\": spec.egress[0].to[0].domainNames[0] in body should match '^(\\*\\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\\.?$'"
        ],
    ),
    (
        "ClusterNetworkPolicy",
        CNP
        + f", egress: [{{action: Deny, to: [{{namespaces: {{}}}}, {{nodes: {{}}}}], protocols: [{WEB}]}}]",
        [f'spec.egress[0]: Invalid value: "object": {NAMES_OUTSIDE}'],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + f", egress: [{{action: Accept, to: [{{domainNames: [a.b]}}], protocols: [{WEB}]}}]",
        [f'spec.egress[0]: Invalid value: "object": {NAMES_OUTSIDE}'],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", ingress: [{action: Deny, from: [{namespaces: {}}], protocols: []}]",
        [
            "spec.ingress[0].protocols: Invalid value: 0: spec.ingress[0].protocols in body should have at least 1 items"
        ],
    ),
    (
        "ClusterNetworkPolicy",
        CNP + ", ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {}}]}]",
        [
            "spec.ingress[0].protocols[0].tcp: Invalid value: 0: spec.ingress[0].protocols[0].tcp in body should have at least 1 properties"
        ],
    ),
    (
        "ClusterNetworkPolicy",
        CNP
        + ", ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]}]",
        [
            "spec.ingress[0].protocols[0].tcp.destinationPort.number: Invalid value: 0: spec.ingress[0].protocols[0].tcp.destinationPort.number in body should be greater than or equal to 1"
        ],
    ),
    (
        "ClusterNetworkPolicy",
        CNP
        + ", ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {range: {start: 9, end: 9}}}}]}]",
        [
            'spec.ingress[0].protocols[0].sctp.destinationPort.range: Invalid value: "object": Start port must be less than End port'
        ],
    ),
    (
        "AdminNetworkPolicy",
        "priority: 1, subject: {pods: {podSelector: {}}}",
        ["spec.subject.pods.namespaceSelector: Required value", UNCHECKED],
    ),
    (
        "AdminNetworkPolicy",
        f"priority: 1, {SUBJECT}, egress: [{{action: Deny, to: [{{networks: [a]}}]}}]",
        [f'spec.egress[0].to[0].networks[0]: Invalid value: "string": {ONE_FAMILY}'],
    ),
    (
        "AdminNetworkPolicy",
        f"priority: 1, {SUBJECT}, egress: [{{action: Deny, to: [{{nodes: {{}}}}], ports: [{{namedPort: web}}]}}]",
        [f'spec.egress[0]: Invalid value: "object": {NAMES_OUTSIDE}'],
    ),
    (
        "BaselineAdminNetworkPolicy",
        f"{SUBJECT}, ingress: [{{action: Pass, from: [{{namespaces: {{}}}}]}}]",
        [
            'spec.ingress[0].action: Unsupported value: "Pass": supported values: "Allow", "Deny"',
            UNCHECKED,
        ],
    ),
    (
        "BaselineAdminNetworkPolicy",
        f"{SUBJECT}, egress: [{{action: Deny, to: [{{networks: [10.0.0.0/8]}}], ports: [{{namedPort: web}}]}}]",
        [f'spec.egress[0]: Invalid value: "object": {NAMES_OUTSIDE_BASELINE}'],
    ),
]


async def test_what_is_refused(api: Api) -> None:
    for kind, spec, expected in REFUSED:
        assert lines(await api.post(url(kind), policy(kind, spec), 422)) == expected, spec


async def test_there_is_one_baseline_policy(api: Api) -> None:
    kind = "BaselineAdminNetworkPolicy"
    refused = await api.post(url(kind), policy(kind, name="other"), 422)
    assert lines(refused) == [f'<nil>: Invalid value: "object": {ONLY_DEFAULT}']


@pytest.mark.parametrize("plural", DEFINITIONS)
async def test_applying_the_definition_again_is_harmless(api: Api, plural: str) -> None:
    kind = next(kind for kind, row in KINDS.items() if row[1] == plural)
    await api.post(url(kind), policy(kind))
    at = f"{CRDS}/{plural}.policy.networking.k8s.io"
    again = copy.deepcopy(definition(plural))
    again["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "another text"
    changed = await api.merge(at, again)
    assert {c["type"]: c["status"] for c in changed["status"]["conditions"]} == {
        "NamesAccepted": "True",
        "Established": "True",
    }
    assert [row["metadata"]["name"] for row in (await api.get(url(kind)))["items"]] == ["default"]


async def test_a_definition_somebody_changed_is_left_alone(tmp_path: Path) -> None:
    name = "clusternetworkpolicies.policy.networking.k8s.io"
    async with serving(config_for(tmp_path)) as api:
        await api.merge(f"{CRDS}/{name}", {"metadata": {"labels": {"mine": "yes"}}})
    async with serving(config_for(tmp_path)) as api:
        found = await api.get(f"{CRDS}/{name}")
        assert found["metadata"]["labels"] == {"mine": "yes"}
        await api.delete(f"{CRDS}/adminnetworkpolicies.policy.networking.k8s.io")
    async with serving(config_for(tmp_path)) as api:
        assert (await api.get(url("AdminNetworkPolicy")))["items"] == []
