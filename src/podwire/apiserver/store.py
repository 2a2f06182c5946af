"""All objects in memory as encoded JSON, made durable by SQLite, numbered by one resourceVersion.

A write is *staged* (numbered, encoded, visible to later writes only), then everything staged in one
turn of the event loop is *committed* in one SQLite transaction; only after that do readers see it,
watchers hear of it and the writer get its answer. If the commit fails nothing of the batch ever
happened. A killed process therefore loses only what nobody was told about.

    stage() -> pending -> flush(): BEGIN, rows, counter, COMMIT -> tables, watchers, answers

Lists are consistent across pages without copies: `Table.snapshot_at(rv)` undoes the history newer
than `rv`. History is bounded; whoever asks for older is told 410 Expired and lists again.

Requires: SQLite >= 3.31, a local file system (WAL). Source: KEP-365 (paginated lists), KEP-2340.
"""

from __future__ import annotations

import asyncio
import bisect
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from podwire.errors import ApiError, ExpiredError
from podwire.objects.meta import JsonObject, Key

HISTORY_AGE_S = 90.0
"""Events younger than this are kept (upstream keeps at least 75 s), up to HISTORY_MAX."""
HISTORY_MIN = 2048
HISTORY_MAX = 50_000

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(dict[str, Any]).decode

BriefOf = Callable[[JsonObject], JsonObject]
"""Cuts an object down to what selectors look at: name, namespace, labels, selectable fields."""


class Record:
    """One version of one object: its bytes and what selectors and writers need of it."""

    __slots__ = ("brief", "data", "deleting", "id", "key", "rv", "uid")

    def __init__(self, row: int, rv: int, data: bytes, obj: JsonObject, brief: BriefOf) -> None:
        meta = obj["metadata"]
        self.id = row
        self.rv = rv
        self.data = data
        self.key = Key(meta.get("namespace", ""), meta["name"])
        self.uid: str = meta.get("uid", "")
        self.deleting = "deletionTimestamp" in meta
        self.brief = brief(obj)

    def object(self) -> JsonObject:
        """A fresh decoded copy, the caller's to change."""
        return decode(self.data)


class Event:
    """One committed change; `encoded` keeps each wire form, made once for all watchers."""

    __slots__ = ("encoded", "previous", "record", "rv", "time", "type")

    def __init__(self, type_: str, rv: int, record: Record, previous: Record | None) -> None:
        self.type = type_
        self.rv = rv
        self.record = record
        self.previous = previous
        self.time = time.monotonic()
        self.encoded: dict[object, bytes] = {}


Listener = Callable[[list[Event]], None]


class Table:
    """The committed objects of one stored resource and their recent history."""

    def __init__(self, name: str, floor: int) -> None:
        self.name = name
        self.records: dict[Key, Record] = {}
        self.history: deque[Event] = deque()
        self.floor = floor
        self.listeners: list[Listener] = []
        self.closers: list[Callable[[], None]] = []
        """What to call when nothing will ever be committed here again."""
        self._sorted: list[Key] | None = None

    def keys(self) -> list[Key]:
        if self._sorted is None:
            self._sorted = sorted(self.records)
        return self._sorted

    def snapshot(self, namespace: str = "") -> list[Record]:
        """All records (of one namespace) in key order, as they are now."""
        return [self.records[key] for key in _slice(self.keys(), namespace)]

    def snapshot_at(self, rv: int, namespace: str = "") -> list[Record]:
        """As `snapshot`, but as of `rv`. Raises ExpiredError when history does not reach it."""
        if not self.history or self.history[-1].rv <= rv:
            if rv < self.floor:
                raise expired(rv, self.floor)
            return self.snapshot(namespace)
        undo: dict[Key, Record | None] = {}
        for event in self.since(rv, newest_first=True):
            undo[event.record.key] = event.previous
        records = {**self.records, **undo}
        keys = _slice(sorted(key for key, record in records.items() if record), namespace)
        return [record for key in keys if (record := records[key])]

    def since(self, rv: int, *, newest_first: bool = False) -> list[Event]:
        """Events after `rv`. Raises ExpiredError when history does not reach it."""
        if rv < self.floor:
            raise expired(rv, self.floor)
        found: list[Event] = []
        for event in reversed(self.history):
            if event.rv <= rv:
                break
            found.append(event)
        if not newest_first:
            found.reverse()
        return found

    def apply(self, events: list[Event]) -> None:
        for event in events:
            key = event.record.key
            if event.type == "DELETED":
                self.records.pop(key, None)
                self._sorted = None
            else:
                if key not in self.records:
                    self._sorted = None
                self.records[key] = event.record
        self.history.extend(events)
        self._trim()
        for listener in tuple(self.listeners):
            listener(events)

    def close(self) -> None:
        for closer in tuple(self.closers):
            closer()

    def _trim(self) -> None:
        oldest = time.monotonic() - HISTORY_AGE_S
        history = self.history
        while len(history) > HISTORY_MIN and (
            history[0].time < oldest or len(history) > HISTORY_MAX
        ):
            self.floor = history.popleft().rv


