"""Cluster-scoped kinds differ in their words: actions, names, which selectors may be absent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podwire.errors import PolicyError
from podwire.objects.policy import ClusterPolicy
from podwire.policy.model import Policy, PortMatch, PortRange
from podwire.policy.parse_cluster import parse_cluster_policy


def _parse(kind: str, action: str, subject: dict[str, Any], name: str = "default") -> Policy:
    rule = {"action": action, "from": [{"namespaces": {}}]}
    spec = {"subject": subject, "ingress": [rule], "tier": "Admin", "priority": 5}
    obj = {"kind": kind, "metadata": {"name": name}, "spec": spec}
    return parse_cluster_policy(msgspec.convert(obj, ClusterPolicy))


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        ("ClusterNetworkPolicy", {"Accept", "Deny", "Pass"}),
        ("AdminNetworkPolicy", {"Allow", "Deny", "Pass"}),
        ("BaselineAdminNetworkPolicy", {"Allow", "Deny"}),
    ],
)
def test_each_kind_has_its_own_actions(kind: str, allowed: set[str]) -> None:
    for action in ("Accept", "Allow", "Deny", "Pass", "Ok", ""):
        if action in allowed:
            assert _parse(kind, action, {"namespaces": {}}).ingress[0].action != "Allow"
        else:
            with pytest.raises(PolicyError, match=r"ingress\[0\].action"):
                _parse(kind, action, {"namespaces": {}})


def test_the_baseline_is_a_singleton() -> None:
    with pytest.raises(PolicyError, match=r"metadata.name: 'other'"):
        _parse("BaselineAdminNetworkPolicy", "Deny", {"namespaces": {}}, "other")


def test_an_absent_selector_is_everything_in_v1alpha1_only() -> None:
    subject = {"pods": {"podSelector": {"matchLabels": {"a": "b"}}}}
    found = _parse("AdminNetworkPolicy", "Deny", subject).subject
    assert (str(found.namespaces), str(found.pods)) == ("", "a=b")
    subject = {"pods": {"namespaceSelector": {}}}
    assert str(_parse("AdminNetworkPolicy", "Deny", subject).subject.pods) == ""
    with pytest.raises(PolicyError, match=r"spec.subject.pods.podSelector: is required"):
        _parse("ClusterNetworkPolicy", "Deny", subject)


def test_a_range_of_v1alpha1_that_ends_before_it_starts_holds_no_port() -> None:
    """The API server lets it in; of v1alpha2 it does not."""

    def ports(*ranges: tuple[int, int]) -> tuple[PortMatch, ...] | None:
        said = [{"portRange": {"start": start, "end": end}} for start, end in ranges]
        rule = {"action": "Deny", "from": [{"namespaces": {}}], "ports": said}
        spec = {"priority": 1, "subject": {"namespaces": {}}, "ingress": [rule]}
        obj = {"kind": "AdminNetworkPolicy", "metadata": {"name": "a"}, "spec": spec}
        return parse_cluster_policy(msgspec.convert(obj, ClusterPolicy)).ingress[0].ports

    assert ports() is None
    assert ports((10, 1)) == ()
    assert ports((10, 1), (5, 5)) == (PortRange(6, 5, 5),)
