"""Which answers of the receive loop are timed, and for how many others each stands."""

from __future__ import annotations

import socket
import struct
from itertools import accumulate

import pytest

from podwire.dns.metrics import Metrics
from podwire.dns.timing import NONE, FastLatency, arrival_ns


def stamped(nanoseconds: int) -> list[tuple[int, int, bytes]]:
    data = struct.pack("=qq", *divmod(nanoseconds, 1_000_000_000))
    return [(socket.SOL_SOCKET, 64, data)]


class Bench:
    """Both clocks in one hand: `now` in nanoseconds."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_123_456_789
        self.latency = FastLatency(clock=lambda: self.now / 1e9, wall_ns=lambda: self.now)

    def batch(self, size: int, took_us: float, *, fast: bool = True) -> bool:
        """A batch that arrived together and is answered one after the other; whether one of it
        was timed."""
        arrived, place = self.now, self.latency.place()
        for number in range(size):
            self.now += int(took_us * 1000)
            if number == place:
                self.latency.observe(stamped(arrived), answered=fast)
        self.latency.batch(size)
        return 0 <= place < size

    def shares(self) -> dict[float, float]:
        histogram = self.latency.histogram
        bounds = (*histogram.bounds, float("inf"))
        return {b: c for b, c in zip(bounds, accumulate(histogram.counts), strict=True) if c}


def test_a_quiet_server_times_every_query() -> None:
    bench = Bench()
    for _ in range(10):
        assert bench.batch(1, took_us=20)
        bench.now += 2_000_000
    histogram = bench.latency.histogram
    assert sum(histogram.counts) == 10
    assert histogram.sum == pytest.approx(10 * 20e-6)
    assert min(bench.shares()) == 32e-6


def test_a_busy_server_times_one_a_millisecond_for_all() -> None:
    bench = Bench()
    begun = bench.now
    timed = sum(bench.batch(50, took_us=10) for _ in range(2000))
    assert timed <= (bench.now - begun) / 1e6 + 1
    counted = sum(bench.latency.histogram.counts)
    assert 2000 * 50 - 200 <= counted <= 2000 * 50


def test_the_timed_one_is_in_every_place_of_a_batch() -> None:
    """All arrive at once: the first waits 10 us and the last 500, the mean is 255."""
    bench = Bench()
    for _ in range(2000):
        bench.batch(50, took_us=10)
        bench.now += 600_000
    histogram = bench.latency.histogram
    assert histogram.sum / sum(histogram.counts) == pytest.approx(255e-6, rel=0.05)


def test_what_others_answer_is_theirs_to_time() -> None:
    bench = Bench()
    for number in range(1000):
        bench.batch(1, took_us=20, fast=number % 2 == 0)
        bench.now += 2_000_000
    assert sum(bench.latency.histogram.counts) == 500


def test_without_a_stamp_nothing_is_told_and_a_clock_set_back_is_no_time() -> None:
    latency = FastLatency(clock=lambda: 0.0, wall_ns=lambda: 5)
    assert arrival_ns([]) is None
    latency.observe([], answered=True)
    assert sum(latency.histogram.counts) == 0
    latency.observe(stamped(1_000), answered=True)
    assert (latency.histogram.counts[0], latency.histogram.sum) == (1, 0.0)
    assert (latency.place(), latency.place()) == (0, NONE), "one a millisecond"


def test_a_histogram_of_others_is_on_the_page() -> None:
    metrics, latency = Metrics(), FastLatency(wall_ns=lambda: 1_050_000)
    metrics.show("coredns_dns_request_duration_seconds", latency.histogram, view="fast")
    latency.observe(stamped(1_000_000), answered=True)
    page = metrics.render()
    assert 'coredns_dns_request_duration_seconds_bucket{le="3.2e-05",view="fast"} 0' in page
    assert 'coredns_dns_request_duration_seconds_bucket{le="6.4e-05",view="fast"} 1' in page
    assert 'coredns_dns_request_duration_seconds_count{view="fast"} 1' in page
