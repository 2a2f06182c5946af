"""PersistentVolumeClaims of StatefulSets: made with their pods, owned as the retention policy says.

    whenDeleted: Delete -> the StatefulSet owns the claim
    whenScaled: Delete  -> the pod owns it once its ordinal is not wanted any more

The garbage collector does the rest. Source: KEP-1847, pkg/controller/statefulset
(updateClaimOwnerRefForSetAndPod, PodClaimIsStale).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from podwire.controllers.cluster import Cluster
from podwire.controllers.podcontrol import controller_ref
from podwire.controllers.views import POD, Pod, raw
from podwire.errors import AlreadyExistsError, ConflictError
from podwire.objects import kinds
from podwire.objects.apps import StatefulSet
from podwire.objects.meta import JsonObject, Key, Kind, Object, OwnerReference

CLAIM: Kind[Object] = Kind(
    "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", True, Object
)


def claim_name(obj: StatefulSet, claim: JsonObject, ordinal: int) -> str:
    return f"{claim['metadata']['name']}-{obj.metadata.name}-{ordinal}"


def wanted_refs(
    obj: StatefulSet, pod: Pod, refs: Sequence[OwnerReference], *, condemned: bool
) -> list[JsonObject]:
    """A claim's owner references as the policy wants them; those of others stay."""
    mine = {obj.metadata.uid, pod.metadata.uid}
    others = [raw(ref) for ref in refs if ref.uid not in mine]
    if any(ref.controller and ref.uid not in mine for ref in refs):
        return others
    policy = obj.spec.persistent_volume_claim_retention_policy
    if condemned and policy.when_scaled == "Delete":
        return [*others, controller_ref(POD, pod)]
    if policy.when_deleted == "Delete":
        return [*others, controller_ref(kinds.STATEFUL_SET, obj)]
    return others


def stale(claim: Object, pod_name: str, uid: str = "") -> bool:
    """It belongs to an earlier pod of that name, and will go with it."""
    return any(
        ref.kind == "Pod" and ref.name == pod_name and ref.uid != uid
        for ref in claim.metadata.owner_references
    )


class StatefulClaims:
    """Does nothing where the server does not serve the kind."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._served = cluster.resources.has(CLAIM)
        self._claims: Mapping[Key, Object] = cluster.informer(CLAIM).objects if self._served else {}

    async def ensure(self, obj: StatefulSet, ordinal: int) -> None:
        """Make the claims of a pod to be made. Raises `ConflictError` while old ones are going."""
        if not self._served:
            return
        for template in obj.spec.volume_claim_templates:
            key = Key(obj.metadata.namespace, claim_name(obj, template, ordinal))
            known = self._claims.get(key)
            if known is None:
                await self._create(obj, key, template)
            elif known.deleting or stale(known, f"{obj.metadata.name}-{ordinal}"):
                raise ConflictError(f"persistentvolumeclaim {key}: it is being deleted")

    async def _create(self, obj: StatefulSet, key: Key, template: JsonObject) -> None:
        meta = template.get("metadata") or {}
        labels = {**(meta.get("labels") or {}), **(obj.spec.selector.match_labels or {})}
        body = {
            "metadata": {**meta, "name": key.name, "namespace": key.namespace, "labels": labels},
            "spec": template.get("spec") or {},
        }
        if obj.spec.persistent_volume_claim_retention_policy.when_deleted == "Delete":
            body["metadata"]["ownerReferences"] = [controller_ref(kinds.STATEFUL_SET, obj)]
        try:
            await self._cluster.api.create(CLAIM, body, key.namespace)
        except AlreadyExistsError:
            return

    async def settle(
        self, obj: StatefulSet, pods: Iterable[tuple[int, Pod]], wanted: range
    ) -> None:
        """Have the claims of pods owned as the policy says, before a pod may be deleted."""
        if not self._served:
            return
        for ordinal, pod in pods:
            for template in obj.spec.volume_claim_templates:
                key = Key(obj.metadata.namespace, claim_name(obj, template, ordinal))
                claim = self._claims.get(key)
                if claim is None or stale(claim, pod.metadata.name, pod.metadata.uid):
                    continue
                have = claim.metadata.owner_references
                refs = wanted_refs(obj, pod, have, condemned=ordinal not in wanted)
                if {ref["uid"] for ref in refs} != {ref.uid for ref in have}:
                    body = {"metadata": {"ownerReferences": refs or None}}
                    await self._cluster.patch(CLAIM, claim, body, exact=True)
