"""Why a Service port has no endpoint a connection could get. Pure; each reason is a sentence.

no selector | selector matches nothing (what comes nearest) | pods have no address, ended,
are not Ready (which container, which probe) | targetPort names no container port |
slices are behind | all are on other nodes (traffic policy Local)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from podwire.objects.core import Container, Pod, Probe, Service, ServicePort
from podwire.objects.discovery import Endpoint, EndpointSlice
from podwire.services.hostports import container_ports

_SHOWN = 3


def why_no_endpoints(
    service: Service,
    port: ServicePort | None,
    slices: Sequence[EndpointSlice],
    pods: Sequence[Pod],
) -> list[str]:
    """Why nobody answers anywhere, most telling first."""
    selector = service.spec.selector
    if not selector:
        count = sum(len(piece.endpoints) for piece in slices)
        if not count:
            return [
                (
                    "the Service has no selector and nobody wrote an EndpointSlice (or Endpoints) "
                    "for it"
                )
            ]
        return ["the Service has no selector; of its hand-written endpoints none is ready"]
    own = [pod for pod in pods if pod.metadata.namespace == service.metadata.namespace]
    chosen = [pod for pod in own if _selected(pod, selector)]
    if not chosen:
        return _no_match(selector, service, own, pods)
    reasons = [f"pod {pod.key}: {why}" for pod in chosen if (why := why_not_ready(pod))]
    ready = [pod for pod in chosen if not why_not_ready(pod)]
    if ready and port is not None and (unresolved := _unresolved(port, ready)):
        return unresolved
    if ready:
        names = ", ".join(str(pod.key) for pod in ready[:_SHOWN])
        return [
            (
                f"{names}: Ready, but not in the EndpointSlices; are the controllers running? "
                "(`podwire status`)"
            )
        ]
    if len(reasons) > _SHOWN:
        reasons = [*reasons[:_SHOWN], f"and {len(reasons) - _SHOWN} more pods"]
    return reasons


def _selected(pod: Pod, selector: Mapping[str, str]) -> bool:
    return all(pod.metadata.labels.get(key) == value for key, value in selector.items())


def words_of(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _no_match(
    selector: Mapping[str, str], service: Service, own: Sequence[Pod], pods: Iterable[Pod]
) -> list[str]:
    namespace = service.metadata.namespace
    reasons = [f"selector {words_of(selector)} matches no pod in namespace {namespace}"]
    elsewhere = [pod for pod in pods if _selected(pod, selector)]
    if elsewhere:
        reasons.append(
            f"pod {elsewhere[0].key} has these labels, but a Service selects in its own "
            "namespace only"
        )
    elif own:
        nearest = max(own, key=lambda pod: _likeness(selector, pod.metadata.labels))
        labels = nearest.metadata.labels
        differing = [
            f"{key}={labels[key]} instead of {value}" if key in labels else f"no label {key}"
            for key, value in selector.items()
            if labels.get(key) != value
        ]
        if _likeness(selector, labels) > 0:
            reasons.append(f"nearest is pod {nearest.key}: it has {', '.join(differing)}")
    else:
        reasons.append(f"there is no pod at all in namespace {namespace}")
    return reasons


def _likeness(selector: Mapping[str, str], labels: Mapping[str, str]) -> float:
    """Equal labels count 1, values that look alike a part of it, the same key a little."""
    score = 0.0
    for key, value in selector.items():
        if key in labels:
            score += 0.1 + 0.9 * difflib.SequenceMatcher(None, value, labels[key]).ratio()
        elif value in labels.values():
            score += 0.3
    return score


def why_not_ready(pod: Pod) -> str:
    """Why a pod is no endpoint now; "" for one that is Ready."""
    if pod.finished:
        return f"has ended ({pod.status.phase})"
    if not pod.spec.node_name:
        return "is not scheduled" + _condition(pod, "PodScheduled")
    if pod.deleting:
        return "is terminating"
    if pod.ready:
        return "" if pod.status.pod_ips or pod.status.pod_ip else "has no address yet"
    return "is not Ready: " + ("; ".join(_unready_containers(pod)) or _other_reason(pod))


def _unready_containers(pod: Pod) -> Iterator[str]:
    specs = {container.name: container for container in pod.spec.containers}
    for status in pod.status.container_statuses:
        if status.ready:
            continue
        state = status.state
        if state.waiting is not None:
            more = f" ({state.waiting.message})" if state.waiting.message else ""
            yield f"container {status.name} waits: {state.waiting.reason}{more}"
        elif state.terminated is not None:
            yield f"container {status.name} ended with code {state.terminated.exit_code}"
        else:
            yield _running(status.name, specs.get(status.name), status.started)


def _running(name: str, spec: Container | None, started: bool | None) -> str:
    if spec is not None and spec.startup_probe is not None and not started:
        return f"container {name}: startup probe {describe_probe(spec.startup_probe)} not passed"
    if spec is not None and spec.readiness_probe is not None:
        return f"container {name}: readiness probe {describe_probe(spec.readiness_probe)} fails"
    return f"container {name} is not ready"


def describe_probe(probe: Probe) -> str:
    """`GET :8080/ready`, `tcp :80`, `grpc :9000`, `exec cat /tmp/x`."""
    if probe.http_get is not None:
        return f"GET :{probe.http_get.port}{probe.http_get.path or '/'}"
    if probe.tcp_socket is not None:
        return f"tcp :{probe.tcp_socket.port}"
    if probe.grpc is not None:
        return f"grpc :{probe.grpc.port}"
    return f"exec {' '.join(probe.exec.command)}" if probe.exec is not None else "of no kind"


def _other_reason(pod: Pod) -> str:
    for kind in ("Ready", "ContainersReady", "PodReadyToStartContainers", "Initialized"):
        found = next((c for c in pod.status.conditions if c.type == kind), None)
        if found is not None and found.status != "True" and (found.reason or found.message):
            return f"{found.reason} {found.message}".strip()
    return f"phase {pod.status.phase or 'Pending'}"


def _condition(pod: Pod, kind: str) -> str:
    found = next((c for c in pod.status.conditions if c.type == kind), None)
    return f" ({found.message})" if found is not None and found.message else ""


def _unresolved(port: ServicePort, pods: Sequence[Pod]) -> list[str]:
    """A targetPort by name that no container declares (with the protocol)."""
    if not isinstance(port.target_port, str):
        return []
    name = port.target_port
    for pod in pods:
        if any(p.name == name and p.protocol == port.protocol for p in container_ports(pod)):
            return []
    there = ", ".join(
        f"{p.name or 'unnamed'} {p.container_port}/{p.protocol}" for p in container_ports(pods[0])
    )
    return [
        (
            f"targetPort {name!r} ({port.protocol}) names no containerPort of pod {pods[0].key}; "
            f"it has {there or 'none'}"
        )
    ]


def where_endpoints_are(slices: Iterable[EndpointSlice]) -> str:
    """`2 on node-2, 1 on node-3`: where usable endpoints are, for policy Local."""
    nodes: dict[str, int] = {}
    for piece in slices:
        for endpoint in piece.endpoints:
            if endpoint.ready or (endpoint.serving and endpoint.terminating):
                name = endpoint.node_name or "no node"
                nodes[name] = nodes.get(name, 0) + 1
    return ", ".join(f"{count} on {name}" for name, count in sorted(nodes.items())) or "none"


def count_states(endpoints: Iterable[Endpoint]) -> dict[str, int]:
    """How many are ready, terminating, unready."""
    found: dict[str, int] = {}
    for endpoint in endpoints:
        state = "ready" if endpoint.ready else "terminating" if endpoint.terminating else "unready"
        found[state] = found.get(state, 0) + 1
    return found
