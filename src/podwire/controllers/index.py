"""Indexes over informers, mended change by change: objects by owner, pods by node.

A reconcile asks for *its* objects only; its cost never follows the size of the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Generic

from podwire.client import Change, Informer
from podwire.controllers.views import Pod
from podwire.objects.meta import Key, T

_NONE: Mapping[Key, object] = MappingProxyType({})


class OwnerIndex(Generic[T]):
    """Objects by the uid of their controller; those without one by namespace."""

    def __init__(self, informer: Informer[T]) -> None:
        self._owned: dict[str, dict[Key, T]] = {}
        self._orphans: dict[str, dict[Key, T]] = {}
        informer.on_change(self._changed)

    def owned(self, uid: str) -> list[T]:
        return list(self._owned.get(uid, {}).values())

    def count(self, uid: str) -> int:
        return len(self._owned.get(uid, ()))

    def orphans(self, namespace: str) -> list[T]:
        return list(self._orphans.get(namespace, {}).values())

    def _changed(self, change: Change[T]) -> None:
        if change.old is not None:
            table, home = self._home(change.old)
            bucket = table.get(home)
            if bucket is not None:
                bucket.pop(change.old.key, None)
                if not bucket and change.new is None:
                    del table[home]
        if change.new is not None:
            table, home = self._home(change.new)
            table.setdefault(home, {})[change.new.key] = change.new

    def _home(self, obj: T) -> tuple[dict[str, dict[Key, T]], str]:
        controller = obj.metadata.controller
        if controller is None:
            return self._orphans, obj.metadata.namespace
        return self._owned, controller.uid


class NodePods:
    """Pods by the node they are bound to ("" while they are not)."""

    def __init__(self, informer: Informer[Pod]) -> None:
        self._by_node: dict[str, dict[Key, Pod]] = {}
        informer.on_change(self._changed)

    def on(self, node: str) -> list[Pod]:
        return list(self._by_node.get(node, {}).values())

    def nodes(self) -> list[str]:
        return [node for node, pods in self._by_node.items() if node and pods]

    def _changed(self, change: Change[Pod]) -> None:
        if change.old is not None:
            self._by_node.get(change.old.spec.node_name, {}).pop(change.old.key, None)
        if change.new is not None:
            pods = self._by_node.setdefault(change.new.spec.node_name, {})
            pods[change.new.key] = change.new
