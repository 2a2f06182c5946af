"""Cluster DNS: what names in the cluster's zone mean, and the server that answers them.

Services, EndpointSlices, Namespaces, Pods -> index (one change names the subtrees it touches)
question -> records (pure) -> answers: encoded once, patched per query, evicted by changes
UDP/TCP socket -> FastAnswers -> bytes, or SlowPath: forward, cache, rewrite, hosts, log
"""
