"""The process: shared informers, then every controller of the table, until cancelled.

Adding a controller is adding its module and a line in `CONTROLLERS`. Nothing here polls: an idle
process waits on its watches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import aiohttp

from podwire.client import Api
from podwire.controllers.cluster import Cluster
from podwire.controllers.config import ControllerConfig
from podwire.controllers.cronjob import CronJobController
from podwire.controllers.daemonset import DaemonSetController
from podwire.controllers.deployment import DeploymentController
from podwire.controllers.discovery import Resources, discover
from podwire.controllers.disruption import DisruptionController
from podwire.controllers.endpoints.controller import ServiceEndpoints
from podwire.controllers.garbage import GarbageCollector
from podwire.controllers.job import JobController
from podwire.controllers.loadbalancers import LoadBalancers
from podwire.controllers.namespaces import NamespaceDefaults, NamespaceDeleter
from podwire.controllers.nodeipam import NodeIpam
from podwire.controllers.nodelife import NodeLifecycle
from podwire.controllers.podgc import PodGarbage
from podwire.controllers.policyprogrammed import KINDS as POLICY_KINDS
from podwire.controllers.policyprogrammed import PolicyProgrammed
from podwire.controllers.replicaset import ReplicaSetController
from podwire.controllers.scheduler import Scheduler
from podwire.controllers.servicecidrs import ServiceCidrs
from podwire.controllers.serviceips import ServiceIps
from podwire.controllers.serviceprogrammed import ServiceProgrammed
from podwire.controllers.statefulset import StatefulSetController
from podwire.errors import ApiError

_LOG = logging.getLogger(__name__)
_RETRY_S = 0.05


class Controller(Protocol):
    """Made with the cluster (asks for its informers), then run until cancelled."""

    async def run(self) -> None: ...


CONTROLLERS: tuple[Callable[[Cluster], Controller], ...] = (
    Scheduler,
    NodeIpam,
    NodeLifecycle,
    DeploymentController,
    ReplicaSetController,
    StatefulSetController,
    DaemonSetController,
    JobController,
    CronJobController,
    DisruptionController,
    ServiceEndpoints,
    PodGarbage,
    NamespaceDefaults,
    NamespaceDeleter,
    ServiceCidrs,
    ServiceIps,
    ServiceProgrammed,
    *(partial(PolicyProgrammed, kind=kind) for kind in POLICY_KINDS),
    LoadBalancers,
    GarbageCollector,  # last: it watches what nobody before it watches
)


async def run(api: Api, config: ControllerConfig) -> None:
    """Run all controllers against `api` until cancelled."""
    cluster = Cluster(api, config, await _wait_served(api))
    controllers = [make(cluster) for make in CONTROLLERS]
    async with asyncio.TaskGroup() as group:
        group.create_task(cluster.events.run(), name="events")
        await cluster.follow(group)
        for controller in controllers:
            group.create_task(controller.run(), name=type(controller).__name__)


async def _wait_served(api: Api) -> Resources:
    """Discovery, once the server answers at all."""
    while True:
        try:
            return await discover(api)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            _LOG.info("waiting for the API server: %s", error)
            await asyncio.sleep(_RETRY_S)
