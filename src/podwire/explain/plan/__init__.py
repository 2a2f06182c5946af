"""The address planner: how large, where, and what runs out first.

    PlanRequest -> sizes (clouds) -> blocks (carve) -> limits, overlaps, MTU -> AddressPlan

Pure arithmetic; the formulas carry their sources. The `AddressPlan` is a document that
`podwire up --plan FILE` builds.
"""

from podwire.explain.plan.clouds import INSTANCES, Instance
from podwire.explain.plan.document import (
    AddressPlan,
    Capacity,
    FamilyPlan,
    Limit,
    Overlap,
    parse_plan,
    plan_rows,
    render_plan,
)
from podwire.explain.plan.planner import PlanRequest, plan_addresses

__all__ = [
    "INSTANCES",
    "AddressPlan",
    "Capacity",
    "FamilyPlan",
    "Instance",
    "Limit",
    "Overlap",
    "PlanRequest",
    "parse_plan",
    "plan_addresses",
    "plan_rows",
    "render_plan",
]
