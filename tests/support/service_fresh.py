"""What a node's kernel has of Services, held against a fresh compile of what the API says.

Run in the node's namespaces: `python service_fresh.py NODE OBJECTS.json`, a document as `Objects`
says. Prints every difference, one a line; nothing where all is right.

The order of backends is the agent's own (it moves as few as it can), so frontends are compared by
how often each backend is there.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import msgspec

from podwire.kernel.nfelements import NfElements
from podwire.objects.core import Node, Pod, Service
from podwire.objects.discovery import EndpointSlice
from podwire.services import nftables as nf
from podwire.services.claims import Claims, Owner
from podwire.services.hostports import compile_host_ports
from podwire.services.model import NodeView, compile_service, ignored
from podwire.services.plan import SETS, Elements, Ruleset

_ZONE = "topology.kubernetes.io/zone"
_INDEXED = (nf.ENDPOINTS, nf.BACKEND_IDS)


class Objects(msgspec.Struct):
    services: list[Service]
    slices: list[EndpointSlice]
    nodes: list[Node]
    pods: list[Pod]
    pools: list[tuple[str, str]]


def compile_fresh(objects: Objects, name: str) -> Elements:
    node = next(node for node in objects.nodes if node.metadata.name == name)
    view = NodeView(
        name,
        node.metadata.labels.get(_ZONE, ""),
        tuple(ip_address(text) for text in node.internal_ips),
        pools=tuple((ip_address(a).packed, ip_address(b).packed) for a, b in objects.pools),
    )
    claims = Claims()
    for service in objects.services:
        if not ignored(service):
            slices = [s for s in objects.slices if _belongs(s, service)]
            created = service.metadata.creation_timestamp or ""
            rank = ("0", created, *service.key)
            found = compile_service(service, slices, view).frontends
            claims.set(Owner("Service", service.key), found, rank)
    for pod in objects.pods:
        if pod.spec.node_name == name:
            claims.set(Owner("Pod", pod.key), compile_host_ports(pod, view), ("1", *pod.key))
    ruleset = Ruleset(claims)
    ruleset.plan()
    return ruleset.elements()


def _belongs(piece: EndpointSlice, service: Service) -> bool:
    return (piece.metadata.namespace, piece.service_name) == service.key


def differences(found: Elements, wanted: Elements) -> Iterator[str]:
    for place in sorted({*found, *wanted}):
        has, should = (_unordered(place[1], whole.get(place, {})) for whole in (found, wanted))
        for key in sorted({*has, *should}, key=repr):
            if has.get(key) != should.get(key):
                yield f"{place[0]} {place[1]} {key!r}: {has.get(key)!r}, not {should.get(key)!r}"


def _unordered(name: str, elements: dict[object, object]) -> dict[object, object]:
    if name not in _INDEXED:
        return dict(elements)
    grouped: dict[object, Counter[object]] = defaultdict(Counter)
    for key, data in elements.items():
        assert isinstance(key, bytes)
        grouped[key[:-4]][data] += 1
    return dict(grouped)


def main() -> None:
    objects = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=Objects)
    kernel = NfElements()
    families = {ip_address(text).version for n in objects.nodes for text in n.internal_ips}
    found = {
        (version, name): kernel.dump(nf.FAMILY_NAMES[version], nf.TABLE, name)
        for version in families
        for name in SETS
    }
    for line in differences(found, compile_fresh(objects, sys.argv[1])):
        print(line)


if __name__ == "__main__":
    main()
