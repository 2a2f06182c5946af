"""Ten verdicts about Online Boutique and its policies, each with what made it, to the line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podwire.explain.staticworld import StaticWorld, read_world
from podwire.explain.whypolicy import explain_policies
from podwire.objects.documents import load

_TOLD = os.environ.get("PODWIRE_SHARED")
SHARED = Path(_TOLD) if _TOLD else Path(__file__).resolve().parents[4] / "shared"
SAMPLE = SHARED / "samples/online-boutique"


@pytest.fixture(scope="module")
def boutique() -> StaticWorld:
    if not SAMPLE.is_dir():
        pytest.skip(f"no {SAMPLE}")
    files = [SAMPLE / "kubernetes-manifests.yaml", SAMPLE / "network-policies.yaml"]
    return read_world(load(files, marks=True))


ALLOWED = [
    ("frontend", "svc/cartservice", "NetworkPolicy default/cartservice spec.ingress[0]"),
    (
        "checkoutservice",
        "svc/emailservice:5000",
        "NetworkPolicy default/emailservice spec.ingress[0]",
    ),
    ("loadgenerator", "svc/frontend:80", "NetworkPolicy default/frontend spec.ingress[0]"),
    ("cartservice", "redis-cart:6379", "NetworkPolicy default/redis-cart spec.ingress[0]"),
    ("outside", "frontend:8080", "NetworkPolicy default/frontend spec.ingress[0]"),
]
DENIED = [
    ("frontend", "svc/redis-cart", "label", "wants app=cartservice, is app=frontend"),
    ("frontend", "svc/emailservice:5000", "label", "wants app=checkoutservice, is app=frontend"),
    ("frontend", "cartservice:7071", "port", "wants 7070, is 7071"),
    ("checkoutservice", "emailservice:5000", "port", "wants 8080, is 5000"),
    ("outside", "svc/paymentservice", "peer", "wants a pod"),
]


@pytest.mark.parametrize(("source", "destination", "rule"), ALLOWED)
def test_the_rule_that_allows_is_named_with_its_line(
    boutique: StaticWorld, source: str, destination: str, rule: str
) -> None:
    (found,) = explain_policies(boutique, source, destination)
    assert found.allowed
    told = found.directions[1].rule
    assert told is not None
    assert told.text == rule
    file, _, line = told.at.rpartition(":")
    # The line is where the rule begins: a list item of the policy's own file.
    assert Path(file).read_text().splitlines()[int(line) - 1].lstrip().startswith("-")


@pytest.mark.parametrize(("source", "destination", "what", "words"), DENIED)
def test_the_field_that_differs_is_named(
    boutique: StaticWorld, source: str, destination: str, what: str, words: str
) -> None:
    (found,) = explain_policies(boutique, source, destination)
    assert not found.allowed
    ingress = found.directions[1]
    assert "NetworkPolicy default/deny-all" in [told.text for told in ingress.isolating]
    assert ingress.nearest is not None
    assert words in ingress.nearest.misses[0].text
    assert ingress.nearest.misses[0].what == what
