"""Which pods of this node use which ConfigMaps and Secrets, and who is told when one changes.

    pod -> references_of (pure) -> follow -> a watch per kind and namespace -> its users

A watch lives only while a pod needs it: one that waits for an object that is missing, or one whose
running containers have such an object mounted. Stand-ins read neither and never cause one. Source
of the idea: kubernetes/kubernetes pkg/kubelet/util/manager/watch_based_manager.go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from podwire.client import Api, Change, Informer
from podwire.objects import kinds
from podwire.objects.core import Container, Pod
from podwire.objects.meta import JsonObject, Kind, Object

_LOG = logging.getLogger(__name__)


def _metadata(kind: Kind[Any]) -> Kind[Object]:
    """The same kind, decoded to its metadata: a watch here says that, not what, has changed."""
    return Kind(kind.group, kind.version, kind.kind, kind.plural, kind.namespaced, Object)


_KINDS = {kind.plural: _metadata(kind) for kind in (kinds.CONFIG_MAP, kinds.SECRET)}
_MAPS, _SECRETS = kinds.CONFIG_MAP.plural, kinds.SECRET.plural


class Reference(NamedTuple):
    plural: str
    namespace: str
    name: str


def references_of(pod: Pod, *, mounted_only: bool) -> frozenset[Reference]:
    """What the pod's volumes name and, unless `mounted_only`, its containers' environments."""
    namespace = pod.metadata.namespace
    named = list(_mounted(pod))
    if not mounted_only:
        for container in [*pod.spec.containers, *pod.spec.init_containers]:
            named += _in_environment(container)
    return frozenset(Reference(plural, namespace, name) for plural, name in named if name)


def _mounted(pod: Pod) -> Iterator[tuple[str, str]]:
    for volume in pod.spec.volumes:
        if volume.config_map is not None:
            yield _MAPS, volume.config_map.get("name", "")
        if volume.secret is not None:
            yield _SECRETS, volume.secret.get("secretName", "")
        for source in (volume.projected or {}).get("sources") or []:
            yield from _projected(source)


def _projected(source: JsonObject) -> Iterator[tuple[str, str]]:
    for field, plural in (("configMap", _MAPS), ("secret", _SECRETS)):
        if source.get(field):
            yield plural, source[field].get("name", "")


def _in_environment(container: Container) -> Iterator[tuple[str, str]]:
    for source in container.env_from:
        if source.config_map_ref is not None:
            yield _MAPS, source.config_map_ref.name
        if source.secret_ref is not None:
            yield _SECRETS, source.secret_ref.name
    for variable in container.env:
        origin = variable.value_from
        if origin is not None and origin.config_map_key_ref is not None:
            yield _MAPS, origin.config_map_key_ref.name
        if origin is not None and origin.secret_key_ref is not None:
            yield _SECRETS, origin.secret_key_ref.name


class References:
    """`follow` and `forget` never block; the watches are tasks of the running loop."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._wanted: dict[str, frozenset[Reference]] = {}
        self._users: dict[Reference, dict[str, Callable[[], None]]] = {}
        self._watches: dict[tuple[str, str], asyncio.Task[None]] = {}

    def follow(self, user: str, wanted: frozenset[Reference], changed: Callable[[], None]) -> None:
        """Call `changed` when an object of `wanted` is there, or becomes another; replaces what
        the user followed before."""
        before = self._wanted.get(user, frozenset())
        if wanted == before:
            return
        for reference in before - wanted:
            users = self._users[reference]
            del users[user]
            if not users:
                del self._users[reference]
        for reference in wanted - before:
            self._users.setdefault(reference, {})[user] = changed
        if wanted:
            self._wanted[user] = wanted
        else:
            self._wanted.pop(user, None)
        self._settle()

    def forget(self, user: str) -> None:
        self.follow(user, frozenset(), _nobody)

    def close(self) -> None:
        self._wanted.clear()
        self._users.clear()
        self._settle()

    def _settle(self) -> None:
        needed = {(plural, namespace) for plural, namespace, _ in self._users}
        for place in [place for place in self._watches if place not in needed]:
            self._watches.pop(place).cancel()
        for place in needed - self._watches.keys():
            self._watches[place] = self._watch(*place)

    def _watch(self, plural: str, namespace: str) -> asyncio.Task[None]:
        informer = Informer(self._api, _KINDS[plural], namespace=namespace)

        def notice(change: Change[Object]) -> None:
            users = self._users.get(Reference(plural, *change.key), {})
            for changed in list(users.values()):
                changed()

        informer.on_change(notice)
        task = asyncio.get_running_loop().create_task(informer.run())
        task.add_done_callback(_log_end)
        return task


def _nobody() -> None:
    pass


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("a watch of references ended: %s", error, exc_info=error)
