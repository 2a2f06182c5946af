"""resolv.conf of pods, against what kubelet forms (pkg/kubelet/network/dns/dns_test.go)."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from podwire.objects.core import Pod
from podwire.runtime.poddns import (
    ResolvConf,
    compile_pod_dns,
    local_resolver,
    parse_resolv_conf,
)

DOMAIN = "cluster.local"
NODE = ResolvConf(("9.9.9.9",), ("corp.example",), ("timeout:1",))
CLUSTER_FIRST = """\
search shop.svc.cluster.local svc.cluster.local cluster.local corp.example
nameserver 10.96.0.10
options ndots:5
"""
INHERITED = "search corp.example\nnameserver 9.9.9.9\noptions timeout:1\n"
TUNED = {
    "nameservers": ["9.9.9.9", "1.2.3.4", "10.96.0.10"],
    "searches": ["a.b", "corp.example", "svc.cluster.local"],
    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}, {"name": "debug", "value": ""}],
}


def pod(**spec: Any) -> Pod:
    metadata = {"name": "web-0", "namespace": "shop", "uid": "u-1"}
    return msgspec.convert({"metadata": metadata, "spec": spec}, Pod)


def text(spec: dict[str, Any], node: ResolvConf = NODE) -> str:
    found = compile_pod_dns(pod(**spec), ["10.96.0.10"], DOMAIN, node)
    assert found.problems == ()
    return found.conf.render()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, CLUSTER_FIRST),
        ({"dnsPolicy": "ClusterFirst"}, CLUSTER_FIRST),
        ({"dnsPolicy": "ClusterFirstWithHostNet"}, CLUSTER_FIRST),
        ({"dnsPolicy": "Default"}, INHERITED),
        ({"dnsPolicy": "ClusterFirst", "hostNetwork": True}, INHERITED),
        ({"dnsPolicy": "Default", "hostNetwork": True}, INHERITED),
        ({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": True}, CLUSTER_FIRST),
        (
            {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.2.3.4"], "searches": ["a.b"]}},
            "search a.b\nnameserver 1.2.3.4\n",
        ),
        ({"dnsPolicy": "None", "hostNetwork": True, "dnsConfig": TUNED}, """\
search a.b corp.example svc.cluster.local
nameserver 9.9.9.9
nameserver 1.2.3.4
nameserver 10.96.0.10
options ndots:2 edns0 debug
"""),
        ({"dnsConfig": TUNED}, """\
search shop.svc.cluster.local svc.cluster.local cluster.local corp.example a.b
nameserver 10.96.0.10
nameserver 9.9.9.9
nameserver 1.2.3.4
options ndots:2 edns0 debug
"""),
        ({"dnsPolicy": "Default", "dnsConfig": TUNED}, """\
