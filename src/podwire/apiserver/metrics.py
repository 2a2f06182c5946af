"""Counters of the server in Prometheus' text format, under upstream's metric names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from podwire.apiserver.store import Store

_BUCKETS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Metrics:
    requests: Counter[tuple[str, str, str, int]] = field(default_factory=Counter)
    """(verb, group, resource, code)."""
    durations: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """(verb, resource) -> count per bucket, then the number and the sum of all."""
    watchers: Counter[str] = field(default_factory=Counter)
    slow_watchers: int = 0

    def observe(self, verb: str, group: str, resource: str, code: int, seconds: float) -> None:
        self.requests[verb, group, resource, code] += 1
        row = self.durations.setdefault((verb, resource), [0.0] * (len(_BUCKETS_S) + 2))
        for index, bound in enumerate(_BUCKETS_S):
            if seconds <= bound:
                row[index] += 1
        row[-2] += 1
        row[-1] += seconds

    def render(self, store: Store) -> str:
        lines = ["# TYPE apiserver_request_total counter"]
        for (verb, group, resource, code), value in sorted(self.requests.items()):
            labels = f'code="{code}",group="{group}",resource="{resource}",verb="{verb}"'
            lines.append(f"apiserver_request_total{{{labels}}} {value}")
        lines.append("# TYPE apiserver_request_duration_seconds histogram")
        for (verb, resource), row in sorted(self.durations.items()):
            lines += _histogram(f'resource="{resource}",verb="{verb}"', row)
        lines.append("# TYPE apiserver_longrunning_requests gauge")
        for resource, value in sorted(self.watchers.items()):
            labels = f'resource="{resource}",verb="WATCH"'
            lines.append(f"apiserver_longrunning_requests{{{labels}}} {value}")
        lines.append("# TYPE apiserver_storage_objects gauge")
        for table in sorted(store.tables(), key=lambda table: table.name):
            labels = f'resource="{table.name}"'
            lines.append(f"apiserver_storage_objects{{{labels}}} {len(table.records)}")
        lines += [
            "# TYPE podwire_apiserver_slow_watchers_closed_total counter",
            f"podwire_apiserver_slow_watchers_closed_total {self.slow_watchers}",
            "# TYPE podwire_apiserver_commits_total counter",
            f"podwire_apiserver_commits_total {store.commits}",
            "# TYPE podwire_apiserver_resource_version gauge",
            f"podwire_apiserver_resource_version {store.rv}",
        ]
        return "\n".join(lines) + "\n"


def _histogram(labels: str, row: list[float]) -> list[str]:
    name = "apiserver_request_duration_seconds"
    bounds = [*(f"{bound:g}" for bound in _BUCKETS_S), "+Inf"]
    lines = [
        f'{name}_bucket{{{labels},le="{bound}"}} {int(value)}'
        for bound, value in zip(bounds, [*row[:-2], row[-2]], strict=True)
    ]
    lines.append(f"{name}_sum{{{labels}}} {row[-1]:.6f}")
    lines.append(f"{name}_count{{{labels}}} {int(row[-2])}")
    return lines
