"""What others learn while Services are programmed: Events, progress, health checks, who waits.

ServiceProgram -> ServiceNews -> Events of the API, `Progress`, `ServiceHealthChecks`, watchers
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from podwire.agents.healthchecks import ProxyHealth, ServiceHealthChecks
from podwire.agents.progressing import Watchers
from podwire.agents.serviceprogram import Programmed
from podwire.client import Informer
from podwire.objects import kinds
from podwire.objects.core import Node, Service
from podwire.objects.meta import Key, Kind, Object
from podwire.services.claims import Owner
from podwire.services.model import FrontendKey
from podwire.telemetry.progress import Progress

# What one node alone meets, and so tells itself.
_OWN_TROUBLE = ("FailedToProgram", "FailedToStartServiceHealthcheck")
# Of a thousand endpoints that are none, each is a problem.
_PROBLEMS_TOLD = 5


class Recorder(Protocol):
    """Writes Events."""

    async def record(
        self, kind: Kind[Service], obj: Object, event_type: str, reason: str, message: str
    ) -> None: ...


class ServiceNews:
    """One node's `ProgramReporter`."""

    def __init__(
        self,
        node_name: str,
        services: Informer[Service],
        nodes: Informer[Node],
        events: Recorder,
        families: tuple[int, ...],
    ) -> None:
        self._name = node_name
        self._services = services
        self._nodes = nodes
        self._events = events
        self.progress: Progress[Owner] = Progress()
        self.health = ProxyHealth()
        self.health_checks = ServiceHealthChecks(self.health, self._no_health_check, families)
        self.forget: Callable[[FrontendKey], None] | None = None
        """Called for frontends nobody has any more."""
        self.watchers = Watchers()
        self._telling: set[asyncio.Task[None]] = set()

    def programmed(self, owner: Owner, former: Programmed | None, now: Programmed | None) -> None:
        if now is not None and now.error:
            self.progress.refuse(owner, now.error)
        else:
            self.progress.done(owner)
        if owner.kind == "Service":
            self.health_checks.set(owner.key, now.compiled.health_check if now else None)
            self._tell_troubles(owner.key, former, now)
        if former is not None and self.forget is not None:
            kept = {f.key for f in now.compiled.frontends} if now is not None else frozenset()
            for frontend in former.compiled.frontends:
                if frontend.key not in kept:
                    self.forget(frontend.key)

    def _tell_troubles(self, key: Key, former: Programmed | None, now: Programmed | None) -> None:
        service = self._services.objects.get(key)
        if service is None or now is None:
            return
        if now.error and (former is None or former.error != now.error):
            self.tell(service, "FailedToProgram", now.error)
        known = frozenset(former.compiled.problems) if former is not None else frozenset()
        fresh = [problem for problem in now.compiled.problems if problem not in known]
        for problem in fresh[:_PROBLEMS_TOLD]:
            self.tell(service, "ServiceProblem", problem)
        if len(fresh) > _PROBLEMS_TOLD:
            more = f"and {len(fresh) - _PROBLEMS_TOLD} more; see podwire status services"
            self.tell(service, "ServiceProblem", more)

    def _no_health_check(self, key: Key, text: str) -> None:
        service = self._services.objects.get(key)
        if service is not None:
            message = f"node {self._name} {text}"
            self.tell(service, "FailedToStartServiceHealthcheck", message)

    def tell(self, service: Service, reason: str, message: str) -> None:
        """Only one node tells: all of them find the same problem."""
        names = sorted(key.name for key in self._nodes.objects)
        if names[:1] != [self._name] and reason not in _OWN_TROUBLE:
            return
        task = asyncio.ensure_future(
            self._events.record(kinds.SERVICE, service, "Warning", reason, message)
        )
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
