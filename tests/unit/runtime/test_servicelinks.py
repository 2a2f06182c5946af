"""Service variables, as kubelet gives them to containers (pkg/kubelet/envvars)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podwire.objects.core import Container, Pod, Service
from podwire.runtime.env import PodFacts, environment
from podwire.runtime.servicelinks import linked_services, service_variables, variable


def service(name: str, namespace: str = "shop", *ports: dict[str, Any], **spec: Any) -> Service:
    body = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": spec.pop("created", "2024-01-01T00:00:00Z"),
        },
        "spec": {"clusterIP": "1.2.3.4", "ports": list(ports) or [{"port": 80}], **spec},
    }
    return msgspec.convert(body, Service)


def pod(*, links: bool = True, namespace: str = "shop") -> Pod:
    body = {
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {"enableServiceLinks": links},
    }
    return msgspec.convert(body, Pod)


def names(services: list[Service]) -> list[str]:
    return [str(s.key) for s in services]


KUBERNETES = service("kubernetes", "default", {"name": "https", "port": 443})


def test_from_services() -> None:
    """TestFromServices of upstream, case by case."""
    services = [
        service("foo-bar", "test", {"port": 8080, "protocol": "TCP"}),
        service(
            "abc-123",
            "test",
            {"name": "u-d-p", "port": 8081, "protocol": "UDP"},
            {"name": "t-c-p", "port": 8081, "protocol": "TCP"},
            clusterIP="5.6.7.8",
        ),
        service("q-u-u-x", "test", {"port": 8082}, {"name": "8083", "port": 8083}),
        service("super-ipv6", "test", {"name": "u-d-p", "port": 8084, "protocol": "UDP"}),
    ]
    services[3] = msgspec.structs.replace(
        services[3], spec=msgspec.structs.replace(services[3].spec, cluster_ip="2001:DB8::")
    )
    assert service_variables(services) == {
        "FOO_BAR_SERVICE_HOST": "1.2.3.4",
        "FOO_BAR_SERVICE_PORT": "8080",
        "FOO_BAR_PORT": "tcp://1.2.3.4:8080",
        "FOO_BAR_PORT_8080_TCP": "tcp://1.2.3.4:8080",
        "FOO_BAR_PORT_8080_TCP_PROTO": "tcp",
        "FOO_BAR_PORT_8080_TCP_PORT": "8080",
        "FOO_BAR_PORT_8080_TCP_ADDR": "1.2.3.4",
        "ABC_123_SERVICE_HOST": "5.6.7.8",
        "ABC_123_SERVICE_PORT": "8081",
        "ABC_123_SERVICE_PORT_U_D_P": "8081",
        "ABC_123_SERVICE_PORT_T_C_P": "8081",
        "ABC_123_PORT": "udp://5.6.7.8:8081",
        "ABC_123_PORT_8081_UDP": "udp://5.6.7.8:8081",
        "ABC_123_PORT_8081_UDP_PROTO": "udp",
        "ABC_123_PORT_8081_UDP_PORT": "8081",
        "ABC_123_PORT_8081_UDP_ADDR": "5.6.7.8",
        "ABC_123_PORT_8081_TCP": "tcp://5.6.7.8:8081",
        "ABC_123_PORT_8081_TCP_PROTO": "tcp",
        "ABC_123_PORT_8081_TCP_PORT": "8081",
        "ABC_123_PORT_8081_TCP_ADDR": "5.6.7.8",
        "Q_U_U_X_SERVICE_HOST": "1.2.3.4",
        "Q_U_U_X_SERVICE_PORT": "8082",
        "Q_U_U_X_SERVICE_PORT__8083": "8083",
        "Q_U_U_X_PORT": "tcp://1.2.3.4:8082",
        "Q_U_U_X_PORT_8082_TCP": "tcp://1.2.3.4:8082",
        "Q_U_U_X_PORT_8082_TCP_PROTO": "tcp",
        "Q_U_U_X_PORT_8082_TCP_PORT": "8082",
        "Q_U_U_X_PORT_8082_TCP_ADDR": "1.2.3.4",
        "Q_U_U_X_PORT_8083_TCP": "tcp://1.2.3.4:8083",
        "Q_U_U_X_PORT_8083_TCP_PROTO": "tcp",
        "Q_U_U_X_PORT_8083_TCP_PORT": "8083",
        "Q_U_U_X_PORT_8083_TCP_ADDR": "1.2.3.4",
        "SUPER_IPV6_SERVICE_HOST": "2001:DB8::",
        "SUPER_IPV6_SERVICE_PORT": "8084",
        "SUPER_IPV6_SERVICE_PORT_U_D_P": "8084",
        "SUPER_IPV6_PORT": "udp://[2001:DB8::]:8084",
        "SUPER_IPV6_PORT_8084_UDP": "udp://[2001:DB8::]:8084",
        "SUPER_IPV6_PORT_8084_UDP_PROTO": "udp",
        "SUPER_IPV6_PORT_8084_UDP_PORT": "8084",
        "SUPER_IPV6_PORT_8084_UDP_ADDR": "2001:DB8::",
    }


@pytest.mark.parametrize(("name", "part"), [("a.b-c", "A_B_C"), ("8080", "_8080"), ("x1", "X1")])
def test_names_become_variables(name: str, part: str) -> None:
    assert variable(name) == part


def test_only_the_pods_namespace_and_the_servers_own_service() -> None:
    services = [KUBERNETES, service("web"), service("other", "else")]
    assert names(linked_services(pod(), services)) == ["default/kubernetes", "shop/web"]
    assert names(linked_services(pod(links=False), services)) == ["default/kubernetes"]
    in_default = linked_services(pod(links=False, namespace="default"), services)
    assert names(in_default) == ["default/kubernetes"]


def test_a_service_named_kubernetes_of_the_pods_own_wins_where_links_are_on() -> None:
    for order in ([KUBERNETES, service("kubernetes")], [service("kubernetes"), KUBERNETES]):
        assert names(linked_services(pod(), order)) == ["shop/kubernetes"]
        assert names(linked_services(pod(links=False), order)) == ["default/kubernetes"]


def test_headless_external_and_later_ones_are_left_out() -> None:
    services = [
        service("headless", clusterIP="None"),
        service("external", clusterIP="", type="ExternalName", ports=[]),
        service("early"),
        service("late", created="2024-01-01T00:00:10Z"),
    ]
    assert names(linked_services(pod(), services, "2024-01-01T00:00:05Z")) == ["shop/early"]
    assert names(linked_services(pod(), services)) == ["shop/early", "shop/late"]


def test_own_variables_win_and_may_refer_to_those_of_services() -> None:
    container = msgspec.convert(
        {
            "name": "c",
            "env": [
                {"name": "URL", "value": "http://$(WEB_SERVICE_HOST):$(WEB_SERVICE_PORT)"},
                {"name": "WEB_SERVICE_PORT", "value": "own"},
            ],
        },
        Container,
    )
    known = service_variables([service("web")])
    env = environment(pod(), container, PodFacts(), {}.get, {}.get, services=known)
    assert env["URL"] == "http://1.2.3.4:80"
    assert env["WEB_SERVICE_PORT"] == "own"
    assert env["WEB_SERVICE_HOST"] == "1.2.3.4"
