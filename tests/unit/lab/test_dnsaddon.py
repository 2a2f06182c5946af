"""The objects of cluster DNS, against the rules of the API they are given to."""

from __future__ import annotations

from typing import Any

import pytest

from podwire.dns.corefile import parse_corefile
from podwire.lab.dnsaddon import COREFILE, IMAGE, render_addon
from podwire.lab.nodelocal import link_requests, render_corefile
from podwire.lab.spec import IpFamily, LabSpec

NAMES = [
    ("ServiceAccount", "coredns"),
    ("ClusterRole", "system:coredns"),
    ("ClusterRoleBinding", "system:coredns"),
    ("ConfigMap", "coredns"),
    ("Service", "kube-dns"),
    ("Deployment", "coredns"),
]


def rendered(family: IpFamily = "ipv4") -> dict[str, Any]:
    return {kind.kind: document for kind, document in render_addon(LabSpec(ip_family=family))}


def test_it_has_the_names_every_cluster_has() -> None:
    found = [(k.kind, d["metadata"]["name"]) for k, d in render_addon(LabSpec())]
    assert found == NAMES
    namespaced = [d for k, d in render_addon(LabSpec()) if k.namespaced]
    assert {d["metadata"]["namespace"] for d in namespaced} == {"kube-system"}


@pytest.mark.parametrize(
    ("family", "addresses", "policy"),
    [
        ("ipv4", ["10.96.0.10"], "SingleStack"),
        ("ipv6", ["fd00:96::a"], "SingleStack"),
        ("dual", ["10.96.0.10", "fd00:96::a"], "RequireDualStack"),
    ],
)
def test_the_service_has_the_tenth_address_of_each_family(
    family: IpFamily, addresses: list[str], policy: str
) -> None:
    spec = rendered(family)["Service"]["spec"]
    assert spec["clusterIPs"] == addresses
    assert spec["clusterIP"] == addresses[0]
    assert spec["ipFamilyPolicy"] == policy
    assert [(p["name"], p["port"], p["protocol"]) for p in spec["ports"]] == [
        ("dns", 53, "UDP"),
        ("dns-tcp", 53, "TCP"),
        ("metrics", 9153, "TCP"),
    ]


def test_service_and_pods_match_by_the_label_policies_know() -> None:
    found = rendered()
    labels = {"k8s-app": "kube-dns"}
    deployment = found["Deployment"]["spec"]
    assert found["Service"]["spec"]["selector"] == labels
    assert deployment["selector"]["matchLabels"] == labels
    assert deployment["template"]["metadata"]["labels"] == labels


def test_the_pod_asks_its_node_for_other_names() -> None:
    spec = rendered()["Deployment"]["spec"]["template"]["spec"]
    assert spec["containers"][0]["image"] == IMAGE
    assert spec["dnsPolicy"] == "Default"


def test_the_default_corefile_is_one() -> None:
    (block,) = parse_corefile(COREFILE).blocks
    assert block.kubernetes is not None
    assert block.kubernetes.zones == ("cluster.local.", "in-addr.arpa.", "ip6.arpa.")
    assert block.health is not None
    assert block.health.lameduck_s == 5.0
    assert block.forward[0].to == ("/etc/resolv.conf",)


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
def test_the_node_local_corefile_sends_the_cluster_by_tcp(family: IpFamily) -> None:
    spec = LabSpec(ip_family=family)
    *cluster, rest = parse_corefile(render_corefile(spec)).blocks
    assert [block.zones for block in cluster] == [
        ("cluster.local.",),
        ("in-addr.arpa.",),
        ("ip6.arpa.",),
    ]
    for block in cluster:
        assert block.forward[0].force_tcp
        assert block.forward[0].to == tuple(map(str, spec.cluster_dns))
    assert rest.zones == (".",)
    assert not rest.forward[0].force_tcp
    assert len({block.bind for block in (*cluster, rest)}) == 1
    assert len(link_requests(spec)) == len(spec.families)
