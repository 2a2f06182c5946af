"""One node's policies in the kernel's form, kept up with the world change by change. Pure.

    set_policy, set_pod, set_node, ... ─▶ NodePolicies ─ plan ─▶ Plan: what the kernel is to change

Only policies that select a pod of this node have a form here, and only their peers tell groups
apart. A plan's size follows the change: a pod whose labels change is one element, and what a
policy needs is there before the pods it selects are switched to it.

What a packet may meet between two states, for each end of its connection by itself: one end's
policies are asked on its own node, and no order binds two nodes. A namespace's labels are those of
its pods, which change one after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from podwire.kernel.nfpack import DROP, RETURN, Data, Goto, Jump, Verdict, pack_u32
from podwire.objects.meta import Key
from podwire.policy import nftables as nf
from podwire.policy.classes import Class, ClassKey, Outcome, RowTable, named_ports
from podwire.policy.groups import Partition
from podwire.policy.members import NOBODY, Group
from podwire.policy.model import (
    DIRECTIONS,
    Address,
    Direction,
    NamedPort,
    Peer,
    Policy,
    PolicyRef,
)
from podwire.policy.nftables import Logging, Number
from podwire.policy.numbers import Numbers
from podwire.policy.peers import numbers_of
from podwire.policy.plan import Batch, Plan, Step
from podwire.policy.world import NodeView, PodView, World

_Sent: TypeAlias = dict[str, Class | None]
"""Of a local address: the sets besides `local` it is in, with its class there."""
_MAPS: Final[dict[Direction, str]] = {"egress": nf.EGRESS, "ingress": nf.INGRESS}


class _Subject:
    """A pod of this node, with the policies that select it as classes, by direction."""

    __slots__ = ("classes", "view")

    def __init__(self, view: PodView) -> None:
        self.view = view
        self.classes: dict[Direction, Class] = {}


class NodePolicies:
    """State is what was planned last; it is the kernel's too while every plan is applied."""

    def __init__(
        self,
        node: str,
        versions: Iterable[int] = (4, 6),
        pod_interfaces: Sequence[str] = (),
        logging: Logging | None = None,
    ) -> None:
        """`pod_interfaces`: patterns of those by which only admitted pods may send."""
        self.node = node
        self.versions = tuple(versions)
        self.pod_interfaces = tuple(pod_interfaces)
        self._logging = logging
        self._generation = nf.GENERATIONS[0]
        self._policies: dict[PolicyRef, tuple[int, Policy]] = {}
        self._of_namespace: dict[str, set[PolicyRef]] = {}
        self._of_cluster: set[PolicyRef] = set()
        self._serial = 0
        self._partition = Partition()
        self._table = RowTable()
        self._subjects: dict[Key, _Subject] = {}
        self._dirty: set[Key] = set()
        self._classes: dict[ClassKey, Class] = {}
        self._class_numbers = Numbers(1, nf.MAX_CLASS, "sets of policies that select pods")
        self._rows: dict[Class, dict[Number, Number]] = {}
        self._released: list[Class] = []
        self._claims: dict[bytes, dict[Key, None]] = {}
        self._dirty_addresses: set[bytes] = set()
        self._sent: dict[bytes, _Sent] = {}

    # --- what changes -----------------------------------------------------------------------------

    def set_policy(self, policy: Policy) -> None:
        """New or changed; what is staged enforces nothing."""
        if policy.staged:
            self.remove_policy(policy.ref)
            return
        known = self._policies.get(policy.ref)
        if known is not None:
            serial, before = known
            if replace(before, generation=policy.generation) == policy:
                self._policies[policy.ref] = serial, policy
                return
            self.remove_policy(policy.ref)
        self._serial += 1
        self._policies[policy.ref] = self._serial, policy
        if policy.subject.namespaces is None:
            self._of_namespace.setdefault(policy.subject.namespace, set()).add(policy.ref)
        else:
            self._of_cluster.add(policy.ref)
        self._touch(policy)

    def remove_policy(self, ref: PolicyRef) -> None:
        known = self._policies.pop(ref, None)
        if known is None:
            return
        policy = known[1]
        if policy.subject.namespaces is None:
            near = self._of_namespace[policy.subject.namespace]
            near.discard(ref)
            if not near:
                del self._of_namespace[policy.subject.namespace]
        else:
            self._of_cluster.discard(ref)
        self._touch(policy)

    def _touch(self, policy: Policy) -> None:
        for key, subject in self._subjects.items():
            if self._selects(policy, subject.view):
                self._dirty.add(key)

    def set_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        self._set_namespace(name, labels)

    def remove_namespace(self, name: str) -> None:
        self._set_namespace(name, None)

    def _set_namespace(self, name: str, labels: Mapping[str, str] | None) -> None:
        self._partition.set_namespace(name, labels)
        self._dirty |= {key for key in self._subjects if key.namespace == name}

    def set_pod(self, pod: PodView) -> None:
        """New or changed. A pod of this node is admitted: with the next plan it may send."""
        self._partition.set_pod(pod.key, pod)
        if pod.node != self.node or pod.host_network:
            self._forget_subject(pod.key)
            return
        known = self._subjects.get(pod.key)
        if known is None:
            known = self._subjects[pod.key] = _Subject(pod)
        else:
            self._unclaim(pod.key, {*known.view.ips}.difference(pod.ips))
            known.view = pod
        for address in pod.ips:
            self._claims.setdefault(address.packed, {})[pod.key] = None
            self._dirty_addresses.add(address.packed)
        self._dirty.add(pod.key)

    def remove_pod(self, key: Key) -> None:
        self._partition.set_pod(key, None)
        self._forget_subject(key)

    def _forget_subject(self, key: Key) -> None:
        subject = self._subjects.pop(key, None)
        if subject is not None:
            self._dirty.discard(key)
            self._unclaim(key, subject.view.ips)
            for each in subject.classes.values():
                each.users -= 1
                self._released.append(each)

    def _unclaim(self, key: Key, addresses: Iterable[Address]) -> None:
        for address in addresses:
            claims = self._claims[address.packed]
            claims.pop(key, None)
            if not claims:
                del self._claims[address.packed]
            self._dirty_addresses.add(address.packed)

    def set_node(self, node: NodeView) -> None:
        self._partition.set_node(node.name, node)

    def remove_node(self, name: str) -> None:
        self._partition.set_node(name, None)

    def set_names(self, names: Mapping[str, frozenset[Address]]) -> None:
        """The addresses cluster DNS gave for names, all of them."""
        self._partition.set_names(names)

    def set_world(self, world: World, policies: Iterable[Policy]) -> None:
        """Everything at once, into a new object."""
        for name, labels in world.namespaces.items():
            self.set_namespace(name, labels)
        for node in world.nodes.values():
            self.set_node(node)
        for pod in world.pods.values():
            self.set_pod(pod)
        self.set_names(world.names)
        for policy in policies:
            self.set_policy(policy)

    # --- questions --------------------------------------------------------------------------------

    def outcome(self, number: Number) -> Outcome | None:
        """What a number in a log's prefix, or a counter's key, stands for."""
        return self._table.outcome(number)

    def outcomes(self) -> dict[Number, Outcome]:
        return self._table.outcomes()

    def enforces(self, ref: PolicyRef) -> bool:
        """Whether there is such a policy, and it is not staged."""
        return ref in self._policies

    def subjects(self) -> Counter[PolicyRef]:
        """How many pods of this node each policy selects."""
        return Counter(
            policy.ref
            for subject in self._subjects.values()
            for _, policy in self.selecting(subject.view)
        )

    def logs(self, outcome: Outcome) -> bool:
        return self._logging is not None and not outcome.allowed

    @property
    def generation(self) -> str:
        return self._generation

    def selecting(self, pod: PodView) -> list[tuple[int, Policy]]:
        """(serial, policy) of those whose subject the pod is, in order."""
        near = self._of_namespace.get(pod.key.namespace, ())
        found = [
            known
            for ref in (*self._of_cluster, *near)
            if self._selects((known := self._policies[ref])[1], pod)
        ]
        return sorted(found, key=lambda known: known[1].order)

    def _selects(self, policy: Policy, pod: PodView) -> bool:
        subject = policy.subject
        if subject.namespaces is None:
            if subject.namespace != pod.key.namespace:
                return False
        elif not subject.namespaces.matches(self._partition.labels_of(pod.key.namespace)):
            return False
        return subject.pods.matches(pod.labels)

    # --- plans ------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What leads from the last plan to what should be now; the state moves on."""
        return _Planning(self).run()

    def rebuild(self, generation: str) -> Plan:
        """Everything, as the elements of a generation of which only the empty maps exist."""
        self.plan()
        self._generation = generation
        grow = self._batch()
        text = {v: "".join(f"{line}\n" for line in self._chains(v)) for v in self.versions}
        for outcome in self._table.outcomes():
            grow.put_all(nf.OUTCOMES, pack_u32(outcome), self._verdict(outcome))
        for row in self._table.rows():
            for name, key, outcome in self._table.elements(row):
                grow.put_all(name, key, pack_u32(outcome))
        for each, rows in self._rows.items():
            for group, row in rows.items():
                grow.put_all(nf.ROWS, nf.pack_row_key(each.number, group), pack_u32(row))
        for version, address, number in self._partition.hosts():
            grow.put(version, nf.PEERS, address, pack_u32(number))
        for version in self.versions:
            for span, number in self._partition.ranges(version).items():
                grow.put(version, nf.NETWORKS, span, pack_u32(number))
        for address, sent in self._sent.items():
            version = _version(address)
            grow.put(version, nf.LOCAL, address)
            for name, data in sent.items():
                grow.put(version, name, address, self._data(data))
        return Plan((Step("chains", text), Step("elements", {}, grow.changes())))

    def _chains(self, version: int) -> Iterator[str]:
        words = nf.Words(version, self._generation)
        for each in self._classes.values():
            yield from nf.render_class(words, each.number, each.key.direction)
        for number, outcome in self._table.outcomes().items():
            yield from self._outcome_lines(words, number, outcome)

    def _outcome_lines(self, words: nf.Words, number: Number, outcome: Outcome) -> list[str]:
        if self._logging is None or not self.logs(outcome):
            return []
        return nf.render_outcome(words, number, outcome.direction, self._logging)

    def _verdict(self, number: Number) -> Verdict:
        outcome = self._table.outcome(number)
        assert outcome is not None
        if self.logs(outcome):
            return Goto(f"{self._generation}-{nf.outcome_chain(number)}")
        return RETURN if outcome.allowed else DROP

    def _data(self, each: Class | None) -> Data:
        return Jump(f"{self._generation}-{nf.class_chain(each.number)}") if each else None

    def _batch(self) -> Batch:
        return Batch(self._generation, self.versions)


