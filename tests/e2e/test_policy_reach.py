"""What policies say and what packets do, pair by pair, in a lab with somebody's application."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from podwire.explain.reach import Reachability, ReachOptions
from podwire.lab import Lab

SAMPLE = "samples/online-boutique"
# What the application's own manifests call, by its Services.
CALLS = {
    ("frontend", "adservice"),
    ("frontend", "cartservice"),
    ("frontend", "checkoutservice"),
    ("frontend", "currencyservice"),
    ("frontend", "productcatalogservice"),
    ("frontend", "recommendationservice"),
    ("frontend", "shippingservice"),
    ("checkoutservice", "cartservice"),
    ("checkoutservice", "currencyservice"),
    ("checkoutservice", "emailservice"),
    ("checkoutservice", "paymentservice"),
    ("checkoutservice", "productcatalogservice"),
    ("checkoutservice", "shippingservice"),
    ("recommendationservice", "productcatalogservice"),
    ("cartservice", "redis-cart"),
    ("loadgenerator", "frontend"),
}


def _verdicts(found: Reachability) -> dict[tuple[str, str, str], str]:
    """By workload: there is one pod of each."""
    return {
        (
            found.sources[answer.source].owner_name,
            found.destinations[answer.destination].owner_name,
            str(answer.port),
        ): answer.verdict
        for answer in found.answers
    }


@pytest.mark.parametrize("network", [pytest.param("routed", marks=pytest.mark.rootless), "kubenet"])
def test_live_and_static_agree_pair_by_pair(network: str, shared: Path, tools: Any) -> None:
    name = f"polreach-{network}"
    manifests = [
        shared / SAMPLE / f for f in ("kubernetes-manifests.yaml", "network-policies.yaml")
    ]
    given = [word for path in manifests for word in ("-f", path)]
    try:
        tools.podwire("up", name, "--nodes", 2, "--network", network, *given, "--no-kubeconfig")
        tools.podwire("wait", "policies", "--lab", name)
        lab = Lab(name)
        computed, warnings = lab.reach_static()
        assert warnings == ()
        live, static = _verdicts(lab.reach(ReachOptions(timeout_s=2.0))), _verdicts(computed)
        assert live == static
        # The frontend is open to all; everybody else to those that call it, and to nobody else.
        allowed = {(a, b) for (a, b, _), verdict in live.items() if verdict == "allowed"}
        assert allowed >= CALLS
        assert {(a, b) for a, b in allowed if b != "frontend"} == {
            (a, b) for a, b in CALLS if b != "frontend"
        }
        _check_why(tools, name)
        _check_dump(tools, name)
    finally:
        tools.podwire("down", name, check=False)


def _check_why(tools: Any, name: str) -> None:
    """Model and packet agree, and the packet's end is named."""
    for destination, allowed, words in (
        ("svc/cartservice", True, "allowed"),
        ("svc/redis-cart", False, "podSelector: wants app=cartservice, is app=frontend"),
    ):
        done = tools.podwire(
            "why", "default/frontend", destination, "--lab", name, "-o", "json", check=False
        )
        found = json.loads(done.stdout)
        assert (found.get("allowed", False), found["agreement"]) == (allowed, "agrees"), found
        assert words in found["summary"]


def _check_dump(tools: Any, name: str) -> None:
    """What kubectl prints of a cluster says the same as its API."""
    kinds = "ns,nodes,deploy,sts,ds,rs,pods,svc,netpol"
    dump = tools.podwire("kubectl", "--lab", name, "get", kinds, "-A", "-o", "json").stdout
    for words in (("policy", "coverage"), ("policy", "exposure"), ("reach", "--static")):
        form = "connlist" if words[0] == "reach" else "json"
        live = tools.podwire(*words, "--lab", name, "-o", form).stdout
        assert tools.podwire(*words, "-f", "-", "-o", form, input=dump).stdout == live
