"""One node's network policies, kept in the kernel as the API says.

    PolicySources (what changed) -> NodePolicies.plan -> PolicyBackend -> denied connections -> news

A pod's first process starts after `admit` returned: then everything that selects it is committed.
A cluster without any policy costs a node a few quiet watches: pods and namespaces are followed, and
the table is made, from the first policy on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from podwire.agents.config import PolicyConfig
from podwire.agents.policyflows import FlowCutter, FlowNotes
from podwire.agents.policykernel import PolicyBackend
from podwire.agents.policynamefile import NameFile
from podwire.agents.policyobserver import Observer
from podwire.agents.policysources import PolicySources
from podwire.agents.progressing import Watchers
from podwire.client import Api, Informer
from podwire.errors import KernelError
from podwire.objects.core import Node, Pod
from podwire.policy.model import PolicyRef
from podwire.policy.nftables import POLICY_LOG, Logging
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.world import view_pod
from podwire.telemetry.exposition import Histogram

_LOG = logging.getLogger(__name__)
_RETRY_S: Final = 1.0
_REFUSED_RETRY_MAX_S: Final = 60.0


@dataclass(frozen=True)
class _Batch:
    """What one commit is about: policies, and when the first change was heard of (0: nothing)."""

    policies: frozenset[PolicyRef]
    since: float


class PolicyAgent:
    """`synced` is set while everything known at the start is in force. `folder` keeps what the next
    agent has to know: without it that learns domain names anew."""

    def __init__(
        self,
        api: Api,
        node_name: str,
        config: PolicyConfig,
        nodes: Informer[Node],
        folder: Path | None = None,
    ) -> None:
        self.config = config
        guarded = (config.guarded,) if config.guarded else ()
        self.state = NodePolicies(node_name, config.families, guarded, Logging(POLICY_LOG))
        self.kernel = PolicyBackend(self.state)
        self.watchers = Watchers()
        self.sources = PolicySources(
            api,
            node_name,
            nodes,
            self.state,
            changed=self._changed,
            commit=self._commit_now,
            moved=self.watchers.moved,
            names=NameFile(folder / "policy-names.jsonl") if folder else None,
        )
        self.cutter = FlowCutter(node_name, config.families, self.sources.standing_verdicts)
        self.notes = FlowNotes(node_name, self.sources)
        self.observer = Observer(config.families, config.guarded)
        self.allow_latency, self.deny_latency = Histogram(), Histogram()
        self._asked = False
        self._reached = dict(self.sources.heard)
        self._since = 0.0
        self._wake = asyncio.Event()
        self._refused_s = 0.0
        self._known = asyncio.Event()
        self.synced = asyncio.Event()
        self.enforcing = False
        self.mended = 0

    # --- observe --------------------------------------------------------------------------------

    def _changed(self) -> None:
        self.notes.changed()
        self.cutter.changed()
        self._since = self._since or time.monotonic()
        self._wake.set()

    def peers_in_kernel(self, kind: str) -> int:
        """The newest resourceVersion of Pods or Namespaces that all of is in the kernel."""
        return self._reached[kind] if self._since else self.sources.heard[kind]

    def _foreign(self) -> None:
        found = self.kernel.foreign()
        if found:
            _LOG.warning("policies: changed by others, mending: %.200s", "; ".join(found))
            self.observer.forget()
            self._wake.set()

    @property
    def _wanted(self) -> bool:
        """Whether there is, or has been, anything to enforce or to note."""
        return self.enforcing or self.sources.wanted

    async def admit(self, pod: Pod, ips: Sequence[str]) -> None:
        """Return once what selects the pod is in the kernel. `KernelError`: it may not start."""
        view = view_pod(pod, ips)
        if view is None or view.host_network or self.config.mode == "none":
            return
        self.sources.admit(pod, view)
        await self._known.wait()
        if self._wanted:
            await self.synced.wait()
            self.sources.place_admitted(pod.key)
            self._commit()

    # --- run ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the API until cancelled."""
        if self.config.mode == "none":
            self._clear_leftovers()
            return
        async with asyncio.TaskGroup() as group:
            await self.sources.follow_policies(group)
            if not self._wanted:
                self._clear_leftovers()
                self._settle(self._take())
                self._known.set()
                while not self._wanted:
                    await self._wake.wait()
                    self._wake.clear()
            self._known.set()
            group.create_task(self.cutter.run())
            await self.sources.follow_peers(group)
            await self._open()
            self.synced.set()
            self.watchers.moved()
            await self._follow()

    def _clear_leftovers(self) -> None:
        """Policies that went while no agent was there."""
        try:
            self.kernel.remove()
            self.observer.want(passed=False, answers=False)
        except KernelError as error:
            _LOG.error("policies: what an earlier agent left stays: %s", error)

    async def _open(self) -> None:
        """All of it in one go; what an earlier agent left is in force until then."""
        self.sources.restore_names()
        while True:
            try:
                self.kernel.commit()
                break
            except KernelError as error:
                _LOG.error("policies: not in force: %s; trying again", error)
                await asyncio.sleep(_RETRY_S)
        self.enforcing = True
        self._settle(self._take())
        if self.kernel.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self.kernel.fileno(), self._foreign)
        try:
            self.notes.open()
        except KernelError as error:
            _LOG.error("policies: no flow log: %s", error)

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._commit_now()

    def _commit_now(self) -> None:
        try:
            if not self.kernel.whole:
                self.mended += 1
            self._commit()
            self._refused_s = 0.0
        except KernelError as error:
            self._retry_later(error)

    def _retry_later(self, error: KernelError) -> None:
        """The former state stays in force; all of it is made anew, and ever rarer."""
        self._refused_s = min(max(self._refused_s * 2, _RETRY_S), _REFUSED_RETRY_MAX_S)
        _LOG.warning("policies: not programmed: %s; again in %.0f s", error, self._refused_s)
        asyncio.get_running_loop().call_later(self._refused_s, self._wake.set)

    # --- apply ----------------------------------------------------------------------------------

    def _take(self) -> _Batch:
        batch = _Batch(frozenset(self.sources.touched), self._since)
        self.sources.touched.clear()
        self._since = 0.0
        return batch

    def _commit(self) -> None:
        """All that is known goes to the kernel; then what it denies now is cut."""
        batch = self._take()
        try:
            self.kernel.commit()
        except KernelError as error:
            self.sources.touched |= batch.policies
            self._since = batch.since
            for ref in batch.policies:
                self.sources.progress.refuse(ref, str(error))
            self.watchers.moved()
            raise
        self._settle(batch)

    def _settle(self, batch: _Batch) -> None:
        self._reached = dict(self.sources.heard)
        if batch.policies:
            self.allow_latency.observe(time.monotonic() - batch.since)
        asked = self.sources.asked != self._asked
        if batch.policies or asked or not self.observer.stands:
            self._observe()
        for ref in batch.policies:
            self.sources.progress.done(ref)
        self.watchers.moved()
        if batch.since and self.enforcing and self.config.denied_flows == "cut":
            told = partial(self._denied, batch.since) if batch.policies else None
            self.cutter.request(told)

    def _observe(self) -> None:
        """Have noted what somebody wants to know; without it policies are enforced all the same."""
        self._asked = self.sources.asked
        try:
            names = self.sources.domain_names()
            answers = self.observer.want(passed=self.sources.observed, answers=bool(names))
            self.kernel.own_text()
            self.sources.names.want(names, answers)
        except KernelError as error:
            _LOG.error("policies: not observed, domainNames have no addresses: %s", error)

    def _denied(self, since: float) -> None:
        """What a change of policies denies has ended."""
        self.deny_latency.observe(time.monotonic() - since)

    def close(self) -> None:
        self.sources.close()
        self.notes.close()
        self.observer.close()
        self.kernel.close()
