"""Policies are staged and promoted in a whole lab, and what is in force is not taken out of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.lab import Lab
from podwire.objects import kinds
from podwire.policy.staging import is_staged

NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
"""
POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{namespaces: {matchLabels: {evil: "yes"}}}]}]
"""


@pytest.fixture
def lab(run_dir: Path) -> Iterator[Lab]:
    with Lab("staging", nodes=1) as built:
        built.apply_text(NAMESPACE)
        yield built


def _staged(lab: Lab) -> list[bool]:
    near = lab.call(lambda api: api.get(kinds.NETWORK_POLICY, "web", "shop"))
    guard = lab.call(lambda api: api.get(kinds.CLUSTER_NETWORK_POLICY, "guard"))
    return [is_staged(obj.metadata.annotations) for obj in (near, guard)]


def test_staged_promoted_and_not_staged_again(tools: Any, lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "policies.yaml"
    file.write_text(POLICIES)
    told = tools.podwire("policy", "stage", "-f", file, "--lab", lab.name).stdout
    assert told.splitlines() == [
        "networkpolicy.networking.k8s.io/web created (staged)",
        "clusternetworkpolicy.policy.networking.k8s.io/guard created (staged)",
    ]
    assert _staged(lab) == [True, True]
    told = tools.podwire("policy", "promote", "shop/web", "--lab", lab.name).stdout
    assert told == "NetworkPolicy shop/web promoted\n"
    assert _staged(lab) == [False, True]
    refused = tools.podwire("policy", "stage", "-f", file, "--lab", lab.name, check=False)
    assert refused.returncode == 2
    assert "NetworkPolicy shop/web: is in force" in refused.stderr
    tools.podwire("policy", "promote", "--all", "--lab", lab.name)
    assert _staged(lab) == [False, False]
