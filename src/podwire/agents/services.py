"""One node's Services, kept in the kernel as the API says.

    Services, EndpointSlices, ServiceCIDRs, this Node, its Pods with hostPorts
      -> compile_service (what changed) -> Claims -> back end -> conntrack -> report

A change costs what it changes: one Service is compiled, its difference is one to three small
transactions. At the start everything is compiled in portions, DNS and the API first, and what an
earlier agent left keeps working until it is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from podwire.agents.backends import BACKENDS
from podwire.agents.config import ServiceConfig
from podwire.agents.healthchecks import ProxyHealth, ServiceHealthChecks
from podwire.agents.servicekernel import FlowCleaner, NftablesBackend, Ranges
from podwire.client import Api, Change, EventRecorder, Informer
from podwire.errors import KernelError
from podwire.objects import kinds
from podwire.objects.core import Node, Pod, Service
from podwire.objects.discovery import EndpointSlice, ServiceCidr
from podwire.objects.meta import Key, Object
from podwire.services.claims import Claims, Owner, Rank
from podwire.services.evaluate import Domain, address_ranges
from podwire.services.hostports import compile_host_ports, container_ports
from podwire.services.model import (
    PROTOCOLS,
    Address,
    CompiledService,
    Frontend,
    FrontendKey,
    NodeView,
    compile_service,
)
from podwire.services.tally import Tally
from podwire.telemetry.exposition import Histogram
from podwire.telemetry.progress import Progress

_LOG = logging.getLogger(__name__)
# Services in one portion at the start: about 20 ms of compiling and one transaction.
_PORTION = 200
_CLEAN_DELAY_S = 0.01
_RETRY_S = 1.0
# What the kernel goes on refusing is tried ever more rarely: each time everything is compared.
_REFUSED_RETRY_MAX_S = 60.0
# What one node alone meets, and so tells itself.
_OWN_TROUBLE = ("FailedToProgram", "FailedToStartServiceHealthcheck")
_ZONE = "topology.kubernetes.io/zone"
# Others' proxies serve Services that carry these (k/k cmd/kube-proxy/app/server.go).
_OURS = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
_OUR_SLICES = "!service.kubernetes.io/headless"


@dataclass(frozen=True)
class Programmed:
    """What the kernel does for one owner. `revision` is the newest resourceVersion in it."""

    revision: int
    compiled: CompiledService
    error: str = ""


class ServiceAgent:
    """`synced` is set once everything known at the start is programmed."""

    def __init__(
        self,
        api: Api,
        node_name: str,
        config: ServiceConfig,
        nodes: Informer[Node],
        pods: Informer[Pod] | None = None,
    ) -> None:
        self._name = node_name
        self.config = config
        self._nodes = nodes
        self._pods = pods
        self.services: Informer[Service] = Informer(api, kinds.SERVICE, label_selector=_OURS)
        self.slices: Informer[EndpointSlice] = Informer(
            api, kinds.ENDPOINT_SLICE, label_selector=_OUR_SLICES
        )
        self._cidrs: Informer[ServiceCidr] = Informer(api, kinds.SERVICE_CIDR)
        self._events = EventRecorder(api, "podwire-agent", node_name)
        self._slices_of: dict[Key, dict[Key, EndpointSlice]] = {}
        self._dirty: dict[Owner, float] = {}
        self._ranges_dirty = True
        self._wake = asyncio.Event()
        self._pool_ranges = config.pools.packed()
        self.view = NodeView(node_name, external_ips=config.external_ips, pools=self._pool_ranges)
        self.claims = Claims()
        self.programmed: dict[Owner, Programmed] = {}
        self.backend = BACKENDS[config.backend](config.families, self.claims)
        self.cleaner = FlowCleaner(config.families, self.claims)
        self._gone: list[FrontendKey] = []
        self._cleaning: asyncio.TimerHandle | None = None
        self._mend = False
        self._refusals: dict[Owner, float] = {}
        """Seconds until what the kernel refused is tried again."""
        self._telling: set[asyncio.Task[None]] = set()
        self.mended = 0
        self.latency = Histogram()
        self.progress: Progress[Owner] = Progress()
        self._watchers: set[asyncio.Event] = set()
        self.synced = asyncio.Event()
        self.health = ProxyHealth()
        self.health_checks = ServiceHealthChecks(
            self.health, self._no_health_check, config.families
        )

    # --- observe --------------------------------------------------------------------------------

    def _service_changed(self, change: Change[Service]) -> None:
        self._touch(Owner("Service", change.key), _revision(change.new or change.old))

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        for piece, there in ((change.old, False), (change.new, True)):
            if piece is None or not piece.service_name:
                continue
            key = Key(piece.metadata.namespace, piece.service_name)
            if there:
                self._slices_of.setdefault(key, {})[piece.key] = piece
            elif key in self._slices_of:
                self._slices_of[key].pop(piece.key, None)
                if not self._slices_of[key]:
                    del self._slices_of[key]
            self._touch(Owner("Service", key), _revision(change.new or piece))

    def _pod_changed(self, change: Change[Pod]) -> None:
        pods = [pod for pod in (change.old, change.new) if pod is not None]
        if any(port.host_port for pod in pods for port in container_ports(pod)):
            self._touch(Owner("Pod", change.key))

    def _node_changed(self, change: Change[Node]) -> None:
        if change.key.name != self._name:
            return
        self.health.sync_node(change.new)
        if change.new is None:
            return
        view = NodeView(
            self._name,
            change.new.metadata.labels.get(_ZONE, ""),
            tuple(ip_address(text) for text in change.new.internal_ips),
            self.config.external_ips,
            self._pool_ranges,
        )
        if view != self.view:
            self.view = view
            for owner in list(self._everyone()):
                self._touch(owner)

    def _cidr_changed(self, _change: Change[ServiceCidr]) -> None:
        self._ranges_dirty = True
        self._wake.set()

    def _everyone(self) -> Iterable[Owner]:
        services = {Owner("Service", key): None for key in self.services.objects}
        return [*services, *(owner for owner in self.programmed if owner not in services)]

    def _touch(self, owner: Owner, version: int = 0) -> None:
        """`version` is the change's, where it is one that `progress` speaks of."""
        self.health.queued()
        self._dirty.setdefault(owner, time.monotonic())
        if version:
            self.progress.told(owner, version)
        self._wake.set()

    def _foreign(self) -> None:
        """Somebody else changed our tables: look once, and mend."""
        found = self.backend.foreign()
        if found:
            _LOG.warning("services: changed by others, mending: %.200s", "; ".join(found))
            self._mend = True
            self._wake.set()

    # --- run ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the API until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.services.run())
            group.create_task(self.slices.run())
            group.create_task(self._cidrs.run())
            group.create_task(self.health_checks.run())
            await self.services.synced.wait()
            await self.slices.synced.wait()
            await self._nodes.synced.wait()
            self._nodes.on_change(self._node_changed)
            self.services.on_change(self._service_changed)
            self.slices.on_change(self._slice_changed)
            self._cidrs.on_change(self._cidr_changed)
            if self._pods is not None:
                self._pods.on_change(self._pod_changed)
            await self._start()
            if self.backend.fileno() >= 0:
                loop.add_reader(self.backend.fileno(), self._foreign)
            try:
                await self._follow()
            finally:
                if self.backend.fileno() >= 0:
                    loop.remove_reader(self.backend.fileno())

    async def _start(self) -> None:
        """Everything that is known, in portions; the loop runs between them."""
        while True:
            try:
                fresh = self.backend.open(self._ranges())
                break
            except KernelError as error:
                _LOG.error("services: no table: %s; trying again", error)
                await asyncio.sleep(_RETRY_S)
        self._ranges_dirty = False
        owners = sorted(self._dirty, key=self._urgency)
        self._dirty.clear()
        for start in range(0, len(owners), _PORTION):
            if fresh:
                self._program(owners[start : start + _PORTION])
            else:
                self._resume(owners[start : start + _PORTION])
            await asyncio.sleep(0)
        if not fresh:
            # An earlier agent's elements serve until all is known; then only differences are sent.
            self._try_mend()
        # Whose Service went while no agent was there; TCP notices by itself.
        self._gone += [key for key in self.backend.former if key.protocol == PROTOCOLS["UDP"]]
        self._clean()
        self._tell_health()
        self.synced.set()
        self._moved()

    def _urgency(self, owner: Owner) -> tuple[int, Owner]:
        service = self.services.objects.get(owner.key) if owner.kind == "Service" else None
        vital = owner.key == Key("default", "kubernetes") or (
            service is not None and service.metadata.labels.get("k8s-app") == "kube-dns"
        )
        return (0 if vital else 1), owner

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            owners, since = list(self._dirty), dict(self._dirty)
            self._dirty.clear()
            try:
                if self._ranges_dirty:
                    self.backend.set_ranges(self._ranges())
                    self._ranges_dirty = False
            except KernelError as error:
                _LOG.warning("services: ranges not programmed: %s", error)
                asyncio.get_running_loop().call_later(_RETRY_S, self._wake.set)
            if self._mend:
                self._mend = False
                self._try_mend()
            for start in range(0, len(owners), _PORTION):
                portion = owners[start : start + _PORTION]
                self._program(portion)
                now = time.monotonic()
                for owner in portion:
                    self.latency.observe(now - since[owner])
                self._moved()
                await asyncio.sleep(0)
            self._tell_health()

    def _ranges(self) -> Ranges:
        extra = [
            ip_network(cidr)
            for obj in self._cidrs.objects.values()
            if not obj.deleting
            for cidr in obj.spec.cidrs
        ]
        cidrs = tuple(dict.fromkeys([*self.config.service_cidrs, *extra]))
        return Ranges(cidrs, self.config.cluster_cidrs)

    @property
    def domain(self) -> Domain:
        """The shared ranges, as `evaluate` wants them."""
        vips = frozenset(f.key.ip for f in self.claims.frontends.values() if f.exclusive)
        return self._domain(vips)

    def _domain(self, vips: frozenset[bytes] = frozenset()) -> Domain:
        ranges = self._ranges()
        return Domain(
            address_ranges(ranges.service_cidrs),
            address_ranges(ranges.cluster_cidrs),
            vips,
            frozenset(address.packed for address in self.view.addresses),
        )

    def serves(self, service: Service, addresses: Iterable[Address]) -> bool:
        """Whether the kernel has all these addresses of the Service."""
        programmed = self.programmed.get(Owner("Service", service.key))
        known = {f.key.ip for f in programmed.compiled.frontends} if programmed else set()
        return all(address.packed in known for address in addresses)

    # --- compile, plan, apply -------------------------------------------------------------------

    def _program(self, owners: list[Owner]) -> None:
        """Compile these owners and apply the difference; one that the kernel refuses keeps what
        it had, and does not hold up the others."""
        fresh = {owner: self._compile(owner) for owner in owners}
        before = {owner: self.programmed.get(owner) for owner in owners}
        for owner, programmed in fresh.items():
            self._set(owner, programmed)
        try:
            self.backend.commit()
        except KernelError as error:
            self._one_by_one(fresh, before, error)
        for owner, programmed in fresh.items():
            self._remember(owner, programmed)
        self._note_flows(before, fresh)

    def _resume(self, owners: list[Owner]) -> None:
        """Compile only: the kernel has an earlier agent's state, and is compared as a whole."""
        for owner in owners:
            programmed = self._compile(owner)
            self._set(owner, programmed)
            self._remember(owner, programmed)

    def _set(self, owner: Owner, programmed: Programmed | None) -> None:
        frontends = programmed.compiled.frontends if programmed else ()
        self.claims.set(owner, frontends, self._rank(owner))

    def _one_by_one(
        self,
        fresh: dict[Owner, Programmed | None],
        before: dict[Owner, Programmed | None],
        error: KernelError,
    ) -> None:
        """After a refused transaction: all back as it was, then one owner after the other."""
        _LOG.warning("services: %s", error)
        for owner in fresh:
            self._set(owner, before[owner])
        self._try_mend()
        for owner, programmed in list(fresh.items()):
            self._set(owner, programmed)
            try:
                self.backend.commit()
            except KernelError as refusal:
                self._set(owner, before[owner])
                self._try_mend()
                self._refused(owner, refusal)
                self._try_again(owner)
                kept = before[owner] or Programmed(0, CompiledService(owner.key))
                fresh[owner] = Programmed(kept.revision, kept.compiled, str(refusal))

    def _try_mend(self) -> None:
        try:
            self.backend.mend()
            self.mended += 1
        except KernelError as error:
            _LOG.error("services: not mended: %s; trying again", error)
            self._mend = True
            asyncio.get_running_loop().call_later(_RETRY_S, self._wake.set)

    def _refused(self, owner: Owner, error: KernelError) -> None:
        _LOG.error("%s: the kernel refused it, the former state works on: %s", owner, error)
        service = self.services.objects.get(owner.key) if owner.kind == "Service" else None
        former = self.programmed.get(owner)
        if service is not None and (former is None or former.error != str(error)):
            self._spawn_event(service, "FailedToProgram", str(error))

    def _try_again(self, owner: Owner) -> None:
        """What was refused may have room later: memory, or the programs' lock, come back."""
        delay = self._refusals.get(owner, _RETRY_S)
        self._refusals[owner] = min(2 * delay, _REFUSED_RETRY_MAX_S)
        asyncio.get_running_loop().call_later(delay, self._retry, owner)

    def _retry(self, owner: Owner) -> None:
        if owner in self._refusals:
            self._touch(owner)

    def _compile(self, owner: Owner) -> Programmed | None:
        if owner.kind == "Pod":
            return self._compile_pod(owner.key)
        service = self.services.objects.get(owner.key)
        if service is None:
            return None
        slices = list(self._slices_of.get(owner.key, {}).values())
        compiled = compile_service(service, slices, self.view)
        revision = max(_revision(obj) for obj in (service, *slices))
        return Programmed(revision, compiled)

    def _compile_pod(self, key: Key) -> Programmed | None:
        pod = self._pods.objects.get(key) if self._pods is not None else None
        frontends = compile_host_ports(pod, self.view) if pod is not None else ()
        if pod is None or not frontends:
            return None
        return Programmed(_revision(pod), CompiledService(key, frontends))

    def _rank(self, owner: Owner) -> Rank:
        """Older Services first, hostPorts after them."""
        if owner.kind == "Pod":
            return ("1", *owner.key)
        service = self.services.objects.get(owner.key)
        created = service.metadata.creation_timestamp if service is not None else None
        return ("0", created or "", *owner.key)

    # --- report ---------------------------------------------------------------------------------

    def _remember(self, owner: Owner, programmed: Programmed | None) -> None:
        former = self.programmed.get(owner)
        if programmed is None or not programmed.error:
            self._refusals.pop(owner, None)
            self.progress.done(owner)
        else:
            self.progress.refuse(owner, programmed.error)
        if owner.kind == "Service":
            check = programmed.compiled.health_check if programmed else None
            self.health_checks.set(owner.key, check)
        if programmed is None:
            self.programmed.pop(owner, None)
            for frontend in former.compiled.frontends if former is not None else ():
                if self.tally is not None:
                    self.tally.forget(frontend.key)
            return
        self.programmed[owner] = programmed
        problems = programmed.compiled.problems
        if problems and (former is None or former.compiled.problems != problems):
            service = self.services.objects.get(owner.key)
            for problem in problems if service is not None else ():
                assert service is not None
                self._spawn_event(service, "ServiceProblem", problem)

    @property
    def tally(self) -> Tally | None:
        """What elements counted, where the back end has elements."""
        return self.backend.tally if isinstance(self.backend, NftablesBackend) else None

    @property
    def ranges(self) -> Ranges:
        return self._ranges()

    @property
    def node_count(self) -> int:
        return len(self._nodes.objects)

    @contextlib.contextmanager
    def watched(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever something was programmed; who waits clears it."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            yield event
        finally:
            self._watchers.discard(event)

    def _moved(self) -> None:
        for event in self._watchers:
            event.set()

    def _spawn_event(self, service: Service, reason: str, message: str) -> None:
        """Only one node tells: all of them find the same problem."""
        names = sorted(key.name for key in self._nodes.objects)
        if names[:1] != [self._name] and reason not in _OWN_TROUBLE:
            return
        task = asyncio.ensure_future(
            self._events.record(kinds.SERVICE, service, "Warning", reason, message)
        )
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _tell_health(self) -> None:
        """Up to date, unless something is left to try again or came meanwhile."""
        if not (self._dirty or self._mend or self._ranges_dirty):
            self.health.updated()

    def _no_health_check(self, key: Key, text: str) -> None:
        service = self.services.objects.get(key)
        if service is not None:
            message = f"node {self._name} {text}"
            self._spawn_event(service, "FailedToStartServiceHealthcheck", message)

    # --- connection tracking --------------------------------------------------------------------

    def _note_flows(
        self, before: dict[Owner, Programmed | None], fresh: dict[Owner, Programmed | None]
    ) -> None:
        """UDP of these owners may now lead elsewhere: look at the table soon, once for many."""
        changed = False
        for owner, programmed in fresh.items():
            old = _udp_frontends(before[owner])
            new = _udp_frontends(programmed)
            changed = changed or old != new
            self._gone += old.keys() - new.keys()
        if changed and self._cleaning is None:
            loop = asyncio.get_running_loop()
            self._cleaning = loop.call_later(_CLEAN_DELAY_S, self._clean)

    def _clean(self) -> None:
        self._cleaning = None
        gone, self._gone = self._gone, []
        try:
            for stale in self.cleaner.clean(self._domain(), gone):
                _LOG.info("services: flow deleted (%s): %s", stale.reason, stale.flow)
        except KernelError as error:
            _LOG.warning("services: conntrack not cleaned: %s; trying again", error)
            self._gone = gone
            self._cleaning = asyncio.get_running_loop().call_later(_RETRY_S, self._clean)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.backend.close()
            self.cleaner.close()


def _revision(obj: Object | None) -> int:
    text = obj.metadata.resource_version if obj is not None else ""
    return int(text) if text.isdigit() else 0


def _udp_frontends(programmed: Programmed | None) -> dict[FrontendKey, Frontend]:
    if programmed is None:
        return {}
    udp = PROTOCOLS["UDP"]
    return {f.key: f for f in programmed.compiled.frontends if f.key.protocol == udp}
