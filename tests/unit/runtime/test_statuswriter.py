"""The pod's status as a patch: what others wrote stays."""

from __future__ import annotations

from podwire.apiserver.patch import apply_strategic_patch
from podwire.apiserver.schema import builtin
from podwire.runtime.statuswriter import strategic


def test_conditions_of_others_stay_and_addresses_are_replaced() -> None:
    scheduled = {"type": "PodScheduled", "status": "True"}
    stored = {
        "conditions": [scheduled, {"type": "Ready", "status": "False"}],
        "podIP": "10.244.0.2",
        "podIPs": [{"ip": "10.244.0.2"}],
    }
    changed = {
        "conditions": [{"type": "Ready", "status": "True"}, {**scheduled, "status": "Unknown"}],
        "podIP": "10.244.0.3",
        "podIPs": [{"ip": "10.244.0.3"}],
        "reason": None,
    }
    schema = builtin("", "v1", "Pod")
    assert schema is not None
    pod = apply_strategic_patch({"status": stored}, {"status": strategic(changed)}, schema)
    assert pod["status"] == {
        "conditions": [scheduled, {"type": "Ready", "status": "True"}],
        "podIP": "10.244.0.3",
        "podIPs": [{"ip": "10.244.0.3"}],
    }


def test_nothing_is_added_to_what_did_not_change() -> None:
    assert strategic({"phase": "Running"}) == {"phase": "Running"}
    assert strategic({"podIPs": None, "hostIPs": []}) == {"podIPs": None, "hostIPs": []}
