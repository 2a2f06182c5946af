"""One node's Services, kept in the kernel as the API says.

    Services, EndpointSlices, ServiceCIDRs, this Node, its Pods with hostPorts
      -> compile_service (what changed) -> ServiceProgram -> ServiceNews

This module observes, compiles and says what is next; `serviceprogram` has the effects, and
`servicenews` tells others of them.

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
from ipaddress import ip_address, ip_network

from podwire.agents.backends import BACKENDS, BackendFactory
from podwire.agents.config import ServiceConfig
from podwire.agents.nftablesbackend import NftablesBackend
from podwire.agents.progressing import Watchers
from podwire.agents.servicekernel import FlowCleaner, Ranges, set_timeouts
from podwire.agents.servicenews import Recorder, ServiceNews
from podwire.agents.serviceprogram import FlowWatch, Programmed, ServiceProgram
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
    Address,
    CompiledService,
    NodeView,
    compile_service,
)
from podwire.services.pools import Pools
from podwire.services.tally import Tally
from podwire.telemetry.exposition import Histogram

_LOG = logging.getLogger(__name__)
# Services in one portion at the start: about 20 ms of compiling and one transaction.
_PORTION = 200
_RETRY_S = 1.0
_ZONE = "topology.kubernetes.io/zone"
# Others' proxies serve Services that carry these (k/k cmd/kube-proxy/app/server.go).
_OURS = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
_OUR_SLICES = "!service.kubernetes.io/headless"


class ServiceAgent:
    """`synced` is set once everything known at the start is programmed."""

    def __init__(
        self,
        api: Api,
        node_name: str,
        config: ServiceConfig,
        nodes: Informer[Node],
        pods: Informer[Pod] | None = None,
        *,
        make_backend: BackendFactory | None = None,
        events: Recorder | None = None,
    ) -> None:
        self._name = node_name
        self.config = config
        self._nodes = nodes
        self._pods = pods
        self.services: Informer[Service] = Informer(api, kinds.SERVICE, label_selector=_OURS)
        self.slices: Informer[EndpointSlice] = Informer(
            api, kinds.ENDPOINT_SLICE, label_selector=_OUR_SLICES
        )
        # Clusters before 1.33 have none.
        self._cidrs: Informer[ServiceCidr] = Informer(api, kinds.SERVICE_CIDR, optional=True)
        self._slices_of: dict[Key, dict[Key, EndpointSlice]] = {}
        self._dirty: dict[Owner, float] = {}
        self._ranges_dirty = True
        self._wake = asyncio.Event()
        self._pool_ranges = config.pools.packed()
        self.view = NodeView(node_name, external_ips=config.external_ips, pools=self._pool_ranges)
        self.claims = Claims()
        self.backend = (make_backend or BACKENDS[config.backend])(config.families, self.claims)
        recorder = events or EventRecorder(api, "podwire-agent", node_name)
        self.news = ServiceNews(node_name, self.services, nodes, recorder, config.families)
        self.news.forget = self.tally.forget if self.tally is not None else None
        self.program = ServiceProgram(self.backend, self.claims, self._rank, self.news)
        self.program.wake, self.program.touch = self._wake.set, self.touch
        self.flows = FlowWatch(FlowCleaner(config.families, self.claims), self._domain)
        self.latency = Histogram()
        self.synced = asyncio.Event()

    # --- observe --------------------------------------------------------------------------------

    def _service_changed(self, change: Change[Service]) -> None:
        self.touch(Owner("Service", change.key), _revision(change.new or change.old))

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
            self.touch(Owner("Service", key), _revision(change.new or piece))

    def _pod_changed(self, change: Change[Pod]) -> None:
        pods = [pod for pod in (change.old, change.new) if pod is not None]
        if any(port.host_port for pod in pods for port in container_ports(pod)):
            self.touch(Owner("Pod", change.key))

    def _node_changed(self, change: Change[Node]) -> None:
        if change.key.name != self._name:
            return
        self.news.health.sync_node(change.new)
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
                self.touch(owner)

    def _cidr_changed(self, _change: Change[ServiceCidr]) -> None:
        self._ranges_dirty = True
        self._wake.set()

    def _everyone(self) -> Iterable[Owner]:
        services = {Owner("Service", key): None for key in self.services.objects}
        return [*services, *(owner for owner in self.programmed if owner not in services)]

    def touch(self, owner: Owner, version: int = 0) -> None:
        """`version` is the change's, where it is one that `progress` speaks of."""
        self.news.health.queued()
        self._dirty.setdefault(owner, time.monotonic())
        if version:
            self.news.progress.told(owner, version)
        self._wake.set()

    def _foreign(self) -> None:
        """Somebody else changed our tables: look once, and mend."""
        found = self.backend.foreign()
        if found:
            _LOG.warning("services: changed by others, mending: %.200s", "; ".join(found))
            self.program.mend_wanted = True
            self._wake.set()

    # --- compile --------------------------------------------------------------------------------

    def _compile_portion(self, owners: Iterable[Owner]) -> dict[Owner, Programmed | None]:
        return {owner: self._compile(owner) for owner in owners}

    def _compile(self, owner: Owner) -> Programmed | None:
        if owner.kind == "Pod":
            return self._compile_pod(owner.key)
        service = self.services.objects.get(owner.key)
        if service is None:
            return None
        slices = self.slices_of(owner.key)
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

    # --- run ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the API until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.services.run())
            group.create_task(self.slices.run())
            group.create_task(self._cidrs.run())
            group.create_task(self.news.health_checks.run())
            await self.services.synced.wait()
            await self.slices.synced.wait()
            await self._cidrs.synced.wait()
            await self._nodes.synced.wait()
            self._nodes.on_change(self._node_changed)
            self.services.on_change(self._service_changed)
            self.slices.on_change(self._slice_changed)
            self._cidrs.on_change(self._cidr_changed)
            if self._pods is not None:
                self._pods.on_change(self._pod_changed)
            await self.start()
            if self.backend.fileno() >= 0:
                loop.add_reader(self.backend.fileno(), self._foreign)
            try:
                await self._follow()
            finally:
                if self.backend.fileno() >= 0:
                    loop.remove_reader(self.backend.fileno())

    async def start(self) -> None:
        """Everything that is known."""
        set_timeouts()
        fresh = await self._open()
        if not fresh and self._pods is not None:
            # The hostPorts of an earlier agent serve until it is known whose they are.
            await self._pods.synced.wait()
        self._ranges_dirty = False
        owners = sorted(self._dirty, key=self._urgency)
        self._dirty.clear()
        await (self._program_all(owners) if fresh else self._resume(owners))
        # Whose Service went while no agent was there.
        self.flows.clean(self.backend.former)
        self._tell_health()
        self.synced.set()
        self.news.watchers.moved()

    async def _open(self) -> bool:
        """True where the kernel has nothing of an earlier agent."""
        while True:
            try:
                return self.backend.open(self._ranges())
            except KernelError as error:
                _LOG.error("services: no table: %s; trying again", error)
                await asyncio.sleep(_RETRY_S)

    async def _program_all(self, owners: list[Owner]) -> None:
        """In portions; the loop runs between them."""
        for portion in _portions(owners):
            self.program_now(portion)
            await asyncio.sleep(0)

    async def _resume(self, owners: list[Owner]) -> None:
        """An earlier agent's elements serve until all is known; then only differences are sent."""
        for portion in _portions(owners):
            self.program.adopt(self._compile_portion(portion))
            await asyncio.sleep(0)
        self.program.mend()
        while self.program.mend_wanted:
            await asyncio.sleep(_RETRY_S)
            self.program.mend()

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
            since = dict(self._dirty)
            self._dirty.clear()
            self._program_ranges()
            if self.program.mend_wanted:
                self.program.mend()
            for portion in _portions(list(since)):
                self.program_now(portion)
                now = time.monotonic()
                for owner in portion:
                    self.latency.observe(now - since[owner])
                self.news.watchers.moved()
                await asyncio.sleep(0)
            self._tell_health()

    def program_now(self, owners: list[Owner]) -> None:
        """Compile these and apply the difference."""
        fresh = self._compile_portion(owners)
        before = self.program.commit(fresh)
        self.flows.note(before, {owner: self.programmed.get(owner) for owner in fresh})

    def _program_ranges(self) -> None:
        if not self._ranges_dirty:
            return
        self._ranges_dirty = False
        try:
            self.backend.set_ranges(self._ranges())
        except KernelError as error:
            # The back end knows them now; what the kernel has of them, nobody does.
            _LOG.warning("services: ranges not programmed: %s", error)
            self.program.mend_later()

    def _tell_health(self) -> None:
        """Up to date, unless something is left to try again or came meanwhile."""
        if not (self._dirty or self.program.mend_wanted or self._ranges_dirty):
            self.news.health.updated()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.backend.close()
            self.flows.cleaner.close()

    # --- what others read -----------------------------------------------------------------------

    def _ranges(self) -> Ranges:
        # One that is being deleted stays until no Service has an address of it.
        extra = [
            ip_network(cidr) for obj in self._cidrs.objects.values() for cidr in obj.spec.cidrs
        ]
        cidrs = tuple(dict.fromkeys([*self.config.service_cidrs, *extra]))
        return Ranges(cidrs, self.config.cluster_cidrs)

    def slices_of(self, service: Key) -> list[EndpointSlice]:
        return list(self._slices_of.get(service, {}).values())

    @property
    def programmed(self) -> dict[Owner, Programmed]:
        return self.program.programmed

    @property
    def tally(self) -> Tally | None:
        """What elements counted, where the back end has elements."""
        return self.backend.tally if isinstance(self.backend, NftablesBackend) else None

    @property
    def ranges(self) -> Ranges:
        return self._ranges()

    @property
    def pools(self) -> Pools:
        return self.config.pools

    @property
    def watchers(self) -> Watchers:
        return self.news.watchers

    @property
    def node_count(self) -> int:
        return len(self._nodes.objects)

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


def _portions(owners: list[Owner]) -> Iterator[list[Owner]]:
    return (owners[start : start + _PORTION] for start in range(0, len(owners), _PORTION))


def _revision(obj: Object | None) -> int:
    text = obj.metadata.resource_version if obj is not None else ""
    return int(text) if text.isdigit() else 0
