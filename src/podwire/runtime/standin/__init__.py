"""The stand-in process: one per node, it plays every container whose image nobody loaded.

    agent: socket opened in the pod's namespace -> SCM_RIGHTS -> control -> Endpoint -> answers

A socket keeps the namespace it was opened in, so one process serves all pods of a node without
ever entering a namespace. When the agent dies the process keeps serving, and tells the next agent
what it holds. It never reads the API.
"""

from __future__ import annotations

from podwire.runtime.standin.control import StandinConfig, main

__all__ = ["StandinConfig", "main"]
