"""From one set of frontends to the next, in transactions that never leave a packet lost. Pure.

    Claims that changed -> plan -> chains (text), then up to three steps

A packet makes two look-ups, `services` and then `endpoints`, and a commit may come between them.
So what any verdict can ask for is there before the verdict is, and stays until after:

    step 1  grow     backends, their numbers, allowed ranges
    step 2  switch   verdicts: which chain an address and port leads to, and which addresses refuse
                     what leads nowhere
    step 3  shrink   what only former verdicts asked for

State is what was planned last. It is the kernel's too while every plan is applied; when one fails
or something else touched the tables, `adopt` and `mend` start from what the kernel says instead.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from podwire.kernel.nfpack import Change, Data, Key
from podwire.services import nftables as nf
from podwire.services.claims import Claims
from podwire.services.endpoints import Backend
from podwire.services.model import Frontend, FrontendKey
from podwire.services.nftables import Rendered, render_frontend

GROW, SWITCH, SHRINK = range(3)
Place: TypeAlias = tuple[int, str]
"""IP version and set name."""
Elements: TypeAlias = dict[Place, dict[Key, Data]]

SETS: Final = (
    nf.HAIRPIN,
    nf.ALLOWED,
    nf.FIREWALLED,
    nf.ENDPOINTS,
    nf.BACKENDS_BY_ID,
    nf.BACKEND_IDS,
    nf.INTERNAL,
    nf.SERVICES,
    nf.VIPS,
)
"""What is kept in sync, the ranges (text) and the affinity map (the kernel's own) apart. In this
order, should a step not fit into one transaction: who may come before who else may not, the ports
of an address before the others are refused."""


@dataclass(frozen=True)
class Plan:
    """`chains` by IP version come first; then the non-empty steps, each one transaction."""

    chains: Mapping[int, tuple[str, ...]]
    steps: tuple[tuple[Change, ...], ...]

    @property
    def empty(self) -> bool:
        return not self.steps and not any(self.chains.values())


@dataclass
class Step:
    """One transaction on a table in the making; an element deleted and added is replaced.

    `sets` are the table's, in the order they are changed.
    """

    table: str
    sets: Sequence[str]
    delete: dict[Place, list[Key]] = field(default_factory=dict)
    add: dict[Place, list[tuple[Key, Data]]] = field(default_factory=dict)

    def put(self, place: Place, key: Key, data: Data) -> None:
        self.add.setdefault(place, []).append((key, data))

    def remove(self, place: Place, key: Key) -> None:
        self.delete.setdefault(place, []).append(key)

    def changes(self) -> tuple[Change, ...]:
        places = sorted({*self.delete, *self.add}, key=lambda p: (p[0], self.sets.index(p[1])))
        return tuple(
            Change(
                nf.FAMILY_NAMES[place[0]],
                self.table,
                place[1],
                tuple(self.delete.get(place, ())),
                tuple(self.add.get(place, ())),
            )
            for place in places
        )


def _three_steps() -> tuple[Step, Step, Step]:
    return Step(nf.TABLE, SETS), Step(nf.TABLE, SETS), Step(nf.TABLE, SETS)


@dataclass(frozen=True)
class _Installed:
    frontend: Frontend
    rendered: Rendered


class Ruleset:
    """What was planned, and what that makes of the next change."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._installed: dict[FrontendKey, _Installed] = {}
        self._vips: Counter[bytes] = Counter()
        self._hairpins: Counter[bytes] = Counter()
        self._chains: dict[int, set[str]] = {4: set(), 6: set()}
        self._seeds: dict[FrontendKey, Rendered] = {}

    def rendered(self, key: FrontendKey) -> Rendered | None:
        installed = self._installed.get(key)
        return installed.rendered if installed else None

    @property
    def vips(self) -> frozenset[bytes]:
        return frozenset(self._vips)

    # --- the difference -------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What leads from the last plan to what should be now; the state moves on."""
        steps = _three_steps()
        new_chains: dict[int, list[str]] = {4: [], 6: []}
        vips: Counter[bytes] = Counter()
        hairpins: Counter[bytes] = Counter()
        for key in self._claims.take_touched():
            before, after = self._installed.get(key), self._next(key)
            if before is None and after is None:
                continue
            self._difference(key, before, after, steps)
            _count(before, -1, vips, hairpins)
            _count(after, +1, vips, hairpins)
            if after is None:
                del self._installed[key]
            else:
                self._installed[key] = after
                self._want_chains(_version(key), after.rendered, new_chains)
        self._addresses(nf.VIPS, self._vips, vips, steps)
        self._addresses(nf.HAIRPIN, self._hairpins, hairpins, steps)
        changes = tuple(found for step in steps if (found := step.changes()))
        return Plan({v: tuple(names) for v, names in new_chains.items() if names}, changes)

    def _next(self, key: FrontendKey) -> _Installed | None:
        frontend = self._claims.winner(key)
        if frontend is None:
            return None
        before = self._installed.get(key)
        former = before.rendered if before else self._seeds.get(key)
        return _Installed(frontend, render_frontend(frontend, former))

    def _want_chains(
        self, version: int, rendered: Rendered, new_chains: dict[int, list[str]]
    ) -> None:
        known = self._chains[version]
        for verdict in (rendered.internal_verdict, rendered.verdict):
            if verdict and verdict not in known:
                for name in nf.needed_chains(verdict):
                    if name not in known:
                        known.add(name)
                        new_chains[version].append(name)

    @staticmethod
    def _difference(
        key: FrontendKey,
        before: _Installed | None,
        after: _Installed | None,
        steps: tuple[Step, Step, Step],
    ) -> None:
        version = _version(key)
        old = frontend_elements(before.frontend, before.rendered) if before else {}
        new = frontend_elements(after.frontend, after.rendered) if after else {}
        for name in SETS:
            was, will = old.get(name), new.get(name)
            if was != will:
                _set_difference((version, name), was or {}, will or {}, steps)

    @staticmethod
    def _addresses(
        name: str, users: Counter[bytes], changes: Counter[bytes], steps: Sequence[Step]
    ) -> None:
        """Count who uses an address; the first makes the element, the last takes it away."""
        for ip, change in changes.items():
            before = users[ip]
            users[ip] = after = before + change
            if not after:
                del users[ip]
            place = (4 if len(ip) == 4 else 6, name)
            key = ip + ip if name == nf.HAIRPIN else ip
            if after and not before:
                (steps[SWITCH] if name == nf.VIPS else steps[GROW]).put(place, key, None)
            elif before and not after:
                (steps[SWITCH] if name == nf.VIPS else steps[SHRINK]).remove(place, key)

    # --- beginning from what the kernel says ------------------------------------------------------

    def adopt(self, found: Elements) -> None:
        """Keep backends where an earlier agent put them: call before the first `plan`."""
        self._seeds = read_slots(found)

    def elements(self) -> Elements:
        """Everything the sets should hold after the last plan."""
        whole: Elements = {(v, name): {} for v in (4, 6) for name in SETS}
        for key, installed in self._installed.items():
            version = _version(key)
            for name, part in frontend_elements(installed.frontend, installed.rendered).items():
                whole[version, name].update(part)
        for ip in self._vips:
            whole[4 if len(ip) == 4 else 6, nf.VIPS][ip] = None
        for ip in self._hairpins:
            whole[4 if len(ip) == 4 else 6, nf.HAIRPIN][ip + ip] = None
        return whole

    def sizes(self) -> dict[str, int]:
        """How many elements the maps hold that grow with Services and endpoints."""
        found = dict.fromkeys((nf.SERVICES, nf.ENDPOINTS, nf.BACKENDS_BY_ID), 0)
        found[nf.SERVICES] = len(self._installed)
        for installed in self._installed.values():
            rendered = installed.rendered
            name = nf.BACKENDS_BY_ID if installed.frontend.affinity_s else nf.ENDPOINTS
            found[name] += len(rendered.slots) + len(rendered.internal)
        return found

    def elements_of(self, key: FrontendKey) -> dict[str, dict[Key, Data]]:
        """What one frontend has in the maps, by set; nothing where it has none."""
        installed = self._installed.get(key)
        return frontend_elements(installed.frontend, installed.rendered) if installed else {}

    def chains(self) -> dict[int, tuple[str, ...]]:
        """Every chain that was asked for so far."""
        return {v: tuple(sorted(names, key=_inner_first)) for v, names in self._chains.items()}

    def mend(self, found: Elements) -> Plan:
        """What leads from `found` in the kernel to what should be; chains are made anew."""
        self.plan()
        self._seeds = {}
        steps = _three_steps()
        for place, wanted in self.elements().items():
            _set_difference(place, found.get(place, {}), wanted, steps)
        changes = tuple(part for step in steps if (part := step.changes()))
        return Plan({v: names for v, names in self.chains().items() if names}, changes)


def _version(key: FrontendKey) -> int:
    return 4 if len(key.ip) == 4 else 6


def _inner_first(name: str) -> tuple[bool, str]:
    return name.startswith(("external-", "local-")), name


def _count(
    installed: _Installed | None, sign: int, vips: Counter[bytes], hairpins: Counter[bytes]
) -> None:
    if installed is None:
        return
    frontend = installed.frontend
    if frontend.exclusive:
        vips[frontend.key.ip] += sign
    for backends in (frontend.backends, frontend.internal or ()):
        for backend in backends:
            if backend.local:
                hairpins[backend.ip] += sign


def _set_difference(
    place: Place, was: Mapping[Key, Data], will: Mapping[Key, Data], steps: Sequence[Step]
) -> None:
    """Put what differs where it belongs: verdicts in the switch, the rest around it."""
    name = place[1]
    grow = steps[SWITCH] if name in (nf.SERVICES, nf.VIPS) else steps[GROW]
    early = (nf.SERVICES, nf.VIPS, nf.FIREWALLED)
    shrink = steps[SWITCH] if name in early else steps[SHRINK]
    # Intervals may not overlap, not even for a moment: all of a change is one transaction.
    if name == nf.ALLOWED and will:
        shrink = grow
    for key, data in will.items():
        if key not in was:
            grow.put(place, key, data)
        elif was[key] != data:
            # A second verdict is switched with the first.
            step = steps[SWITCH] if name == nf.INTERNAL else grow
            step.remove(place, key)
            step.put(place, key, data)
    for key in was.keys() - will.keys():
        shrink.remove(place, key)


def frontend_elements(frontend: Frontend, rendered: Rendered) -> dict[str, dict[Key, Data]]:
    """All elements one frontend has in the maps, by set."""
    base = nf.pack_key(frontend.key)
    found: dict[str, dict[Key, Data]] = {nf.SERVICES: {base: _number(rendered.verdict)}}
    endpoints: dict[Key, Data] = {}
    for offset, slots in ((0, rendered.slots), (nf.INTERNAL_OFFSET, rendered.internal)):
        for index, backend in enumerate(slots, offset):
            endpoints[base + nf.pack_index(index)] = nf.pack_backend(backend)
    if frontend.affinity_s:
        found[nf.BACKEND_IDS], found[nf.BACKENDS_BY_ID] = _numbers(frontend, rendered, base)
    else:
        found[nf.ENDPOINTS] = endpoints
    if rendered.internal_verdict:
        found[nf.INTERNAL] = {base: _number(rendered.internal_verdict)}
    if frontend.ranges is not None:
        found[nf.FIREWALLED] = {base: None}
        found[nf.ALLOWED] = {(base + low, base + high): None for low, high in frontend.ranges}
    return found


@functools.cache
def _number(chain: str) -> bytes:
    return nf.pack_index(nf.chain_code(chain))


def _numbers(
    frontend: Frontend, rendered: Rendered, base: bytes
) -> tuple[dict[Key, Data], dict[Key, Data]]:
    by_index: dict[Key, Data] = {}
    by_number: dict[Key, Data] = {}
    for internal, slots in ((False, rendered.slots), (True, rendered.internal)):
        offset = nf.INTERNAL_OFFSET if internal else 0
        for index, backend in enumerate(slots, offset):
            number = nf.pack_index(nf.backend_id(backend, internal=internal))
            by_index[base + nf.pack_index(index)] = number
            by_number[base + number] = nf.pack_backend(backend)
    return by_index, by_number


def read_slots(found: Elements) -> dict[FrontendKey, Rendered]:
    """Which backend stood at which index, from the elements of an earlier agent."""
    places: dict[FrontendKey, dict[int, Backend]] = {}
    for version in (4, 6):
        by_number = found.get((version, nf.BACKENDS_BY_ID), {})
        for name in (nf.ENDPOINTS, nf.BACKEND_IDS):
            for key, data in found.get((version, name), {}).items():
                assert isinstance(key, bytes)
                assert isinstance(data, bytes)
                value = by_number.get(key[:-4] + data) if name == nf.BACKEND_IDS else data
                if isinstance(value, bytes):
                    slots = places.setdefault(nf.unpack_key(key[:-4]), {})
                    slots[nf.unpack_index(key[-4:])] = nf.unpack_backend(value)
    return {key: Rendered("", *_sorted_slots(slots)) for key, slots in places.items()}


def _sorted_slots(
    slots: Mapping[int, Backend],
) -> tuple[tuple[Backend, ...], str, tuple[Backend, ...]]:
    outer = [slots[i] for i in sorted(slots) if i < nf.INTERNAL_OFFSET]
    inner = [slots[i] for i in sorted(slots) if i >= nf.INTERNAL_OFFSET]
    return tuple(outer), "", tuple(inner)


def is_whole(change: Change) -> bool:
    """All ranges of a Service change at once."""
    return change.set == nf.ALLOWED
