"""Policies of files: what is refused, and what is told though it is read."""

from __future__ import annotations

import pytest

from podwire.errors import PolicyError
from podwire.explain.policyfiles import policy_doubts, read_policy
from podwire.objects.documents import Document, parse
from podwire.policy.model import LAST_PORT, PortRange

HEAD = "apiVersion: policy.networking.k8s.io/{0}\nkind: {1}\nmetadata: {{name: default}}\nspec:\n"
ADMIN = HEAD.format("v1alpha1", "AdminNetworkPolicy") + "  priority: 1\n"
BASELINE = HEAD.format("v1alpha1", "BaselineAdminNetworkPolicy")
CLUSTER = HEAD.format("v1alpha2", "ClusterNetworkPolicy") + "  tier: Admin\n  priority: 1\n"
NETWORK = (
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: n}\n"
    "spec:\n  podSelector: {}\n"
)


def _document(text: str) -> Document:
    (document,) = parse(text, "f.yaml", marks=True)
    return document


def _rule(head: str, rule: str, direction: str = "ingress") -> Document:
    return _document(f"{head}  subject: {{namespaces: {{}}}}\n  {direction}:\n  - {rule}\n")


def _doubts(document: Document) -> list[str]:
    return list(policy_doubts(document, read_policy(document)))


@pytest.mark.parametrize("head", [ADMIN, BASELINE, CLUSTER], ids=["admin", "baseline", "cluster"])
@pytest.mark.parametrize("peer", ["{}", "{pods: null}"])
def test_a_peer_that_says_nothing_is_refused(head: str, peer: str) -> None:
    document = _rule(head, f"{{action: Deny, from: [{{namespaces: {{}}}}, {peer}]}}")
    with pytest.raises(PolicyError, match=r"f.yaml:\d: .*spec.ingress\[0\].from\[1\]: .*exactly"):
        read_policy(document)


def test_what_a_later_api_may_add_is_refused_of_v1alpha1_and_fails_closed_of_later_ones() -> None:
    rule = "{action: ACTION, from: [{externals: {a: b}}]}"
    for head in (ADMIN, BASELINE):
        with pytest.raises(PolicyError, match=r"spec.ingress\[0\].from\[0\]: .*want exactly one"):
            read_policy(_rule(head, rule.replace("ACTION", "Deny")))
    path = 'unknown field "spec.ingress[0].from[0].externals"'
    known = "has a peer or protocol that is not known here, so it"
    for action, effect in (("Accept", "accepts nothing"), ("Deny", "denies everything")):
        assert _doubts(_rule(CLUSTER, rule.replace("ACTION", action))) == [
            f"f.yaml:9: ClusterNetworkPolicy default: {path}",
            f"f.yaml:9: ClusterNetworkPolicy default: spec.ingress[0]: {known} {effect}",
        ]


@pytest.mark.parametrize("field", ["networks", "domainNames"])
def test_a_list_of_no_addresses_is_refused(field: str) -> None:
    document = _rule(CLUSTER, f"{{action: Accept, to: [{{{field}: []}}]}}", "egress")
    with pytest.raises(PolicyError, match=rf"spec.egress\[0\].to\[0\].{field}: needs at least one"):
        read_policy(document)


@pytest.mark.parametrize(
    ("head", "ports", "field"),
    [
        (ADMIN, "protocols: [{tcp: {destinationPort: {number: 80}}}]", "protocols"),
        (CLUSTER, "ports: [{portNumber: {protocol: TCP, port: 80}}]", "ports"),
    ],
)
def test_ports_as_the_other_version_writes_them_mean_nothing(
    head: str, ports: str, field: str
) -> None:
    document = _rule(head, f"{{action: Deny, from: [{{namespaces: {{}}}}], {ports}}}")
    assert read_policy(document).ingress[0].ports is None
    (told,) = _doubts(document)
    assert told.endswith(f'unknown field "spec.ingress[0].{field}" means nothing')


