"""A timer's descriptor is readable after its period, and says how many went by."""

from __future__ import annotations

import select

from podwire.kernel.timer import Timer


def test_a_period_ends() -> None:
    timer = Timer(0.001)
    assert select.select([timer], [], [], 5.0)[0] == [timer]
    assert timer.read() >= 1
    timer.close()
    timer.close()


def test_reading_too_early_does_not_block() -> None:
    timer = Timer(3600.0)
    assert timer.read() == 0
    timer.close()
