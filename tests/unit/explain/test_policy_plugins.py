"""Which verdicts depend on the plugin, each with the rule and where it is written."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from podwire.cli import cli
from podwire.errors import UsageError
from podwire.explain.plugins import PluginReport, compare_plugins, lines
from podwire.explain.staticworld import read_world
from podwire.objects.documents import parse
from podwire.policy.profiles import PROFILES

MANIFESTS = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: client}}
    ports:
    - port: http
    - {port: 100, protocol: SCTP}
  - from:
    - ipBlock: {cidr: 10.0.0.0/8}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: base}
spec:
  tier: Baseline
  priority: 1
  subject: {namespaces: {}}
  ingress:
  - action: Deny
    from: [{namespaces: {}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: shop}
spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, image: i, ports: [{containerPort: 8080, name: http}]}]}
status: {podIPs: [{ip: 203.0.113.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 203.0.113.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop, labels: {app: near}}
spec: {containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.0.0.3}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
"""


def _report(*names: str, text: str = MANIFESTS) -> PluginReport:
    static = read_world(list(parse(text, "m.yaml", marks=True)))
    return compare_plugins(static, [PROFILES[name] for name in names])


def _pairs(report: PluginReport) -> set[tuple[str, str, str, str]]:
    return {
        (pair.change, "+".join(pair.sources), "+".join(pair.destinations), pair.ports)
        for pair in report.pairs
    }


def test_names_and_kinds_that_ovn_does_not_know() -> None:
    report = _report("ovn")
    assert [(f.object, f.path, f.place) for f in report.rules] == [
        ("NetworkPolicy shop/web", "spec.ingress[0].ports[0].port", "m.yaml:10"),
        ("ClusterNetworkPolicy base", "", "m.yaml:15"),
    ]
    pairs = _pairs(report)
    client, web = "shop/client[Pod]", "shop/web[Pod]"
    assert ("opened", client, web, "TCP 1-8079,8081-65535") in pairs
    opened = next(p for p in report.pairs if p.destinations == (client,))
    assert opened.rule == "ClusterNetworkPolicy base spec.ingress[0] (m.yaml:23)"
    assert opened.question == ""
    assert report.depends


def test_what_cilium_does_not_match() -> None:
    report = _report("cilium")
    near = next(p for p in report.pairs if p.sources == ("shop/near[Pod]",))
    assert (near.change, near.destinations) == ("closed", ("shop/web[Pod]",))
    assert near.rule == "NetworkPolicy shop/web spec.ingress[1] (m.yaml:12)"
    assert near.question == "does an ipBlock match a pod's address"
    assert "cilium #9209" in near.source
    text = "\n".join(lines(report))
    assert "cilium: perhaps: NetworkPolicy shop/web spec.ingress[1].from[0] (m.yaml:13)" in text
    assert "10.0.0.0/8 matches no pods and no nodes" in text
    assert "SCTP is dropped" in text


def test_baseline_and_pods_that_meet_themselves() -> None:
    report = _report("kube-network-policies", "antrea")
    base = next(p for p in report.pairs if p.plugin == "kube-network-policies")
    assert (base.change, base.destinations) == ("opened", ("shop/client[Pod]",))
    assert base.question.startswith("is Baseline asked")
    own = next(p for p in report.pairs if p.plugin == "antrea")
    assert (own.sources, own.destinations) == (("shop/web[Pod]",), ("itself through a Service",))
    assert (own.change, own.rule) == ("opened", "NetworkPolicy shop/web (m.yaml:1)")


def test_outsiders_are_compared_too() -> None:
    extra = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: door, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: 198.51.101.0/24}}]
    ports: [{port: http}]
"""
    report = _report("ovn", text=f"{MANIFESTS}---\n{extra}")
    outside = [p for p in report.pairs if "External" in p.sources[0]]
    assert [(p.sources, p.destinations, p.ports) for p in outside] == [
        (
            ("198.51.100.0-198.51.101.255[External]",),
            ("shop/web[Pod]",),
            "TCP 1-8079,8081-65535",
        )
    ]
    assert outside[0].rule.startswith("NetworkPolicy shop/door spec.ingress[0] (m.yaml:")


def test_a_plugin_that_agrees_says_so_and_what_else_is_otherwise() -> None:
    report = _report("calico")
    assert list(lines(report)) == ["calico: reads these policies as podwire does"]
    assert not report.depends
    kept = next(o for o in report.otherwise if o.question.startswith("what becomes of conn"))
    assert (kept.says, kept.source) == ("kept", "calico #6399")


def test_hairpins_are_one_line() -> None:
    second = MANIFESTS.replace("name: web", "name: web2").replace("app: web", "app: web2")
    services = second.split("---")
    text = "---\n".join([MANIFESTS, services[0], services[3], services[-1]])
    said = [line for line in lines(_report("antrea", text=text)) if "itself" in line]
    assert len(said) == 1
    assert (
        "shop/web[Pod], shop/web2[Pod] => itself through a Service allowed, here denied" in said[0]
    )


# --- the command line ---------------------------------------------------------------------------


def _check(tmp_path: Path, *arguments: str) -> Result:
    file = tmp_path / "m.yaml"
    file.write_text(MANIFESTS)
    return CliRunner().invoke(cli, ["check", "--policies", "-f", str(file), *arguments])


def test_check_exits_one_when_a_verdict_depends_on_the_plugin(tmp_path: Path) -> None:
    assert _check(tmp_path, "--plugin", "calico").exit_code == 0
    shown = _check(tmp_path)
    assert shown.exit_code == 1
    assert {line.split(":")[0] for line in shown.stdout.splitlines()} == set(PROFILES) - {"default"}
    report = msgspec.json.decode(_check(tmp_path, "--plugin", "ovn", "-o", "json").stdout)
    assert (report["kind"], report["plugins"]) == ("PluginReport", ["ovn"])


def test_check_wants_files(tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["check", "--policies"])
    assert isinstance(shown.exception, UsageError)
    with pytest.raises(UsageError, match="--policies: want -f"):
        raise shown.exception
