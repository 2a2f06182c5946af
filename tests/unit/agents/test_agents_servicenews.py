"""What others learn: problems once, counts of frontends that are nobody's no more forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

from service_worlds import compiled, make_service, make_slice

from podwire.agents.servicenews import ServiceNews
from podwire.agents.serviceprogram import Programmed
from podwire.client import Api, Endpoint, Informer
from podwire.objects import kinds
from podwire.objects.core import Node, Service
from podwire.objects.meta import Key, Kind, Object
from podwire.services.claims import Owner
from podwire.services.model import FrontendKey

WEB = Owner("Service", Key("ns1", "web"))


class Told:
    """What would be Events."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def record(
        self, kind: Kind[Service], obj: Object, event_type: str, reason: str, message: str
    ) -> None:
        self.messages.append(message)


def make_news(service: Service) -> tuple[ServiceNews, Told]:
    api = Api(Endpoint(unix_socket=Path("/run/nobody.sock")))
    services: Informer[Service] = Informer(api, kinds.SERVICE)
    services.objects = {service.key: service}
    nodes: Informer[Node] = Informer(api, kinds.NODE)
    nodes.objects = {Key("", "node-1"): Node()}
    told = Told()
    return ServiceNews("node-1", services, nodes, told, (4,)), told


def with_bad_endpoints(service: Service, hosts: range) -> Programmed:
    piece = make_slice(*({"ip": f"127.0.{n // 200}.{n % 200 + 1}"} for n in hosts))
    return Programmed(1, compiled(service, piece))


async def test_a_problem_is_told_once_and_a_thousand_are_a_few_events() -> None:
    service = make_service()
    news, told = make_news(service)
    few, more = with_bad_endpoints(service, range(3)), with_bad_endpoints(service, range(4))
    news.programmed(WEB, None, few)
    await asyncio.sleep(0)
    assert len(told.messages) == 3
    news.programmed(WEB, few, more)
    await asyncio.sleep(0)
    assert len(told.messages) == 4
    assert "127.0.0.4" in told.messages[-1]
    many = with_bad_endpoints(service, range(1000))
    assert len(many.compiled.problems) == 1000
    news.programmed(WEB, more, many)
    await asyncio.sleep(0)
    assert len(told.messages) == 4 + 6
    assert told.messages[-1] == "and 991 more; see podwire status services"


def test_counts_of_a_port_that_is_given_back_are_forgotten() -> None:
    """Another Service may get the node port, and has its own."""
    port = {"name": "http", "port": 80, "nodePort": 30080}
    node_port = make_service(type="NodePort", ports=[port])
    news, _ = make_news(node_port)
    forgotten: list[FrontendKey] = []
    news.forget = forgotten.append
    before = Programmed(1, compiled(node_port))
    after = Programmed(2, compiled(make_service()))
    news.programmed(WEB, before, after)
    assert {key.port for key in forgotten} == {30080}
    forgotten.clear()
    news.programmed(WEB, after, None)
    assert {key.port for key in forgotten} == {80}
