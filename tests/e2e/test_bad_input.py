"""What cannot be is refused in one sentence, before anything is built."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.errors import ApiError, PodwireError, UsageError
from podwire.kernel import features
from podwire.lab import Lab, launch

POD = """apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - {name: web, image: nginx, ports: [{containerPort: 80}]}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("refuse", nodes=1) as lab:
        yield lab


NOT_YAML = POD + "---\nkind: [unclosed\nmetadata:\n"


def test_not_yaml_builds_nothing(tools: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(NOT_YAML)
    done = tools.podwire("up", "never", "-f", bad, "--no-kubeconfig", check=False)
    assert done.returncode == UsageError.exit_code
    assert done.stderr.startswith(f"error: {bad}:9: not YAML: ")
    assert len(done.stderr.splitlines()) == 1
    assert "never" not in launch.labs()
    assert not Lab("never").paths.root.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("just a word\n", ":1: expected a Kubernetes object, found str"),
        ("kind: Pod\nmetadata: {name: x}\n", ":1: Object 'apiVersion' is missing"),
        ("apiVersion: v1\nmetadata: {name: x}\n", ":1: Object 'kind' is missing"),
        ("apiVersion: v1\nkind: Pod\n", ":1: Pod: metadata.name is missing"),
    ],
)
def test_not_an_object_builds_nothing(tools: Any, tmp_path: Path, text: str, says: str) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    done = tools.podwire("up", "never", "-f", bad, "--no-kubeconfig", check=False)
    assert done.returncode == UsageError.exit_code
    assert f"{bad}{says}" in done.stderr
    assert "never" not in launch.labs()


def test_missing_file(tools: Any) -> None:
    done = tools.podwire("up", "never", "-f", "/no/such.yaml", "--no-kubeconfig", check=False)
    assert done.returncode == UsageError.exit_code
    assert "/no/such.yaml: no such file or folder" in done.stderr
    assert "never" not in launch.labs()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            POD.replace("kind: Pod", "kind: Pot"),
            "no matches for kind 'Pot' in version 'v1'",
        ),
        (
            POD.replace("apiVersion: v1", "apiVersion: v9"),
            "no matches for kind 'Pod' in version 'v9'",
        ),
        (
            POD.replace("image: nginx", "imagee: nginx"),
            'strict decoding error: unknown field "spec.containers[0].imagee"',
        ),
        (
            POD.replace("containerPort: 80", "containerPort: 70000"),
            "ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            POD.replace("name: web}", "name: Web_1}"),
            'Pod "Web_1" is invalid: metadata.name: Invalid value: "Web_1": a lowercase RFC 1123',
        ),
        (
            POD.replace("containers:", "containers: []\n  hostNames:").split("\n  -")[0] + "\n",
            "",
        ),
    ],
    ids=["kind", "apiVersion", "field", "port", "name", "empty"],
)
def test_refused_in_kubernetes_words(lab: Lab, text: str, says: str) -> None:
    with pytest.raises(PodwireError) as refused:
        lab.apply_text(text, wait_s=None)
    assert "<text>:1: " in str(refused.value)
    assert says in str(refused.value)
    assert lab.pods() == []


def test_what_was_fine_is_applied_and_all_problems_are_told(lab: Lab, tools: Any) -> None:
    ok = "{apiVersion: v1, kind: ConfigMap, metadata: {name: ok}}\n---\n"
    text = ok + POD.replace(": 80", ": 70000") + "---\n" + POD.replace("kind: Pod", "kind: Pot")
    with pytest.raises(PodwireError) as refused:
        lab.apply_text(text, wait_s=None)
    lines = str(refused.value).splitlines()
    assert any("<text>:3: " in line and "70000" in line for line in lines)
    assert any("<text>:10: " in line and "Pot" in line for line in lines)
    lab.call(lambda api: api.request("GET", "/api/v1/namespaces/default/configmaps/ok"))


