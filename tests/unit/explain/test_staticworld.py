"""Manifests become workloads, namespaces, Services and policies; what is wrong is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from podwire.errors import PolicyError, UsageError
from podwire.explain.staticreach import StaticReach
from podwire.explain.staticworld import StaticWorld, read_world
from podwire.objects.documents import parse
from podwire.policy.connlist import render_connlist
from podwire.policy.model import NamedPort

POD = "apiVersion: v1\nkind: Pod\nmetadata: {{name: {0}, namespace: x{1}}}\n"


def _read(*texts: str, **options: bool) -> StaticWorld:
    return read_world(list(parse("---\n".join(texts), "f.yaml", marks=True)), **options)


def _workload(kind: str, name: str, template: str, version: str = "apps/v1", more: str = "") -> str:
    spec = f"{{template: {template}}}"
    if kind == "CronJob":
        spec = f"{{jobTemplate: {{spec: {spec}}}}}"
    head = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: x{more}}}\n"
    return f"{head}spec: {spec}\n"


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("Deployment", "apps/v1"),
        ("StatefulSet", "apps/v1"),
        ("DaemonSet", "apps/v1"),
        ("ReplicaSet", "apps/v1"),
        ("ReplicationController", "v1"),
        ("Job", "batch/v1"),
        ("CronJob", "batch/v1"),
    ],
)
def test_a_workload_is_what_its_template_makes(kind: str, version: str) -> None:
    template = (
        "{metadata: {labels: {app: a}}, spec: {containers: "
        "[{name: c, ports: [{name: web, containerPort: 80}]}], initContainers: "
        "[{name: i, ports: [{name: once, containerPort: 1}]}, "
        "{name: s, restartPolicy: Always, ports: [{name: side, containerPort: 2}]}]}}"
    )
    (talker,) = _read(_workload(kind, "a", template, version)).talkers
    assert str(talker) == f"x/a[{kind}]"
    assert talker.view.labels == {"app": "a"}
    assert [port.name for port in talker.view.ports] == ["web", "side"]
    assert talker.view.resolve(NamedPort("once")) == ()


def _owned(name: str, kind: str, owner: str) -> str:
    return f", ownerReferences: [{{kind: {kind}, name: {owner}, controller: true}}]"


def test_pods_stand_for_their_owner_as_far_up_as_is_known() -> None:
    deployment = _workload("Deployment", "web", "{metadata: {labels: {app: web}}}")
    replicas = _workload("ReplicaSet", "web-1", "{}", more=_owned("web-1", "Deployment", "web"))
    pod = POD.format("web-1-a", _owned("", "ReplicaSet", "web-1"))
    alone = POD.format("y", _owned("", "ReplicaSet", "gone-2"))
    static = POD.format("etcd", _owned("", "Node", "n1"))
    bare = POD.format("bare", "")
    found = _read(deployment, replicas, pod, alone, static, bare).workloads()
    assert {str(owner): [str(t.view.key) for t in talkers] for owner, talkers in found.items()} == {
        "x/bare[Pod]": ["x/bare"],
        "x/etcd[Pod]": ["x/etcd"],
        "x/gone-2[ReplicaSet]": ["x/y"],
        "x/web[Deployment]": ["x/web-1-a"],
    }
    # The Deployment is not here: who made the pod stands for it, and its template does not.
    assert [str(t.owner) for t in _read(replicas, pod).talkers] == ["x/web-1[ReplicaSet]"]
    # Without the pod the uppermost template speaks, once.
    assert [str(t) for t in _read(deployment, replicas).talkers] == ["x/web[Deployment]"]


def test_pods_that_have_ended_are_nobody() -> None:
    pod = POD.format("done", "") + "status: {phase: Succeeded}\n"
    assert _read(pod).talkers == ()


def test_null_is_absent_and_namespaces_have_their_name_as_label() -> None:
    pod = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: null}\n"
        "spec: {containers: [{name: c, ports: null}], initContainers: null}\n"
    )
    static = _read(
        pod, "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: null}\n"
    )
    assert static.world.namespaces == {"default": {"kubernetes.io/metadata.name": "default"}}


def test_kinds_that_say_nothing_are_skipped_and_told() -> None:
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n"
    other = "apiVersion: example.com/v1\nkind: Deployment\nmetadata: {name: d}\n"
    many = [f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{i}}}\n" for i in range(5)]
    assert list(_read(secret, other, *many).warnings) == [
        "f.yaml:1: Secret s: skipped, no connections are read from this kind",
        "f.yaml:5: Deployment d: skipped, no connections are read from this kind",
        "f.yaml:9: ConfigMap c0: skipped, no connections are read from this kind",
        "f.yaml:13: ConfigMap c1: skipped, no connections are read from this kind",
        "f.yaml:17: ConfigMap c2: skipped, no connections are read from this kind",
        "2 more objects of kind ConfigMap are skipped",
    ]


POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - form: []
    ports: [{port: 80}]
"""


