"""Where the output of what the holder forks goes.

A component writes plain lines into `logs/COMPONENT.log`; a program forked into a pod writes CRI log
lines (`TIMESTAMP stdout F text`), so that `kubectl logs` reads it like any container's.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def redirect_to_log(log: Path) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


class _CriWriter:
    """stdout of a spawned program as CRI log lines."""

    def __init__(self, file: Any, stream: str) -> None:
        self._file = file
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            now = time.time_ns()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
            self._file.write(f"{stamp}.{now % 10**9:09d}Z {self._stream} F {line}\n")
        return len(text)

    def flush(self) -> None:
        self._file.flush()


def redirect_to_cri_log(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("a", buffering=1)
    sys.stdout = _CriWriter(file, "stdout")
    sys.stderr = _CriWriter(file, "stderr")
