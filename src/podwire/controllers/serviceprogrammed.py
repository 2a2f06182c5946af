"""The condition of a Service: whether it, with its endpoints, is in the kernel of every node."""

from __future__ import annotations

from podwire.client import Change
from podwire.controllers.cluster import Cluster
from podwire.controllers.programmed import ProgrammedConditions, version_of
from podwire.objects import kinds
from podwire.objects.core import Condition, Service
from podwire.objects.discovery import EndpointSlice
from podwire.objects.meta import Key
from podwire.services.model import HEADLESS_LABEL, PROXY_NAME_LABEL, ignored
from podwire.telemetry.progress import SERVICES


class ServiceProgrammed(ProgrammedConditions[Service]):
    def __init__(self, cluster: Cluster) -> None:
        limit = cluster.config.programmed_services
        super().__init__(cluster, kinds.SERVICE, SERVICES, limit)

    def _followed(self, obj: Service) -> bool:
        labels = obj.metadata.labels
        return not (ignored(obj) or PROXY_NAME_LABEL in labels or HEADLESS_LABEL in labels)

    def _meaning(self, obj: Service) -> object:
        return meaning_of(obj)

    def _conditions(self, obj: Service) -> list[Condition]:
        return obj.status.conditions

    def _called(self, key: Key) -> str:
        return f"service {key}"

    def _watch_more(self) -> None:
        self._cluster.informer(kinds.ENDPOINT_SLICE).on_change(self._slice_changed)

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        piece = change.new or change.old
        if piece is None or not piece.service_name:
            return
        service = self._objects.get(Key(piece.metadata.namespace, piece.service_name))
        if service is not None:
            self._await(service, version_of(piece), fresh=False)


def meaning_of(service: Service) -> tuple[object, ...]:
    """What proxies read of a Service: a change of anything else is none."""
    meta = service.metadata
    return service.spec, service.status.load_balancer, meta.labels, meta.annotations