def test_duplicate_names_in_one_file(lab: Lab, tools: Any, tmp_path: Path) -> None:
    """Two documents with one identity: said so, instead of whichever comes last."""
    path = tmp_path / "twice.yaml"
    path.write_text(POD + "---\n" + POD.replace("image: nginx", "image: other"))
    done = tools.podwire("apply", "--lab", lab.name, "-f", path, check=False)
    assert done.returncode == UsageError.exit_code
    assert f"{path}:8: Pod web: is already in {path}:1" in done.stderr
    assert lab.pods() == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--pod-cidr", "10.244.0.0/25"], "pod CIDR 10.244.0.0/25: smaller than the /24"),
        (
            ["--pod-cidr", "10.244.0.0/23", "--nodes", "3"],
            "pod CIDR 10.244.0.0/23: too small for 3 nodes, holds 2 of /24",
        ),
        (["--pod-cidr", "10.96.0.0/14"], "overlaps the service CIDR 10.96.0.0/16"),
        (["--service-cidr", "172.30.0.0/26"], "overlaps the node network 172.30.0.0/24"),
        (["--pod-cidr", "10.244.0.1/16"], "10.244.0.1/16 has host bits set"),
        (["--pod-cidr", "fd00::/56"], "IPv6, but the lab's family is IPv4; see --ip-family"),
        (["--node-mask", "31"], "node mask /31: no room for a pod on a node"),
        (["--nodes", "0"], "a lab has between 1 and 188 nodes"),
        (["--nodes", "-1"], "a lab has between 1 and 188 nodes"),
        (["--publish", "80:x"], "expected [HOST:]PORT:TARGET"),
        (["--wait", "soon"], "'soon' is not a duration"),
        (["--wait", "-5s"], "it cannot be negative"),
        (["--zones", "a!"], "zone 'a!': becomes a label"),
        (["--max-pods", "0"], "--max-pods 0: a node holds at least one pod"),
        (["--non-masquerade-cidr", "x"], "--non-masquerade-cidr x: 'x' does not appear"),
        (["--plan", "/nowhere"], "--plan /nowhere: No such file or directory"),
        (["--state", "/proc/nowhere"], "--state /proc/nowhere: No such file or directory"),
        (["--mtu", "100"], "mtu"),
        (["--mtu", "9000"], "mtu"),
    ],
)
def test_impossible_labs_build_nothing(tools: Any, options: list[str], says: str) -> None:
    done = tools.podwire("up", "never", *options, "--no-kubeconfig", check=False)
    try:
        assert done.returncode in (1, 2)
        assert says in done.stderr.lower() if says == "mtu" else says in done.stderr
        assert "Traceback" not in done.stderr
        assert "never" not in launch.labs()
    finally:
        tools.podwire("down", "never")


def test_a_service_proxy_this_kernel_lacks(tools: Any) -> None:
    if features.probe().ipvs:
        pytest.skip("this kernel has IPVS")
    done = tools.podwire("up", "never", "--service-proxy", "ipvs", "--no-kubeconfig", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: lab never: {features.EXPLAIN['ipvs']}"
    assert "never" not in launch.labs()


def test_neither_root_nor_user_namespaces(run_dir: Path) -> None:
    """As an ordinary user where unshare is refused: `max_user_namespaces` 0, in a namespace of
    the test's own; the sentence names both ways out.
    """
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "Path('/proc/sys/user/max_user_namespaces').write_text('0')\n"
        "os.geteuid = lambda: 65534\n"
        "sys.argv = ['podwire', 'up', 'never', '--no-kubeconfig']\n"
        "from podwire.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PODWIRE_RUN_DIR": str(run_dir)},
    )
    if "unshare failed" in done.stderr:
        pytest.skip("no user namespaces here")
    assert done.returncode == UsageError.exit_code, done.stderr
    assert "podwire needs root or unprivileged user namespaces" in done.stderr
    assert "never" not in launch.labs()


def test_a_run_folder_of_somebody_else(tools: Any, root: None, tmp_path: Path) -> None:
    other = Path(f"/tmp/pw-other-{os.getpid()}")
    other.mkdir()
    try:
        os.chown(other, 65534, 65534)
        env = {**os.environ, "PODWIRE_RUN_DIR": str(other)}
        done = tools.podwire("up", "never", "--no-kubeconfig", check=False, env=env)
        assert done.returncode == 1
        assert "is not a folder of yours; set PODWIRE_RUN_DIR to one" in done.stderr
        assert not list(other.glob("never*"))
    finally:
        for left in other.iterdir():
            left.unlink()
        other.rmdir()


def test_a_run_folder_too_deep_for_sockets(tools: Any, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 80)
    env = {**os.environ, "PODWIRE_RUN_DIR": str(deep)}
    done = tools.podwire("up", "never", "--no-kubeconfig", check=False, env=env)
    assert done.returncode == 1
    assert "path too long for unix sockets; set PODWIRE_RUN_DIR" in done.stderr


def test_selectors_that_match_nothing(lab: Lab, tools: Any) -> None:
    done = tools.podwire("reach", "--lab", lab.name, "--from", "nowhere/web", check=False)
    assert done.returncode == UsageError.exit_code
    assert "nowhere/web" in done.stderr


def test_errors_of_the_api_are_typed(lab: Lab) -> None:
    with pytest.raises(ApiError) as missing:
        lab.call(lambda api: api.request("GET", "/api/v1/namespaces/default/pods/none"))
    assert (missing.value.code, missing.value.reason) == (404, "NotFound")
    assert missing.value.message == 'pods "none" not found'
