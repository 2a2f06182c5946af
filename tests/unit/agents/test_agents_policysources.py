"""Two watches tell of one node's pods, and are not in step: the name is the admitted pod's."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, cast

import msgspec
import pytest

from podwire.agents.policysources import PolicySources
from podwire.client import Api, Change, Informer
from podwire.objects import kinds
from podwire.objects.core import Namespace, Pod
from podwire.objects.meta import Key
from podwire.objects.policy import PeerPod
from podwire.policy.names import Answer
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.world import view_pod

KEY = Key("shop", "web-0")
OLD, NEW = "10.244.1.2", "10.244.1.3"


def _raw(uid: str, ip: str = "", phase: str = "Running", **labels: str) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "shop",
            "name": "web-0",
            "uid": uid,
            "labels": labels,
            "resourceVersion": "7",
        },
        "spec": {"nodeName": "here", "containers": [{"name": "c"}]},
        "status": {"phase": phase, "podIPs": [{"ip": ip}] if ip else []},
    }


def _pod(*args: str, **labels: str) -> Pod:
    return msgspec.convert(_raw(*args, **labels), Pod)


def _peer(*args: str, **labels: str) -> PeerPod:
    return msgspec.convert(_raw(*args, **labels), PeerPod)


class _Sources(PolicySources):
    def __init__(self) -> None:
        api = cast(Api, None)
        nodes = Informer(api, kinds.NODE)
        self.changes = 0
        state = NodePolicies("here", (4,))
        none = {"commit": lambda: None, "moved": lambda: None}
        super().__init__(api, "here", nodes, state, changed=self._count, **none)

    def _count(self) -> None:
        self.changes += 1

    def told(self, old: PeerPod | None, new: PeerPod | None) -> None:
        objects = cast(dict[Key, PeerPod], self._pods._objects)
        if new is None:
            objects.pop(KEY, None)
        else:
            objects[KEY] = new
        self._pod_changed(Change(old, new))

    def start(self, uid: str, ip: str) -> None:
        self.own_pod_changed(Change(None, _pod(uid)))
        self.be_ready(uid, ip)

    def be_ready(self, uid: str, ip: str) -> None:
        """The sandbox is made; what it was made for may be gone."""
        pod = _pod(uid)
        view = view_pod(pod, [ip])
        assert view is not None
        self.admit(pod, view)
        self.place_admitted(pod.key)

    @property
    def addresses(self) -> list[str]:
        return [str(ip) for ip in self._world.owners]


@pytest.fixture
def sources() -> _Sources:
    return _Sources()


def test_an_admitted_pod_has_its_address_before_its_status_does(sources: _Sources) -> None:
    sources.start("u1", OLD)
    sources.told(None, _peer("u1"))
    assert sources.addresses == [OLD]
    sources.told(_peer("u1"), _peer("u1", OLD))
    assert sources.changes == 1, "what changes nothing is no change"
    sources.told(_peer("u1", OLD), _peer("u1", OLD, app="web"))
    assert sources.changes == 2


def test_the_end_of_the_one_before_does_not_take_the_new_one_along(sources: _Sources) -> None:
    sources.start("u1", OLD)
    sources.told(None, _peer("u1", OLD))
    # This node's own watch is ahead: the old one is gone, the new one admitted.
    sources.own_pod_changed(Change(_pod("u1"), None))
    sources.start("u2", NEW)
    assert sources.addresses == [NEW]
    sources.told(_peer("u1", OLD), None)
    assert sources.addresses == [NEW]
    sources.told(None, _peer("u2"))
    assert sources.addresses == [NEW]


def test_a_pod_that_came_back_elsewhere_is_not_forgotten(sources: _Sources) -> None:
    """The watch of all pods is ahead: the name is another pod's, on another node."""
    sources.start("u1", OLD)
    sources.told(None, _peer("u1", OLD))
    sources.told(_peer("u1", OLD), None)
    assert sources.addresses == []
    sources.told(None, _peer("u2", NEW))
    assert sources.addresses == []
    sources.own_pod_changed(Change(_pod("u1"), None))
    assert sources.addresses == [NEW]


