"""Cluster DNS as other resolvers see it: musl's, and any resolver's with `autopath`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from podwire.lab import Lab
from podwire.objects import kinds

WORLD = """
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {namespace}}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: c, image: busybox}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {namespace}}}
spec: {{ipFamilyPolicy: PreferDualStack, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: four, namespace: {namespace}}}
spec: {{ipFamilies: [IPv4], ports: [{{port: 80}}]}}
"""
NAMESPACES = ("red", "blue")
OUTSIDE = "www.example.com"


@pytest.fixture(scope="module")
def lab(run_dir: Path) -> Iterator[Lab]:
    with Lab("resolvers", nodes=2, ip_family="dual") as built:
        for namespace in NAMESPACES:
            built.apply_text(WORLD.format(namespace=namespace))
        yield built


def addresses(lab: Lab, name: str, namespace: str) -> list[str]:
    found = lab.call(lambda api: api.get(kinds.SERVICE, name, namespace))
    return sorted(found.spec.cluster_ips)


# --- musl ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def musl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """getaddrinfo.c, linked to musl and nothing else."""
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc is needed: apt-get install musl-tools gcc")
    folder = tmp_path_factory.mktemp("musl")
    program = folder / "getaddrinfo"
    source = Path(__file__).with_name("getaddrinfo.c")
    # `musl-gcc` is gcc with the paths of musl.
    words = ["musl-gcc", "-static", "-Wall", "-Werror", "-O1", "-o", str(program), str(source)]
    subprocess.run(words, check=True)
    return str(program)


def resolved(tools: Any, lab: Lab, program: str, *names: str) -> dict[str, str]:
    shown = tools.inside(lab, "red/client", program, *names)
    return dict(line.split(": ", 1) for line in shown.splitlines())


@pytest.mark.rootless
def test_musl_resolves_every_length_in_both_families(lab: Lab, tools: Any, musl: str) -> None:
    both, four = addresses(lab, "web", "red"), addresses(lab, "four", "red")
    assert {ip_address(a).version for a in both} == {4, 6}
    assert [ip_address(a).version for a in four] == [4]
    lengths = ("", ".red", ".red.svc", ".red.svc.cluster.local", ".red.svc.cluster.local.")
    wanted = {f"web{rest}": " ".join(both) for rest in lengths}
    # AAAA of it is NODATA: were it NXDOMAIN, musl would take that for the whole name.
    wanted |= {f"four{rest}": four[0] for rest in lengths}
    wanted["web.blue"] = " ".join(addresses(lab, "web", "blue"))
    assert resolved(tools, lab, musl, *wanted) == wanted


@pytest.mark.rootless
def test_musl_is_told_what_is_not_there(lab: Lab, tools: Any, musl: str) -> None:
    missing = ("missing", "missing.red.svc.cluster.local", "nothing.example.com", "web.green")
    found = resolved(tools, lab, musl, *missing, OUTSIDE)
    assert {found[name] for name in missing} == {"Name does not resolve"}
    assert "203.0.113.10" in found[OUTSIDE].split()


# --- autopath --------------------------------------------------------------------------------


def searched(tools: Any, lab: Lab, pod: str, kind: str = "A") -> dict[str, Any]:
    """`dns explain` of an outside name: every query a resolver sends for it."""
    words = ("dns", "explain", pod, OUTSIDE, "-t", kind, "--lab", lab.name, "-o", "json")
    found: dict[str, Any] = json.loads(tools.podwire(*words).stdout)
    return found


def asked(tools: Any, lab: Lab, namespace: str, name: str, kind: str = "A") -> list[str]:
    shown = tools.inside(lab, f"{namespace}/client", "dig", "+short", "+tries=1", name, kind)
    return sorted(str(shown).split())


@pytest.fixture
def autopath(lab: Lab, tools: Any) -> Iterator[None]:
    """`autopath` in force on every replica, until the test ends."""

    def configure(corefile: str, steps: int) -> None:
        patch = json.dumps({"data": {"Corefile": corefile}})
        where = ("configmap/coredns", "-n", "kube-system", "--type=merge")
        tools.kubectl(lab, "patch", *where, "-p", patch)
        replicas = [p.status.pod_ip for p in lab.pods("kube-system") if p.ready and not p.deleting]
        name = f"{OUTSIDE}.red.svc.cluster.local"
        for replica in replicas:
            tools.wait(
                lambda r=replica: (
                    bool(asked_of(tools, lab, r, name)) is (steps == 1)
                    and len(searched(tools, lab, "red/client")["steps"]) == steps
                )
            )

    before = lab.call(lambda api: api.get(kinds.CONFIG_MAP, "coredns", "kube-system"))
    corefile = before.data["Corefile"]
    assert "autopath" not in corefile
    wanted = corefile.replace("pods insecure", "pods verified")
    configure(wanted.replace("ready\n", "ready\n    autopath @kubernetes\n", 1), 1)
    yield
    configure(corefile, 4)


def asked_of(tools: Any, lab: Lab, server: str, name: str) -> str:
    words = ("dig", "+short", "+tries=1", f"@{server}", name)
    return str(tools.inside(lab, "red/client", *words))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_without_autopath_the_client_walks(lab: Lab, tools: Any, namespace: str) -> None:
    found = searched(tools, lab, f"{namespace}/client")
    assert [step["rcode"] for step in found["steps"]] == ["NXDOMAIN"] * 3 + ["NOERROR"]
    assert found["wasted"] == 3


@pytest.mark.rootless
def test_autopath_walks_the_list_of_the_pod_that_asks(
    lab: Lab, tools: Any, autopath: None, musl: str
) -> None:
    for mine, other in (NAMESPACES, NAMESPACES[::-1]):
        found = searched(tools, lab, f"{mine}/client")
        assert [step["rcode"] for step in found["steps"]] == ["NOERROR"], "one query, not four"
        own = f"{mine}.svc.cluster.local"
        outside = sorted(["203.0.113.10", f"{OUTSIDE}.", "example.com."])
        assert asked(tools, lab, mine, f"{OUTSIDE}.{own}") == outside
        # Not the first element of its own list: nothing it can have meant that way.
        assert asked(tools, lab, mine, f"{OUTSIDE}.{other}.svc.cluster.local") == []
        # One name, two Services: each namespace has its own, and the other's by its longer name.
        for kind, index in (("A", 0), ("AAAA", 1)):
            near, far = (_by_family(addresses(lab, "web", n))[index] for n in (mine, other))
            assert asked(tools, lab, mine, f"web.{own}", kind) == [near]
            longer = asked(tools, lab, mine, f"web.{other}.{own}", kind)
            assert longer == sorted([far, f"web.{other}.svc.cluster.local."])
        # NODATA ends the walk: the name is there.
        assert asked(tools, lab, mine, f"four.{own}", "AAAA") == []
        assert asked(tools, lab, mine, f"nothing.example.com.{own}") == []
    found = resolved(tools, lab, musl, "web", "four", "web.blue", OUTSIDE, "missing.red")
    assert found["web"] == " ".join(addresses(lab, "web", "red"))
    assert found["four"] == addresses(lab, "four", "red")[0]
    assert found["web.blue"] == " ".join(addresses(lab, "web", "blue"))
    assert "203.0.113.10" in found[OUTSIDE].split()
    assert found["missing.red"] == "Name does not resolve"


def _by_family(found: list[str]) -> list[str]:
    return sorted(found, key=lambda address: ip_address(address).version)