def _version(address: bytes) -> int:
    return 4 if len(address) == 4 else 6


class _Planning:
    """One plan in the making, step by step."""

    def __init__(self, state: NodePolicies) -> None:
        self._state = state
        self._partition = state._partition
        self._table = state._table
        self._steps: list[Step] = []
        self._new: list[Class] = []

    def run(self) -> Plan:
        state = self._state
        self._assign()
        if self._new:
            self._partition.refine(*_needs(self._new))
            for each in self._new:
                each.learn(self._partition.index)
        self._grow()
        after = self._after()
        self._members(after)
        self._switch(after)
        gone = [each for each in {*state._released} if not each.users]
        state._released.clear()
        for each in gone:
            del state._classes[each.key]
        if gone:
            self._partition.coarsen(*_needs(gone))
        self._merge(after)
        outcomes = self._shrink(gone)
        state._class_numbers.give_back(each.number for each in gone)
        for numbers in (state._class_numbers, self._partition, self._table):
            numbers.settle()
        return Plan(tuple(self._steps), outcomes)

    # --- who is judged by what --------------------------------------------------------------------

    def _assign(self) -> None:
        """Every pod that may be selected by others now gets its classes."""
        state = self._state
        for key in state._dirty:
            subject = state._subjects[key]
            found = state.selecting(subject.view)
            for direction in DIRECTIONS:
                before = subject.classes.pop(direction, None)
                now = self._class(direction, found, subject.view)
                if now is not None:
                    now.users += 1
                    subject.classes[direction] = now
                if before is not None:
                    before.users -= 1
                    state._released.append(before)
                if now is not before:
                    state._dirty_addresses.update(ip.packed for ip in subject.view.ips)
        state._dirty.clear()

    def _class(
        self, direction: Direction, selecting: Sequence[tuple[int, Policy]], pod: PodView
    ) -> Class | None:
        state = self._state
        speaking = [known for known in selecting if known[1].concerns(direction)]
        if not speaking:
            return None
        policies = tuple(policy for _, policy in speaking)
        named = numbers_of(pod, named_ports(policies, direction)) if direction == "ingress" else ()
        key = ClassKey(direction, tuple(serial for serial, _ in speaking), named)
        found = state._classes.get(key)
        if found is None:
            found = state._classes[key] = Class(state._class_numbers.take(), key, policies)
            self._new.append(found)
        return found

    def _after(self) -> dict[bytes, _Sent | None]:
        """Of the addresses that may be in other sets now: which they should be in."""
        state = self._state
        after: dict[bytes, _Sent | None] = {}
        for address in state._dirty_addresses:
            claims = state._claims.get(address)
            if claims is None:
                after[address] = None
                continue
            classes = state._subjects[next(reversed(claims))].classes
            wanted: _Sent = {_MAPS[direction]: each for direction, each in classes.items()}
            after[address] = {nf.SELECTED: None, **wanted} if wanted else {}
        state._dirty_addresses.clear()
        return after

    # --- the steps --------------------------------------------------------------------------------

    def _add(self, name: str, batch: Batch) -> None:
        if changes := batch.changes():
            self._steps.append(Step(name, {}, changes))

    def _add_text(self, name: str, lines: Mapping[int, Sequence[str]]) -> None:
        text = {v: "\n".join(some) + "\n" for v, some in lines.items() if some}
        if text:
            self._steps.append(Step(name, text))

    def _grow(self) -> None:
        state, batch = self._state, self._state._batch()
        fresh = self._partition.take_fresh()
        for each in state._classes.values():
            if each not in state._rows:
                default = each.row(NOBODY, self._table)
                state._rows[each] = {0: default}
                self._table.use(default, 1)
                batch.put_all(nf.ROWS, nf.pack_row_key(each.number, 0), pack_u32(default))
                self._lead(each, self._partition.groups(), batch)
            else:
                self._lead(each, fresh, batch)
        rows, outcomes = self._table.take_fresh()
        for number in outcomes:
            batch.put_all(nf.OUTCOMES, pack_u32(number), state._verdict(number))
        for row in rows:
            for name, key, outcome in self._table.elements(row):
                batch.put_all(name, key, pack_u32(outcome))
        lines: dict[int, list[str]] = {}
        for version in state.versions:
            words = nf.Words(version, state.generation)
            lines[version] = [
                line
                for each in self._new
                for line in nf.render_class(words, each.number, each.key.direction)
            ]
            for number in outcomes:
                outcome_ = state.outcome(number)
                assert outcome_ is not None
                lines[version] += state._outcome_lines(words, number, outcome_)
        self._add_text("grow", lines)
        self._add("grow", batch)

    def _lead(self, each: Class, groups: Iterable[Group], batch: Batch) -> None:
        """From the class and each group it knows to its row; the others' is group 0's."""
        rows = self._state._rows[each]
        default = rows[0]
        for group in groups:
            row = each.row(group.key, self._table)
            if row != default:
                rows[group.number] = row
                self._table.use(row, 1)
                batch.put_all(nf.ROWS, nf.pack_row_key(each.number, group.number), pack_u32(row))

    def _members(self, after: Mapping[bytes, _Sent | None]) -> None:
        batch = self._state._batch()
        self._move_peers(batch)
        for address, wanted in after.items():
            version, sent = _version(address), self._state._sent.get(address)
            if wanted is None and sent is not None:
                batch.remove(version, nf.LOCAL, address)
            elif wanted and nf.SELECTED not in (sent or {}):
                batch.put(version, nf.SELECTED, address)
        self._add("members", batch)

    def _move_peers(self, batch: Batch) -> None:
        for version, address, before, now in self._partition.take_hosts():
            if before is not None:
                batch.remove(version, nf.PEERS, address)
            if now is not None:
                batch.put(version, nf.PEERS, address, pack_u32(now))
        for version in (4, 6):
            gone, new = self._partition.take_ranges(version)
            for span in gone:
                batch.remove(version, nf.NETWORKS, span)
            for span, number in new:
                batch.put(version, nf.NETWORKS, span, pack_u32(number))

    def _switch(self, after: Mapping[bytes, _Sent | None]) -> None:
        state, batch = self._state, self._state._batch()
        for address, wanted in after.items():
            if wanted is None:
                continue
            version, sent = _version(address), state._sent.get(address)
            if sent is None:
                batch.put(version, nf.LOCAL, address)
            for name in _MAPS.values():
                before, now = (sent or {}).get(name), wanted.get(name)
                if before is not now:
                    if before is not None:
                        batch.remove(version, name, address)
                    if now is not None:
                        batch.put(version, name, address, state._data(now))
        self._add("classes", batch)

    def _merge(self, after: Mapping[bytes, _Sent | None]) -> None:
        state, batch = self._state, self._state._batch()
        self._move_peers(batch)
        for address, wanted in after.items():
            version, sent = _version(address), state._sent.pop(address, None) or {}
            if nf.SELECTED in sent and not wanted:
                batch.remove(version, nf.SELECTED, address)
            if wanted is not None:
                state._sent[address] = wanted
                continue
            for name in _MAPS.values():
                if name in sent:
                    batch.remove(version, name, address)
        self._add("merge", batch)

    def _shrink(self, gone: Sequence[Class]) -> dict[Number, Outcome]:
        """The outcomes that are nobody's any more."""
        state, batch = self._state, self._state._batch()
        for each in gone:
            for group, row in state._rows.pop(each).items():
                self._unlead(each, group, row, batch)
        dead_groups = self._partition.sweep()
        for each, rows in state._rows.items():
            for group in dead_groups:
                if (former := rows.pop(group, None)) is not None:
                    self._unlead(each, group, former, batch)
        rows_gone, outcomes = self._table.sweep()
        for _, elements in rows_gone:
            for name, key, _ in elements:
                batch.remove_all(name, key)
        for number in outcomes:
            batch.remove_all(nf.OUTCOMES, pack_u32(number))
        if rows_gone:
            numbers = {number for number, _ in rows_gone}
            for each in state._classes.values():
                each.forget(numbers)
        self._add("shrink", batch)
        chains = [nf.class_chain(each.number) for each in gone]
        chains += [nf.outcome_chain(n) for n, outcome in outcomes.items() if state.logs(outcome)]
        words = {version: nf.Words(version, state.generation) for version in state.versions}
        self._add_text(
            "shrink", {v: nf.render_delete_chains(words[v], chains) for v in state.versions}
        )
        return outcomes

    def _unlead(self, each: Class, group: Number, row: Number, batch: Batch) -> None:
        self._table.use(row, -1)
        batch.remove_all(nf.ROWS, nf.pack_row_key(each.number, group))


def _needs(classes: Sequence[Class]) -> tuple[list[Peer], list[NamedPort]]:
    """What has to be known of peers, each as often as it is asked for."""
    return (
        [peer for each in classes for peer in each.peers],
        [port for each in classes for port in each.named],
    )
