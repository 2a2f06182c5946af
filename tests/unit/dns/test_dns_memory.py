"""What is out of the collector's sight, and that a zone which was replaced is not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from podwire.dns import memory


class Zone:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_a_zone_is_out_of_sight_until_another_replaces_it(collector: None) -> None:
    memory.begin()
    zone = Zone()
    seen = weakref.ref(zone)
    memory.listed()
    assert gc.get_freeze_count() > 0
    del zone
    gc.collect()
    assert seen() is not None
    memory.replaced()
    assert seen() is None
    assert gc.get_freeze_count() > 0
