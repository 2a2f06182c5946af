"""What settings hint at is found, is open under the recommended policies, and nothing more is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from podwire.cli import cli
from podwire.explain.hintneeds import Cluster
from podwire.explain.hints import Text, hints_in
from podwire.explain.recommending import (
    Report,
    recommend_from_flows,
    recommend_from_hints,
    summary,
)
from podwire.explain.staticworld import read_world
from podwire.objects.documents import parse
from podwire.objects.meta import JsonObject, Key
from podwire.policy.evaluate import Flow, Party, PolicySet, evaluate
from podwire.policy.flowdocument import FlowLogDocument
from podwire.policy.flowlog import End, FlowRecord, Said
from podwire.policy.recommend import Options, Recommendation

BOUTIQUE = Path(__file__).parents[4] / "shared" / "samples" / "online-boutique"


def _deployment(name: str, env: str = "", ports: str = "", spec: str = "") -> str:
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}, extra: x}}}}
    spec:
      {spec or "enableServiceLinks: false"}
      containers:
      - name: c
        image: i
        env: [{env}]
        ports: [{ports}]
"""


def _service(name: str, port: int, target: int | str, kind: str = "ClusterIP") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  type: {kind}
  selector: {{app: {name}}}
  ports: [{{port: {port}, targetPort: {target}}}]
"""


def _env(value: str) -> str:
    return f'{{name: ADDR, value: "{value}"}}'


CART = _deployment("cart", ports="{containerPort: 7070, name: grpc}") + "---" + _service(
    "cart", 80, "grpc"
)  # fmt: skip


def _recommend(*texts: str, **options: object) -> tuple[Recommendation, Report]:
    documents = list(parse("---".join(texts), "m.yaml"))
    static = read_world(documents)
    cluster = Cluster(static, documents, complete=True)
    return recommend_from_hints(cluster, Options(**options))  # type: ignore[arg-type]


def _spec(found: Recommendation, name: str) -> JsonObject:
    spec: JsonObject = next(m["spec"] for m in found.manifests if m["metadata"]["name"] == name)
    return spec


def _sources(found: Recommendation, name: str) -> dict[str, list[object]]:
    """app label of the peers of each ingress rule -> its ports."""
    return {
        peer["podSelector"]["matchLabels"]["app"]: [p["port"] for p in rule["ports"]]
        for rule in _spec(found, name).get("ingress", ())
        for peer in rule["from"]
    }


@pytest.mark.parametrize(
    "value",
    [
        "cart:80",
        "http://cart",
        "http://user:pw@cart:80/path",
        "cart",
        "cart.shop",
        "cart.shop.svc:80",
        "cart.shop.svc.cluster.local",
        "--backend=cart.shop.svc.cluster.local.:80",
        "other=1;dsn=tcp(cart:80)/db",
    ],
)
def test_a_service_is_recognised_and_its_pods_port_is_opened(value: str) -> None:
    found, report = _recommend(CART, _deployment("web", _env(value)))
    assert _sources(found, "cart") == {"web": [7070]}
    assert report.warnings == ()
    assert report.checked == 1
    (egress,) = [r for r in _spec(found, "web")["egress"] if "namespaceSelector" not in r["to"][0]]
    assert egress == {
        "to": [{"podSelector": {"matchLabels": {"app": "cart"}}}],
        "ports": [{"protocol": "TCP", "port": 7070}],
    }


@pytest.mark.parametrize("value", ["carts:x", "my cart is full", "1.2.3", "cart-x", "0.0.0.0:80"])
def test_other_texts_hint_at_nothing(value: str) -> None:
    found, report = _recommend(CART, _deployment("web", _env(value)))
    assert (found.manifests, report.warnings) == ((), ())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cart:7070", "Service shop/cart has no such port (it has 80)"),
        ("missing:80", "names missing:80, and there is no such Service"),
        ("cart.other.svc", "names cart.other.svc, and there is no such Service"),
    ],
)
def test_settings_that_lead_nowhere_are_told(value: str, text: str) -> None:
    _, report = _recommend(CART, _deployment("web", _env(value)))
    assert report.warnings[0].startswith("shop/web[Deployment]: env ADDR names")
    assert text in report.warnings[0]


def test_arguments_and_config_maps_are_read() -> None:
    config = """
