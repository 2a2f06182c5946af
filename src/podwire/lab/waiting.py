"""Waiting for a lab to be what its manifests say: nodes Ready, workloads complete, pods Ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp

from podwire.client import Api, Informer
from podwire.errors import ApiError, LabError, NotFoundError
from podwire.objects import kinds
from podwire.objects.apps import DaemonSet, Deployment, StatefulSet
from podwire.objects.core import Node, Pod
from podwire.objects.daemons import count_suitable
from podwire.objects.meta import Object

_RETRY_S = 0.1


@dataclass(frozen=True)
class Readiness:
    """How far things are; `missing` says in words what is not there yet."""

    nodes_ready: int
    nodes: int
    pods_ready: int
    pods: int
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.missing


def evaluate_readiness(
    wanted_nodes: Iterable[str],
    nodes: Iterable[Node],
    deployments: Iterable[Deployment],
    stateful_sets: Iterable[StatefulSet],
    daemon_sets: Iterable[DaemonSet],
    pods: Iterable[Pod],
) -> Readiness:
    """Pure: what of the desired state is not reached. Finished and deleted pods do not count."""
    missing: list[str] = []
    all_nodes = list(nodes)
    ready = {node.metadata.name for node in all_nodes if node.ready}
    wanted = list(wanted_nodes)
    missing += [f"node {name}: not Ready" for name in wanted if name not in ready]
    for deployment in deployments:
        status, replicas = deployment.status, deployment.spec.replicas
        if (
            status.observed_generation < deployment.metadata.generation
            or status.updated_replicas < replicas
            or status.replicas > status.updated_replicas
            or status.available_replicas < status.updated_replicas
        ):
            missing.append(_short("deployment", deployment, status.available_replicas, replicas))
    for stateful in stateful_sets:
        if (
            stateful.status.observed_generation < stateful.metadata.generation
            or stateful.status.ready_replicas < stateful.spec.replicas
        ):
            missing.append(
                _short(
                    "statefulset", stateful, stateful.status.ready_replicas, stateful.spec.replicas
                )
            )
    for daemon in daemon_sets:
        # A node that has just come is not in the status yet.
        desired = max(daemon.status.desired_number_scheduled, count_suitable(daemon, all_nodes))
        if (
            daemon.status.observed_generation < daemon.metadata.generation
            or daemon.status.number_ready < desired
        ):
            missing.append(_short("daemonset", daemon, daemon.status.number_ready, desired))
    living = [pod for pod in pods if not pod.finished and not pod.deleting]
    unready = [pod for pod in living if not pod.ready]
    missing += [f"pod {pod.key}: {_why(pod)}" for pod in unready]
    return Readiness(
        len(ready & set(wanted)),
        len(wanted),
        len(living) - len(unready),
        len(living),
        tuple(missing),
    )


def _short(what: str, obj: Object, have: int, want: int) -> str:
    return f"{what} {obj.key}: {have} of {want} ready"


def _why(pod: Pod) -> str:
    """The most telling reason: a waiting container's, else a condition's, else the phase."""
    for status in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        waiting = status.state.waiting
        if waiting is not None and waiting.reason not in ("", "PodInitializing"):
            return f"{status.name}: {waiting.reason} {waiting.message}".rstrip()
    for condition in pod.status.conditions:
        if condition.status == "False" and condition.message:
            return condition.message
    return pod.status.phase


async def wait_nodes(api: Api, wanted: Iterable[str], timeout_s: float) -> None:
    """Return when these nodes are Ready; `LabError` names those that are not."""
    names = set(wanted)
    nodes: Informer[Node] = Informer(api, kinds.NODE)
    done = asyncio.Event()

    def changed(_: object) -> None:
        if names <= {n.metadata.name for n in nodes.objects.values() if n.ready}:
            done.set()

    nodes.on_change(changed)
    following = asyncio.create_task(nodes.run())
    try:
        await asyncio.wait_for(done.wait(), timeout_s)
    except TimeoutError:
        ready = {n.metadata.name for n in nodes.objects.values() if n.ready}
        missing = ", ".join(sorted(names - ready))
        raise LabError(f"nodes not Ready after {timeout_s:g} s: {missing}") from None
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await wait_routes(api, names, timeout_s)


async def wait_routes(api: Api, names: Collection[str], timeout_s: float) -> None:
    """Return when each of these nodes has routes to all of them.

    A node is Ready once its own network stands; the others may hear of it a moment later, and until
    then what its pods send comes back nowhere.
    """
    body = {"nodes": sorted(names), "timeoutSeconds": timeout_s}
    deadline = time.monotonic() + timeout_s

    async def ask(node: str) -> None:
        path = f"/api/v1/nodes/{node}/proxy/routes"
        while True:
            try:
                left = max(deadline - time.monotonic(), 0.1)
                await api.request("POST", path, body=body, timeout_s=left)
                return
            except NotFoundError:
                return  # the node is on its way out, or its agent is older than this question
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                if time.monotonic() + _RETRY_S > deadline:
                    why = f"node {node}: has no routes to the others after {timeout_s:g} s: {error}"
                    raise LabError(f"{why}; see its log under `podwire status`") from error
                await asyncio.sleep(_RETRY_S)

    await asyncio.gather(*map(ask, names))


async def wait_ready(
    api: Api,
    nodes: Iterable[str],
    timeout_s: float,
    progress: Callable[[Readiness], None] = lambda _: None,
) -> Readiness:
    """Return when everything is ready; `LabError` tells what was missing when time ran out."""
    informers: list[Informer[Any]] = [
        Informer(api, kind)
        for kind in (
            kinds.NODE,
            kinds.DEPLOYMENT,
            kinds.STATEFUL_SET,
            kinds.DAEMON_SET,
            kinds.POD,
        )
    ]
    changed = asyncio.Event()
    for informer in informers:
        informer.on_change(lambda _: changed.set())
    tasks = [asyncio.create_task(informer.run()) for informer in informers]
    wanted = list(nodes)
    deadline = time.monotonic() + timeout_s
    try:
        for informer in informers:
            await asyncio.wait_for(informer.synced.wait(), max(0.0, deadline - time.monotonic()))
        while True:
            changed.clear()
            found = evaluate_readiness(wanted, *(i.objects.values() for i in informers))
            progress(found)
            if found.complete:
                await wait_routes(api, wanted, max(deadline - time.monotonic(), _RETRY_S))
                return found
            await asyncio.wait_for(changed.wait(), max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        found = evaluate_readiness(wanted, *(i.objects.values() for i in informers))
        shown = "; ".join(found.missing[:5]) or "the API server did not answer"
        more = f"; and {len(found.missing) - 5} more" if len(found.missing) > 5 else ""
        raise LabError(f"not ready after {timeout_s:g} s: {shown}{more}") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
