"""What is asked of a node by somebody who waits until changes are in its kernel. Pure."""

from __future__ import annotations

import msgspec


class WaitRequest(msgspec.Struct, frozen=True):
    """`revisions` by name (`namespace/name`): answer when all are reached, or when time is up."""

    revisions: dict[str, int]
    timeout_s: float = 30.0


class WaitResponse(msgspec.Struct, frozen=True):
    """What is still missing, with what the node has instead; nothing when all is there."""

    missing: dict[str, str] = {}