search corp.example a.b svc.cluster.local
nameserver 9.9.9.9
nameserver 1.2.3.4
nameserver 10.96.0.10
options timeout:1 ndots:2 edns0 debug
"""),
        (
            {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["::1"], "searches": [".", "_s.b"]}},
            "search . _s.b\nnameserver ::1\n",
        ),
    ],
)  # fmt: skip
def test_resolv_conf_by_policy(spec: dict[str, Any], expected: str) -> None:
    assert text(spec) == expected


@pytest.mark.parametrize("policy", ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"])
@pytest.mark.parametrize("host_network", [False, True])
@pytest.mark.parametrize("empty", [None, {}, {"nameservers": [], "searches": [], "options": []}])
def test_an_empty_dns_config_is_none(
    policy: str, host_network: bool, empty: dict[str, Any] | None
) -> None:
    spec = {"dnsPolicy": policy, "hostNetwork": host_network}
    assert text({**spec, "dnsConfig": empty}) == text(spec)


def test_both_families_are_asked() -> None:
    found = compile_pod_dns(pod(), ["10.96.0.10", "fd00:96::10"], DOMAIN)
    assert found.conf.nameservers == ("10.96.0.10", "fd00:96::10")


def test_without_cluster_dns_the_node_resolves_and_an_event_says_so() -> None:
    found = compile_pod_dns(pod(), [], DOMAIN, NODE)
    assert found.conf == NODE
    message = (
        'pod: "web-0_shop(u-1)". kubelet does not have ClusterDNS IP configured and cannot '
        'create Pod using "ClusterFirst" policy. Falling back to "Default" policy.'
    )
    assert found.problems == (("MissingClusterDNS", message),)


def test_without_a_cluster_domain_only_the_node_searches() -> None:
    assert compile_pod_dns(pod(), ["10.96.0.10"], "", NODE).conf.searches == ("corp.example",)


def test_three_name_servers_are_kept_and_an_event_says_so() -> None:
    many = pod(dnsConfig={"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3"]})
    found = compile_pod_dns(many, ["10.96.0.10"], DOMAIN)
    assert found.conf.nameservers == ("10.96.0.10", "1.1.1.1", "1.1.1.2")
    message = (
        "Nameserver limits were exceeded, some nameservers have been omitted, the applied "
        "nameserver line is: 10.96.0.10 1.1.1.1 1.1.1.2"
    )
    assert found.problems == (("DNSConfigForming", message),)


SUFFIX = "shop.svc.cluster.local svc.cluster.local cluster.local"


@pytest.mark.parametrize(
    ("searches", "kept"),
    [
        ([f"d{n}.example" for n in range(29)], 32),
        ([f"d{n}.example" for n in range(30)], 32),
        (["x" * 253, "y" * 254, "z.example"], 5),
        ([f"{n}" * 230 for n in range(9)], 3 + 8),
        (["x" * (2048 - len(SUFFIX) - 1 - 9 * 200), *(f"{n}" * 199 for n in range(9))], 13),
        (["x" * (2049 - len(SUFFIX) - 1 - 9 * 200), *(f"{n}" * 199 for n in range(9))], 12),
    ],
)
def test_searches_are_cut_to_what_resolvers_take(searches: list[str], kept: int) -> None:
    found = compile_pod_dns(pod(dnsConfig={"searches": searches}), ["10.96.0.10"], DOMAIN)
    line = " ".join(found.conf.searches)
    assert len(found.conf.searches) == kept
    assert len(line) <= 2048
    message = (
        "Search Line limits were exceeded, some search paths have been omitted, "
        f"the applied search line is: {line}"
    )
    whole = kept == 3 + len(searches)
    assert found.problems == (() if whole else (("DNSConfigForming", message),))


def test_a_node_file_is_read_as_kubelet_reads_it() -> None:
    node = parse_resolv_conf(
        "# a comment\n; another\nnameserver 1.1.1.1\nnameserver\n search old.example\n"
        "nameserver 2.2.2.2 trailing\nsearch Corp.example. . b.c\noptions rotate ndots:1\n"
        "options ndots:2 timeout:3\nsortlist 1.0.0.0\n\n"
    )
    assert node == ResolvConf(
        ("1.1.1.1", "2.2.2.2"), ("Corp.example", ".", "b.c"), ("rotate", "ndots:2", "timeout:3")
    )


@pytest.mark.parametrize("text", ["", "\n", "search\n", "options\n", "nameserver\n"])
def test_an_empty_node_file_says_nothing(text: str) -> None:
    assert parse_resolv_conf(text) == ResolvConf()


@pytest.mark.parametrize(
    ("ips", "servers"),
    [
        (["172.30.0.2"], ("127.0.0.1",)),
        (["172.30.0.2", "fd00:30::2"], ("127.0.0.1", "::1")),
        ([], ("127.0.0.1",)),
    ],
)
def test_a_node_without_a_file_asks_itself(ips: list[str], servers: tuple[str, ...]) -> None:
    assert local_resolver(map(ip_address, ips)) == ResolvConf(servers, (".",))
