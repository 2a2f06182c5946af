"""Events of pods, written in the background so that a thousand starting pods never wait for them.

Warnings go first. Normal events of stand-ins are lazy: written when the node is quiet, and beyond
`_MAX_LAZY` waiting ones the oldest is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from podwire.client import Api, EventRecorder
from podwire.objects import kinds
from podwire.objects.core import Pod

_MAX_LAZY = 512
_QUIET_S = 1.0
_LAZY_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class _Waiting:
    pod: Pod
    type: str
    reason: str
    message: str


class PodEvents:
    """`emit` never blocks; `run` writes until cancelled."""

    def __init__(self, api: Api, node_name: str) -> None:
        self._recorder = EventRecorder(api, "kubelet", node_name)
        self._urgent: deque[_Waiting] = deque(maxlen=4096)
        self._lazy: deque[_Waiting] = deque(maxlen=_MAX_LAZY)
        self._waiting = asyncio.Event()
        self._quiet_from = 0.0

    def emit(
        self, pod: Pod, reason: str, message: str, *, warning: bool = False, lazy: bool = False
    ) -> None:
        waiting = _Waiting(pod, "Warning" if warning else "Normal", reason, message)
        (self._lazy if lazy else self._urgent).append(waiting)
        self._quiet_from = asyncio.get_running_loop().time() + _QUIET_S
        self._waiting.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._waiting.wait()
            if self._urgent:
                await self._write(self._urgent.popleft())
            elif not self._lazy:
                self._waiting.clear()
            elif (pause := self._quiet_from - loop.time()) > 0:
                await asyncio.sleep(pause)
            else:
                await self._write(self._lazy.popleft())
                await asyncio.sleep(_LAZY_PAUSE_S)

    async def _write(self, event: _Waiting) -> None:
        await self._recorder.record(kinds.POD, event.pod, event.type, event.reason, event.message)
