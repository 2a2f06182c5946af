"""/etc/hosts, resolv.conf and host names, against what kubelet writes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podwire.objects.core import Pod
from podwire.runtime.hostfiles import (
    ResolvConf,
    hostname,
    kernel_hostname,
    render_host_network_hosts,
    render_hosts,
    render_resolv_conf,
)

DOMAIN = "cluster.local"


def pod(**spec: Any) -> Pod:
    return msgspec.convert({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}, Pod)


def test_hosts_has_every_address_and_the_aliases() -> None:
    aliased = pod(hostAliases=[{"ip": "10.1.2.3", "hostnames": ["foo.local", "bar.local"]}])
    text = render_hosts(["10.244.0.5", "fd00:244::5"], "web-0", "", aliased.spec.host_aliases)
    assert text.startswith("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n")
    assert "10.244.0.5\tweb-0\nfd00:244::5\tweb-0\n" in text
    assert text.endswith("\n# Entries added by HostAliases.\n10.1.2.3\tfoo.local\tbar.local\n")


def test_hosts_of_a_pod_with_subdomain_has_the_full_name_first() -> None:
    name, domain = hostname(pod(hostname="db", subdomain="data"), DOMAIN)
    line = render_hosts(["10.244.0.5"], name, domain).splitlines()[-1]
    assert line == "10.244.0.5\tdb.data.shop.svc.cluster.local\tdb"


def test_host_network_hosts_begin_with_the_node_file() -> None:
    text = render_host_network_hosts("127.0.0.1 localhost\n")
    assert text == "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "web-0"),
        ({"hostname": "db"}, "db"),
        ({"hostname": "db", "subdomain": "data"}, "db"),
        ({"hostNetwork": True, "hostname": "db"}, "node-1"),
        (
            {"hostname": "db", "subdomain": "data", "setHostnameAsFQDN": True},
            "db.data.shop.svc.cluster.local",
        ),
    ],
)
def test_kernel_hostname(spec: dict[str, Any], expected: str) -> None:
    assert kernel_hostname(pod(**spec), DOMAIN, "node-1") == expected


NODE = ResolvConf(("9.9.9.9",), ("corp.example",), ("timeout:1",))
CLUSTER_FIRST = """\
search shop.svc.cluster.local svc.cluster.local cluster.local corp.example
nameserver 10.96.0.10
options ndots:5
"""
INHERITED = "search corp.example\nnameserver 9.9.9.9\noptions timeout:1\n"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, CLUSTER_FIRST),
        ({"dnsPolicy": "Default"}, INHERITED),
        ({"hostNetwork": True}, INHERITED),
        ({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}, CLUSTER_FIRST),
        (
            {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.2.3.4"], "searches": ["a.b"]}},
            "search a.b\nnameserver 1.2.3.4\n",
        ),
        (
            {"dnsConfig": {"options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}},
            CLUSTER_FIRST.replace("ndots:5", "ndots:2 edns0"),
        ),
    ],
)
def test_resolv_conf(spec: dict[str, Any], expected: str) -> None:
    assert render_resolv_conf(pod(**spec), ["10.96.0.10"], DOMAIN, NODE) == expected


def test_resolv_conf_keeps_three_name_servers() -> None:
    many = pod(dnsPolicy="None", dnsConfig={"nameservers": [f"1.1.1.{n}" for n in range(5)]})
    assert render_resolv_conf(many, [], DOMAIN).count("nameserver") == 3
