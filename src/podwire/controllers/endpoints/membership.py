"""Which pods a Service selects and which Services select a pod, mended change by change.

A selector is filed under one of its label pairs; a pod asks only for the selectors filed under the
pairs it carries. So a pod's change costs in proportion to the Services that may select it, and a
Service's in proportion to the pods that carry the rarest of its pairs: nothing scans a namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from podwire.client import Change, Informer
from podwire.controllers.views import Pod
from podwire.objects.core import Service
from podwire.objects.meta import Key

Pair = tuple[str, str, str]
"""Namespace, label, value."""
Moved = Callable[[Change[Pod], frozenset[Key], frozenset[Key]], None]
"""A pod's change, and the Services that selected it before and do after."""

_NO_PODS: Mapping[Key, Pod] = MappingProxyType({})
_NONE: frozenset[Key] = frozenset()


def _pairs(namespace: str, labels: Mapping[str, str]) -> Iterator[Pair]:
    for label, value in labels.items():
        yield namespace, label, value


class Membership:
    """`moved` is called after the index has been mended."""

    def __init__(self, pods: Informer[Pod], services: Informer[Service], moved: Moved) -> None:
        self._moved = moved
        self._pods: dict[Pair, dict[Key, Pod]] = {}
        self._filed: dict[Pair, dict[Key, dict[str, str]]] = {}
        self._places: dict[Key, Pair] = {}
        self._members: dict[Key, dict[Key, Pod]] = {}
        self._services: dict[Key, frozenset[Key]] = {}
        services.on_change(self._service_changed)
        pods.on_change(self._pod_changed)

    def pods(self, service: Key) -> Mapping[Key, Pod]:
        """The pods a Service selects."""
        return self._members.get(service, _NO_PODS)

    def services(self, pod: Key) -> frozenset[Key]:
        """The Services that select a pod."""
        return self._services.get(pod, _NONE)

    # --- pods ---

    def _pod_changed(self, change: Change[Pod]) -> None:
        old, new, key = change.old, change.new, change.key
        before = self.services(key)
        if old is None or new is None or old.metadata.labels != new.metadata.labels:
            self._carry(old, None)
            after = self._selecting(new) if new is not None else _NONE
        else:
            after = before
        self._carry(None, new)
        for service in before - after:
            del self._members[service][key]
        if new is not None:
            for service in after:
                self._members[service][key] = new
        if after:
            self._services[key] = after
        else:
            self._services.pop(key, None)
        self._moved(change, before, after)

    def _carry(self, old: Pod | None, new: Pod | None) -> None:
        if old is not None:
            for pair in _pairs(old.metadata.namespace, old.metadata.labels):
                bucket = self._pods[pair]
                del bucket[old.key]
                if not bucket:
                    del self._pods[pair]
        if new is not None:
            for pair in _pairs(new.metadata.namespace, new.metadata.labels):
                self._pods.setdefault(pair, {})[new.key] = new

    def _selecting(self, pod: Pod) -> frozenset[Key]:
        labels = pod.metadata.labels
        return frozenset(
            service
            for pair in _pairs(pod.metadata.namespace, labels)
            for service, selector in self._filed.get(pair, {}).items()
            if selector.items() <= labels.items()
        )

    # --- Services ---

    def _service_changed(self, change: Change[Service]) -> None:
        key = change.key
        old = change.old.spec.selector if change.old is not None else {}
        new = change.new.spec.selector if change.new is not None else {}
        if old == new:
            return
        if key in self._places:
            self._withdraw(key)
        if new:
            self._file(key, new)

    def _file(self, key: Key, selector: dict[str, str]) -> None:
        pairs = list(_pairs(key.namespace, selector))
        # Few other selectors under the pair keep pods cheap, few pods keep this Service cheap.
        place = min(pairs, key=lambda p: (len(self._filed.get(p, ())), len(self._pods.get(p, ()))))
        self._places[key] = place
        self._filed.setdefault(place, {})[key] = selector
        rarest = min((self._pods.get(pair, {}) for pair in pairs), key=len)
        members = {
            pod_key: pod
            for pod_key, pod in rarest.items()
            if selector.items() <= pod.metadata.labels.items()
        }
        self._members[key] = members
        for pod_key in members:
            self._services[pod_key] = self.services(pod_key) | {key}

    def _withdraw(self, key: Key) -> None:
        place = self._places.pop(key)
        filed = self._filed[place]
        del filed[key]
        if not filed:
            del self._filed[place]
        for pod_key in self._members.pop(key):
            left = self.services(pod_key) - {key}
            if left:
                self._services[pod_key] = left
            else:
                del self._services[pod_key]