def test_a_misspelt_field_is_told_with_its_line() -> None:
    assert _read(POLICY).warnings == (
        'f.yaml:7: NetworkPolicy x/p: unknown field "spec.ingress[0].form" means nothing',
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "port: 80",
            "port: 0",
            r"f.yaml:8: NetworkPolicy x/p: spec.ingress\[0\].ports\[0\].port: 0",
        ),
        ("form: []", "from: [{}]", r"f.yaml:7: .*spec.ingress\[0\].from\[0\]: must specify a peer"),
        ("form: []", "from: 7", r"f.yaml:7: .*spec.ingress\[0\].from: Expected"),
        ("podSelector: {}", "podSelector: {matchLabels: {a: 1}}", r"f.yaml:5: .*spec.podSelector"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        _read(POLICY.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "podSelector: {}",
            'podSelector: {matchLabels: {"a b": c}}',
            r"f.yaml:5: .*spec.podSelector",
        ),
        (
            "form: []",
            "from: [{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]",
            r"f.yaml:7: .*matchExpressions\[0\].values: Forbidden",
        ),
    ],
)
def test_what_an_api_server_refuses_is_refused_in_its_words(
    old: str, new: str, message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        _read(POLICY.replace(old, new))
    with pytest.raises(PolicyError, match=r"spec.subject.namespaces.matchLabels: Invalid value"):
        _read(ADMIN.replace("namespaces: {}", 'namespaces: {matchLabels: {a: "-"}}'))


def test_a_workload_that_cannot_be_read_is_refused() -> None:
    text = _workload("Deployment", "a", '{spec: {containers: [{ports: [{containerPort: "80"}]}]}}')
    with pytest.raises(
        UsageError, match=r"f.yaml:4: Deployment x/a: spec.template.spec.containers"
    ):
        _read(text)


@pytest.mark.parametrize("kind", ["Deployment", "CronJob"])
def test_a_workload_that_makes_no_pod_is_refused(kind: str) -> None:
    text = f"apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{}}\n"
    text = text.replace("apps", "batch") if kind == "CronJob" else text
    with pytest.raises(UsageError, match=rf"f.yaml:4: {kind} a: spec.*template: Required value"):
        _read(text)


def test_the_same_object_twice_is_refused_where_it_counts() -> None:
    with pytest.raises(UsageError, match=r"Pod x/a: is already in f.yaml:1"):
        _read(POD.format("a", ""), POD.format("a", ", labels: {v: two}"))
    with pytest.raises(UsageError, match=r"NetworkPolicy x/p: is already in f.yaml:1"):
        _read(POLICY, POLICY)
    # One object in two of the groups that had it, or with a namespace it cannot have.
    with pytest.raises(UsageError, match=r"NetworkPolicy x/p: is already in f.yaml:1"):
        _read(POLICY, POLICY.replace("networking.k8s.io/v1", "extensions/v1beta1"))
    with pytest.raises(UsageError, match=r"AdminNetworkPolicy NAME: is already in f.yaml:1"):
        _read(ADMIN, ADMIN.replace("{name: NAME}", "{name: NAME, namespace: x}"))
    config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n"
    assert len(_read(config, config).warnings) == 2


def test_what_says_the_same_twice_counts_once() -> None:
    namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {a: b}}\n"
    later = (
        POD.format("a", ", resourceVersion: '5'") + "status: {phase: Running, hostIP: 1.2.3.4}\n"
    )
    earlier = POD.format("a", "") + "status: {phase: Running}\n"
    static = _read(namespace, earlier, namespace + "status: {phase: Active}\n", later)
    assert [str(talker) for talker in static.talkers] == ["x/a[Pod]"]
    assert static.warnings == (
        "f.yaml:10: Namespace x: says the same as in f.yaml:1; it counts once",
        "f.yaml:15: Pod x/a: says the same as in f.yaml:5; it counts once",
    )
    with pytest.raises(UsageError, match=r"Pod x/a: is already in f.yaml:1"):
        _read(earlier, later.replace("Running", "Succeeded"))


def test_a_field_that_is_there_twice_is_told() -> None:
    (told,) = _read(POLICY.replace("form: []", "from: []") + "  ingress: []\n").warnings
    assert told == (
        'f.yaml:9: NetworkPolicy x/p: "spec.ingress" is there more than once; only the last one '
        "counts"
    )


