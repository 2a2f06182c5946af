"""What the benchmarks of whole labs share: a lab of their own, its processes' cost, its readiness.

Labs live under a run directory of the benchmark and end with it, also when it fails. Readiness is
read off one watch of all pods, decoded no further than the Ready condition, because the watcher
shares the machine with what it measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lib import cpu_seconds, process_tree, pss_bytes
from podwire import Lab
from podwire.client import Api
from podwire.lab import launch
from podwire.lab.manifests import Applier
from podwire.objects import kinds
from podwire.objects.documents import Document

ONLINE_BOUTIQUE = (
    Path(__file__).parents[2] / "shared/samples/online-boutique/kubernetes-manifests.yaml"
)


@contextlib.contextmanager
def run_directory() -> Iterator[None]:
    """Labs of this process under a folder of their own, out of the way of the user's."""
    with tempfile.TemporaryDirectory(prefix="pwb-", dir="/tmp") as folder:
        os.environ["PODWIRE_RUN_DIR"] = folder
        try:
            yield
        finally:
            for name in launch.labs():
                launch.down(name)


@contextlib.contextmanager
def running_lab(name: str, nodes: int, **options: Any) -> Iterator[Lab]:
    """A lab that is up with every node Ready."""
    lab = Lab(name, nodes=nodes, **options)
    try:
        lab.up()
        lab.wait_ready()
        yield lab
    finally:
        lab.down()
        lab.close()


def components(lab: Lab) -> dict[str, int]:
    """Component name -> pid."""
    return {c.name: c.pid for c in lab.status().components if c.pid}


def cpu_by_component(pids: dict[str, int]) -> dict[str, float]:
    return {name: cpu_seconds([pid]) for name, pid in pids.items()}


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """CPU seconds per component between two looks; node components are summed, plus a total."""
    found: dict[str, float] = {}
    for name, seconds in after.items():
        group = name.partition("-")[0]
        found[group] = found.get(group, 0.0) + seconds - before.get(name, 0.0)
    found["total"] = sum(found.values())
    return {name: round(seconds, 3) for name, seconds in found.items()}


def lab_pss_mib(lab: Lab) -> float:
    """PSS of the holder and all its descendants."""
    holder = components(lab)["holder"]
    return round(pss_bytes(process_tree(holder)) / 2**20, 1)


def deployment(name: str, replicas: int) -> Document:
    """Stand-in pods: one container, one port, no probes."""
    labels = {"app": name}
    container = {
        "name": "main",
        "image": "example.com/standin",
        "ports": [{"containerPort": 8080}],
    }
    return Document(
        "benchmark",
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        },
    )


class _Meta(msgspec.Struct):
    name: str


class _Condition(msgspec.Struct):
    type: str
    status: str


class _Status(msgspec.Struct, rename="camel"):
    conditions: list[_Condition] = []


class _Pod(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=lambda: _Meta(""))
    status: _Status = msgspec.field(default_factory=_Status)


class _Event(msgspec.Struct):
    object: _Pod


@dataclass
class Rollout:
    """When the first pod object was seen and when each pod turned Ready, from apply on."""

    created_s: list[float] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)


async def roll_out(api: Api, documents: Sequence[Document], wanted: int) -> Rollout:
    """Apply, and follow the pods until `wanted` of them are Ready."""
    decoder = msgspec.json.Decoder(_Event)
    _, version = await api.list(kinds.POD)
    found, known, ready = Rollout(), set[str](), set[str]()
    started = time.perf_counter()

    async def follow() -> None:
        async for lines in api.watch_lines(kinds.POD, version):
            now = time.perf_counter() - started
            for line in filter(None, lines):
                pod = decoder.decode(line).object
                name = pod.metadata.name
                if name and name not in known:
                    known.add(name)
                    found.created_s.append(now)
                if name not in ready and any(
                    c.type == "Ready" and c.status == "True" for c in pod.status.conditions
                ):
                    ready.add(name)
                    found.ready_s.append(now)
            if len(ready) >= wanted:
                return

    following = asyncio.create_task(follow())
    await Applier(api).apply(documents)
    await asyncio.wait_for(following, 300)
    return found