def test_selectors_of_earlier_v1alpha1_are_told() -> None:
    """`namespaces` had a selector inside once; without it, it means all of them."""
    inside = "{namespaces: {namespaceSelector: {matchLabels: {a: b}}}}"
    (told,) = _doubts(_rule(ADMIN, f"{{action: Deny, from: [{inside}]}}"))
    path = "spec.ingress[0].from[0].namespaces.namespaceSelector"
    assert told == f'f.yaml:8: AdminNetworkPolicy default: unknown field "{path}" means nothing'


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (
            _document(CLUSTER.replace("  priority: 1\n", "") + "  subject: {namespaces: {}}\n"),
            "spec.priority: Required value",
        ),
        (
            _rule(
                CLUSTER,
                "{action: Deny, to: [{networks: [10.0.0.0/8]}], "
                "protocols: [{destinationNamedPort: web}]}",
                "egress",
            ),
            "there are no namedPorts for networks",
        ),
        (
            _rule(CLUSTER, "{action: Accept, to: [{domainNames: ['*']}]}", "egress"),
            'spec.egress[0].to[0].domainNames[0]: Invalid value: "*"',
        ),
        (
            _rule(
                ADMIN, "{action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {port: 1}}]}"
            ),
            "spec.ingress[0].ports[0].portNumber.protocol: Required value",
        ),
    ],
)
def test_what_an_api_server_would_refuse_is_told(document: Document, told: str) -> None:
    (found,) = _doubts(document)
    assert "default: an API server refuses it: " in found
    assert told in found


def test_many_of_a_kind_are_counted() -> None:
    rule = "{action: Deny, from: [{pods: {podSelector: {}}}]}"
    told = _doubts(_rule(ADMIN, f"{rule}\n  - " * 4 + rule))
    assert len(told) == 4
    assert told[-1] == (
        "f.yaml:4: AdminNetworkPolicy default: an API server refuses 2 more of its fields"
    )


def test_a_version_that_is_none_is_told() -> None:
    subject = "  subject: {namespaces: {}}\n"
    group = "policy.networking.k8s.io"
    assert _doubts(_document(CLUSTER.replace("v1alpha2", "v1alpha1") + subject)) == [
        (
            f"f.yaml:1: ClusterNetworkPolicy default: no API server has it in {group}/v1alpha1; "
            f"it is read as of {group}/v1alpha2"
        )
    ]
    assert _doubts(_document(NETWORK.replace("networking.k8s.io/v1", "extensions/v1beta1"))) == []
    (told,) = _doubts(_document(NETWORK.replace("io/v1", "io/v2")))
    assert told.startswith("f.yaml:1: NetworkPolicy default/n: no API server has it in networking")


def test_rules_of_a_direction_that_is_not_listed_are_told() -> None:
    rules = "  policyTypes: [Ingress]\n  egress:\n  - ports: [{port: 80}]\n"
    (told,) = _doubts(_document(NETWORK + rules))
    assert told == (
        "f.yaml:7: NetworkPolicy default/n: spec.egress means nothing: spec.policyTypes does not "
        "have Egress"
    )
    assert _doubts(_document(NETWORK + rules.replace("[Ingress]", "[]"))) == []


def test_a_named_port_of_addresses_is_told() -> None:
    peers = "[{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]"
    rule = f"  egress:\n  - {{to: {peers}, ports: [{{port: web}}]}}\n"
    (told,) = _doubts(_document(NETWORK + rule))
    assert told.startswith("f.yaml:7: NetworkPolicy default/n: spec.egress[0].ports[0]: addresses")
    assert told.endswith("spec.egress[0].to[1] is an ipBlock, to which it accepts nothing")
    # Ingress ports are the selected pod's own.
    ingress = rule.replace("egress", "ingress").replace("to:", "from:")
    assert _doubts(_document(NETWORK + ingress)) == []


def test_a_range_that_ends_before_it_starts_is_told() -> None:
    ports = "[{portRange: {protocol: TCP, start: 80, end: 70}}]"
    (told,) = _doubts(
        _rule(ADMIN, f"{{action: Deny, from: [{{namespaces: {{}}}}], ports: {ports}}}")
    )
    assert told.endswith(
        "spec.ingress[0].ports[0].portRange ends before it starts: no port is in it"
    )


def test_what_is_well_raises_no_doubt() -> None:
    peers = "[{namespaces: {}}, {pods: {namespaceSelector: {}, podSelector: {}}}]"
    ports = "[{portRange: {protocol: SCTP, start: 1, end: 65535}}]"
    document = _rule(BASELINE, f"{{name: a, action: Deny, from: {peers}, ports: {ports}}}")
    assert _doubts(document) == []
    (rule,) = read_policy(document).ingress
    assert rule.ports == (PortRange(132, 1, LAST_PORT),)
