"""What this node tells about its policies: `/policies`, `/metrics`, and its Node's condition.

GET  /policies         NodePolicyReport
POST /policies/wait    WaitRequest -> WaitResponse, as soon as all are in force
GET  /policies/flows   FlowLogDocument: connections that were opened or denied, and losses
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping

from aiohttp import web

from podwire.agents.policy import PolicyAgent
from podwire.agents.policysources import Standing
from podwire.agents.progressing import ProgressTeller, answer, answer_wait
from podwire.client import Api
from podwire.policy.classes import Outcome
from podwire.policy.flowdocument import FlowLogDocument
from podwire.policy.metrics import PolicyNumbers, render_metrics
from podwire.policy.model import PolicyRef
from podwire.policy.report import NodePolicyReport, PolicyReport, RuleCount
from podwire.telemetry.progress import POLICIES


class PolicyStatus:
    """One node's; `run` beside the agent."""

    def __init__(self, api: Api, node_name: str, agent: PolicyAgent) -> None:
        self._name = node_name
        self._agent = agent
        self._teller = ProgressTeller(
            api,
            node_name,
            POLICIES,
            "policies",
            agent.sources.progress,
            agent.watchers,
            lambda: agent.sources.node_count,
        )

    async def run(self) -> None:
        """Tell how far this node is until cancelled."""
        await self._teller.run()

    # --- documents ------------------------------------------------------------------------------

    def report(self, counts: Mapping[Outcome, int], dropped: Mapping[str, int]) -> NodePolicyReport:
        agent = self._agent
        subjects = agent.state.subjects()
        return NodePolicyReport(
            node=self._name,
            enforcing=agent.enforcing,
            synced=agent.synced.is_set(),
            revision=agent.sources.progress.number,
            pending=agent.sources.progress.pending,
            cut=agent.cutter.cut,
            dropped=dict(dropped),
            mended=agent.mended,
            allow_p99_s=agent.allow_latency.quantile(0.99),
            deny_p99_s=agent.deny_latency.quantile(0.99),
            policies=tuple(
                self._describe(ref, standing, subjects.get(ref, 0), counts)
                for ref, standing in sorted(agent.sources.standing.items())
            ),
        )

    def _read(self) -> tuple[dict[Outcome, int], dict[str, int]]:
        """What the kernel counted, while there is something to count."""
        kernel = self._agent.kernel
        if not self._agent.enforcing:
            return {}, {}
        counts = {outcome: counted.packets for outcome, counted in kernel.outcomes().items()}
        return counts, kernel.drops()

    def _describe(
        self,
        ref: PolicyRef,
        standing: Standing,
        subjects: int,
        counts: Mapping[Outcome, int],
    ) -> PolicyReport:
        policy = standing.policy
        error = standing.error or self._agent.sources.progress.refused.get(ref, "")
        rules: Counter[str] = Counter()
        denied = 0
        for outcome, count in counts.items():
            if outcome.policy == ref:
                rules[f"spec.{outcome.direction}[{outcome.rule_index}]"] += count
            elif ref in outcome.isolating:
                denied += count
        return PolicyReport(
            kind=ref.kind,
            namespace=ref.namespace,
            name=ref.name,
            generation=standing.generation,
            revision=standing.revision,
            staged=self._agent.sources.is_staged(ref),
            error=error,
            subjects=subjects,
            rules=tuple(
                RuleCount(path=rule.path, action=rule.action, connections=rules[rule.path])
                for rule in ((*policy.ingress, *policy.egress) if policy is not None else ())
            ),
            denied=denied,
        )

    def missing(self, revisions: Mapping[str, int]) -> dict[str, str]:
        """Which of these policies (`KIND namespace/name`) are not in force so far, and what is.

        `Pod` and `Namespace` stand for all of that kind: changed labels are waited for like this.
        A kind of policies stands for those that are not named: they were deleted before the
        revision, and are waited for to be gone. One that is named and was deleted later is not.
        """
        agent = self._agent
        versions = {str(ref): (ref, version) for ref, version in self._versions()}
        found = {}
        for text, revision in revisions.items():
            if text in agent.sources.heard:
                if agent.enforcing and agent.peers_in_kernel(text) < revision:
                    found[text] = f"known up to {agent.peers_in_kernel(text)}, wanted {revision}"
            elif text in agent.sources.heard_policies:
                for name, (ref, version) in versions.items():
                    if ref.kind == text and name not in revisions and version <= revision:
                        found[name] = "is deleted, and still in force"
            elif why := self._why_missing(text, versions, revision):
                found[text] = why
        return found

    def _versions(self) -> Iterator[tuple[PolicyRef, int]]:
        """Of all policies the kernel may have; those that are gone have their last one."""
        sources = self._agent.sources
        for ref, standing in sources.standing.items():
            yield ref, standing.revision
        for ref, revision in sources.progress.outstanding():
            if ref not in sources.standing:
                yield ref, revision

    def _why_missing(
        self, text: str, versions: Mapping[str, tuple[PolicyRef, int]], revision: int
    ) -> str:
        sources = self._agent.sources
        ref, version = versions.get(text, (None, 0))
        if ref is None:
            heard = sources.heard_policies.get(text.partition(" ")[0], 0)
            gone = self._agent.synced.is_set() and heard >= revision
            return "" if gone else "not in force"
        if not self._agent.synced.is_set():
            return "not in force"
        standing = sources.standing.get(ref)
        error = standing.error if standing is not None else ""
        if error := error or sources.progress.refused.get(ref, ""):
            return error
        if sources.progress.behind(ref):
            return "a change is on its way"
        if version < revision:
            return f"in force at {version}, wanted {revision}"
        return ""

    # --- requests -------------------------------------------------------------------------------

    async def get(self, _request: web.Request) -> web.Response:
        return answer(self.report(*self._read()))

    async def wait(self, request: web.Request) -> web.Response:
        return await answer_wait(request, self._agent.watchers, self.missing)

    async def flows(self, _request: web.Request) -> web.Response:
        notes = self._agent.notes
        return answer(
            FlowLogDocument(
                nodes=(self._name,),
                passed=self._agent.observer.passed,
                since=notes.since,
                until=time.time(),
                lost=notes.lost,
                forgotten=notes.log.forgotten,
                records=tuple(notes.log.records()),
            )
        )

    async def metrics(self, _query: Mapping[str, str]) -> str:
        """The part of the page that is about policies."""
        agent = self._agent
        if not agent.enforcing:
            return ""
        counts, dropped = self._read()
        return render_metrics(
            PolicyNumbers(
                counts=counts,
                dropped=dropped,
                cut=agent.cutter.cut,
                lost=agent.notes.lost,
                forgotten=agent.notes.log.forgotten,
                disagreed=agent.notes.log.disagreed,
                mended=agent.mended,
                refused=len(agent.sources.progress.refused),
                revision=agent.sources.progress.number,
                allow=agent.allow_latency,
                deny=agent.deny_latency,
            )
        )
