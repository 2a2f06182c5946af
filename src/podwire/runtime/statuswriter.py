"""The pod's status towards the API: written only when it differs from what was written before.

    slots, view -> render (pure) -> difference -> one strategic merge patch

Others write here too: the scheduler's PodScheduled, node life cycle's Ready=False while a node is
silent, and whoever may patch may say anything. Conditions merge by type, so theirs stay.
`disagrees` notices what contradicts; the next write then says everything again.
"""

from __future__ import annotations

import time

from podwire.client import PatchType
from podwire.errors import NotFoundError
from podwire.objects import kinds
from podwire.objects.core import Pod
from podwire.objects.meta import JsonObject
from podwire.runtime.livepod import LivePod
from podwire.runtime.status import OWNED_CONDITIONS, difference, final_phase, render


def strategic(changed: JsonObject) -> JsonObject:
    """Changed fields as a strategic merge patch: own conditions only, addresses as a whole."""
    patch = dict(changed)
    if patch.get("conditions"):
        # Merged by type: a reason or message that no longer holds has to be taken away.
        patch["conditions"] = [
            {"reason": None, "message": None, **condition}
            for condition in patch["conditions"]
            if condition["type"] in OWNED_CONDITIONS
        ]
    for key in ("podIPs", "hostIPs"):
        if patch.get(key):  # merged by address otherwise: a former one would stay
            patch[key] = [{"$patch": "replace"}, *patch[key]]
    return patch


class StatusWriter:
    def __init__(self, live: LivePod) -> None:
        self._live = live
        self._written: JsonObject | None = None

    @property
    def wrote(self) -> bool:
        return self._written is not None

    def disagrees(self, pod: Pod) -> bool:
        """Whether `pod`, as the API has it, says other than what was written last."""
        written = self._written
        if written is None:
            return False
        said = {condition.type: condition.status for condition in pod.status.conditions}
        return pod.status.phase != written["phase"] or any(
            said.get(condition["type"]) != condition["status"]
            for condition in written["conditions"]
            if condition["type"] in OWNED_CONDITIONS
        )

    def distrust(self) -> None:
        """Have the next `write` say everything."""
        self._written = None

    async def write(self) -> None:
        live = self._live
        status = render(live.pod, live.slots, live.view, time.time())
        if live.pod.deleting and not any(slot.is_running for slot in live.slots):
            status["phase"] = final_phase(live.slots, status["phase"])
        changed = difference(self._written, status)
        if not changed:
            return
        meta = live.pod.metadata
        # Known before it is sent: the watch may bring it back before the answer comes.
        self._written = status
        try:
            await live.host.api.request(
                "PATCH",
                kinds.POD.path(meta.namespace, meta.name, "status"),
                body={"metadata": {"uid": meta.uid}, "status": strategic(changed)},
                content_type=PatchType.STRATEGIC.value,
            )
        except NotFoundError:
            pass  # the watch will tell
        except BaseException:
            self._written = None
            raise
