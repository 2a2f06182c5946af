"""The garbage collector beside a zone of some hundred thousand objects.

A full collection looks at every one of them, for nothing: they refer to no cycles and go when
nobody refers to them. That takes some 30 ms with 100,000 endpoints, in which no query is answered.
So what was there at the start, and what was listed, is put where collections do not look.
"""

from __future__ import annotations

import gc
from typing import Final

_THRESHOLDS: Final = (20_000, 20, 50)


def begin() -> None:
    """At the start of the program: what is imported stays."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def listed() -> None:
    """The zone is whole."""
    gc.freeze()


def replaced() -> None:
    """A zone has ended and another is whole: the old one has cycles, and was out of sight."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
