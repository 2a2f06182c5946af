"""Connection list, summary and JSON."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from podwire.explain.endpoints import Port
from podwire.explain.reach import Answer, Reachability


def connections(reach: Reachability) -> dict[tuple[str, str], list[Port]]:
    """(source, destination) -> ports that work.

    Workloads stand for their pods where all their pods agree; where some pods are reached and
    others are not, the pods themselves are named, because the difference is the news.
    """
    grouped: dict[tuple[str, str, Port], list[Answer]] = {}
    for answer in reach.answers:
        source, destination = reach.sources[answer.source], reach.destinations[answer.destination]
        key = (source.group, destination.group, _bare(answer.port))
        grouped.setdefault(key, []).append(answer)
    found: dict[tuple[str, str], set[Port]] = {}
    for (source_group, destination_group, port), answers in grouped.items():
        allowed = [answer for answer in answers if answer.verdict == "allowed"]
        if len(allowed) == len(answers):
            found.setdefault((source_group, destination_group), set()).add(port)
            continue
        for answer in allowed:
            pair = (
                _pod(reach.sources[answer.source].key),
                _pod(reach.destinations[answer.destination].key),
            )
            found.setdefault(pair, set()).add(port)
    return {pair: sorted(found[pair]) for pair in sorted(found)}


def _bare(port: Port) -> Port:
    return Port(port.number, port.protocol)


def _pod(key: str) -> str:
    return key if key.startswith("node/") or "/" not in key else f"{key}[Pod]"


def render_connlist(reach: Reachability) -> str:
    """np-guard's form, `shop/web[Deployment] => shop/api[Deployment] : TCP 8080`.

    One line per pair. Only what is allowed is listed; of a computed reachability all of it.
    """
    if reach.evidence == "static":
        return "".join(
            f"{c.source} => {c.destination} : {c.text}\n" for c in reach.connections if c.ports
        )
    lines = [
        f"{source} => {destination} : {join_ports(ports)}"
        for (source, destination), ports in connections(reach).items()
    ]
    return "\n".join(lines) + "\n" if lines else ""


def join_ports(ports: Iterable[Port]) -> str:
    """`TCP 80,443,UDP 53,ICMP`: the protocol once, as np-guard writes it."""
    by_protocol: dict[str, list[str]] = {}
    for port in ports:
        by_protocol.setdefault(port.protocol, []).append(str(port.number))
    return ",".join(
        protocol if protocol == "ICMP" else f"{protocol} {','.join(numbers)}"
        for protocol, numbers in sorted(by_protocol.items())
    )


def render_json(reach: Reachability) -> bytes:
    """The whole document, indented; `msgspec.json.decode(..., type=Reachability)` reads it back."""
    document = msgspec.to_builtins(reach)
    head = {
        "apiVersion": reach.api_version,
        "kind": reach.kind,
        "evidence": reach.evidence,
        "verdicts": reach.verdicts(),
    }
    return msgspec.json.format(msgspec.json.encode(head | document), indent=2) + b"\n"


def render_summary(reach: Reachability) -> str:
    """One line: `1,980 of 1,980 allowed in 0.4 s (median 210 us)`."""
    total = len(reach.answers)
    counts = reach.verdicts()
    parts = [f"{counts.get('allowed', 0):,} of {total:,} allowed"]
    parts += [f"{n:,} {verdict}" for verdict, n in sorted(counts.items()) if verdict != "allowed"]
    text = ", ".join(parts)
    if reach.elapsed_s:
        text += f" in {reach.elapsed_s:.1f} s"
    latencies = sorted(a.latency_us for a in reach.answers if a.latency_us)
    if latencies:
        text += f" (median {latencies[len(latencies) // 2]:,} us)"
    if reach.skipped:
        text += f"; {len(reach.skipped)} pods cannot talk yet"
    return text
