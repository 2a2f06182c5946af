"""`errors`: why a query got SERVFAIL or REFUSED, one line each, or counted per period.

    [ERROR] plugin/errors: 2 example.org. A: read udp 192.0.2.1:53: i/o timeout

Source: coredns plugin/errors/errors.go.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

from podwire.dns import config
from podwire.dns.request import Failure, Handler, Reply, Request

_PREFIX = {"error": "ERROR", "warning": "WARNING", "info": "INFO", "debug": "DEBUG"}


class Errors:
    def __init__(
        self, settings: config.Errors, following: Handler, write: Callable[[str], None]
    ) -> None:
        self._following = following
        self._write = write
        self._rules = [_Counted(rule, write) for rule in settings.consolidate]

    async def __call__(self, request: Request) -> Reply:
        try:
            return await self._following(request)
        except Failure as failure:
            self._report(f"{failure.code} {request.shown()}: {failure}", str(failure))
            raise

    def _report(self, line: str, message: str) -> None:
        for rule in self._rules:
            if rule.takes(message):
                return
        self._write(f"[ERROR] plugin/errors: {line}")

    def close(self) -> None:
        _close(self._rules)


class _Counted:
    """Messages of one kind: the first starts the period, its end prints the number."""

    def __init__(self, rule: config.Consolidate, write: Callable[[str], None]) -> None:
        self._rule = rule
        self._pattern = re.compile(rule.pattern)
        self._write = write
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    def takes(self, message: str) -> bool:
        if not self._pattern.search(message):
            return False
        self._number += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._rule.period_s, self.print)
        return True

    def print(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._number:
            self._write(
                f"[{_PREFIX[self._rule.level]}] plugin/errors: {self._number} errors like "
                f"'{self._rule.pattern}' occurred in last {self._rule.period_s:g}s"
            )
        self._number = 0


def _close(rules: Sequence[_Counted]) -> None:
    for rule in rules:
        rule.print()
