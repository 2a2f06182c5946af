"""Cluster DNS: what names in the cluster's zone mean, and the server that answers them.

Services, EndpointSlices, Namespaces, Pods -> records (pure, one change touches its names only)
records -> answers: responses encoded once per question, patched per query
UDP/TCP socket -> FastAnswers -> bytes, or SlowPath: forward, cache, rewrite, hosts, log
"""