def test_a_pod_that_was_deleted_while_its_sandbox_was_made_is_nobody(sources: _Sources) -> None:
    """Nobody would ever say again that it is gone, and its name is another pod's, elsewhere."""
    sources.own_pod_changed(Change(None, _pod("u1")))
    sources.told(None, _peer("u1"))
    sources.told(_peer("u1"), None)
    sources.own_pod_changed(Change(_pod("u1"), None))
    sources.be_ready("u1", OLD)
    assert sources.addresses == []
    sources.told(None, _peer("u2", NEW))
    assert sources.addresses == [NEW]


def test_a_pod_that_both_watches_have_seen_the_end_of_is_nobody(sources: _Sources) -> None:
    """The watch of all pods was ahead: it told of the end before the pod was admitted."""
    sources.told(None, _peer("u1"))
    sources.told(_peer("u1"), None)
    sources.start("u1", OLD)
    assert sources.addresses == [OLD]
    sources.own_pod_changed(Change(_pod("u1"), None))
    assert sources.addresses == []


def test_labels_that_are_newer_than_the_admission_stay(sources: _Sources) -> None:
    newer = _peer("u1", app="web")
    sources.told(None, newer)
    sources.start("u1", OLD)
    (owner,) = sources._world.owners.values()
    assert owner.labels == {"app": "web"}
    assert sources.addresses == [OLD]


def test_a_pod_that_has_ended_is_nobody(sources: _Sources) -> None:
    sources.start("u1", OLD)
    sources.told(None, _peer("u1", OLD, "Succeeded"))
    assert sources.addresses == []


def test_what_was_heard_counts_though_it_changes_nothing(sources: _Sources) -> None:
    sources.told(None, _peer("u1"))
    assert sources.heard["Pod"] == 7


def test_a_namespace_may_stage_its_policies(sources: _Sources) -> None:
    raw = {"metadata": {"name": "shop", "annotations": {"policy.podwire.dev/stage": "true"}}}
    sources._namespace_changed(Change(None, msgspec.convert(raw, Namespace)))
    policy = msgspec.convert(
        {"metadata": {"name": "p", "namespace": "shop"}, "spec": {"podSelector": {}}},
        kinds.NETWORK_POLICY.view,
    )
    sources._policy_changed("NetworkPolicy", Change(None, policy))
    assert [p.staged for p in sources.policies()] == [True]
    assert sources.observed
    assert sources.staged_verdicts() is not None
    assert ip_address(OLD) not in sources._world.owners


def test_connections_to_a_name_outlive_the_time_of_its_answer(sources: _Sources) -> None:
    """NPEP-133: when the TTL ends no new connections are allowed, existing ones go on."""
    sources.start("u1", OLD)
    raw = {
        "metadata": {"name": "names", "resourceVersion": "8"},
        "spec": {
            "tier": "Admin",
            "priority": 1,
            "subject": {"namespaces": {}},
            "egress": [
                {"action": "Accept", "to": [{"domainNames": ["example.com"]}]},
                {"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]},
            ],
        },
    }
    policy = msgspec.convert(raw, kinds.CLUSTER_NETWORK_POLICY.view)
    sources._policy_changed("ClusterNetworkPolicy", Change(None, policy))
    table, outside = sources.names.table, ip_address("203.0.113.10")
    table.want(["example.com"])
    table.learn([Answer("example.com", frozenset({outside}), 1.0)], 0.0)
    asked = ip_address(OLD).packed, outside.packed, 6, 443

    def allowed() -> tuple[bool, bool]:
        both = sources.verdicts(), sources.standing_verdicts()
        new, standing = (verdicts.between(*asked).allowed for verdicts in both)
        return new, standing

    assert allowed() == (True, True)
    table.expire(1000.0)
    assert allowed() == (False, True)
    table.want([])
    assert allowed() == (False, False)