apiVersion: v1
kind: ConfigMap
metadata: {name: conf, namespace: shop}
data: {app.ini: "[cart]\\nurl = http://cart:80/\\n", direct: "cart:80"}
"""
    volume = "volumes: [{name: v, configMap: {name: conf}}]"
    projected = "volumes: [{name: v, projected: {sources: [{configMap: {name: conf}}]}}]"
    reference = "{name: A, valueFrom: {configMapKeyRef: {name: conf, key: direct}}}"
    for web in (
        _deployment("web", spec=volume),
        _deployment("web", spec=projected),
        _deployment("web", reference),
    ):
        found, _ = _recommend(CART, config, web)
        assert _sources(found, "cart") == {"web": [7070]}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("image: i", "command: 3.5\n        args: {a: b}"),
        ("enableServiceLinks: false", "volumes: [{configMap: {name: [a]}}, {projected: 3}]"),
    ],
)
def test_settings_that_cannot_be_read_say_nothing(old: str, new: str) -> None:
    config = "\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: shop}\ndata: [a]\n"
    found, _ = _recommend(_deployment("web").replace(old, new), config)
    assert [ref.name for ref in found.idle] == ["web"]


def test_a_cron_job_and_its_arguments() -> None:
    cron = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick, namespace: shop}
spec:
  jobTemplate: {spec: {template: {
    metadata: {labels: {app: tick}},
    spec: {containers: [{name: c, args: ["curl", "http://cart/"]}]}}}}
"""
    found, _ = _recommend(CART, cron)
    assert _sources(found, "cart") == {"tick": [7070]}


def test_names_outside_open_the_outside_at_their_port() -> None:
    found, report = _recommend(_deployment("web", _env("https://api.example.com/v1")))
    outside = _spec(found, "web")["egress"][-1]
    assert outside["ports"] == [{"protocol": "TCP", "port": 443}]
    assert outside["to"][0]["ipBlock"]["cidr"] == "0.0.0.0/0"
    assert "10.0.0.0/8" in outside["to"][0]["ipBlock"]["except"]
    assert "a NetworkPolicy knows no names" in report.warnings[0]
    found, report = _recommend(_deployment("web", _env("203.0.113.7:5432")))
    assert _spec(found, "web")["egress"][-1]["to"] == [{"ipBlock": {"cidr": "203.0.113.7/32"}}]
    assert report.warnings == ()


def test_services_are_known_by_their_addresses_and_other_names() -> None:
    fixed = CART.replace("type: ClusterIP", "type: ClusterIP\n  clusterIP: 10.96.0.9")
    found, _ = _recommend(fixed, _deployment("web", _env("10.96.0.9:80")))
    assert _sources(found, "cart") == {"web": [7070]}
    other = """
apiVersion: v1
kind: Service
metadata: {name: basket, namespace: shop}
spec: {type: ExternalName, externalName: NAME}
"""
    inside = other.replace("NAME", "cart.shop.svc.cluster.local")
    found, _ = _recommend(CART, inside, _deployment("web", _env("basket:80")))
    assert _sources(found, "cart") == {"web": [7070]}
    outside = other.replace("NAME", "cart.example.com")
    _, report = _recommend(outside, _deployment("web", _env("http://basket")))
    assert "names cart.example.com:80: a NetworkPolicy knows no names" in report.warnings[0]


def test_entries_let_controllers_or_everybody_in() -> None:
    ingress = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i, namespace: shop}
spec: {defaultBackend: {service: {name: cart, port: {number: 80}}}}
"""
    found, _ = _recommend(CART, ingress)
    assert _spec(found, "cart")["ingress"] == [
        {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": 7070}]}
    ]
    found, _ = _recommend(_deployment("web"), _service("web", 80, 8080, "LoadBalancer"))
    assert _spec(found, "web")["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8080}]}]


def test_silence_of_settings_leaves_directions_open() -> None:
    found, report = _recommend(CART, _deployment("web", _env("cart:80")))
    assert _spec(found, "cart")["egress"] == [{}]
    assert report.left_open == ("shop/cart[Deployment] egress",)
    assert report.quiet == ("shop/web[Deployment] ingress",)
    found, report = _recommend(CART, _deployment("web", _env("cart:80")), close_quiet=True)
    assert report.left_open == ()
    assert _spec(found, "cart")["egress"][0]["ports"][0]["port"] == 53


def test_workloads_without_hints_are_idle() -> None:
    found, report = _recommend(CART, _deployment("web", _env("cart:80")), _deployment("other"))
    assert report.idle == ("shop/other[Deployment]",)
    assert "shop" in report.without_default_deny
    assert any("--include-idle" in line for line in summary(report))
    assert [m["metadata"]["name"] for m in found.manifests] == ["cart", "web"]


def test_host_network_peers_are_all_nodes() -> None:
    host = _deployment("web", _env("cart:80"), spec="hostNetwork: true")
    node = """
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 172.30.0.2}]}
"""
    found, report = _recommend(CART, host, node)
    (rule,) = _spec(found, "cart")["ingress"]
    assert rule["from"] == [{"ipBlock": {"cidr": "172.30.0.2/32"}}]
    assert "the addresses of all nodes" in report.warnings[0]
    found, report = _recommend(CART, host)
    assert len(_spec(found, "cart")["ingress"][0]["from"]) == 2
    assert "no node is known" in report.warnings[0]


def test_the_dns_service_of_the_manifests_is_asked_at_its_pods_port() -> None:
    dns = """
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  selector: {k8s-app: kube-dns}
  ports: [{port: 53, protocol: UDP, targetPort: 1053}, {port: 9153, targetPort: 9153}]
