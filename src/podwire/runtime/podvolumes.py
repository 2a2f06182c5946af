"""Keeps what a pod's really running containers have mounted as the API has it.

    reference changed, labels changed, token due -> stale -> Volumes.refresh -> trees replaced

Nothing here exists for a pod of stand-ins: no watch, no task, no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

import aiohttp

from podwire.errors import PodwireError
from podwire.runtime.livepod import LivePod
from podwire.runtime.references import references_of
from podwire.runtime.standins import StandinContainer
from podwire.runtime.state import Slot

_LOG = logging.getLogger(__name__)
_RETRY_S: Final = 60.0


class PodVolumes:
    """`changed` is called for every change of something the pod refers to."""

    def __init__(self, live: LivePod, changed: Callable[[], None]) -> None:
        self._live = live
        self._changed = changed
        self._stale = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def follow(self) -> None:
        """Watch what the pod needs watched now; call it when a container started, ended, failed."""
        live = self._live
        waiting = any(slot.waits_for_config for slot in live.slots)
        mounted = any(_has_volumes(slot) for slot in live.slots)
        if not (waiting or mounted):
            self.release()
            return
        wanted = references_of(live.pod, mounted_only=not waiting)
        live.host.references.follow(live.uid, wanted, self._reference_changed)
        if mounted and self._keeper is None and live.host.specs.volumes.refreshable(live.pod):
            self._keeper = live.keep(self._keep_fresh())

    def release(self) -> None:
        """Nothing of the pod needs to be watched."""
        self._live.host.references.forget(self._live.uid)
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None

    def stale(self) -> None:
        """What is mounted may differ from what the API has now."""
        self._stale.set()

    def _reference_changed(self) -> None:
        self._stale.set()
        self._changed()

    async def _keep_fresh(self) -> None:
        """Until cancelled. What cannot be read keeps its former content, as kubelet leaves it."""
        live, volumes = self._live, self._live.host.specs.volumes
        while True:
            due_s: float | None = _RETRY_S
            self._stale.clear()
            try:
                if live.sandbox is not None:
                    facts = live.host.specs.facts(live.sandbox)
                    due_s = await volumes.refresh(live.pod, facts)
            except (PodwireError, aiohttp.ClientError, OSError) as error:
                _LOG.warning("pod %s: volumes keep their content: %s", live.pod.key, error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_s):
                    await self._stale.wait()


def _has_volumes(slot: Slot) -> bool:
    """Whether the slot's container runs as a program that may have volumes mounted."""
    return slot.running is not None and not isinstance(slot.running, StandinContainer)
