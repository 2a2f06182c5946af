"""Verdicts to the line; of denied ones the rule that almost matched, and what differs."""

from __future__ import annotations

import pytest

from podwire.errors import NotFoundError, UsageError
from podwire.explain.staticworld import StaticWorld, read_world
from podwire.explain.whypolicy import PolicyWhy, explain_policies
from podwire.objects.documents import parse


def _workload(name: str, labels: str, ports: str = "", namespace: str = "shop") -> str:
    return f"""\
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  template:
    metadata: {{labels: {{{labels}}}}}
    spec: {{containers: [{{name: c, ports: [{ports}]}}]}}
"""


WORLD = (
    _workload("web", "app: web")
    + _workload("api", "app: api", "{name: http, containerPort: 8080}, {containerPort: 53}")
    + _workload("job", "app: job, tier: batch", namespace="tools")
    + """\
---
apiVersion: v1
kind: Namespace
metadata: {name: tools, labels: {team: x}}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec:
  selector: {app: api}
  ports: [{port: 80, targetPort: http}]
---
"""
)
HEAD = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
"""


def _static(policies: str) -> StaticWorld:
    # The policies first, so that their lines are easy to count.
    return read_world(list(parse(f"{policies.rstrip()}\n{WORLD}", "f.yaml", marks=True)))


def _why(rule: str, source: str = "shop/web", destination: str = "shop/api:8080") -> PolicyWhy:
    (found,) = explain_policies(_static(HEAD + rule), source, destination)
    return found


@pytest.mark.parametrize(
    ("rule", "what", "text", "line"),
    [
        ("  - ports: [{port: 80}]", "service port", "is the port of Service shop/api", 7),
        ("  - ports: [{port: 9090}]", "port", "wants 9090, is 8080", 7),
        ("  - ports:\n    - port: 8000\n      endPort: 8079", "end port", "8000-8079, is 8080", 9),
        ("  - ports: [{port: 8080, protocol: UDP}]", "protocol", "wants UDP, is TCP", 7),
        ("  - ports: [{port: grpc}]", "named port", "not among the pod's ports (http)", 7),
        (
            "  - from:\n    - podSelector: {matchLabels: {app: wep}}",
            "label",
            "wants app=wep, is app=web",
            8,
        ),
        (
            "  - from:\n    - namespaceSelector: {matchLabels: {team: x}}",
            "namespace",
            "wants team=x, is no team (namespace shop)",
            8,
        ),
        ("  - from:\n    - ipBlock: {cidr: 10.0.0.0/8}", "peer", "a pod without address", 8),
    ],
)
def test_the_one_field_that_differs(rule: str, what: str, text: str, line: int) -> None:
    found = _why(rule)
    assert not found.allowed
    egress, ingress = found.directions
    assert (egress.reason, ingress.reason) == ("no policy", "isolated")
    assert [str(told) for told in ingress.isolating] == ["NetworkPolicy shop/api at f.yaml:1"]
    assert ingress.nearest is not None
    (miss,) = ingress.nearest.misses
    assert (miss.what, miss.at) == (what, f"f.yaml:{line}")
    assert text in miss.text


def test_the_rule_with_the_fewest_misses_is_nearest() -> None:
    rules = """\
  - from: [{podSelector: {matchLabels: {app: other, tier: x}}}]
    ports: [{port: 1}]
  - from: [{podSelector: {matchLabels: {app: job}}}]
    ports: [{port: 8080}]
"""
    ingress = _why(rules, "tools/job").directions[1]
    assert ingress.nearest is not None
    assert ingress.nearest.rule.text.endswith("spec.ingress[1]")
    assert [miss.what for miss in ingress.nearest.misses] == ["namespace"]
    assert "wants shop, the policy's own, is tools" in ingress.nearest.misses[0].text


def test_an_address_in_a_hole() -> None:
    rule = "  - from:\n    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}"
    inside, hole = _why(rule, "192.0.2.1"), _why(rule, "192.0.2.200")
    assert inside.allowed
    assert hole.directions[1].nearest is not None
    assert hole.directions[1].nearest.misses[0].what == "except"


def test_a_policy_that_misses_the_pod_by_a_label() -> None:
    """The pod is isolated by one policy, and the one that was to open it has a typo."""
    deny = HEAD.replace("name: api", "name: deny").replace("  ingress:\n", "  ingress: []\n---\n")
    typo = HEAD.replace("{app: api}", "{app: apy}") + "  - ports: [{port: 8080}]"
    (found,) = explain_policies(_static(deny + typo), "shop/web", "shop/api:8080")
    assert found.directions[1].nearest is not None
    (miss,) = found.directions[1].nearest.misses
    assert (miss.what, miss.at) == ("subject", "f.yaml:12")


def test_a_cluster_rule_that_denies_and_the_one_before_it() -> None:
    policy = """\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress:
  - name: web
    action: Accept
    from: [{namespaces: {}}]
    protocols:
    - tcp: {destinationPort: {number: 8081}}
  - action: Deny
    from: [{namespaces: {}}]
