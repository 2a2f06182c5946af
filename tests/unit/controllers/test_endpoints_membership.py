"""Who selects whom, against asking every pair; and what is known after writes and events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.client import Change
from podwire.controllers.endpoints.membership import Membership
from podwire.controllers.latest import Latest
from podwire.controllers.views import Pod
from podwire.objects.core import ConfigMap, Service
from podwire.objects.meta import Key, T


class Feed(Generic[T]):
    """An informer that is told what happened."""

    def __init__(self) -> None:
        self.objects: dict[Key, T] = {}
        self._handlers: list[Callable[[Change[T]], None]] = []

    def on_change(self, handler: Callable[[Change[T]], None]) -> None:
        self._handlers.append(handler)

    def tell(self, key: Key, new: T | None) -> None:
        old = self.objects.pop(key, None)
        if new is not None:
            self.objects[key] = new
        if old is not None or new is not None:
            for handler in self._handlers:
                handler(Change(old, new))


LABELS = st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12"), max_size=3)
STEP = st.tuples(
    st.booleans(), st.integers(0, 4), st.sampled_from(["a", "b"]), st.one_of(st.none(), LABELS)
)


@given(st.lists(STEP, max_size=40))
def test_membership_is_what_asking_every_pair_says(steps: list[Any]) -> None:
    pods: Feed[Pod] = Feed()
    services: Feed[Service] = Feed()
    moves: list[tuple[Key, frozenset[Key], frozenset[Key]]] = []
    index = Membership(
        pods,  # type: ignore[arg-type]
        services,  # type: ignore[arg-type]
        lambda change, before, after: moves.append((change.key, before, after)),
    )
    for is_pod, number, namespace, labels in steps:
        key = Key(namespace, f"{number}")
        meta = {"name": key.name, "namespace": namespace}
        before = index.services(key)
        if is_pod:
            new = msgspec.convert({"metadata": meta | {"labels": labels}}, Pod) if labels else None
            moves.clear()
            pods.tell(key, new)
            assert moves in ([], [(key, before, index.services(key))])
        else:
            body = {"metadata": meta, "spec": {"selector": labels or {}}}
            services.tell(key, None if labels is None else msgspec.convert(body, Service))
        for at, service in services.objects.items():
            selector = service.spec.selector
            assert dict(index.pods(at)) == {
                k: p
                for k, p in pods.objects.items()
                if selector
                and k.namespace == at.namespace
                and selector.items() <= p.metadata.labels.items()
            }
        for at in pods.objects:
            assert index.services(at) == {s for s in services.objects if at in index.pods(s)}


def item(version: int, uid: str = "u", **meta: Any) -> ConfigMap:
    body = {"name": "c", "namespace": "n", "uid": uid, "resourceVersion": str(version), **meta}
    return msgspec.convert({"metadata": body}, ConfigMap)


KEY = Key("n", "c")


class Watched:
    def __init__(self) -> None:
        self.feed: Feed[ConfigMap] = Feed()
        self.news: list[int | None] = []
        self.latest: Latest[ConfigMap] = Latest(self.feed, self._changed)  # type: ignore[arg-type]

    def _changed(self, old: ConfigMap | None, new: ConfigMap | None, news: bool) -> None:
        if news:
            self.news.append(int(new.metadata.resource_version) if new is not None else None)

    @property
    def version(self) -> int | None:
        found = self.latest.objects.get(KEY)
        return int(found.metadata.resource_version) if found is not None else None

    async def write(self, version: int, *meanwhile: ConfigMap) -> None:
        async def call() -> ConfigMap:
            for seen in meanwhile:
                self.feed.tell(KEY, seen)
            return item(version)

        await self.latest.write(KEY, call())

    async def delete(self, obj: ConfigMap) -> None:
        await self.latest.delete(obj, asyncio.sleep(0))


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def test_an_answer_counts_before_the_watch_says_so(watched: Watched) -> None:
    watched.feed.tell(KEY, item(1))
    await watched.write(2)
    assert watched.version == 2
    watched.feed.tell(KEY, item(2))
    assert (watched.version, watched.news) == (2, [1])


async def test_an_event_that_comes_before_the_answer_is_no_news(watched: Watched) -> None:
    await watched.write(2, item(2))
    assert (watched.version, watched.news) == (2, [])


async def test_what_others_wrote_meanwhile_is_news(watched: Watched) -> None:
    await watched.write(2, item(2), item(3))
    assert (watched.version, watched.news) == (3, [3])
    watched.feed.tell(KEY, item(4))
    assert (watched.version, watched.news) == (4, [3, 4])


async def test_a_late_event_does_not_bring_old_content_back(watched: Watched) -> None:
    await watched.write(5)
    watched.feed.tell(KEY, item(3))
    assert watched.version == 5


async def test_what_we_deleted_stays_away_until_the_watch_takes_leave(watched: Watched) -> None:
    watched.feed.tell(KEY, item(1))
    await watched.delete(item(1))
    assert watched.version is None
    watched.feed.tell(KEY, item(2))
    assert watched.version is None
    watched.feed.tell(KEY, None)
    watched.feed.tell(KEY, item(3, "other"))
    assert (watched.version, watched.news) == (3, [1, 3])


async def test_what_others_deleted_is_news(watched: Watched) -> None:
    await watched.write(1)
    watched.feed.tell(KEY, item(1))
    watched.feed.tell(KEY, None)
    assert (watched.version, watched.news) == (None, [None])


async def test_a_write_that_fails_reports_what_was_heard(watched: Watched) -> None:
    async def fails() -> ConfigMap:
        watched.feed.tell(KEY, item(7))
        raise OSError("no answer")

    with pytest.raises(OSError, match="no answer"):
        await watched.latest.write(KEY, fails())
    assert (watched.version, watched.news) == (7, [7])
