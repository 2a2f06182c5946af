"""Where the policies and rules of a flow log were written."""

from __future__ import annotations

from podwire.explain.liveflows import find_places
from podwire.explain.staticworld import read_world
from podwire.objects.documents import parse
from podwire.policy.flowdocument import FlowLogDocument
from podwire.policy.flowlog import End, FlowRecord, Said

POLICIES = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {}
  ingress:
  - from: [{podSelector: {}}]
  - ports: [{port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db2, namespace: shop}
spec: {podSelector: {}}
"""


def _document(*said: Said) -> FlowLogDocument:
    ends = End("10.244.0.2"), End("10.244.0.3")
    records = [FlowRecord(*ends, "TCP", 80, "denied", Said("allowed", ""), s) for s in said]
    return FlowLogDocument(records=tuple(records))


def test_policies_and_rules_are_found_in_the_manifests() -> None:
    origins = read_world(list(parse(POLICIES, "np.yaml", marks=True))).origins
    document = _document(
        Said("denied", "", isolating=("NetworkPolicy shop/db", "NetworkPolicy shop/gone")),
        Said("denied", "", nearest="NetworkPolicy shop/db spec.ingress[1]"),
        Said("allowed", "", rule="NetworkPolicy shop/db spec.ingress[0] (named)"),
        Said("denied", "", isolating=("NetworkPolicy shop/db2",)),
    )
    assert find_places(document, origins) == {
        "NetworkPolicy shop/db": "np.yaml:1",
        "NetworkPolicy shop/db spec.ingress[0] (named)": "np.yaml:7",
        "NetworkPolicy shop/db spec.ingress[1]": "np.yaml:8",
        "NetworkPolicy shop/db2": "np.yaml:10",
    }
