"""Flow logs as documents: what one node answers, what several say together, and files. Pure.

    FlowLog of each node -> FlowLogDocument -> merge_documents -> one document -> staging, recommend

A document says how much it does not know: packets that never came, records that had to make room,
nodes that did not answer, and since when it watched. What is concluded from it repeats that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from podwire.errors import UsageError
from podwire.policy.flowlog import FlowRecord, merge_records

API_VERSION: Final = "podwire.dev/v1alpha1"
KIND: Final = "FlowLog"


class FlowLogDocument(msgspec.Struct, rename="camel"):
    """`nodes` answered, `silent` did not, with the reason.

    `lost` packets were never seen, `forgotten` records made room for others; None: nobody says.
    `passed` False: only what was denied was noted. `since` and `until` are seconds since the epoch;
    from `since` on all `nodes` watched. `places` are `file:line` of the policies and rules that
    records name, by what they are called there, as far as somebody knows the manifests.
    """

    api_version: str = API_VERSION
    kind: str = KIND
    nodes: tuple[str, ...] = ()
    silent: Mapping[str, str] = {}
    passed: bool = True
    since: float | None = None
    until: float | None = None
    lost: int | None = None
    forgotten: int | None = None
    records: tuple[FlowRecord, ...] = ()
    places: Mapping[str, str] = {}

    @property
    def first_seen(self) -> float | None:
        """When the window begins: as told, else with the first record."""
        seen = [record.first_seen for record in self.records]
        return self.since if self.since is not None else min(seen, default=None)

    @property
    def last_seen(self) -> float | None:
        seen = [record.last_seen for record in self.records]
        return self.until if self.until is not None else max(seen, default=None)

    def doubts(self) -> Iterator[str]:
        """Why something that happened may not be in it."""
        if self.lost is None or self.forgotten is None:
            yield "the flow log does not say what it lost"
        if self.lost:
            yield f"{self.lost} packets were lost before they were read"
        if self.forgotten:
            yield f"{self.forgotten} records were forgotten to make room"
        if not self.passed:
            yield "what passed was not noted on every node: `podwire policy observe on`"
        for node, reason in self.silent.items():
            yield f"node {node} did not answer: {reason}"

    def window(self) -> str:
        """In words: from when to when, and how long that is."""
        first, last = self.first_seen, self.last_seen
        if first is None or last is None:
            return "nothing was seen"
        return f"{clock(first)} to {clock(last)} ({duration(last - first)})"


def merge_documents(
    documents: Iterable[FlowLogDocument], silent: Mapping[str, str] | None = None
) -> FlowLogDocument:
    """What all nodes watched at the same time is the window; losses add up."""
    found = list(documents)
    missing = dict(silent or {})
    for document in found:
        missing |= document.silent
    return FlowLogDocument(
        nodes=tuple(sorted({node for document in found for node in document.nodes})),
        silent=missing,
        passed=all(document.passed for document in found),
        since=max((d.since for d in found if d.since is not None), default=None),
        until=min((d.until for d in found if d.until is not None), default=None),
        lost=_sum(document.lost for document in found),
        forgotten=_sum(document.forgotten for document in found),
        records=tuple(merge_records(document.records for document in found)),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """Unknown as soon as one is."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def read_flow_log(text: str | bytes, origin: str) -> FlowLogDocument:
    """A document, or a bare list of records. Raises `UsageError`."""
    try:
        raw = msgspec.json.decode(text)
        if isinstance(raw, list):
            raw = {"records": raw}
        document = msgspec.convert(raw, FlowLogDocument)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{origin}: not a flow log: {error}") from error
    if (document.api_version, document.kind) != (API_VERSION, KIND):
        said = f"{document.api_version} {document.kind}"
        raise UsageError(f"{origin}: {said} is not a flow log; want {API_VERSION} {KIND}")
    return document


# --- words --------------------------------------------------------------------------------------


def clock(at: float) -> str:
    """A time as Kubernetes writes it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(length_s: float) -> str:
    """Roughly, in the two largest units: `2d3h`, `5m10s`, `0.4s`."""
    if length_s < 1:
        return f"{max(length_s, 0.0):.1f}s"
    rest = round(length_s)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    return "".join(parts[:2])
