"""NetworkPolicy: every rule by the line kubectl prints, and the warnings of accepted ones.

Source: pkg/apis/networking/validation (ValidateNetworkPolicy and below).
"""

# Each table row is a line as kubectl prints it; wrapping would hide what is compared.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

import pytest
import yaml

from podwire.apiserver.decode import decode_object
from podwire.apiserver.defaults import apply_defaults
from podwire.apiserver.schema import builtin
from podwire.apiserver.service_warnings import write_warnings
from podwire.apiserver.validation import validate_create, validate_update

GROUP = "networking.k8s.io"


def policy(spec: str) -> dict[str, Any]:
    """A NetworkPolicy of this spec (YAML), decoded and defaulted as a write is."""
    raw = {
        "apiVersion": f"{GROUP}/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "x"},
        "spec": yaml.safe_load("{" + spec + "}"),
    }
    schema = builtin(GROUP, "v1", "NetworkPolicy")
    assert schema is not None
    obj, _ = decode_object(raw, schema, group=GROUP, version="v1", kind="NetworkPolicy")
    apply_defaults(GROUP, "NetworkPolicy", obj)
    return obj


def refused(obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    if old is None:
        return [str(error) for error in validate_create("NetworkPolicy", obj)]
    return [str(error) for error in validate_update("NetworkPolicy", obj, old)]


BETWEEN = "must be between 1 and 65535, inclusive"
SUBSET = "must be a strict subset of `cidr`"
BAD_CIDR = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
ZEROS = "must not have leading 0s in IP or prefix length"
VALUES = "must be specified when `operator` is 'In' or 'NotIn'"
NO_VALUES = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
LABEL_VALUE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
    "and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or "
    "'12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
FROM, TO, PORT = "spec.ingress[0].from[0]", "spec.egress[0].to[0]", "spec.ingress[0].ports[0]"

GOOD = [
    "",
    "podSelector: {}, ingress: null, egress: []",
    "podSelector: null, policyTypes: []",
    "policyTypes: [Egress]",
    "policyTypes: [Ingress, Egress]",
    "policyTypes: [Ingress, Ingress]",
    "ingress: [{}], egress: [{to: [], ports: []}]",
    "ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}, {podSelector: {}, namespaceSelector: {}}]}]",
    "ingress: [{from: [{podSelector: null, ipBlock: {cidr: 0.0.0.0/0}}]}]",
    "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/9, 10.1.2.3/32]}}]}]",
    "egress: [{to: [{ipBlock: {cidr: '2001:db8::/32', except: ['2001:db8:1::/48']}}]}]",
    "ingress: [{ports: [{}, {protocol: SCTP}, {port: 80}, {port: http}, {port: 1, endPort: 65535}, {port: 80, endPort: 80}]}]",
]

BAD: list[tuple[str, list[str]]] = [
    # ports
    (
        "ingress: [{ports: [{protocol: ICMP}]}]",
        [f'{PORT}.protocol: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"'],
    ),
    (
        "ingress: [{ports: [{protocol: tcp}]}]",
        [f'{PORT}.protocol: Unsupported value: "tcp": supported values: "TCP", "UDP", "SCTP"'],
    ),
    ("ingress: [{ports: [{port: 0}]}]", [f"{PORT}.port: Invalid value: 0: {BETWEEN}"]),
    ("ingress: [{ports: [{port: 65536}]}]", [f"{PORT}.port: Invalid value: 65536: {BETWEEN}"]),
    (
        "ingress: [{ports: [{port: -}]}]",
        [
            f'{PORT}.port: Invalid value: "-": must contain at least one letter (a-z)',
            f'{PORT}.port: Invalid value: "-": must not begin or end with a hyphen',
        ],
    ),
    (
        "ingress: [{ports: [{port: has_underscore}]}]",
        [
            f'{PORT}.port: Invalid value: "has_underscore": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)'
        ],
    ),
    (
        "ingress: [{ports: [{port: abcdefghijklmnop}]}]",
        [f'{PORT}.port: Invalid value: "abcdefghijklmnop": must be no more than 15 characters'],
    ),
    (
        "ingress: [{ports: [{port: 80, endPort: 79}]}]",
        [f"{PORT}.endPort: Invalid value: 79: must be greater than or equal to `port`"],
    ),
    (
        "ingress: [{ports: [{port: 80, endPort: 0}]}]",
        [
            f"{PORT}.endPort: Invalid value: 0: must be greater than or equal to `port`",
            f"{PORT}.endPort: Invalid value: 0: {BETWEEN}",
        ],
    ),
    (
        "ingress: [{ports: [{port: 80, endPort: 65536}]}]",
        [f"{PORT}.endPort: Invalid value: 65536: {BETWEEN}"],
    ),
    (
        "ingress: [{ports: [{port: http, endPort: 90}]}]",
        [f"{PORT}.endPort: Invalid value: 90: may not be specified when `port` is non-numeric"],
    ),
    (
        "ingress: [{ports: [{endPort: 90}]}]",
        [f"{PORT}.endPort: Invalid value: 90: may not be specified when `port` is not specified"],
    ),
    (
        "egress: [{}, {ports: [{}, {port: 0}]}]",
        [f"spec.egress[1].ports[1].port: Invalid value: 0: {BETWEEN}"],
    ),
    # peers
    ("ingress: [{from: [{}]}]", [f"{FROM}: Required value: must specify a peer"]),
    ("egress: [{to: [{podSelector: null}]}]", [f"{TO}: Required value: must specify a peer"]),
    (
        "ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]",
        [f"{FROM}: Forbidden: may not specify both ipBlock and another peer"],
    ),
    (
        "egress: [{to: [{namespaceSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]",
        [f"{TO}: Forbidden: may not specify both ipBlock and another peer"],
    ),
    # selectors
    (
        "podSelector: {matchLabels: {a: '-'}}",
        [f'spec.podSelector.matchLabels: Invalid value: "-": {LABEL_VALUE}'],
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: In}]}",
        [f"spec.podSelector.matchExpressions[0].values: Required value: {VALUES}"],
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}",
        [f"spec.podSelector.matchExpressions[0].values: Required value: {VALUES}"],
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
        [f"spec.podSelector.matchExpressions[0].values: Forbidden: {NO_VALUES}"],
    ),
    (
        "ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: Is}]}}]}]",
        [
            f'{FROM}.podSelector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator'
        ],
    ),
    (
        "egress: [{to: [{namespaceSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}}]}]",
        [f"{TO}.namespaceSelector.matchExpressions[0].values: Forbidden: {NO_VALUES}"],
    ),
    # ipBlock
    ("ingress: [{from: [{ipBlock: {}}]}]", [f"{FROM}.ipBlock.cidr: Required value"]),
    (
        "ingress: [{from: [{ipBlock: {cidr: '', except: [10.0.0.0/8]}}]}]",
        [f"{FROM}.ipBlock.cidr: Required value"],
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]",
        [f'{FROM}.ipBlock.cidr: Invalid value: "10.0.0.0": {BAD_CIDR}'],
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33, except: [10.0.0.0/9]}}]}]",
        [f'{FROM}.ipBlock.cidr: Invalid value: "10.0.0.0/33": {BAD_CIDR}'],
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]",
        [f'{FROM}.ipBlock.cidr: Invalid value: "010.0.0.0/8": {ZEROS}'],
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}]",
        [
            f'{FROM}.ipBlock.cidr: Invalid value: "::ffff:10.0.0.0/104": must not have an IPv4-mapped IPv6 address'
        ],
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [bad, 10.0.0.0/8]}}]}]",
        [
            f'{FROM}.ipBlock.except[0]: Invalid value: "bad": {BAD_CIDR}',
            f'{FROM}.ipBlock.except[1]: Invalid value: "10.0.0.0/8": {SUBSET}',
        ],
    ),
    (
        "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}]",
        [f'{TO}.ipBlock.except[0]: Invalid value: "11.0.0.0/9": {SUBSET}'],
    ),
    (
        "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/7]}}]}]",
        [f'{TO}.ipBlock.except[0]: Invalid value: "10.0.0.0/7": {SUBSET}'],
    ),
    (
        "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: ['2001:db8::/64']}}]}]",
        [f'{TO}.ipBlock.except[0]: Invalid value: "2001:db8::/64": {SUBSET}'],
    ),
    # policyTypes
    (
        "policyTypes: [Both]",
        ['spec.policyTypes[0]: Unsupported value: "Both": supported values: "Ingress", "Egress"'],
    ),
    (
        "policyTypes: [Ingress, egress]",
        ['spec.policyTypes[1]: Unsupported value: "egress": supported values: "Ingress", "Egress"'],
    ),
    (
        "policyTypes: [Ingress, Egress, Ingress]",
        [
            'spec.policyTypes: Invalid value: []networking.PolicyType{"Ingress", "Egress", "Ingress"}: may not specify more than two policyTypes'
        ],
    ),
]

