"""np-guard's netpol-analyzer as oracle: its manifests, and the connectivity it computes for them.

Read from ../shared where that is. What the tool assumes (an ipBlock never selects a pod, pods on
the host's network are pods like others) is what `--ipblock-matches-pods=false` means.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from podwire.cli import cli
from podwire.errors import UsageError

_TOLD = os.environ.get("PODWIRE_SHARED")
SHARED = Path(_TOLD) if _TOLD else Path(__file__).resolve().parents[4] / "shared"
CASES = sorted(path.parent for path in (SHARED / "oracle/netpol").glob("*/connections.txt"))
BAD = sorted((SHARED / "oracle/bad-input").glob("*bad_path*"))
pytestmark = pytest.mark.skipif(not CASES, reason=f"no {SHARED}/oracle: only there are its cases")


def _reach(folder: Path, *options: str) -> Result:
    arguments = ["reach", "--static", "-f", str(folder), "-o", "connlist", *options]
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_connectivity_is_the_same_to_the_line(case: Path) -> None:
    found = _reach(case / "manifests", "--ipblock-matches-pods=false")
    assert found.exception is None, found.output
    assert found.stdout.splitlines() == (case / "connections.txt").read_text().splitlines()


def test_all_cases_are_there() -> None:
    assert len(CASES) >= 54


# What each is about, as far as its name and field go.
_NAMED = {
    "anp_bad_path_test_1": ("AdminNetworkPolicy same-priority", "spec.priority"),
    "anp_bad_path_test_2": ("AdminNetworkPolicy invalid-priority", "spec.priority"),
    "anp_bad_path_test_3": ("same-name", "is already in"),
    "anp_bad_path_test_8": ("egress-tcp", "spec.egress[3].ports[0]"),
    "anp_bad_path_test_9": ("egress-tcp", "spec.egress[1].action"),
    "anp_bad_path_test_14": ("ingress-udp", "spec.ingress[0].from"),
    "anp_bad_path_test_15": ("ingress-udp", "spec.ingress[0].from"),
    "anp_bad_path_test_17": ("ingress-udp", "spec.ingress[3].ports[0]"),
    "anp_bad_path_test_18": ("ingress-udp", "spec.ingress[0].action"),
    "anp_bad_path_test_19": ("ingress-udp", "spec.egress[0].to[0].networks[0]"),
    "banp_bad_path_test_1": ("BaselineAdminNetworkPolicy", "is already in"),
    "banp_bad_path_test_3": ("BaselineAdminNetworkPolicy default", "spec.subject"),
    "banp_bad_path_test_4": ("BaselineAdminNetworkPolicy default", "spec.subject"),
    "banp_bad_path_test_6": ("BaselineAdminNetworkPolicy default", "spec.egress[0].to"),
    "banp_bad_path_test_8": ("BaselineAdminNetworkPolicy default", "spec.egress[0].action"),
    "banp_bad_path_test_11": ("BaselineAdminNetworkPolicy default", "spec.ingress[0].from"),
    "banp_bad_path_test_12": ("BaselineAdminNetworkPolicy default", "spec.ingress[0].from[0]"),
}


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_bad_input_is_refused_naming_file_object_and_field(case: Path) -> None:
    found = _reach(case)
    assert isinstance(found.exception, UsageError), found.output
    said = str(found.exception)
    assert said.startswith(f"{case}/")
    for words in _NAMED.get(case.name, ("NetworkPolicy",)):
        assert words in said


def test_what_is_no_policy_is_told_by_file_and_object() -> None:
    folder = SHARED / "oracle/bad-input/bad_yamls"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    found = _reach(folder)
    assert found.exception is None, found.output
    for file, words in (
        ("irrelevant_k8s_resources.yaml", "IngressClass nginx"),
        ("not_a_k8s_resource.yaml", "Object 'apiVersion' is missing"),
        ("not_a_k8s_resource.yaml", "Secret dotfile-secret"),
        ("bad_configmap_refs.yaml", "ConfigMap shipping-service-config"),
    ):
        assert any(file in line and words in line for line in found.stderr.splitlines()), file
