"""`policy diff`, `coverage`, `lint` and `exposure` on small worlds, and how they are printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from podwire.cli import cli
from podwire.explain.policytools import expose, expose_pod, lint_world
from podwire.explain.staticworld import StaticWorld, read_world
from podwire.objects.documents import parse

WORLD = """\
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: job, namespace: tools, labels: {app: job}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: db}, ports: [{port: 80, targetPort: sql}]}
"""


def _np(spec: str, name: str = "p", pods: str = "{matchLabels: {app: db}}") -> str:
    head = f"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, "
    return f"{head}namespace: shop}}\nspec:\n  podSelector: {pods}\n{spec}"


def _cnp(rules: str, name: str = "c", priority: int = 1, tier: str = "Admin") -> str:
    return (
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n"
        f"metadata: {{name: {name}}}\nspec:\n  tier: {tier}\n  priority: {priority}\n"
        f"  subject: {{namespaces: {{}}}}\n  ingress:\n{rules}"
    )


def _read(*policies: str) -> StaticWorld:
    text = "".join(policies) + WORLD
    return read_world(list(parse(text, "f.yaml", marks=True)))


FROM_WEB = "  - from: [{podSelector: {matchLabels: {app: web}}}]\n"
TO_ALL = "  - {action: ACTION, from: [{namespaces: {}}]}\n"
DENY, ACCEPT, PASS = (TO_ALL.replace("ACTION", a) for a in ("Deny", "Accept", "Pass"))


@pytest.mark.parametrize(
    ("policies", "check", "policy", "line"),
    [
        ([_np("  ingress: []\n", pods="{matchLabels: {app: dB}}")], "dangling-subject", "p", 5),
        (
            [_np("  ingress:\n  - from: [{podSelector: {matchLabels: {app: weB}}}]\n")],
            "dangling-peer",
            "p",
            8,
        ),
        ([_cnp(DENY + ACCEPT)], "shadowed-rule", "c", 11),
        ([_cnp(DENY, "a"), _cnp(ACCEPT, "b", 2)], "shadowed-rule", "b", 20),
        ([_cnp(DENY, "a"), _cnp(ACCEPT, "b")], "priority-tie", "a", 10),
        ([_cnp(PASS)], "pass-to-nowhere", "c", 10),
        (
            [
                _np("  ingress: []\n", pods="{}"),
                _cnp(DENY + PASS, tier="Baseline").replace(
                    "namespaces: {}}\n",
                    "namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}\n",
                    1,
                ),
            ],
            "baseline-never-reached",
            "c",
            12,
        ),
        ([_np("  policyTypes: [Egress]\n", pods="{}")], "dns-isolated", "p", 5),
        ([_np(f"  ingress:\n{FROM_WEB}    ports: [{{port: 80}}]\n")], "service-port", "p", 9),
        ([_np("  ingress:\n  - ports: [{port: sqll}]\n")], "named-port", "p", 8),
        ([_np("  ingress: [{}]\n")], "empty-rule", "p", 7),
        (
            [_np(f"  ingress:\n{FROM_WEB}", "p"), _np(f"  ingress:\n{FROM_WEB}", "q")],
            "redundant-rule",
            "q",
            16,
        ),
        (
            [_cnp("  - {action: Accept, from: [{planets: {}}]}\n")],
            "fails-closed",
            "c",
            10,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "-" in value else "",
)
def test_lint_finds(policies: list[str], check: str, policy: str, line: int) -> None:
    found = [f for f in lint_world(_read(*policies)) if f.check == check]
    assert len(found) == 1
    assert found[0].policy.split("/")[-1].split(" ")[-1] == policy
    assert found[0].at == f"f.yaml:{line}"


def test_lint_is_silent_about_what_is_well() -> None:
    """A default deny, DNS, a rule per need, Pass to a NetworkPolicy, a Baseline that is asked."""
    dns = "  - ports: [{port: 53, protocol: UDP}]\n    to: [{ipBlock: {cidr: 10.0.0.0/8}}]\n"
    policies = [
        _np("  policyTypes: [Ingress, Egress]\n", "deny", "{}"),
        _np(f"  policyTypes: [Egress]\n  egress:\n{dns}", "dns", "{}"),
        _np(f"  ingress:\n{FROM_WEB}    ports: [{{port: sql}}]\n", "db"),
        _cnp("  - {action: Pass, from: [{namespaces: {}}]}\n"),
        _cnp(DENY, "base", tier="Baseline"),
    ]
    assert lint_world(_read(*policies)) == []


def test_a_tie_that_nothing_depends_on_is_none() -> None:
    other = "  - {action: Accept, from: [{namespaces: {matchLabels: {team: none}}}]}\n"
    found = lint_world(_read(_cnp(DENY, "a"), _cnp(other, "b")))
    assert "priority-tie" not in {finding.check for finding in found}


# --- exposure -----------------------------------------------------------------------------------


def test_pods_of_the_future() -> None:
    policy = _np(f"  ingress:\n{FROM_WEB}    ports: [{{port: 5432}}]\n")
    static = _read(policy)
    told = {(t.imagined, t.direction, t.peer): t.text for t in expose(static)}
    web = "{pods app=web of namespace shop}"
    assert told[web, "egress", "shop/db[Pod]"] == "TCP 5432"
    assert ("{any pod}", "egress", "shop/db[Pod]") not in told
    assert told["{any pod}", "egress", "shop/web[Pod]"] == "All Connections"
    found = expose_pod(static, "shop", {"app": "db"})
    into = {t.peer: t.text for t in found if t.direction == "ingress"}
    assert into == {"shop/web[Pod]": "TCP 5432"}


# --- commands -----------------------------------------------------------------------------------


def _files(folder: Path, **texts: str) -> list[str]:
    paths = []
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
        paths.append(str(folder / f"{name}.yaml"))
    return paths


DENY_DB = _np("  ingress: []\n", "deny")
OPEN_DB = _np(f"  ingress:\n{FROM_WEB}    ports: [{{port: 5432}}]\n", "deny")


def test_diff_prints_what_changes(tmp_path: Path) -> None:
    old, new = _files(tmp_path, old=DENY_DB + WORLD, new=OPEN_DB + WORLD)
    done = CliRunner().invoke(cli, ["policy", "diff", old, new])
    assert done.stdout.splitlines() == [
        "CHANGE   SOURCE          DESTINATION    OLD              NEW",
        "added    shop/web[Pod]   shop/db[Pod]   No Connections   TCP 5432",
    ]
    assert CliRunner().invoke(cli, ["policy", "diff", old, new, "--exit-code"]).exit_code == 1
    same = CliRunner().invoke(cli, ["policy", "diff", old, old, "--exit-code"])
    assert (same.exit_code, same.stdout) == (0, "no connection changes\n")
    as_json = CliRunner().invoke(cli, ["policy", "diff", old, new, "-o", "json"])
    assert json.loads(as_json.stdout)["changes"][0]["opened"] == "TCP 5432"
    drawn = CliRunner().invoke(cli, ["policy", "diff", old, new, "-o", "mermaid"]).stdout
    assert '-->|"+ TCP 5432"|' in drawn
    assert "linkStyle 0 stroke:#1a7f37" in drawn


def _flow(source: dict[str, object], destination: dict[str, object], **more: object) -> object:
    said = {"verdict": "allowed", "reason": "no policy"}
    base = {"protocol": "TCP", "port": 5432, "verdict": "allowed", "egress": said, "ingress": said}
    times = {"count": 3, "firstSeen": 100.0, "lastSeen": 200.0}
    return {"source": source, "destination": destination, **base, **times, **more}


def test_diff_is_weighted_by_what_was_seen(tmp_path: Path) -> None:
    """Templates stand for pods of other names; an address counts for its range."""
    web = {"ip": "10.0.0.1", "kind": "Pod", "namespace": "shop", "name": "web"}
    # A pod of another name, with the labels of `db` and one more.
    db = {
        "ip": "10.0.0.2",
        "kind": "Pod",
        "namespace": "shop",
        "name": "db-5d4",
        "labels": {"app": "db", "pod-template-hash": "5d4"},
    }
    outside = {"ip": "192.0.2.1"}
    records = [
        _flow(web, db),
        _flow(web, db, port=99),
        _flow(outside, db),
        _flow(db, web),
        _flow(outside, db, verdict="denied"),
    ]
    log = tmp_path / "flows.json"
    log.write_text(json.dumps(records))
    old, new = _files(tmp_path, old=WORLD, new=OPEN_DB + WORLD)
    arguments = ["policy", "diff", old, new, "--flows", str(log)]
    done = CliRunner().invoke(cli, [*arguments, "-o", "json"])
    found = json.loads(done.stdout)
    told = {(c["source"], c["destination"]): c for c in found["changes"]}
    assert told["shop/web[Pod]", "shop/db[Pod]"]["flowsDenied"] == 1
    assert told["0.0.0.0-255.255.255.255[External]", "shop/db[Pod]"]["flowsDenied"] == 1
    assert told["tools/job[Pod]", "shop/db[Pod]"]["flowsDenied"] == 0
    flows = found["flows"]
    assert (flows["total"], flows["denied"], flows["allowed"], flows["unused"]) == (5, 2, 0, 0)
    back = CliRunner().invoke(cli, ["policy", "diff", new, old, "--flows", str(log)])
    assert "of 5 observed flows 0 would newly be denied, 1 newly allowed" in back.stdout
    assert "2 changes open what nothing tried" in back.stdout
    assert "does not say what it lost" in back.stderr


def test_coverage_counts_pods(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, all=OPEN_DB + WORLD)
    done = CliRunner().invoke(cli, ["policy", "coverage", "-f", path, "-o", "json"])
    shop, tools, total = json.loads(done.stdout)
    assert (shop["namespace"], shop["pods"], shop["ingressIsolated"]) == ("shop", 2, 1)
    assert (shop.get("egressIsolated", 0), shop["fromWorld"], shop["fromNamespaces"]) == (0, 1, 1)
    assert (tools["pods"], total["pods"], total["toWorld"]) == (1, 3, 3)


def test_lint_and_exposure_print(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, all=_np("  ingress: [{}]\n") + WORLD)
    done = CliRunner().invoke(cli, ["policy", "lint", "-f", path])
    assert done.stdout.startswith(f"{path}:7: info [empty-rule] NetworkPolicy shop/p spec.ingress")
    shown = CliRunner().invoke(cli, ["policy", "exposure", "-f", path, "--labels", "a=b"])
    assert "{pod a=b of namespace default}" in shown.stdout


REPLICAS = "---\n".join(
    f"""apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  labels: {{v: {value}}}
  ownerReferences: [{{kind: ReplicaSet, name: r, controller: true}}]
