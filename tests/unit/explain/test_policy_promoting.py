"""Staging refuses what is in force; promoting takes one annotation away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from podwire.cli import cli
from podwire.client import Api
from podwire.errors import NotFoundError, UsageError
from podwire.explain.promoting import promote, promote_all, refuse_enforced
from podwire.explain.staticworld import read_world
from podwire.objects.documents import parse
from podwire.objects.meta import JsonObject
from podwire.policy.flowdocument import FlowLogDocument
from podwire.policy.flowlog import End, FlowRecord, Said
from podwire.policy.model import STAGE_ANNOTATION
from podwire.policy.staging import PROMOTION

STAGED = {STAGE_ANNOTATION: "true"}
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {}}
"""


def _object(name: str, namespace: str, annotations: Mapping[str, str]) -> JsonObject:
    return {"metadata": {"name": name, "namespace": namespace, "annotations": dict(annotations)}}


class ClusterApi(Api):
    """Serves lists and remembers patches; kinds that are not told of are not served."""

    def __init__(self, **objects: list[JsonObject]) -> None:
        self.objects = objects
        self.patched: list[str] = []

    async def request(self, method: str, path: str, **kwargs: object) -> bytes:
        if method == "PATCH":
            assert kwargs["body"] == PROMOTION
            self.patched.append(path)
            return b"{}"
        *_, plural, name = ["", *path.split("/")]
        if plural in self.objects:
            return msgspec.json.encode(
                next(o for o in self.objects[plural] if o["metadata"]["name"] == name)
            )
        if name not in self.objects:
            raise NotFoundError("the server could not find the requested resource")
        listing = {"metadata": {"resourceVersion": "1"}, "items": self.objects[name]}
        return msgspec.json.encode(listing)


def _api() -> ClusterApi:
    return ClusterApi(
        networkpolicies=[_object("web", "shop", {}), _object("new", "shop", STAGED)],
        clusternetworkpolicies=[_object("guard", "", STAGED)],
        namespaces=[_object("far", "", STAGED), _object("shop", "", {})],
    )


async def test_a_policy_in_force_is_not_staged() -> None:
    documents = list(parse(POLICY, "m.yaml"))
    with pytest.raises(UsageError, match=r"^m.yaml:2: NetworkPolicy shop/web: is in force"):
        await refuse_enforced(_api(), documents, "default")
    fresh = list(parse(POLICY.replace("name: web", "name: new"), "m.yaml"))
    await refuse_enforced(_api(), fresh, "default")


async def test_policies_and_namespaces_are_promoted_by_name() -> None:
    api = _api()
    said = await promote(api, ["shop/web", "shop/new", "guard"], ["far"])
    assert said == [
        "NetworkPolicy shop/web was in force already",
        "NetworkPolicy shop/new promoted",
        "ClusterNetworkPolicy guard promoted",
        "Namespace far promoted",
    ]
    assert len(api.patched) == 3
    with pytest.raises(NotFoundError, match='"shop/gone" not found'):
        await promote(api, ["shop/gone"])


async def test_everything_that_is_staged_is_promoted() -> None:
    assert await promote_all(_api()) == [
        "Namespace far promoted",
        "NetworkPolicy shop/new promoted",
        "ClusterNetworkPolicy guard promoted",
    ]


# --- the command line ---------------------------------------------------------------------------


def test_stage_prints_what_it_would_apply(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(f"{POLICY}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n")
    shown = CliRunner().invoke(cli, ["policy", "stage", "-f", str(file), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    (made,) = yaml.safe_load_all(shown.stdout)
    assert made["metadata"]["annotations"] == STAGED
    assert "1 objects are no policies" in shown.stderr


def test_a_namespace_stages_the_policies_of_its_manifests() -> None:
    space = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: shop, annotations: {{{STAGE_ANNOTATION}: "true"}}}}
"""
    static = read_world(list(parse(f"{POLICY}---{space}", "m.yaml")))
    assert [policy.staged for policy in static.policies] == [True]
    assert static.policy_set.policies == ()


@pytest.mark.parametrize("arguments", [[], ["a/b", "--all"]])
def test_promote_wants_to_know_what(arguments: list[str]) -> None:
    shown = CliRunner().invoke(cli, ["policy", "promote", *arguments])
    assert isinstance(shown.exception, UsageError)


def test_staged_reports_a_file(tmp_path: Path) -> None:
    said = Said("allowed", "")
    record = FlowRecord(
        End("203.0.113.9"), End("10.0.0.1", "Pod", "shop", "web"), "TCP", 80, "allowed", said, said,
        staged="denied", staged_by=("NetworkPolicy shop/new",), count=3, first_seen=0, last_seen=60,
    )  # fmt: skip
    file = tmp_path / "flows.json"
    file.write_bytes(msgspec.json.encode(FlowLogDocument(records=(record,), lost=0, forgotten=0)))
    runner = CliRunner()
    table = runner.invoke(cli, ["policy", "staged", "-f", str(file)])
    assert table.exit_code == 1
    assert "newly denied   203.0.113.9   shop/web      TCP 80   3" in table.stdout
    assert "1 of 1 kinds of connections would newly be denied" in table.stdout
    text = runner.invoke(cli, ["policy", "staged", "-f", str(file), "-o", "text"])
    assert text.stdout.startswith("newly denied: 203.0.113.9 to shop/web TCP 80, 3 times")
    report = msgspec.json.decode(
        runner.invoke(cli, ["policy", "staged", "-f", str(file), "-o", "json"]).stdout
    )
    assert report["flows"][0]["by"] == ["NetworkPolicy shop/new"]
    assert (report["kind"], report["lost"]) == ("StagedReport", 0)