def _slice(keys: list[Key], namespace: str) -> list[Key]:
    if not namespace:
        return keys
    return keys[
        bisect.bisect_left(keys, (namespace,)) : bisect.bisect_left(keys, (namespace + "\0",))
    ]


def expired(rv: int, floor: int) -> ExpiredError:
    return ExpiredError(f"too old resource version: {rv} ({floor})")


@dataclass
class _Batch:
    """What was staged since the last commit; `latest` is what the next staged write builds on."""

    events: list[tuple[Table, Event]] = field(default_factory=list)
    latest: dict[str, dict[Key, Record | None]] = field(default_factory=dict)
    undo: list[Callable[[], None]] = field(default_factory=list)


class Store:
    """See the module docstring. Single-threaded: every method runs on the event loop's thread."""

    def __init__(self, path: str | Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(_SCHEMA)
        row = self._db.execute("SELECT value FROM counter").fetchone()
        self.rv: int = row[0] if row else 1
        """Committed; `_next` runs ahead of it by what is staged."""
        if row is None:
            self._db.execute("INSERT INTO counter (value) VALUES (1)")
        self._next = self.rv
        self._floor = self.rv
        self._tables: dict[str, Table] = {}
        self._briefs: dict[str, BriefOf] = {}
        self._batch = _Batch()
        self._committed: asyncio.Future[None] | None = None
        self.commits = 0

    # -- reading ---------------------------------------------------------------------------

    def open_table(self, name: str, brief: BriefOf) -> Table:
        """The table of a stored resource; loads its rows the first time it is asked for."""
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = Table(name, self._floor)
            self._briefs[name] = brief
            rows = self._db.execute("SELECT id, data FROM objects WHERE resource = ?", (name,))
            for row, data in rows:
                obj = decode(data)
                rv = int(obj["metadata"]["resourceVersion"])
                record = Record(row, rv, data, obj, brief)
                table.records[record.key] = record
        return table

    def drop_table(self, name: str) -> None:
        """Forget a resource that is no longer served (its rows stay until deleted one by one)."""
        table = self._tables.pop(name, None)
        self._briefs.pop(name, None)
        if table is not None:
            table.close()

    def tables(self) -> Iterator[Table]:
        yield from self._tables.values()

    def latest(self, table: Table, key: Key) -> Record | None:
        """The newest version, staged ones included: what a *write* must build on."""
        staged = self._batch.latest.get(table.name)
        if staged is not None and key in staged:
            return staged[key]
        return table.records.get(key)

    def latest_of(self, table: Table, namespace: str) -> Iterable[Record]:
        """Every newest version in a namespace, staged ones included."""
        staged = {
            key: record
            for key, record in self._batch.latest.get(table.name, {}).items()
            if key.namespace == namespace
        }
        for record in table.snapshot(namespace):
            if record.key not in staged:
                yield record
        yield from (record for record in staged.values() if record is not None)

    # -- writing ---------------------------------------------------------------------------

    def stage_put(self, table: Table, obj: JsonObject) -> Record:
        """Number, encode and stage one version; `await committed()` before telling anybody."""
        rv = self._number()
        obj["metadata"]["resourceVersion"] = str(rv)
        meta = obj["metadata"]
        previous = self.latest(table, Key(meta.get("namespace", ""), meta["name"]))
        row = previous.id if previous else rv
        record = Record(row, rv, encode(obj), obj, self._briefs[table.name])
        self._stage(table, Event("MODIFIED" if previous else "ADDED", rv, record, previous))
        return record

    def stage_delete(self, table: Table, obj: JsonObject) -> Record | None:
        """Stage a removal; returns the last state under the deletion's number."""
        meta = obj["metadata"]
        previous = self.latest(table, Key(meta.get("namespace", ""), meta["name"]))
        if previous is None:
            return None
        rv = self._number()
        meta["resourceVersion"] = str(rv)
        record = Record(previous.id, rv, encode(obj), obj, self._briefs[table.name])
        self._stage(table, Event("DELETED", rv, record, previous))
        return record

    def on_rollback(self, undo: Callable[[], None]) -> None:
        """Call `undo` if the current batch cannot be committed (allocators give back with it)."""
        self._batch.undo.append(undo)

    async def committed(self) -> None:
        """Wait until what is staged now is durable. Raises ApiError (507, 500)."""
        if self._committed is not None:
            await asyncio.shield(self._committed)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _stage(self, table: Table, event: Event) -> None:
        record = None if event.type == "DELETED" else event.record
        self._batch.latest.setdefault(table.name, {})[event.record.key] = record
        self._batch.events.append((table, event))
        if self._committed is None:
            loop = asyncio.get_running_loop()
            self._committed = loop.create_future()
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Commit what is staged, publish it, and answer those who wait."""
        batch, self._batch = self._batch, _Batch()
        waiting, self._committed = self._committed, None
        if not batch.events:
            return
        try:
            self._write(batch)
        except sqlite3.Error as error:
            self._next = self.rv
            for undo in reversed(batch.undo):
                undo()
            if waiting is not None:
                waiting.set_exception(_storage_error(error))
                waiting.exception()  # the writers may have gone; their failure is not a leak
            return
        self.rv = batch.events[-1][1].rv
        self.commits += 1
        per_table: dict[str, tuple[Table, list[Event]]] = {}
        for table, event in batch.events:
            per_table.setdefault(table.name, (table, []))[1].append(event)
        for table, events in per_table.values():
            table.apply(events)
        if waiting is not None:
            waiting.set_result(None)

    def _write(self, batch: _Batch) -> None:
        puts: dict[int, tuple[int, str, bytes]] = {}
        deletes: dict[int, tuple[int]] = {}
        for table, event in batch.events:
            row = event.record.id
            if event.type == "DELETED":
                puts.pop(row, None)
                deletes[row] = (row,)
            else:
                puts[row] = (row, table.name, event.record.data)
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            if deletes:
                db.executemany("DELETE FROM objects WHERE id = ?", deletes.values())
            if puts:
                db.executemany(_PUT, puts.values())
            db.execute("UPDATE counter SET value = ?", (batch.events[-1][1].rv,))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self.flush()
        self._db.close()


_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA wal_autocheckpoint = 2000;
CREATE TABLE IF NOT EXISTS counter (value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS objects (
    id INTEGER PRIMARY KEY, resource TEXT NOT NULL, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS objects_by_resource ON objects (resource);
"""
_PUT = "INSERT OR REPLACE INTO objects (id, resource, data) VALUES (?, ?, ?)"

_FULL = ("full", "disk i/o error", "no space")


def _storage_error(error: sqlite3.Error) -> ApiError:
    text = str(error)
    if any(word in text.lower() for word in _FULL):
        return ApiError(
            f"store: {text}: nothing was changed; free disk space under the lab's directory "
            "and try again",
            code=507,
            reason="InsufficientStorage",
        )
    return ApiError(f"store: {text}: nothing was changed", code=500, reason="InternalError")
