"""Where a pod's files are, how its program finds the API server, and its own addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from podwire.dns.corefile import parse_corefile
from podwire.dns.listening import own_addresses, parse_listener
from podwire.dns.podfiles import PodFiles
from podwire.errors import UsageError

MOUNTS = {
    "/etc/coredns": "/lab/volumes/config",
    "/etc/resolv.conf": "/lab/resolv.conf",
    "/var/run/secrets/kubernetes.io/serviceaccount": "/lab/volumes/token",
}
ENV = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/coredns/Corefile", "/lab/volumes/config/Corefile"),
        ("/etc/coredns", "/lab/volumes/config"),
        ("/etc/coredns2/Corefile", "/etc/coredns2/Corefile"),
        ("/etc/resolv.conf", "/lab/resolv.conf"),
        ("/etc/passwd", "/etc/passwd"),
    ],
)
def test_a_path_is_below_its_mount(path: str, expected: str) -> None:
    assert PodFiles(MOUNTS).path(path) == Path(expected)
    assert PodFiles().path(path) == Path(path)


def test_the_api_server_is_found_as_every_pod_does() -> None:
    endpoint = PodFiles(MOUNTS).endpoint(ENV)
    assert endpoint.url == "https://10.96.0.1:443"
    assert endpoint.ca_file == Path("/lab/volumes/token/ca.crt")
    assert endpoint.token_file == Path("/lab/volumes/token/token")
    assert PodFiles().endpoint(ENV | {"KUBERNETES_SERVICE_HOST": "fd00:96::1"}).url == (
        "https://[fd00:96::1]:443"
    )


def test_outside_of_a_pod_it_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="unable to load in-cluster configuration"):
        PodFiles().endpoint({})


def test_files_of_a_corefile_are_the_pods() -> None:
    corefile = parse_corefile(
        ". {\n    hosts /etc/coredns/hosts {\n        fallthrough\n    }\n"
        "    forward . /etc/resolv.conf 1.1.1.1\n}\n",
        files={},
    )
    (block,) = PodFiles(MOUNTS).locate(corefile).blocks
    assert block.forward[0].to == ("/lab/resolv.conf", "1.1.1.1")
    assert block.hosts is not None
    assert block.hosts.path == "/lab/volumes/config/hosts"


def test_own_addresses_are_the_hosts_files() -> None:
    hosts = "127.0.0.1\tlocalhost\n10.244.0.5\tdns-1\nfd00:244::5\tdns-1 # second\n"
    assert own_addresses(hosts, "dns-1") == ("10.244.0.5", "fd00:244::5")
    assert own_addresses(hosts, "other") == ("127.0.0.1",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":8080", ("", 8080)),
        ("localhost:9153", ("127.0.0.1", 9153)),
        ("[::1]:8181", ("::1", 8181)),
        ("169.254.20.10:9253", ("169.254.20.10", 9253)),
    ],
)
def test_listeners(text: str, expected: tuple[str, int]) -> None:
    assert parse_listener(text) == expected


def test_a_listener_without_a_port_is_refused() -> None:
    with pytest.raises(UsageError, match="is no address with a port"):
        parse_listener("localhost")
