"""What cases of Services hold in their hands: pods, Services and real packets in a namespace.

    with world.test() as t:                 a namespace of its own, gone afterwards
        t.pod("web-1", node="node-1")
        vip = t.service("web").spec.cluster_ip
        t.reached("client-1", vip, 80, {"web-1"})

Clients are pods that every test shares (`client-1` on node-1 and so on), a node itself (`node-1`,
which is also a pod of its network) and `outside`, a host beyond the cluster.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from labtools import Tools

from podwire.agents.backends import BACKENDS
from podwire.client import PatchType
from podwire.explain.probes.wire import Probe, ProbeResult
from podwire.kernel import features
from podwire.lab import Lab
from podwire.objects import kinds
from podwire.objects.core import Pod, Service
from podwire.objects.discovery import EndpointSlice
from podwire.objects.meta import Kind

PROXIES = tuple(BACKENDS)
"""Every case runs on each of them, where the kernel has it."""
NODES = ("node-1", "node-2", "node-3")
NODE_IPS = {"node-1": "172.30.0.2", "node-2": "172.30.0.3", "node-3": "172.30.0.4"}
OUTSIDE_IP = "203.0.113.10"
HTTP, UDP = {"name": "http", "containerPort": 8080}, {"name": "udp", "containerPort": 8081}
CLIENTS = "clients"
PORTS = [{"name": "http", "port": 80, "targetPort": 8080}]
UDP_PORTS = [{"name": "udp", "port": 90, "targetPort": 8081, "protocol": "UDP"}]
GRACE_S = 60
_NUMBERS = itertools.count(1)


class World:
    """One lab with its shared clients."""

    def __init__(self, lab: Lab, tools: Tools) -> None:
        self.lab, self.tools = lab, tools
        self.create(kinds.NAMESPACE, {"metadata": {"name": CLIENTS}}, "")
        for number, node in enumerate(NODES, 1):
            self.create(kinds.POD, pod_body(f"client-{number}", node), CLIENTS)
        self.wait_ready(CLIENTS)

    def create(self, kind: Kind[Any], body: dict[str, Any], namespace: str) -> Any:
        return self.lab.call(lambda api: api.create(kind, body, namespace))

    def wait_ready(self, namespace: str) -> list[Pod]:
        def ready() -> list[Pod]:
            pods = self.lab.pods(namespace)
            return pods if pods and all(p.ready for p in pods if not p.deleting) else []

        return self.tools.wait(ready)

    @contextlib.contextmanager
    def test(self) -> Iterator[Case]:
        case = Case(self, f"test-{next(_NUMBERS)}")
        self.create(kinds.NAMESPACE, {"metadata": {"name": case.namespace}}, "")
        try:
            yield case
        finally:
            case.end()


def pod_body(
    name: str,
    node: str = "",
    ports: Sequence[Mapping[str, Any]] = (HTTP, {**UDP, "protocol": "UDP"}),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A stand-in on `node`, labelled `app: web` unless told otherwise."""
    container = {"name": "main", "image": "example.com/web:1", "ports": list(ports)}
    container |= spec.pop("container", {})
    return {
        "metadata": {
            "name": name,
            "labels": {"app": "web"} if labels is None else dict(labels),
            "annotations": dict(annotations or {}),
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        }
        | spec,
    }


ENDING = {
    "terminationGracePeriodSeconds": GRACE_S,
    "container": {"lifecycle": {"preStop": {"sleep": {"seconds": GRACE_S - 5}}}},
}
"""A pod that goes on serving after it was told to end."""


