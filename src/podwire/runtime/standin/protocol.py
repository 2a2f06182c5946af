"""What agent and stand-in process say to each other: one JSON message per SEQPACKET packet.

A `Serve` carries its listening sockets (SCM_RIGHTS), in the order of `ports`; nobody waits for an
answer, because connections queue in the kernel from the moment the agent called listen(2).
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

MAX_PACKET = 128 * 1024
MAX_FDS = 250


class Port(Struct, frozen=True):
    port: int
    protocol: str = "TCP"
    name: str = ""


class Options(Struct, frozen=True, omit_defaults=True):
    """The `standin.podwire.dev/...` annotations; `exit_after_s` None: lives until stopped."""

    exit_code: int = 0
    exit_after_s: float | None = None
    ready_after_s: float = 0.0
    http_status: int = 0


class Serve(Struct, frozen=True, tag="serve", tag_field="op", omit_defaults=True):
    id: str
    namespace: str
    pod: str
    pod_uid: str
    container: str
    attempt: int
    node: str
    address: str
    ports: list[Port]
    log_path: str = ""
    netns: str = ""
    resolv_conf: str = ""
    hosts: str = ""
    options: Options = Options()


class Stop(Struct, frozen=True, tag="stop", tag_field="op"):
    id: str


class Tune(Struct, frozen=True, tag="tune", tag_field="op"):
    """The pod's `http-status` annotation has changed; 0 is the ordinary status."""

    id: str
    http_status: int


class ListHeld(Struct, frozen=True, tag="list", tag_field="op"):
    pass


class Held(Struct, frozen=True, tag="held", tag_field="op"):
    """One container still served; `ListHeld` is answered by these and a `Listed`."""

    id: str
    pod_uid: str
    container: str
    attempt: int
    started_at: float


class Exited(Struct, frozen=True, tag="exited", tag_field="op", omit_defaults=True):
    id: str
    exit_code: int
    message: str = ""


class Listed(Struct, frozen=True, tag="listed", tag_field="op"):
    pass


Request = Serve | Stop | Tune | ListHeld
Reply = Held | Exited | Listed

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
decode_reply = msgspec.json.Decoder(Reply).decode
