"""Prometheus' text format, version 0.0.4, written in one pass. Pure.

`Page` collects families in order; a family without samples is left out. The Python client library
is not used: its registry, locks and per-sample objects cost more than the numbers, which live in
the kernel and are read when asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final, Literal

Labels = Mapping[str, str]
Samples = Iterable[tuple[Labels, float]]

LATENCY_BUCKETS_S: Final = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    1.0,
    5.0,
)


class Histogram:
    """Counts by upper bound; bounds as Prometheus wants them are cumulative only when rendered."""

    def __init__(self, bounds: tuple[float, ...] = LATENCY_BUCKETS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """The upper bound under which this share of the values is; 0 where there are none."""
        wanted = share * self.count
        reached = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            reached += count
            if count and reached >= wanted:
                return bound
        return 0.0


class Page:
    """One page in the making."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(
        self, name: str, kind: Literal["counter", "gauge"], text: str, samples: Samples
    ) -> None:
        lines = [f"{name}{render_labels(labels)} {_number(value)}" for labels, value in samples]
        if lines:
            self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines]

    def add_histogram(self, name: str, text: str, histogram: Histogram) -> None:
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        reached = 0
        for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
            reached += count
            edge = "+Inf" if bound is None else f"{bound:g}"
            self._lines.append(f'{name}_bucket{{le="{edge}"}} {reached}')
        self._lines.append(f"{name}_sum {histogram.sum:.6f}")
        self._lines.append(f"{name}_count {reached}")

    def render(self) -> str:
        return "\n".join([*self._lines, ""])


def render_labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6f}"