---
apiVersion: v1
kind: Pod
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {containers: [{name: c, image: i}]}
"""
    found, _ = _recommend(CART, _deployment("web", _env("cart:80")), dns)
    names = next(r for r in _spec(found, "web")["egress"] if "namespaceSelector" in r["to"][0])
    assert names["ports"] == [{"protocol": "UDP", "port": 1053}]
    assert {m["metadata"]["namespace"] for m in found.manifests} == {"shop"}


def test_every_hint_is_found_once_with_where_it_is() -> None:
    found = list(hints_in(Text("env A", "cart:80, redis://cache")))
    assert [(h.scheme, h.host, h.port) for h in found] == [
        ("", "cart", 80),
        ("redis", "cache", None),
    ]
    assert {h.where for h in found} == {"env A"}


# --- flows with manifests -----------------------------------------------------------------------


def test_flows_use_the_selectors_of_the_manifests() -> None:
    documents = list(parse("---".join([CART, _deployment("web")]), "m.yaml"))
    cluster = Cluster(read_world(documents), documents, complete=True)
    said = Said("allowed", "")
    web = End("10.0.0.1", "Pod", "shop", "web-1", {"app": "web", "pod-template-hash": "1"})
    cart = End("10.0.0.2", "Pod", "shop", "cart-1", {"app": "cart", "pod-template-hash": "2"})
    log = FlowLogDocument(records=(FlowRecord(web, cart, "TCP", 7070, "allowed", said, said),))
    found, report = recommend_from_flows(log, cluster, Options())
    assert report.subjects == ("shop/cart[Deployment]", "shop/web[Deployment]")
    assert report.doubts == ("the flow log does not say what it lost",)
    assert _spec(found, "cart")["podSelector"] == {"matchLabels": {"app": "cart"}}
    assert "default-deny" in [m["metadata"]["name"] for m in found.manifests]


# --- the sample ---------------------------------------------------------------------------------


def _boutique(*files: str) -> list[str]:
    if not BOUTIQUE.is_dir():
        pytest.skip(f"{BOUTIQUE} is not there")
    return [str(BOUTIQUE / file) for file in files]


def test_online_boutique_every_call_and_no_more_than_its_own_policies() -> None:
    """Its 13 policies say who may call whom; settings hint at the same. Only the frontend, which
    its own policy opens to everybody at every port, is not open to those who never call it."""
    (manifests, policies) = _boutique("kubernetes-manifests.yaml", "network-policies.yaml")
    made = CliRunner().invoke(cli, ["policy", "recommend", "-f", manifests])
    assert made.exit_code == 0, made.output
    read = [list(parse(text, "p")) for text in (made.stdout, Path(policies).read_text())]
    workloads = list(parse(Path(manifests).read_text(), "m"))
    ours, theirs = (read_world([*workloads, *each]) for each in read)
    assert len(ours.policies) == len(theirs.policies) == 13
    pods = {pod.key: pod for pod in ours.world.pods.values()}
    probed = {port for talker in ours.talkers for port in (talker.ports or ())}
    for one in pods.values():
        for other in pods.values():
            for port in probed:
                flow = Flow(Party(None, one), Party(None, other), 6, port.number)
                said = [
                    evaluate(flow, PolicySet(w.policies), w.world).allowed for w in (ours, theirs)
                ]
                if other.key.name == "frontend[Deployment]":
                    assert said[1]
                else:
                    assert said[0] == said[1], (one.key, other.key, port)
    generator, frontend = (
        Party(None, pods[Key("default", f"{name}[Deployment]")])
        for name in ("loadgenerator", "frontend")
    )
    flow = Flow(generator, frontend, 6, 8080)
    assert evaluate(flow, ours.policy_set, ours.world).allowed


def test_the_report_is_json_and_the_manifests_are_yaml() -> None:
    (manifests,) = _boutique("kubernetes-manifests.yaml")
    runner = CliRunner()
    shown = runner.invoke(cli, ["policy", "recommend", "-f", manifests, "-o", "json"])
    report = msgspec.json.decode(shown.stdout)
    assert (report["kind"], report["checked"], len(report["manifests"])) == (
        "PolicyRecommendation", 17, 13,
    )  # fmt: skip
    text = runner.invoke(cli, ["policy", "recommend", "-f", manifests, "--stage"]).stdout
    assert "&id" not in text
    assert {d["kind"] for d in yaml.safe_load_all(text)} == {"NetworkPolicy"}
    assert all(
        d["metadata"]["annotations"]["policy.podwire.dev/stage"] == "true"
        for d in yaml.safe_load_all(text)
    )
