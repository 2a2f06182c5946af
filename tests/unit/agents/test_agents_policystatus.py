"""What a node says is missing: policies that came, changed or went, and whom they speak of."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from podwire.agents.policy import PolicyAgent
from podwire.agents.policysources import Standing
from podwire.agents.policystatus import PolicyStatus
from podwire.agents.progressing import Watchers
from podwire.client import Api
from podwire.policy.model import PolicyRef
from podwire.telemetry.progress import Progress

WEB = PolicyRef("NetworkPolicy", "shop", "web")
GUARD = PolicyRef("ClusterNetworkPolicy", "", "guard")


class _Agent:
    """What the status asks of an agent."""

    def __init__(self) -> None:
        self.watchers = Watchers()
        self.synced = asyncio.Event()
        self.enforcing = True
        self.peers = {"Pod": 0, "Namespace": 0}
        self.sources = SimpleNamespace(
            progress=Progress(),
            standing={},
            heard=self.peers,
            heard_policies={"NetworkPolicy": 0, "ClusterNetworkPolicy": 0},
            node_count=1,
        )

    def peers_in_kernel(self, kind: str) -> int:
        return self.peers[kind]

    def told(self, ref: PolicyRef, revision: int) -> None:
        self.sources.standing[ref] = Standing(1, revision)
        self.sources.heard_policies[ref.kind] = revision
        self.sources.progress.told(ref, revision)

    def deleted(self, ref: PolicyRef, revision: int) -> None:
        del self.sources.standing[ref]
        self.sources.heard_policies[ref.kind] = revision
        self.sources.progress.told(ref, revision)

    def done(self, ref: PolicyRef) -> None:
        self.sources.progress.done(ref)


@pytest.fixture
def agent() -> _Agent:
    agent = _Agent()
    agent.synced.set()
    agent.told(WEB, 5)
    agent.done(WEB)
    return agent


def _missing(agent: _Agent, **revisions: int) -> dict[str, str]:
    status = PolicyStatus(cast(Api, None), "here", cast(PolicyAgent, agent))
    return status.missing(revisions)


def test_a_policy_is_waited_for_at_its_revision(agent: _Agent) -> None:
    assert _missing(agent, **{str(WEB): 5}) == {}
    assert _missing(agent, **{str(WEB): 6}) == {str(WEB): "in force at 5, wanted 6"}
    assert _missing(agent, **{str(GUARD): 6}) == {str(GUARD): "not in force"}
    agent.told(WEB, 6)
    assert _missing(agent, **{str(WEB): 6}) == {str(WEB): "a change is on its way"}
    agent.done(WEB)
    assert _missing(agent, **{str(WEB): 6}) == {}


def test_one_that_is_deleted_is_waited_for_until_it_is_gone(agent: _Agent) -> None:
    """The list was read at 9 and has it no more; the node has not heard of that, then has not
    committed it."""
    gone = {str(WEB): "is deleted, and still in force"}
    assert _missing(agent, NetworkPolicy=9) == gone
    agent.deleted(WEB, 8)
    assert _missing(agent, NetworkPolicy=9) == gone
    agent.done(WEB)
    assert _missing(agent, NetworkPolicy=9) == {}


def test_one_that_was_deleted_since_is_not_waited_for(agent: _Agent) -> None:
    """It was there when the list was read at 6."""
    agent.deleted(WEB, 8)
    assert _missing(agent, NetworkPolicy=6, **{str(WEB): 5}) == {str(WEB): "a change is on its way"}
    agent.done(WEB)
    assert _missing(agent, NetworkPolicy=6, **{str(WEB): 5}) == {}
    # Made anew at 9, which the node has not heard of.
    assert _missing(agent, NetworkPolicy=9, **{str(WEB): 9}) == {str(WEB): "not in force"}


def test_one_that_came_after_the_list_is_nobodys_concern(agent: _Agent) -> None:
    agent.told(GUARD, 12)
    assert _missing(agent, NetworkPolicy=9, ClusterNetworkPolicy=9, **{str(WEB): 5}) == {}


def test_labels_are_waited_for_by_kind(agent: _Agent) -> None:
    agent.peers["Pod"] = 7
    assert _missing(agent, Pod=7) == {}
    assert _missing(agent, Pod=8, Namespace=1) == {
        "Pod": "known up to 7, wanted 8",
        "Namespace": "known up to 0, wanted 1",
    }
    agent.enforcing = False
    assert _missing(agent, Pod=8) == {}, "without policies nobody's labels matter"
