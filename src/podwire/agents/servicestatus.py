"""What this node tells about its Services: `/services`, `/metrics`, and its Node's condition.

    GET  /services                  NodeReport; ?brief=1 leaves out frontends
    GET  /services/NAMESPACE/NAME   ServiceReport, with the counts of single endpoints
    POST /services/wait             WaitRequest -> WaitResponse, as soon as all is programmed
    GET  /metrics                   beside the kubelet's; ?endpoints=1 adds a line per endpoint

The condition `ServicesProgrammed` is written at most once in `write_interval_s`, and only when its
words change: an idle cluster writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from aiohttp import web

from podwire.agents.progressing import ProgressTeller, answer, answer_wait
from podwire.agents.servicecounters import Reading, ServiceCounters
from podwire.agents.serviceprogram import Programmed
from podwire.agents.services import ServiceAgent
from podwire.client import Api
from podwire.errors import NotFoundError
from podwire.objects.meta import Key
from podwire.services.claims import Owner
from podwire.services.metrics import NodeNumbers, render_metrics
from podwire.services.model import Address, FrontendKey
from podwire.services.report import (
    Counts,
    NodeReport,
    ServiceReport,
    address_text,
    describe_service,
)
from podwire.telemetry.progress import SERVICES


class ServiceStatus:
    """One node's; `run` beside the agent."""

    def __init__(
        self,
        api: Api,
        node_name: str,
        agent: ServiceAgent,
        pins: Callable[[], Sequence[Path]] = tuple,
        announced: Callable[[], Iterable[Address]] = tuple,
    ) -> None:
        self._announced = announced
        self._name = node_name
        self._agent = agent
        self._counters = ServiceCounters(agent.config.families, agent.claims, agent.backend, pins)
        self._teller = ProgressTeller(
            api,
            node_name,
            SERVICES,
            "Services",
            agent.news.progress,
            agent.watchers,
            lambda: agent.node_count,
        )

    # --- documents ------------------------------------------------------------------------------

    def report(self, reading: Reading, *, brief: bool = False) -> NodeReport:
        agent, ranges = self._agent, self._agent.ranges
        return NodeReport(
            node=self._name,
            revision=agent.news.progress.number,
            pending=agent.news.progress.pending,
            refused={str(owner): why for owner, why in agent.news.progress.refused.items()},
            synced=agent.synced.is_set(),
            backend=agent.config.backend,
            external_ips=agent.config.external_ips,
            service_cidrs=tuple(map(str, ranges.service_cidrs)),
            cluster_cidrs=tuple(map(str, ranges.cluster_cidrs)),
            pools=tuple((address_text(a), address_text(b)) for a, b in agent.view.pools),
            announced=tuple(sorted(map(str, self._announced()))),
            mended=agent.program.mended,
            flows_deleted=dict(agent.flows.cleaner.deleted),
            services=tuple(
                self._brief(owner, programmed)
                if brief
                else self._describe(owner, programmed, reading.counts)
                for owner, programmed in sorted(agent.programmed.items())
            ),
        )

    def _describe(
        self, owner: Owner, programmed: Programmed, counts: Mapping[FrontendKey, Counts]
    ) -> ServiceReport:
        lost = {key: str(who) for key, who in self._agent.claims.lost(owner).items()}
        return describe_service(
            owner.kind,
            programmed.revision,
            programmed.error,
            programmed.compiled,
            counts,
            lost,
        )

    @staticmethod
    def _brief(owner: Owner, programmed: Programmed) -> ServiceReport:
        return ServiceReport(
            namespace=owner.key.namespace,
            name=owner.key.name,
            kind=owner.kind,
            revision=programmed.revision,
            error=programmed.error,
        )

    def missing(self, revisions: Mapping[str, int]) -> dict[str, str]:
        """Which of these Services are not yet programmed so far, and what there is instead."""
        found = {}
        for text, revision in revisions.items():
            namespace, _, name = text.partition("/")
            programmed = self._agent.programmed.get(Owner("Service", Key(namespace, name)))
            if programmed is None:
                found[text] = "not programmed"
            elif programmed.error:
                found[text] = programmed.error
            elif programmed.revision < revision:
                found[text] = f"programmed at {programmed.revision}, wanted {revision}"
        return found

    def numbers(self, reading: Reading) -> NodeNumbers:
        agent = self._agent
        return NodeNumbers(
            agent.claims.frontends,
            reading.counts,
            reading.traffic,
            reading.live_flows,
            reading.drops,
            reading.sizes,
            agent.flows.cleaner.deleted,
            reading.tracked,
            reading.tracked_max,
            self._counters.lost_flows,
            agent.program.mended,
            len(agent.news.progress.refused),
            agent.news.progress.number,
            agent.latency,
            agent.tally is not None,
            reading.rtts_us,
        )

    # --- requests -------------------------------------------------------------------------------

    async def get_all(self, request: web.Request) -> web.Response:
        brief = request.query.get("brief") == "1"
        reading = Reading() if brief else await self._counters.read()
        return answer(self.report(reading, brief=brief))

    async def get_one(self, request: web.Request) -> web.Response:
        key = Key(request.match_info["namespace"], request.match_info["name"])
        owner = Owner(request.query.get("kind", "Service"), key)
        programmed = self._agent.programmed.get(owner)
        if programmed is None:
            raise NotFoundError(f"{owner}: not programmed on node {self._name}")
        frontends = [frontend.key for frontend in programmed.compiled.frontends]
        counts = await self._counters.read_frontends(frontends)
        return answer(self._describe(owner, programmed, counts))

    async def wait(self, request: web.Request) -> web.Response:
        return await answer_wait(request, self._agent.watchers, self.missing)

    async def metrics(self, query: Mapping[str, str]) -> str:
        """The part of the page that is the agent's."""
        endpoints = query.get("endpoints") == "1"
        reading = await self._counters.read(endpoints=endpoints)
        return render_metrics(self.numbers(reading), endpoints=endpoints)

    # --- the Node's condition ---------------------------------------------------------------------

    async def run(self) -> None:
        """Tell how far this node is until cancelled."""
        self._counters.start()
        await self._teller.run()

    def close(self) -> None:
        self._counters.close()
