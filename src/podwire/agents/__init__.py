"""The node agent: what runs once per node and keeps its network as the API says.

observe (informers) -> compile (pure) -> plan (pure) -> apply (kernel) -> report (Node status)
"""