"""
    (found,) = explain_policies(_static(policy), "shop/web", "shop/api:8080")
    ingress = found.directions[1]
    assert str(ingress.rule) == "ClusterNetworkPolicy guard spec.ingress[1] at f.yaml:14"
    assert ingress.nearest is not None
    assert "(web)" in ingress.nearest.rule.text
    assert [(m.what, m.at) for m in ingress.nearest.misses] == [("port", "f.yaml:13")]


def test_a_service_is_asked_at_the_pods_own_port() -> None:
    found = _why("  - ports: [{port: 8080}]", destination="svc/shop/api")
    assert (found.allowed, found.port) == (True, 8080)
    assert found.via == "Service shop/api port 80 leads to 8080"
    assert str(found.directions[1].rule) == "NetworkPolicy shop/api spec.ingress[0] at f.yaml:7"


def test_a_workload_with_itself_is_two_of_its_pods() -> None:
    rule = "  - from: [{podSelector: {matchLabels: {app: api}}}]"
    assert _why(rule, "shop/api").allowed
    assert not _why("  - ports: [{port: 1}]", "shop/api").allowed


def test_words_that_mean_nothing() -> None:
    static = _static(HEAD)
    with pytest.raises(NotFoundError, match="shop/webb not found; there are shop/api, shop/web"):
        explain_policies(static, "shop/webb", "shop/api:80")
    with pytest.raises(UsageError, match="needs a port"):
        explain_policies(static, "shop/web", "shop/api")
    with pytest.raises(UsageError, match="has no port 81; it has - 80/TCP"):
        explain_policies(static, "shop/web", "svc/shop/api:81")


DUMP = """\
---
apiVersion: v1
kind: Pod
metadata:
  name: NAME-N
  namespace: shop
  labels: {app: NAME}
  ownerReferences: [{kind: ReplicaSet, name: NAME, controller: true}]
spec: {nodeName: node-N, containers: [{name: c, ports: [{containerPort: 80}]}]}
status: {podIPs: [{ip: 10.1.N.ADDRESS}]}
"""


def _dump(*policies: str) -> StaticWorld:
    pods = [
        DUMP.replace("NAME", name).replace("N.ADDRESS", f"N.{address}").replace("N", str(number))
        for name, address in (("a", 5), ("b", 6))
        for number in range(3)
    ]
    return read_world(list(parse("".join((*policies, *pods)), "f.yaml", marks=True)))


def test_replicas_that_are_treated_alike_are_told_once() -> None:
    only = (
        HEAD.replace("app: api", "app: b") + "  - from: [{podSelector: {matchLabels: {app: a}}}]\n"
    )
    (found,) = explain_policies(_dump(only), "shop/a", "shop/b:80")
    assert (found.source, found.destination, found.allowed) == (
        "shop/a-0[Pod]",
        "shop/b-0[Pod]",
        True,
    )
    one = HEAD.replace("app: api", "app: b") + "  - from: [{ipBlock: {cidr: 10.1.1.5/32}}]\n"
    found_ = explain_policies(_dump(one), "shop/a", "shop/b:80")
    assert {each.source: each.allowed for each in found_} == {
        "shop/a-0[Pod]": False,
        "shop/a-1[Pod]": True,
    }


def test_an_address_is_whoever_has_it() -> None:
    only = (
        HEAD.replace("app: api", "app: b") + "  - from: [{podSelector: {matchLabels: {app: a}}}]\n"
    )
    (found,) = explain_policies(_dump(only), "10.1.2.5", "10.1.0.6:80")
    assert (found.source, found.destination, found.allowed) == (
        "shop/a-2[Pod]",
        "shop/b-0[Pod]",
        True,
    )
    (found,) = explain_policies(_dump(only), "8.8.8.8", "10.1.0.6:80")
    assert (found.source, found.allowed) == ("8.8.8.8", False)


def test_the_outside_is_told_by_what_is_treated_alike() -> None:
    rule = "  - from: [{ipBlock: {cidr: 8.0.0.0/8, except: [8.8.0.0/16]}}]\n"
    static = _dump(HEAD.replace("app: api", "app: b") + rule)
    denied, allowed = explain_policies(static, "outside", "shop/b:80")
    assert (allowed.allowed, denied.allowed) == (True, False)
    ranges = "8.0.0.0-8.7.255.255[External], 8.9.0.0-8.255.255.255[External]"
    assert allowed.source == allowed.directions[0].pod == ranges
    assert denied.source.startswith("0.0.0.0-7.255.255.255[External], 8.8.0.0-8.8.255.255")
    (found,) = explain_policies(static, "shop/a", "outside:443")
    assert (found.destination, found.allowed) == ("0.0.0.0-255.255.255.255[External]", True)
    (found,) = explain_policies(static, "shop/a", "outside:443", version=6)
    assert found.destination.startswith("::-ffff:")


def test_a_service_that_leads_to_no_port_is_no_answer() -> None:
    named = WORLD.replace("targetPort: http", "targetPort: htp")
    static = read_world(list(parse(named, "f.yaml", marks=True)))
    with pytest.raises(
        NotFoundError, match=r"service shop/api: targetPort htp of port 80 is a name"
    ):
        explain_policies(static, "shop/web", "svc/shop/api:80")
