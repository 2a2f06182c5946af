"""What a probe is and what it finds, in the form that travels as JSON.

Results come back in the order of the probes, so a probe needs no identifier. Verdicts speak of
packets, not of intentions:

    allowed    the destination answered (TCP: accepted; UDP, ICMP: replied; HTTP: any response)
    refused    the destination is reached but nothing listens (RST, or its own port unreachable)
    rejected   something on the way said no (ICMP prohibited or unreachable, not by ourselves)
    dropped    nothing came back in time; for UDP also a peer that does not answer
    error      the probe could not be sent or understood; `detail` says why
"""

from __future__ import annotations

import ipaddress
from typing import Any, Literal, TypeAlias

import msgspec

from podwire.errors import UsageError

Protocol: TypeAlias = Literal["tcp", "udp", "http", "icmp", "sctp"]
Verdict: TypeAlias = Literal["allowed", "refused", "rejected", "dropped", "error"]

OUTSIDE = "outside"
NODE = ""


class Probe(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One question.

    `source` is "" for the node itself, `namespace/name` for a pod or "outside"; the node's agent
    knows where their network namespaces are pinned. `netns` names a pin directly and wins.
    `payload` is what a UDP probe sends; stand-ins answer any but agnhost's own words with who they
    are. `source_port` is the first socket's (0: any), for who wants to follow its packets; it goes
    with a `source_address`. `size` pads an ICMP echo to that many bytes of IP packet and forbids
    fragmentation: the way to test a path's MTU.
    """

    address: str
    port: int = 0
    protocol: Protocol = "tcp"
    source: str = NODE
    netns: str = ""
    source_address: str = ""
    source_port: int = 0
    timeout_s: float = 1.0
    payload: str = "podwire-probe"
    path: str = "/"
    host: str = ""
    size: int = 0


class ProbeResult(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One answer.

    `latency_us` is from the first packet to the answer. `client` is the source address the peer
    says it saw, `peer` its pod (`namespace/name`) and `peer_node` its node: known where the peer is
    a stand-in asked over HTTP or UDP. `status` is the HTTP status. `tries` counts packets or SYNs
    sent by podwire (the kernel's own SYN retransmissions not included).
    """

    verdict: Verdict
    latency_us: int = 0
    client: str = ""
    peer: str = ""
    peer_node: str = ""
    status: int = 0
    tries: int = 1
    detail: str = ""


class ProbeRequest(msgspec.Struct, frozen=True, kw_only=True):
    probes: tuple[Probe, ...]


class ProbeResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Results in the order of the request's probes; `elapsed_s` is the whole batch's."""

    results: tuple[ProbeResult, ...]
    elapsed_s: float


_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(ProbeRequest)
_response_decoder = msgspec.json.Decoder(ProbeResponse)


def encode(message: ProbeRequest | ProbeResponse) -> bytes:
    return _encoder.encode(message)


def parse_request(body: bytes) -> ProbeRequest:
    """Raises `UsageError` for anything that is not a well-formed request."""
    try:
        request = _request_decoder.decode(body)
    except msgspec.MsgspecError as e:
        raise UsageError(f"probe request: {e}") from e
    for number, probe in enumerate(request.probes):
        if problem := _problem(probe):
            raise UsageError(f"probe request: probe {number}: {problem}")
    return request


def parse_response(body: bytes) -> ProbeResponse:
    try:
        return _response_decoder.decode(body)
    except msgspec.MsgspecError as e:
        raise UsageError(f"probe response: {e}; do the agent and the client differ?") from e


def _problem(probe: Probe) -> str:
    try:
        address = ipaddress.ip_address(probe.address)
        if probe.source_address:
            source = ipaddress.ip_address(probe.source_address)
            if source.version != address.version:
                return f"source {source} and destination {address} are of two families"
    except ValueError as e:
        return str(e)
    if not 0 <= probe.source_port <= 65535:
        return f"source_port {probe.source_port} is not within 0-65535"
    if probe.protocol == "icmp":
        return "" if 0 <= probe.size <= 65535 else f"size {probe.size} is not within 0-65535"
    if not 1 <= probe.port <= 65535:
        return f"port {probe.port} is not within 1-65535"
    if not 0 < probe.timeout_s <= 60:
        return f"timeout_s {probe.timeout_s} is not within 0-60"
    if any(c in probe.path + probe.host for c in "\r\n \0"):
        return "path and host must not contain spaces or line ends"
    return ""


class Identity(msgspec.Struct, frozen=True):
    """The part of a stand-in's self-description that a probe reads."""

    namespace: str = ""
    pod: str = ""
    node: str = ""
    client: str = ""

    @property
    def peer(self) -> str:
        return f"{self.namespace}/{self.pod}" if self.pod else ""


def parse_identity(body: bytes) -> Identity:
    """The identity in a stand-in's answer; an empty one where the peer is something else."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Identity()
    if not isinstance(document, dict):
        return Identity()
    return Identity(
        namespace=_text(document.get("namespace")),
        pod=_text(document.get("pod")),
        node=_text(document.get("node")),
        client=_host_of(_text(document.get("client"))),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _host_of(text: str) -> str:
    """The address in `10.0.0.1`, `10.0.0.1:4242`, `fd00::1` or `[fd00::1]:4242`, else ""."""
    host = text
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
