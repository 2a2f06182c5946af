"""`podwire policy ...` on a `StaticWorld`: diff, coverage, lint, exposure, as documents. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec

from podwire.explain.entries import Entry, selected_by, target_ports
from podwire.explain.render.fold import Graph, make_graph
from podwire.explain.staticreach import StaticReach
from podwire.explain.staticworld import StaticWorld
from podwire.explain.workloads import Owner, Talker
from podwire.objects.meta import View
from podwire.policy.connlist import Connection, connections, format_ports, make_actors
from podwire.policy.coverage import Coverage, measure_coverage
from podwire.policy.diff import Change, diff_connections
from podwire.policy.evaluate import DEFAULT, Semantics
from podwire.policy.exposure import Imagined, imagine, imagine_all, with_imagined
from podwire.policy.flowdocument import FlowLogDocument
from podwire.policy.flowlog import End
from podwire.policy.lint import Finding, ServiceLead, lint
from podwire.policy.reach import Reach
from podwire.policy.weights import weigh

_COLOURS: Mapping[str, str] = {"added": "#1a7f37", "removed": "#cf222e", "changed": "#bf8700"}


class ChangeTold(View):
    """`kind` is added, removed or changed."""

    kind: str
    source: str
    destination: str
    old: str
    new: str
    opened: str
    closed: str
    flows_denied: int | None = None
    flows_allowed: int | None = None
    last_seen: float | None = None


class FlowsTold(View):
    """Observed flows beside a diff: of `total` that were seen, `denied` were allowed and would be
    denied, `allowed` the other way; `unused` changes open what nobody tried."""

    total: int
    denied: int
    allowed: int
    unused: int
    window: str
    doubts: tuple[str, ...] = ()


class DiffTold(View):
    """Flows only where a flow log was given."""

    changes: tuple[ChangeTold, ...] = ()
    workloads_added: tuple[str, ...] = ()
    workloads_removed: tuple[str, ...] = ()
    flows: FlowsTold | None = None


class FindingTold(View):
    """`at` is `file:line`, "" for a policy of a live API."""

    check: str
    severity: str
    policy: str
    path: str
    text: str
    at: str = ""
    others: tuple[str, ...] = ()


class ExposureTold(View):
    """What a pod that does not exist yet could open (`egress`) or be opened by (`ingress`)."""

    imagined: str
    direction: str
    peer: str
    text: str


# --- diff ---------------------------------------------------------------------------------------


def diff_worlds(old: StaticReach, new: StaticReach) -> list[Change]:
    """A workload that is told pod by pod on one side is so on the other: else all of its
    connections would seem to come and go."""
    listed = [(each, list(each.connections())) for each in (old, new)]
    apart = {owner for each, found in listed for owner in _told_apart(each, found)}
    before, after = (_pod_by_pod(each, found, apart) for each, found in listed)
    return diff_connections(before, after)


def _told_apart(static: StaticReach, found: Iterable[Connection]) -> Iterator[str]:
    owners = {str(t): str(t.owner) for t in static.static.talkers if str(t) != str(t.owner)}
    for connection in found:
        yield from (owners[end] for end in connection[:2] if end in owners)


def _pod_by_pod(
    static: StaticReach, found: Iterable[Connection], apart: Container[str]
) -> Iterator[Connection]:
    pods = {
        str(owner): list(map(str, talkers))
        for owner, talkers in static.static.workloads().items()
        if str(owner) in apart
    }
    for source, destination, ports in found:
        for one in pods.get(source, (source,)):
            for other in pods.get(destination, (destination,)):
                yield Connection(one, other, ports)


def tell_diff(changes: Iterable[Change], old: StaticReach, new: StaticReach) -> DiffTold:
    before, after = ({actor.label for actor in each.actors} for each in (old, new))
    return DiffTold(
        changes=tuple(
            ChangeTold(
                kind=change.kind,
                source=change.source,
                destination=change.destination,
                old=format_ports(change.old),
                new=format_ports(change.new),
                opened=format_ports(change.opened),
                closed=format_ports(change.closed),
            )
            for change in changes
        ),
        workloads_added=tuple(sorted(after - before)),
        workloads_removed=tuple(sorted(before - after)),
    )


def add_flows(
    told: DiffTold, changes: Sequence[Change], static: StaticWorld, log: FlowLogDocument
) -> DiffTold:
    """The diff weighted by what was seen."""
    named = {end for change in changes for end in change[:2]}
    weights = weigh(changes, log.records, lambda end: _label_of(static, end, named))
    flows = FlowsTold(
        total=len(log.records),
        denied=sum(len(weight.denied) for weight in weights),
        allowed=sum(len(weight.allowed) for weight in weights),
        unused=sum(
            bool(change.opened) and not weight.allowed
            for change, weight in zip(changes, weights, strict=True)
        ),
        window=log.window(),
        doubts=tuple(log.doubts()),
    )
    weighted = tuple(
        msgspec.structs.replace(
            each,
            flows_denied=len(weight.denied),
            flows_allowed=len(weight.allowed),
            last_seen=weight.last_seen or None,
        )
        for each, weight in zip(told.changes, weights, strict=True)
    )
    return msgspec.structs.replace(told, changes=weighted, flows=flows)


def _label_of(static: StaticWorld, end: End, named: Container[str]) -> str:
    """The workload a pod that was seen belongs to: by name, else the one with most of its labels,
    since pods of a template have its labels and more. The pod itself, where it is `named`."""
    near = [t for t in static.talkers if t.view.key.namespace == end.namespace]
    known = next((t for t in near if t.view.key.name == end.name), None)
    if known is not None:
        return str(known) if str(known) in named else str(known.owner)
    fitting = [t for t in near if t.view.labels.items() <= dict(end.labels).items()]
    best = max(fitting, key=lambda t: len(t.view.labels), default=None)
    return str(best.owner) if best is not None else ""


def draw_diff(changes: Iterable[Change]) -> Graph:
    """Green is added, red removed, yellow changed; what stays as it was is left out."""
    edges: dict[tuple[str, str], str] = {}
    colours: dict[tuple[str, str], str] = {}
    for change in changes:
        pair = change.source, change.destination
        was, is_ = format_ports(change.old), format_ports(change.new)
        edges[pair] = {"added": f"+ {is_}", "removed": f"- {was}"}.get(
            change.kind, f"{was} -> {is_}"
        )
        colours[pair] = _COLOURS[change.kind]
    return make_graph(edges, (), colours)


# --- coverage, lint -----------------------------------------------------------------------------


def cover(static: StaticReach) -> list[Coverage]:
    # Without the ingress controller: it is nobody's pod.
    bare = StaticReach(
        replace(static.static, entries=()), static.reach.semantics, static.reach.version
    )
    return measure_coverage(bare.reach, static.static.policy_set)


def lint_world(
    static: StaticWorld, semantics: Semantics = DEFAULT, version: int = 4
) -> list[FindingTold]:
    reach = Reach(static.world, static.policy_set, semantics, version)
    found = lint(reach, static.policy_set, list(service_leads(static)))
    return [_told(static, finding) for finding in found]


def _told(static: StaticWorld, finding: Finding) -> FindingTold:
    return FindingTold(
        check=finding.check,
        severity=finding.severity,
        policy=str(finding.policy),
        path=finding.path,
        text=finding.text,
        at=static.origins.of(finding.policy, finding.path),
        others=finding.others,
    )


def service_leads(static: StaticWorld) -> Iterator[ServiceLead]:
    """Every Service port with the pods' own ports behind it."""
    for key, service in static.services.items():
        chosen = [talker for talker in static.talkers if selected_by(service, talker.view)]
        for port in service.spec.ports:
            entry = Entry("", key, port.port, port.protocol)
            for talker in chosen:
                for span in target_ports(service, entry, talker.view):
                    yield ServiceLead(
                        str(key), talker.view.key, span.protocol, port.port, span.first
                    )