def test_pods_that_an_api_server_is_to_name_are_several() -> None:
    pod = POD.format("a", "").replace("name: a", "generateName: a-")
    assert len(_read(pod, pod).talkers) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("containerPort: 80, protocol: tcp", r'protocol: Unsupported value: "tcp"'),
        ("containerPort: 70000", r"containerPort: Invalid value: 70000: must be between"),
        ("containerPort: 0", r"containerPort: Invalid value: 0: must be between"),
    ],
)
def test_ports_that_are_none_are_refused(spec: str, message: str) -> None:
    template = f"{{spec: {{containers: [{{}}, {{ports: [{{{spec}}}]}}]}}}}"
    path = r"spec\.template\.spec\.containers\[1\]\.ports\[0\]\."
    with pytest.raises(UsageError, match=rf"f.yaml:4: Deployment x/a: {path}{message}"):
        _read(_workload("Deployment", "a", template))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("port: 9000", "port: 0", r"spec.ports\[1\].port: Invalid value: 0"),
        (
            "targetPort: web",
            "targetPort: 65536",
            r"spec.ports\[0\].targetPort: Invalid value: 65536",
        ),
        ("protocol: UDP", "protocol: udp", r'spec.ports\[2\].protocol: Unsupported value: "udp"'),
    ],
)
def test_a_service_port_that_is_none_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"f.yaml:\d+: Service x/web: {message}"):
        _read(SERVICE.replace(old, new))


@pytest.mark.parametrize("status", ["{podIPs: [{ip: nope}]}", "{podIP: 10.0.0.0/8}"])
def test_an_address_that_is_none_is_refused(status: str) -> None:
    with pytest.raises(UsageError, match=r"Pod x/a: status\.podIP.*must be a valid IP address"):
        _read(POD.format("a", "") + f"status: {status}\n")


def test_the_address_of_a_pod_is_in_either_field() -> None:
    for status in ("{podIP: 10.0.0.1}", "{podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}"):
        (talker,) = _read(POD.format("a", "") + f"status: {status}\n").talkers
        assert list(map(str, talker.view.ips)) == ["10.0.0.1"]


ADMIN = """\
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: NAME}
spec: {priority: 5, subject: {namespaces: {}}}
"""


def test_equal_priorities_of_v1alpha1_are_refused() -> None:
    with pytest.raises(
        PolicyError, match=r"AdminNetworkPolicy b: spec.priority: 5: AdminNetwork.*a"
    ):
        _read(ADMIN.replace("NAME", "a"), ADMIN.replace("NAME", "b"))


SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: x}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: m, port: 9000}
  - {name: d, port: 53, protocol: UDP}
"""
WEB = POD.format("web", ", labels: {app: web}") + (
    "spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}\n"
)
INGRESS = """\
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i, namespace: x}
spec:
  rules:
  - http: {paths: [{backend: {service: {name: web, port: {name: http}}}}]}
"""
ROUTE = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: y}
spec:
  parentRefs: [{name: gw}]
  rules:
  - backendRefs: [{name: web, namespace: x, port: 9000}]
"""
OPENSHIFT = """\
apiVersion: route.openshift.io/v1
kind: Route
metadata: {name: o, namespace: x}
spec: {to: {kind: Service, name: web}}
"""


@pytest.mark.parametrize(
    ("entries", "ports"),
    [
        ([INGRESS], "TCP 8080"),
        ([ROUTE], "TCP 9000"),
        ([INGRESS, ROUTE], "TCP 8080,9000"),
        ([OPENSHIFT], "TCP 8080,9000"),
        ([ROUTE.replace("parentRefs: [{name: gw}]", "parentRefs: [{kind: Service, name: a}]")], ""),
    ],
)
def test_entries_lead_to_the_pods_own_ports(entries: list[str], ports: str) -> None:
    static = StaticReach(_read(WEB, SERVICE, *entries))
    lines = [line for line in render_connlist(static.connections()) if line.startswith("{")]
    assert lines == ([f"{{ingress-controller}} => x/web[Pod] : {ports}"] if ports else [])


def test_an_entry_to_some_pods_of_a_workload_names_them() -> None:
    pods = [POD.format(n, f", labels: {{app: {n}}}" + _owned("", "ReplicaSet", "r")) for n in "ab"]
    service = SERVICE.replace("app: web", "app: a").replace("targetPort: web", "targetPort: 80")
    static = StaticReach(_read(*pods, service, INGRESS))
    assert [str(c) for c in static.connections() if c.source.startswith("{")] == [
        "{ingress-controller} => x/a[Pod] : TCP 80"
    ]


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        ([INGRESS], "Service x/web, which is not among these objects"),
        ([INGRESS, SERVICE], "Service x/web, whose selector matches no pod"),
        (
            [INGRESS, SERVICE.replace("  selector: {app: web}\n", ""), WEB],
            "Service x/web, which has no selector: what is behind it is not known",
        ),
        (
            [INGRESS.replace("name: http", "number: 81"), SERVICE, WEB],
            "Service x/web, which has no TCP port 81",
        ),
        (
            [INGRESS, SERVICE, WEB.replace("name: web, containerPort", "name: b, containerPort")],
            "Service x/web, whose targetPort is a name that no pod behind it has",
        ),
    ],
)
def test_an_entry_that_leads_nowhere_is_told(objects: list[str], told: str) -> None:
    read = _read(*objects)
    assert read.warnings == (f"f.yaml:1: Ingress x/i: leads to {told}",)
    assert list(StaticReach(read).blocked_entries()) == []


