"""The kubelet's part of a node: pods the API assigns to this node become running sandboxes.

    Pod (watch) -> worker -> sandbox (netns) -> containers -> probes -> status (one patch)

A container runs in one of three ways behind one shape (`containers.RunningContainer`): a stand-in
(sockets held by the node's stand-in process), one of podwire's own programs forked by a `Spawner`,
or an OCI container. Everything needed to resume after a crash is in `NODE_DIR/pods/UID/` and in the
API.
"""

from __future__ import annotations

from typing import Final

EXIT_NODE_REMOVED: Final = 75
"""The exit code of an agent whose Node was deleted: do not start it again."""

__all__ = ["EXIT_NODE_REMOVED"]