WARNED: list[tuple[str, list[str]]] = [
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.9.8.7/16]}}]}]",
        [
            f'{FROM}.ipBlock.cidr: CIDR value "10.1.2.3/8" is ambiguous in this context (should be "10.0.0.0/8" or "10.1.2.3/32"?)',
            f'{FROM}.ipBlock.except[0]: CIDR value "10.9.8.7/16" is ambiguous in this context (should be "10.9.0.0/16" or "10.9.8.7/32"?)',
        ],
    ),
    (
        "egress: [{to: [{ipBlock: {cidr: '2001:DB8::/32'}}]}]",
        [
            f'{TO}.ipBlock.cidr: IPv6 CIDR value "2001:DB8::/32" should be in RFC 5952 canonical format ("2001:db8::/32")'
        ],
    ),
    ("egress: [{to: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]", []),
]


@pytest.mark.parametrize("spec", GOOD)
def test_accepted(spec: str) -> None:
    obj = policy(spec)
    assert refused(obj) == []
    assert refused(policy(spec), obj) == []


@pytest.mark.parametrize(("spec", "expected"), BAD)
def test_refused(spec: str, expected: list[str]) -> None:
    assert refused(policy(spec)) == expected
    assert refused(policy(spec), policy("")) == expected


@pytest.mark.parametrize(("spec", "expected"), WARNED)
def test_warned_of(spec: str, expected: list[str]) -> None:
    obj = policy(spec)
    assert refused(obj) == []
    assert list(write_warnings("networking.k8s.io/networkpolicies", obj)) == expected


def test_a_stored_cidr_may_stay_wherever_it_moves() -> None:
    old = policy("ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8, except: [010.1.0.0/16]}}]}]")
    moved = policy(
        "egress: [{to: [{ipBlock: {cidr: 010.0.0.0/8}}]}], "
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [010.1.0.0/16]}}]}]"
    )
    assert refused(moved, old) == []
    assert refused(policy("ingress: [{from: [{ipBlock: {cidr: 09.0.0.0/8}}]}]"), old) == [
        f'{FROM}.ipBlock.cidr: Invalid value: "09.0.0.0/8": {ZEROS}'
    ]