def test_a_backend_of_v1beta1_leads_nowhere_and_is_told() -> None:
    old = INGRESS.replace("service: {name: web, port: {name: http}}", "serviceName: web")
    (told,) = _read(old.replace("/v1", "/v1beta1")).warnings
    assert told.startswith("f.yaml:1: Ingress x/i: its backend web is written as in v1beta1")


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        (INGRESS.replace("{paths", "[{paths").replace("]}\n", "]}]\n"), r"spec.rules\[0\].http"),
        (INGRESS.replace("{name: web, port: {name: http}}", "web"), r"spec.*backend.service"),
        (ROUTE.replace("[{name: gw}]", "gw"), "spec.parentRefs"),
        (OPENSHIFT.replace("{kind: Service, name: web}", "web"), "spec.to"),
    ],
)
def test_an_entry_that_cannot_be_read_is_refused(entry: str, path: str) -> None:
    with pytest.raises(UsageError, match=rf"f.yaml:\d: \w+ \w/\w: {path}: Expected"):
        _read(entry)


@pytest.mark.parametrize(
    ("entry", "port"),
    [
        (INGRESS.replace("name: http", "number: 8080"), "9090"),
        (OPENSHIFT.replace("name: web}", "name: web}, port: {targetPort: 8080}"), "8080"),
    ],
)
def test_a_number_that_is_both_of_service_and_pod(entry: str, port: str) -> None:
    ports = (
        "  - {name: a, port: 80, targetPort: 8080}\n  - {name: b, port: 8080, targetPort: 9090}\n"
    )
    service = SERVICE.partition("  - ")[0] + ports
    lines = render_connlist(StaticReach(_read(WEB, service, entry)).connections())
    assert f"{{ingress-controller}} => x/web[Pod] : TCP {port}" in lines


def test_an_entry_that_policies_close_is_told() -> None:
    deny = POLICY.replace("  ingress:\n  - form: []\n    ports: [{port: 80}]\n", "")
    static = StaticReach(_read(WEB, SERVICE, INGRESS, deny))
    assert not [line for line in render_connlist(static.connections()) if line.startswith("{")]
    (told,) = static.blocked_entries()
    assert told.startswith("x/web[Pod]: policies let no ingress controller in")


def test_pods_of_one_owner_that_are_not_alike_are_named() -> None:
    one = POD.format("a", ", labels: {v: one}" + _owned("", "ReplicaSet", "r"))
    two = POD.format("b", ", labels: {v: two}" + _owned("", "ReplicaSet", "r"))
    policy = POLICY.replace("podSelector: {}", "podSelector: {matchLabels: {v: one}}")
    static = StaticReach(
        _read(one, two, POD.format("c", ""), policy.replace("  - form: []\n  ", "  -"))
    )
    lines = [line for line in render_connlist(static.connections()) if "External" not in line]
    assert lines == [
        "x/c[Pod] => x/a[Pod] : TCP 80",
        "x/c[Pod] => x/b[Pod] : All Connections",
        "x/r[ReplicaSet] => x/c[Pod] : All Connections",
    ]


def test_nothing_of_it_needs_linux(tmp_path: Path) -> None:
    """No module that only Linux has, no lab, no kernel: they are made to fail here."""
    (tmp_path / "f.yaml").write_text(WEB)
    program = (
        "import sys\n"
        "for name in ('fcntl', 'podwire.kernel', 'podwire.lab', 'podwire.agents', 'uvloop'):\n"
        "    sys.modules[name] = None\n"
        "from podwire.cli import main\n"
        "sys.argv[0] = 'podwire'\n"
        "main()\n"
    )
    for arguments in (
        ["reach", "--static", "-f", str(tmp_path), "-o", "connlist"],
        ["reach", "--static", "-f", str(tmp_path), "-o", "svg"],
        ["why", "x/web", "1.2.3.4:5", "-f", str(tmp_path)],
        ["policy", "lint", "-f", str(tmp_path)],
        ["policy", "diff", str(tmp_path), str(tmp_path)],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
