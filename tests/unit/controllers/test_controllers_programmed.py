"""The condition of a Service, from what nodes tell; and which changes of it count."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podwire.controllers.programmed import evaluate_programmed
from podwire.controllers.serviceprogrammed import meaning_of
from podwire.objects.core import Node, Service
from podwire.objects.meta import Key
from podwire.telemetry.progress import SERVICES

KEY = Key("ns1", "web")
UP_TO = "changes up to resourceVersion {} are in the kernel"


def node(name: str, message: str = "", *, ready: bool = True) -> Node:
    conditions = [{"type": "Ready", "status": str(ready)}]
    if message:
        conditions.append({"type": "ServicesProgrammed", "status": "True", "message": message})
    return msgspec.convert({"metadata": {"name": name}, "status": {"conditions": conditions}}, Node)


@pytest.mark.parametrize(
    ("nodes", "status", "reason", "words"),
    [
        ([], "Unknown", "NobodyTells", ""),
        ([node("a")], "Unknown", "NobodyTells", ""),
        ([node("a", UP_TO.format(10))], "True", "Programmed", "10 is in the kernel of 1 nodes"),
        ([node("a", UP_TO.format(11)), node("b")], "False", "Pending", "of b"),
        ([node("a", UP_TO.format(9))], "False", "Pending", "not in the kernel of a"),
        (
            [node("a", UP_TO.format(11)), node("b", UP_TO.format(1), ready=False)],
            "True",
            "Programmed",
            "1 nodes",
        ),
        (
            [node("a", UP_TO.format(9) + ", except service ns1/web: no memory")],
            "False",
            "KernelRefused",
            "refused it on a",
        ),
        (
            [node("a", UP_TO.format(12) + ", except service ns1/webby: no memory")],
            "True",
            "Programmed",
            "",
        ),
        (
            [node(n, UP_TO.format(1)) for n in "abcde"],
            "False",
            "Pending",
            "a, b, c and 2 more",
        ),
    ],
)
def test_verdict(nodes: list[Node], status: str, reason: str, words: str) -> None:
    found = evaluate_programmed(f"service {KEY}", 10, nodes, SERVICES)
    assert (found.status, found.reason) == (status, reason)
    assert words in found.message


def service(**change: Any) -> Service:
    obj: dict[str, Any] = {
        "metadata": {"name": "web", "namespace": "ns1", "resourceVersion": "1"},
        "spec": {"clusterIP": "10.96.0.1"},
        "status": {},
    }
    for part, value in change.items():
        obj[part] |= value
    return msgspec.convert(obj, Service)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"metadata": {"resourceVersion": "2"}}, False),
        ({"status": {"conditions": [{"type": "x", "status": "True"}]}}, False),
        ({"metadata": {"finalizers": ["x"]}}, False),
        ({"metadata": {"annotations": {"a": "b"}}}, True),
        ({"metadata": {"labels": {"a": "b"}}}, True),
        ({"spec": {"type": "NodePort"}}, True),
        ({"status": {"loadBalancer": {"ingress": [{"ip": "172.30.0.200"}]}}}, True),
    ],
)
def test_only_what_proxies_read_is_a_change(change: dict[str, Any], counts: bool) -> None:
    assert (meaning_of(service()) != meaning_of(service(**change))) is counts
