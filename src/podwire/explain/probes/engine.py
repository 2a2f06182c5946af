"""The loop that drives probes: one epoll, bounded concurrency, a heap of timers.

    run(probes) -> queue -> [open in the source's namespace] -> [connect or send] -> events, timers

It blocks and it moves its thread between network namespaces, hence it belongs in a worker thread.
Sockets are opened many per entry of a namespace, because entering costs as much as opening.
At most `per_destination` probes are under way to one address and port: more would overflow the
listener's accept queue, and a drop of our own making would read as a policy's.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import resource
import select
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from podwire.errors import KernelError, PodwireError, UnsupportedError
from podwire.explain.probes.icmp import judge_errno
from podwire.explain.probes.protocols import sessions as protocol_sessions
from podwire.explain.probes.sessions import IcmpChannel, IcmpSession, Session
from podwire.explain.probes.wire import Probe, ProbeResult
from podwire.kernel import guard, netns

Resolve: TypeAlias = Callable[[str], Path | None]
"""The pin of a source's network namespace, None for the caller's own; LookupError if unknown."""

_MAX_EVENTS: Final = 1024
# Descriptors left for everything else the process does meanwhile.
_SPARE_DESCRIPTORS: Final = 64
_PINS_KEPT_OPEN: Final = 64

_Destination: TypeAlias = tuple[str, int]
_ChannelKey: TypeAlias = tuple[str, int, str, bool]


@dataclass(frozen=True)
class Limits:
    """`concurrency` probes under way at once, of which `per_destination` to one address:port."""

    concurrency: int = 512
    per_destination: int = 64


DEFAULT_LIMITS: Final = Limits()


def only_the_node(source: str) -> Path | None:
    """The `Resolve` of an engine that knows no pods."""
    if source:
        raise LookupError(source)
    return None


def raise_descriptor_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit, as any user may; returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class ProbeEngine:
    """Runs batches of probes, one batch at a time, in the calling thread."""

    def __init__(self, resolve: Resolve = only_the_node, limits: Limits = DEFAULT_LIMITS) -> None:
        self._resolve = resolve
        self._limits = limits
        self._stopping = threading.Event()

    def run(self, probes: Sequence[Probe]) -> list[ProbeResult]:
        """Results in the order of `probes`; never raises for what one probe meets.

        Takes as long as the probes need, at most about
        `ceil(len(probes) / concurrency) * timeout_s` (all dropped).
        """
        batch = _Batch(probes, self._resolve, self._concurrency(), self._limits.per_destination)
        try:
            return batch.run(self._stopping)
        finally:
            batch.close()

    def stop(self) -> None:
        """Have a running and every later batch end at once; unasked probes become errors."""
        self._stopping.set()

    def _concurrency(self) -> int:
        limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = limit - len(os.listdir("/proc/self/fd")) - _SPARE_DESCRIPTORS - _PINS_KEPT_OPEN
        # Two descriptors a probe: a second socket tries where the first got no answer.
        return max(1, min(self._limits.concurrency, free // 2))


class _Namespaces:
    """Descriptors of the pins in use, the least recently used closed first."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def fd(self, pin: Path) -> int:
        if pin in self._open:
            self._open.move_to_end(pin)
            return self._open[pin]
        if len(self._open) >= _PINS_KEPT_OPEN:
            os.close(self._open.popitem(last=False)[1])
        fd = self._open[pin] = netns.open_pin(pin)
        return fd

    @contextlib.contextmanager
    def entered(self, pin: Path | None) -> Iterator[None]:
        with netns.maybe_entered(None if pin is None else self.fd(pin)):
            yield

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class _Batch:
    """One run: the `Loop` its sessions talk to."""

    def __init__(
        self, probes: Sequence[Probe], resolve: Resolve, concurrency: int, per_destination: int
    ) -> None:
        self._probes = probes
        self._resolve = resolve
        self._concurrency = concurrency
        self._per_destination = per_destination
        self._results: list[ProbeResult | None] = [None] * len(probes)
        # By source, so that one entry of a namespace opens many sockets.
        order = sorted(range(len(probes)), key=lambda i: (probes[i].netns, probes[i].source))
        self._queue: deque[int] = deque(order)
        self._parked: dict[_Destination, deque[int]] = {}
        self._resumed: list[int] = []
        self._under_way: dict[_Destination, int] = {}
        self._active = 0
        self._epoll = select.epoll()
        self._handlers: dict[int, Session | IcmpChannel] = {}
        self._timers: list[tuple[int, int, Session]] = []
        self._namespaces = _Namespaces()
        self._pins: dict[int, Path | None] = {}
        self._channels: dict[_ChannelKey, IcmpChannel] = {}

    def run(self, stopping: threading.Event) -> list[ProbeResult]:
        while (self._queue or self._active or self._resumed) and not stopping.is_set():
            # Refill in halves: many sockets per entry of a namespace.
            if (self._queue or self._resumed) and self._active <= self._concurrency // 2:
                self._refill()
            if self._active:
                self._turn()
        unasked = ProbeResult(verdict="error", tries=0, detail="the probe engine is stopping")
        return [result or unasked for result in self._results]

    def close(self) -> None:
        for handler in {id(h): h for h in self._handlers.values()}.values():
            handler.done = True
            handler.close()
        for channel in self._channels.values():
            channel.close()
        self._namespaces.close()
        self._epoll.close()

    # --- what sessions ask for ---

    def watch(self, sock: socket.socket, events: int, session: Session | IcmpChannel) -> None:
        self._handlers[sock.fileno()] = session
        self._epoll.register(sock, events)

    def change(self, sock: socket.socket, events: int) -> None:
        self._epoll.modify(sock, events)

    def forget(self, sock: socket.socket) -> None:
        # Closing the socket takes it out of the epoll set.
        self._handlers.pop(sock.fileno(), None)

    def finished(self, session: Session, result: ProbeResult) -> None:
        self._results[session.index] = result
        self._active -= 1
        self._pins.pop(session.index, None)
        self._leave(_destination(session.probe))

    def socket_again(self, session: Session, family: int, kind: int, proto: int) -> socket.socket:
        try:
            with self._namespaces.entered(self._pins[session.index]):
                return socket.socket(family, kind, proto)
        except KernelError as e:
            raise OSError(e.errno, str(e)) from e

    # --- starting ---

    def _refill(self) -> None:
        """Start what fits, group by group of one source."""
        self._queue.extendleft(reversed(self._resumed))
        self._resumed.clear()
        group: list[int] = []
        while self._queue and self._active + len(group) < self._concurrency:
            index = self._queue[0]
            if group and _source(self._probes[index]) != _source(self._probes[group[0]]):
                self._start(group)
                group = []
                continue
            self._queue.popleft()
            if self._enter(index):
                group.append(index)
        self._start(group)

    def _enter(self, index: int) -> bool:
        """Count the probe towards its destination, or park it until another one is done."""
        destination = _destination(self._probes[index])
        if self._under_way.get(destination, 0) >= self._per_destination:
            self._parked.setdefault(destination, deque()).append(index)
            return False
        self._under_way[destination] = self._under_way.get(destination, 0) + 1
        return True

    def _leave(self, destination: _Destination) -> None:
        self._under_way[destination] -= 1
        if parked := self._parked.get(destination):
            self._resumed.append(parked.popleft())
            if not parked:
                del self._parked[destination]

    def _start(self, group: Sequence[int]) -> None:
        if not group:
            return
        kinds = protocol_sessions()
        sessions = [kinds[self._probes[i].protocol](self, i, self._probes[i]) for i in group]
        self._active += len(sessions)
        first = self._probes[group[0]]
        try:
            pin = Path(first.netns) if first.netns else self._resolve(first.source)
            with self._namespaces.entered(pin):
                guard_destinations(self._probes[i].address for i in group)
                opened = [session for session in sessions if self._open(session, str(pin))]
        except LookupError:
            _refuse(sessions, f"{first.source}: no such pod runs on this node")
            return
        except (PodwireError, OSError) as e:
            _refuse(sessions, str(e))
            return
        for session in opened:
            self._pins[session.index] = pin
            self._launch(session)

    def _open(self, session: Session, source: str) -> bool:
        try:
            if isinstance(session, IcmpSession):
                session.channel = self._channel(session.probe, session.version, source)
            session.open()
        except UnsupportedError as e:
            session.finish("error", str(e))
            return False
        except OSError as e:
            session.finish(*judge_errno(e.errno or 0))
            return False
        return True

    def _launch(self, session: Session) -> None:
        session.start()
        if not session.done:
            heapq.heappush(self._timers, (session.next_timer_ns, session.index, session))

    def _channel(self, probe: Probe, version: int, source: str) -> IcmpChannel:
        key = (source, version, probe.source_address, probe.size > 0)
        channel = self._channels.get(key)
        if channel is None:
            self._close_idle_channels()
            channel = IcmpChannel(self, version, probe.source_address, probe.size > 0)
            self._channels[key] = channel
            self.watch(channel.sock, select.EPOLLIN, channel)
        return channel

    def _close_idle_channels(self) -> None:
        if len(self._channels) < _PINS_KEPT_OPEN:
            return
        for key in [key for key, channel in self._channels.items() if not channel.pending]:
            self._channels.pop(key).close()

    # --- turning ---

    def _turn(self) -> None:
        for fd, events in self._epoll.poll(self._patience_s(), _MAX_EVENTS):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler.on_event(fd, events)
        now = time.monotonic_ns()
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].done):
            session = heapq.heappop(self._timers)[2]
            if session.done:
                continue
            session.on_timer()
            if not session.done:
                heapq.heappush(self._timers, (session.next_timer_ns, session.index, session))

    def _patience_s(self) -> float:
        if not self._timers:
            return 0.1
        return max(0.0, (self._timers[0][0] - time.monotonic_ns()) / 1e9)


def guard_destinations(addresses: Iterable[str]) -> None:
    """Refuse anything but loopback where the calling thread is in the host's namespace."""
    checked: set[str] = set()
    for address in addresses:
        if address not in checked:
            checked.add(address)
            guard.assert_may_connect(address)


def _source(probe: Probe) -> tuple[str, str]:
    return probe.netns, probe.source


def _destination(probe: Probe) -> _Destination:
    return probe.address, probe.port


def _refuse(sessions: Sequence[Session], why: str) -> None:
    for session in sessions:
        if not session.done:
            session.finish("error", why)
