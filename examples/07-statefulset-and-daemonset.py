"""Stable names for a StatefulSet; a DaemonSet follows the nodes that come and go."""

from pathlib import Path

import podwire


def nodes_of(lab: podwire.Lab, app: str) -> dict[str, str]:
    """Pod name -> node, of one app."""
    return {
        pod.metadata.name: pod.spec.node_name
        for pod in lab.pods()
        if pod.metadata.labels.get("app") == app
    }


with podwire.Lab("sets", nodes=2) as lab:
    lab.apply(Path(__file__).with_suffix(".yaml"))
    assert sorted(nodes_of(lab, "db")) == ["db-0", "db-1", "db-2"]
    assert sorted(nodes_of(lab, "agent").values()) == ["node-1", "node-2"]
    assert lab.pod("db-0").can_reach("db-2", port=5432)

    added = lab.add_node()
    lab.wait_ready()
    assert sorted(nodes_of(lab, "agent").values()) == ["node-1", "node-2", added]
