"""What a namespace that does not go says of itself."""

from __future__ import annotations

from podwire.controllers.namespaces import remaining_conditions


def test_what_is_left_and_who_holds_it() -> None:
    content, held = remaining_conditions(
        {"pods": 2, "jobs.batch": 1}, {"example.com/hold": 2, "other.io/x": 1}
    )
    assert content["type"] == "NamespaceContentRemaining"
    assert content["message"] == (
        "Some resources are remaining: jobs.batch has 1 resource instances, "
        "pods has 2 resource instances"
    )
    assert (held["type"], held["reason"]) == (
        "NamespaceFinalizersRemaining",
        "SomeFinalizersRemain",
    )
    assert held["message"] == (
        "Some content in the namespace has finalizers remaining: "
        "example.com/hold in 2 resource instances, other.io/x in 1 resource instances"
    )


def test_without_finalizers_only_the_content_is_told() -> None:
    (content,) = remaining_conditions({"pods": 1}, {})
    assert content["status"] == "True"
