"""One small cluster, and what policies mean in it: the rows of policy_semantics.yaml.

A row states policies (`x/name` is a NetworkPolicy, a plain name a ClusterNetworkPolicy) and the
connections they allow and deny. `y/a > x/a:80` is TCP to the pod's own port; `/UDP` another
protocol, `:icmp` none; `~` is a pod that meets itself through a Service; `x/a.6` its IPv6 address.
Where a row says EMPTY, it holds for null, for [] and for the field left out: three rows.

    node-1: x/a x/b      node-2: y/a y/c z/plain, y/host on its network, y/done and y/broken ended
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from naive_policy import NaiveWorld
from policy_worlds import (
    PolicyWorld,
    Probe,
    make_cluster_policy,
    make_namespace,
    make_network_policy,
    make_node,
    make_pod,
)


def _port(name: str, number: int, **more: str) -> dict[str, Any]:
    return {"name": name, "containerPort": number, **more}


_FAR: Final[dict[str, Any]] = {"node": "node-2"}
PODS: Final = [
    make_pod("x", "a", ["10.244.1.2", "fd00:244:1::2"], {"pod": "a"}, ports=[_port("web", 80)]),
    make_pod("x", "b", ["10.244.1.3", "fd00:244:1::3"], {"pod": "b"}, ports=[_port("web", 8080)]),
    make_pod(
        "y",
        "a",
        ["10.244.2.2"],
        {"pod": "a"},
        ports=[_port("web", 81), _port("web", 82, protocol="UDP")],
        **_FAR,
    ),
    make_pod("y", "c", ["10.244.2.3"], {"pod": "c"}, sidecarPorts=[_port("side", 90)], **_FAR),
    make_pod("z", "plain", ["10.244.2.4"], {}, **_FAR),
    make_pod("y", "done", ["10.244.2.9"], {"pod": "a"}, phase="Succeeded", **_FAR),
    make_pod("y", "broken", ["10.244.2.10"], {"pod": "a"}, phase="Failed", **_FAR),
    make_pod("y", "host", ["172.30.0.3"], {"pod": "a"}, hostNetwork=True, **_FAR),
]
NODES: Final = [
    make_node("node-1", ["172.30.0.2", "192.0.2.2"], {"role": "edge"}),
    make_node("node-2", ["172.30.0.3"], {"role": "core"}),
]
NAMESPACES: Final = [
    make_namespace("x", {"ns": "x"}),
    make_namespace("y", {"ns": "y", "team": "blue"}),
    make_namespace("z"),
]
NAMES: Final = {
    "www.example.com": ["203.0.113.10"],
    "example.com": ["198.51.100.7"],
    "a.b.example.com": ["203.0.113.11"],
}
ENDS: Final = {
    "node-1": "172.30.0.2",
    "node-1-external": "192.0.2.2",
    "node-2": "172.30.0.3",
    "outside": "203.0.113.10",
    "outside-11": "203.0.113.11",
    "apex": "198.51.100.7",
    "outside.6": "2001:db8:113::10",
    "x/a.6": "fd00:244:1::2",
    "x/b.6": "fd00:244:1::3",
    **{
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": pod["status"]["podIPs"][0][
            "ip"
        ]
        for pod in PODS
    },
}


@dataclass(frozen=True)
class Row:
    """`of`: S1-S21 (NetworkPolicy), CNP, or "fail closed"; `variant`: how EMPTY is spelt."""

    of: str
    says: str
    policies: str
    verdicts: dict[str, bool]
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.of} {self.says}" + (f" ({self.variant})" if self.variant else "")


def _rows() -> Iterator[Row]:
    path = Path(__file__).with_name("policy_semantics.yaml")
    for raw in yaml.safe_load(path.read_text(encoding="utf-8")):
        verdicts = dict.fromkeys(raw.get("allowed") or (), True)
        verdicts |= dict.fromkeys(raw.get("denied") or (), False)
        text = raw.get("policies") or ""
        if "EMPTY" not in text:
            yield Row(raw["of"], raw["says"], text, verdicts)
            continue
        spelt = {"null": text.replace("EMPTY", "null"), "[]": text.replace("EMPTY", "[]")}
        for variant, policies in (spelt | {"left out": _without_empty(text)}).items():
            yield Row(raw["of"], raw["says"], policies, verdicts, variant)


def _without_empty(text: str) -> str:
    text = re.sub(r"^ *\w+: EMPTY\n", "", text, flags=re.MULTILINE)
    return re.sub(r", \w+: EMPTY|\w+: EMPTY(, )?", "", text)


ROWS: Final = tuple(_rows())


def policies_of(text: str) -> list[dict[str, Any]]:
    """The objects a row's text stands for."""
    made = []
    for key, spec in (yaml.safe_load(text) or {}).items():
        namespace, slash, name = key.partition("/")
        if slash:
            made.append(make_network_policy(namespace, name, **spec))
        else:
            made.append(make_cluster_policy(key) | {"spec": spec})
    return made


def world_of(text: str) -> PolicyWorld:
    return PolicyWorld(NaiveWorld(NAMESPACES, PODS, NODES, policies_of(text), NAMES))


def probe(text: str) -> Probe:
    """`y/a > x/a:80/UDP`; see the module docstring."""
    found = re.fullmatch(r"(\S+) ([>~]) (\S+):(icmp|\d+)(?:/(\w+))?", text)
    assert found is not None, text
    source, sign, destination, port, protocol = found.groups()
    ends = ENDS[source], ENDS[destination]
    if port == "icmp":
        return Probe(*ends, "ICMP", 0, sign == "~")
    return Probe(*ends, protocol or "TCP", int(port), sign == "~")
