"""exec and attach as kubectl speaks them, for any aiohttp server, and a client for `podwire exec`.

    kubectl >= 1.30   GET,  WebSocket v5.channel.k8s.io  -> serve.serve_exec
    Python clients    GET,  WebSocket v4.channel.k8s.io  -> serve.serve_exec
    kubectl <= 1.29   POST, SPDY/3.1 (v4 streams)        -> serve.serve_exec
    podwire exec      WebSocket v5                       <- client.exec_client

`frames` and `spdy` are a SPDY/3.1 codec and connection over any byte channel, so that port-forward
(SPDY inside a WebSocket in kubectl >= 1.31) needs no other.

Source: KEP-4006, apimachinery util/remotecommand, kubelet cri/streaming/remotecommand.
"""

from podwire.runtime.streams.channel import Hijacked, WebSocketBytes, hijack
from podwire.runtime.streams.client import exec_client
from podwire.runtime.streams.local import LocalProcess, spawn_local
from podwire.runtime.streams.serve import ExecRequest, serve_exec
from podwire.runtime.streams.spdy import SpdyConnection, SpdyStream

__all__ = [
    "ExecRequest",
    "Hijacked",
    "LocalProcess",
    "SpdyConnection",
    "SpdyStream",
    "WebSocketBytes",
    "exec_client",
    "hijack",
    "serve_exec",
    "spawn_local",
]