class Case:
    """One test's namespace and verbs."""

    def __init__(self, world: World, namespace: str) -> None:
        self.world, self.lab, self.tools = world, world.lab, world.tools
        self.namespace = namespace

    def end(self) -> None:
        for pod in self.lab.pods(self.namespace):
            with contextlib.suppress(Exception):
                self.delete(kinds.POD, pod.metadata.name, grace_period_s=0)
        self.lab.call(lambda api: api.delete(kinds.NAMESPACE, self.namespace))

    # --- objects --------------------------------------------------------------------------------

    def create(self, kind: Kind[Any], body: dict[str, Any]) -> Any:
        return self.world.create(kind, body, self.namespace)

    def get(self, kind: Kind[Any], name: str) -> Any:
        return self.lab.call(lambda api: api.get(kind, name, self.namespace))

    def patch(self, kind: Kind[Any], name: str, body: dict[str, Any], **options: Any) -> Any:
        options = {"patch_type": PatchType.MERGE} | options
        return self.lab.call(lambda api: api.patch(kind, name, body, self.namespace, **options))

    def delete(self, kind: Kind[Any], name: str, **options: Any) -> None:
        self.lab.call(lambda api: api.delete(kind, name, self.namespace, **options))

    def pods(self, *names: str, nodes: Sequence[str] = NODES, **options: Any) -> None:
        """Pods one after the other on `nodes`, Ready when this returns."""
        for name, node in zip(names, itertools.cycle(nodes), strict=False):
            self.create(kinds.POD, pod_body(name, node, **options))
        self.wait_ready()

    def wait_ready(self) -> None:
        self.world.wait_ready(self.namespace)

    def pod(self, name: str) -> Pod:
        found: Pod = self.get(kinds.POD, name)
        return found

    def service(
        self,
        name: str = "web",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> Service:
        """`selector: app=web`, port 80 to 8080 unless `spec` says otherwise; None removes."""
        whole = {"selector": {"app": "web"}, "ports": PORTS} | spec
        metadata = {"name": name, "labels": labels or {}, "annotations": annotations or {}}
        body = {"metadata": metadata, "spec": {k: v for k, v in whole.items() if v is not None}}
        found: Service = self.create(kinds.SERVICE, body)
        return found

    def change(self, name: str = "web", **spec: Any) -> Service:
        found: Service = self.patch(kinds.SERVICE, name, {"spec": spec})
        return found

    def slices(self, name: str = "web") -> list[EndpointSlice]:
        found, _ = self.lab.call(lambda api: api.list(kinds.ENDPOINT_SLICE, self.namespace))
        return [piece for piece in found if piece.service_name == name]

    def begin_to_end(self, name: str) -> None:
        """Delete the pod; it serves on, and its endpoint is terminating."""
        self.delete(kinds.POD, name)

        def terminating() -> bool:
            return any(
                e.terminating and e.target_ref is not None and e.target_ref.name == name
                for piece in self.slices()
                for e in piece.endpoints
            )

        self.tools.wait(terminating)

    # --- packets --------------------------------------------------------------------------------

    def ask(
        self, source: str, address: str, port: int, times: int = 1, **options: Any
    ) -> Sequence[ProbeResult]:
        """Probes (HTTP unless told otherwise) from a shared client, a pod, a node or outside."""
        node, where = self._place(source)
        options = {"protocol": "http", "timeout_s": 0.5} | options
        probe = Probe(source=where, address=address, port=port, **options)
        return self.tools.ask(self.lab, node, *[probe] * times)

    def _place(self, source: str) -> tuple[str, str]:
        if source in NODES:
            return source, ""
        if source == "outside":
            return "node-1", "outside"
        if source.startswith("client-"):
            return f"node-{source[-1]}", f"{CLIENTS}/{source}"
        return self.pod(source).spec.node_name, f"{self.namespace}/{source}"

    def peers(self, source: str, address: str, port: int, times: int = 12, **how: Any) -> set[str]:
        """Names of the pods that answered; fails when one did not."""
        found = self.ask(source, address, port, times, **how)
        assert {r.verdict for r in found} == {"allowed"}, found
        return {r.peer.partition("/")[2] for r in found}

    def reached(
        self,
        source: str,
        address: str,
        port: int,
        wanted: Iterable[str],
        **how: Any,
    ) -> None:
        """Return when new connections end at all of `wanted`, and at no other."""
        wanted = set(wanted)
        times = 1 + 12 * (len(wanted) - 1) if len(wanted) > 1 else 3
        self.tools.wait(lambda: self.peers(source, address, port, times, **how) == wanted)

    def verdict(
        self, source: str, address: str, port: int, wanted: str | tuple[str, ...], **how: Any
    ) -> None:
        """Return when one new connection ends like that."""
        verdicts = (wanted,) if isinstance(wanted, str) else wanted
        how = {"timeout_s": 0.2 if "dropped" in verdicts else 1.0} | how

        def ends() -> bool:
            found = self.ask(source, address, port, **how)[0]
            assert found.verdict in verdicts, f"{source} -> {address} {port}: {found}"
            return True

        self.tools.wait(ends)

    def port_closed(self, source: str, address: str, port: int, **how: Any) -> None:
        """Return when a port that a live cluster IP does not have is not answered any more.

        It is refused; but iptables has no rule for it, and the packet is lost beyond the node.
        """
        lost = self.lab.spec.service_proxy == "iptables"
        self.verdict(source, address, port, (*REFUSED, "dropped") if lost else REFUSED, **how)

    def seen_as(self, source: str, address: str, port: int, **how: Any) -> str:
        """The client address the endpoint saw."""
        (found,) = self.ask(source, address, port, timeout_s=2.0, **how)
        assert found.verdict == "allowed", found
        return found.client


REFUSED = ("refused", "rejected")
"""A reset, or an ICMP message of the node."""


def service_world(proxy: str, name: str, tools: Tools, **options: Any) -> Iterator[World]:
    """A lab with this back end, or a skip that says why not."""
    missing = features.probe().missing()
    if proxy in missing:
        pytest.skip(missing[proxy])
    zones = ("zone-a", "zone-a", "zone-b")
    options = {"ip_family": "dual", "zones": zones} | options
    with Lab(f"{name}-{proxy}", nodes=3, service_proxy=proxy, **options) as lab:
        yield World(lab, tools)
