"""The condition of a cluster policy: whether it is in force on every node.

A NetworkPolicy has no status (KEP-2943 was withdrawn): `podwire wait policies` and the nodes'
condition PoliciesProgrammed tell of those.
"""

from __future__ import annotations

from typing import Final

import msgspec

from podwire.client import PatchType
from podwire.controllers.cluster import Cluster
from podwire.controllers.programmed import CONDITION, ProgrammedConditions
from podwire.objects import kinds
from podwire.objects.core import Condition
from podwire.objects.meta import JsonObject, Key, Kind
from podwire.objects.policy import ClusterPolicy
from podwire.telemetry.progress import POLICIES

KINDS: Final[tuple[Kind[ClusterPolicy], ...]] = (
    kinds.CLUSTER_NETWORK_POLICY,
    kinds.ADMIN_NETWORK_POLICY,
    kinds.BASELINE_ADMIN_NETWORK_POLICY,
)


class PolicyProgrammed(ProgrammedConditions[ClusterPolicy]):
    """Of one of the three kinds."""

    def __init__(self, cluster: Cluster, kind: Kind[ClusterPolicy]) -> None:
        super().__init__(cluster, kind, POLICIES, cluster.config.programmed_policies)

    def _followed(self, obj: ClusterPolicy) -> bool:
        return not obj.deleting

    def _meaning(self, obj: ClusterPolicy) -> object:
        return obj.spec, obj.metadata.annotations

    def _conditions(self, obj: ClusterPolicy) -> list[Condition]:
        return obj.status.conditions

    def _called(self, key: Key) -> str:
        return f"{self._kind.kind} {key.name}"

    async def _patch(self, obj: ClusterPolicy, condition: JsonObject) -> None:
        """A custom resource knows no strategic merge: all conditions are sent."""
        others = [c for c in obj.status.conditions if c.type != CONDITION]
        conditions = [*msgspec.to_builtins(others), condition]
        await self._cluster.patch_status(
            self._kind, obj, {"conditions": conditions}, PatchType.MERGE
        )