spec: {{containers: [{{name: c}}]}}
"""
    for name, value in (("one", "a"), ("two", "b"))
)
ONE_CLOSED = """---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec: {podSelector: {matchLabels: {v: a}}, ingress: [{ports: [{port: 80}]}]}
"""


def test_diff_tells_pods_apart_on_both_sides(tmp_path: Path) -> None:
    """Replicas that were alike and are not any more: only what changes for one of them is told."""
    other = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: c, namespace: shop}\n"
    old, new = _files(tmp_path, old=REPLICAS + other, new=REPLICAS + other + ONE_CLOSED)
    for files, kinds in (((old, new), ("All Connections", "TCP 80")), ((new, old), None)):
        done = CliRunner().invoke(cli, ["policy", "diff", *files, "-o", "json"])
        changes = json.loads(done.stdout)["changes"]
        assert [(c["kind"], c["source"], c["destination"]) for c in changes] == [
            ("changed", "0.0.0.0-255.255.255.255[External]", "shop/one[Pod]"),
            ("changed", "shop/c[Pod]", "shop/one[Pod]"),
        ]
        if kinds is not None:
            assert {(c["old"], c["new"]) for c in changes} == {kinds}


SIX = """\
apiVersion: v1
kind: Pod
metadata: {name: six, namespace: shop}
spec: {containers: [{name: c}]}
status: {podIPs: [{ip: "fd00::5"}]}
---
"""


def test_everything_is_of_the_family_that_is_asked_for(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, all=SIX + WORLD)
    for command in (
        ["reach", "--static"],
        *(["policy", w] for w in ("coverage", "lint", "exposure")),
    ):
        done = CliRunner().invoke(cli, [*command, "-f", path])
        assert "shop/six[Pod]: no IPv4 address, not listed; --family 6 lists them" in done.stderr
        done = CliRunner().invoke(cli, [*command, "-f", path, "--family", "6"])
        assert "not listed" not in done.stderr
        if command[-1] == "exposure":
            assert "::-ffff:" in done.stdout
            assert "shop/six[Pod]" in done.stdout
    pods = [
        json.loads(CliRunner().invoke(cli, [*words, family]).stdout)[-1]["pods"]
        for words in [["policy", "coverage", "-f", path, "-o", "json", "--family"]]
        for family in ("4", "6")
    ]
    assert pods[1] == pods[0] + 1


@pytest.mark.parametrize("output", ["table", "json", "yaml", "connlist", "mermaid", "dot", "svg"])
def test_reach_prints_in_every_form(tmp_path: Path, output: str) -> None:
    (path,) = _files(tmp_path, all=OPEN_DB + WORLD)
    done = CliRunner().invoke(cli, ["reach", "--static", "-f", path, "-o", output])
    assert done.exit_code == 0, done.output
    assert {
        "table": "shop/web   ok       -",
        "json": '"evidence": "static"',
        "yaml": "evidence: static",
        "connlist": "shop/web[Pod] => shop/db[Pod] : TCP 5432",
        "mermaid": '-->|"TCP 5432"|',
        "dot": '[label="TCP 5432"]',
        "svg": "<title>shop/web[Pod] =&gt; shop/db[Pod] : TCP 5432</title>",
    }[output] in done.stdout


def test_a_denied_pair_says_by_whom(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, all=DENY_DB + WORLD)
    done = CliRunner().invoke(cli, ["reach", "--static", "-f", path, "-o", "json"])
    document = json.loads(done.stdout)
    keys = [endpoint["name"] for endpoint in document["sources"]]
    told = {
        (keys[a["source"]], keys[a["destination"]]): a.get("detail", "")
        for a in document["answers"]
    }
    assert told["web", "db"] == "ingress isolated by NetworkPolicy shop/deny"
    assert told["db", "web"] == ""


def test_reach_can_be_asked_for_some(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, all=OPEN_DB + WORLD)
    base = ["reach", "--static", "-f", path, "-o", "connlist"]
    done = CliRunner().invoke(cli, [*base, "--from", "outside", "--to", "shop/"])
    assert done.stdout == "0.0.0.0-255.255.255.255[External] => shop/web[Pod] : All Connections\n"
    done = CliRunner().invoke(cli, [*base, "--from", "app=web", "--to", "app=db"])
    assert done.stdout == "shop/web[Pod] => shop/db[Pod] : TCP 5432\n"
    assert CliRunner().invoke(cli, ["reach", "-f", path]).exit_code != 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "shop/web[Pod] => shop/db[Pod] : All Connections"),
        (["--ipblock-matches-pods"], "shop/web[Pod] => shop/db[Pod] : All Connections"),
        (["--ipblock-matches-pods=false"], ""),
        (["--no-ipblock-matches-pods"], ""),
    ],
)
def test_whether_an_ipblock_matches_pods(tmp_path: Path, options: list[str], line: str) -> None:
    policy = _np("  ingress:\n  - from: [{ipBlock: {cidr: 10.0.0.0/8}}]\n")
    world = WORLD.replace(
        "labels: {app: web}}\n", "labels: {app: web}}\nstatus: {podIPs: [{ip: 10.1.2.3}]}\n"
    ).replace("5432}]}]}\n", "5432}]}]}\nstatus: {podIPs: [{ip: 10.1.2.4}]}\n")
    (path,) = _files(tmp_path, all=policy + world)
    arguments = ["reach", "--static", "-f", path, "-o", "connlist", *options]
    lines = CliRunner().invoke(cli, arguments).stdout.splitlines()
    assert [x for x in lines if x.startswith("shop/web") and "shop/db" in x] == (
        [line] if line else []
    )


def test_why_of_manifests(tmp_path: Path) -> None:
    (path,) = _files(tmp_path, all=OPEN_DB + WORLD)
    done = CliRunner().invoke(cli, ["why", "tools/job", "shop/db:5432", "-f", path])
    assert done.exit_code == 1
    assert "nearest rule: NetworkPolicy shop/deny spec.ingress[0] at" in done.stdout
    assert done.stdout.splitlines()[-1] == "tools/job[Pod] -> shop/db[Pod] TCP 5432: denied"
    good = CliRunner().invoke(cli, ["why", "shop/web", "svc/shop/db", "-f", path, "-o", "json"])
    assert (good.exit_code, json.loads(good.stdout)[0]["allowed"]) == (0, True)