# --- exposure -----------------------------------------------------------------------------------


def expose(
    static: StaticWorld, semantics: Semantics = DEFAULT, version: int = 4
) -> list[ExposureTold]:
    """For each selector of the rules a pod that it alone means, and one that none means."""
    return _expose(static, semantics, version, imagine_all(static.policies, static.world))


def expose_pod(
    static: StaticWorld,
    namespace: str,
    labels: Mapping[str, str],
    semantics: Semantics = DEFAULT,
    version: int = 4,
) -> list[ExposureTold]:
    """A pod with these labels in that namespace."""
    words = ",".join(f"{key}={value}" for key, value in labels.items()) or "no labels"
    label = f"{{pod {words} of namespace {namespace}}}"
    imagined = [imagine(label, namespace, labels, static.world)]
    return _expose(static, semantics, version, imagined)


def _expose(
    static: StaticWorld, semantics: Semantics, version: int, imagined: list[Imagined]
) -> list[ExposureTold]:
    """Pod by pod, in the order they were imagined in."""
    reach = Reach(with_imagined(static.world, imagined), static.policy_set, semantics, version)
    talkers = [
        Talker(each.pod, Owner(each.pod.key.namespace, "Pod", each.pod.key.name))
        for each in imagined
    ]
    labels = {talker.view.key: each.label for talker, each in zip(talkers, imagined, strict=True)}
    names = {t.view.key: labels.get(t.view.key, str(t)) for t in (*static.talkers, *talkers)}
    workloads = {
        str(owner): [t.view.key for t in found] for owner, found in static.workloads().items()
    }
    workloads |= {label: [key] for key, label in labels.items()}
    actors = make_actors(reach, workloads, names)
    wanted = list(dict.fromkeys(labels.values()))
    found = [
        told
        for connection in connections(reach, actors)
        for told in _exposed(connection, set(wanted))
        if told.text != format_ports(())
    ]
    return sorted(found, key=lambda told: (wanted.index(told.imagined), told.direction))


def _exposed(found: Connection, wanted: set[str]) -> Iterator[ExposureTold]:
    text = format_ports(found.ports)
    if found.source in wanted and found.destination not in wanted:
        yield ExposureTold(
            imagined=found.source, direction="egress", peer=found.destination, text=text
        )
    if found.destination in wanted and found.source not in wanted:
        yield ExposureTold(
            imagined=found.destination, direction="ingress", peer=found.source, text=text
        )
