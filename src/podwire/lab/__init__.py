"""Nodes as namespaces on one machine: a Kubernetes network in about a second.

with podwire.Lab(nodes=3) as lab:
    lab.apply("app/")
    assert lab.pod("web").can_reach("api", port=8080)
"""

from podwire.lab.lab import ExecResult, Lab, LabPod

__all__ = ["ExecResult", "Lab", "LabPod"]
