"""One pod of this node: what the API says of it, and what is true of it here.

Everything that works on a pod (its worker, sandbox, containers, status) shares one `LivePod`, on
the event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from podwire.objects.core import Pod
from podwire.runtime.launch import Host
from podwire.runtime.sandbox import Sandbox
from podwire.runtime.state import Slot
from podwire.runtime.status import PodView

_LOG = logging.getLogger(__name__)


@dataclass
class LivePod:
    """`wake` has the worker look again, `wake_at` at a time of the loop's clock.

    `sandbox` is there once its network is; `view.sandbox_ready` once containers may start in it.
    """

    host: Host
    pod: Pod
    slots: list[Slot]
    view: PodView
    wake: Callable[[], None]
    wake_at: Callable[[float], None]
    sandbox: Sandbox | None = None
    removed: bool = False
    """The API has forgotten the pod: nobody is to be told of it any more."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def uid(self) -> str:
        return self.pod.metadata.uid

    @property
    def address(self) -> str:
        return self.sandbox.ips[0] if self.sandbox is not None else ""

    def see(self, **changes: Any) -> None:
        """Change what the status says besides the containers."""
        self.view = replace(self.view, **changes)

    def say(self, reason: str, text: str, *, warning: bool = False, lazy: bool = False) -> None:
        self.host.events.emit(self.pod, reason, text, warning=warning, lazy=lazy)

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` until it ends or the agent does; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("pod %s: %s", self.pod.key, error, exc_info=error)
            self.wake()

    def abandon(self) -> None:
        """End everything that is kept; the containers go on."""
        for task in self._tasks:
            task.cancel()
        for slot in self.slots:
            if slot.probes is not None:
                slot.probes.stop()
