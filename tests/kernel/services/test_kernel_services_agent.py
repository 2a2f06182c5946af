"""The agent when the kernel says no: one Service keeps what it had, the others go on."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgspec
from service_net import UDP, Ask, Sender, ServiceNet, wait
from service_rows import CLUSTER_IP, NODE_IP, ep
from service_worlds import CLUSTER_CIDRS, NODE, SERVICE_CIDRS, make_service, make_slice

from podwire.agents.config import ServiceConfig
from podwire.agents.nftablesbackend import NftablesBackend
from podwire.agents.servicekernel import Ranges
from podwire.agents.services import ServiceAgent
from podwire.client import Api, Change, Endpoint, Informer
from podwire.errors import KernelError
from podwire.objects import kinds
from podwire.objects.core import Node, Pod, Service
from podwire.objects.discovery import SERVICE_NAME_LABEL, EndpointSlice, ServiceCidr
from podwire.objects.meta import Key, Kind, Object
from podwire.services import nftables as nf
from podwire.services.claims import Claims, Owner

OTHER_IP = "10.96.0.2"
WEB, OTHER = Owner("Service", Key("ns1", "web")), Owner("Service", Key("ns1", "other"))


class Refusing(NftablesBackend):
    """A kernel that has no room for a Service with more than one backend."""

    def __init__(self, families: Iterable[int], claims: Claims) -> None:
        super().__init__(families, claims)
        self._owned = claims
        self.full = True

    def commit(self) -> None:
        if self.full and any(len(f.backends) > 1 for f in self._owned.frontends.values()):
            raise KernelError("nf_tables: no room", errno=12)
        super().commit()


class Told:
    """What would be Events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    async def record(
        self, kind: Kind[Service], obj: Object, event_type: str, reason: str, message: str
    ) -> None:
        self.events.append((reason, message))


class Agent(ServiceAgent):
    """Told what there is by the test instead of by an API; what it would tell is kept."""

    def __init__(self, refusing: bool) -> None:
        self.api = api = Api(Endpoint(unix_socket=Path("/run/nobody.sock")))
        nodes: Informer[Node] = Informer(api, kinds.NODE)
        config = ServiceConfig((4,), CLUSTER_CIDRS, SERVICE_CIDRS)
        self.events = Told()
        backend = Refusing if refusing else NftablesBackend
        super().__init__(api, "node-1", config, nodes, make_backend=backend, events=self.events)
        self.view = NODE
        self.known: dict[Key, Service] = {}
        self.services.objects = self.known
        self.backend.open(Ranges(SERVICE_CIDRS, CLUSTER_CIDRS))

    async def told(self) -> list[tuple[str, str]]:
        await asyncio.sleep(0)  # Events are written by tasks
        return self.events.events

    def have(self, service: Service, *hosts: str) -> None:
        self.known[service.key] = service
        ports = [{"name": p.name, "port": 8080, "protocol": p.protocol} for p in service.spec.ports]
        piece = make_slice(*map(ep, hosts), name=service.metadata.name, ports=ports)
        piece.metadata.labels[SERVICE_NAME_LABEL] = service.metadata.name
        change: Change[EndpointSlice] = Change(None, piece)
        self._slice_changed(change)

    def work(self) -> None:
        owners = list(self._dirty)
        self._dirty.clear()
        self.program_now(owners)


def in_loop(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(body())


def take_away(words: list[str]) -> None:
    told(words)


def told(words: list[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def cidr(name: str, network: str, *, deleting: bool) -> ServiceCidr:
    gone = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {}
    whole = {"metadata": {"name": name, **gone}, "spec": {"cidrs": [network]}}
    return msgspec.convert(whole, ServiceCidr)


def host_port_pod() -> Pod:
    port = {"containerPort": 8080, "hostPort": 8088}
    return msgspec.convert(
        {
            "metadata": {"name": "web", "namespace": "ns1"},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "ports": [port]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}]},
        },
        Pod,
    )


def hosts_of(net: ServiceNet, vip: str) -> set[str]:
    found = net.ask([Ask("here-c", vip, 80)] * 20)
    assert {a.verdict for a in found} == {"answered"}
    return {a.host for a in found}


def test_a_refused_service_keeps_what_it_had_and_is_told(scratch: Path) -> None:
    async def body() -> None:
        web, other = make_service(), make_service("other", clusterIP=OTHER_IP)
        agent = Agent(refusing=True)
        agent.have(web, "here-a")
        agent.have(other, "here-a")
        agent.work()
        agent.have(web, "far-a", "far-b")
        agent.have(other, "far-a")
        agent.work()
        assert hosts_of(net, CLUSTER_IP) == {"here-a"}
        assert hosts_of(net, OTHER_IP) == {"far-a"}
        assert agent.programmed[WEB].error
        assert not agent.programmed[OTHER].error
        assert [reason for reason, _ in await agent.told()] == ["FailedToProgram"]
        assert "no room" in agent.events.events[0][1]
        # Once the kernel takes it again, the next change is as any other.
        agent.have(web, "far-b")
        agent.work()
        assert hosts_of(net, CLUSTER_IP) == {"far-b"}
        assert not agent.programmed[WEB].error
        agent.close()

    with ServiceNet(scratch) as net:
        in_loop(body)


def test_what_was_refused_is_tried_again_by_itself(scratch: Path) -> None:
    async def body() -> None:
        agent = Agent(refusing=True)
        assert isinstance(agent.backend, Refusing)
        agent.have(make_service(), "here-a", "far-a")
        agent.work()
        agent._wake.clear()
        for _ in range(2):  # refused again, which is told once
            await asyncio.wait_for(agent._wake.wait(), 10)
            agent._wake.clear()
            assert agent.programmed[WEB].error
            agent.work()
            agent.backend.full = False
        assert not agent.programmed[WEB].error
        assert hosts_of(net, CLUSTER_IP) == {"here-a", "far-a"}
        assert [reason for reason, _ in await agent.told()] == ["FailedToProgram"]
        agent.close()

    with ServiceNet(scratch) as net:
        in_loop(body)


def test_what_somebody_took_away_is_put_back_by_the_next_change(scratch: Path) -> None:
    async def body() -> None:
        agent = Agent(refusing=False)
        agent.have(make_service(), "here-a", "far-a")
        agent.work()
        element = f"{{ {CLUSTER_IP} . tcp . 80 }}"
        words = ["nft", "delete", "element", "ip", nf.TABLE, nf.SERVICES, element]
        take_away(words)
        del agent.known[WEB.key]
        agent.touch(WEB)
        agent.work()
        assert not agent.claims.owners
        assert net.ask([Ask("here-c", CLUSTER_IP, 80)], patience_s=0.05)[0].verdict == "dropped"
        agent.have(make_service(), "here-b")
        agent.work()
        assert hosts_of(net, CLUSTER_IP) == {"here-b"}
        assert await agent.told() == []
        agent.close()

    with ServiceNet(scratch) as net:
        in_loop(body)


def test_flows_of_a_service_that_went_while_no_agent_was_there_end(scratch: Path) -> None:
    """At a node's own address only the elements tell that a flow was a Service's."""

    async def body() -> None:
        port = {"name": "dns", "port": 80, "protocol": "UDP", "nodePort": 30053}
        agent = Agent(refusing=False)
        agent.have(make_service(type="NodePort", ports=[port]), "here-a")
        agent.work()
        with Sender(net, Ask("outside", NODE_IP, 30053, UDP)) as sender:
            wait(lambda: net.server.received.get(("here-a", 8080)))
            agent.close()
            next_one = Agent(refusing=False)
            await next_one.start()
            assert next_one.flows.cleaner.deleted == {"service gone": 1}
            sender.wait_sent(10)
            received = net.server.received["here-a", 8080]
            sender.wait_sent(10)
            assert net.server.received["here-a", 8080] == received
            next_one.close()

    with ServiceNet(scratch) as net:
        in_loop(body)


def test_ranges_the_kernel_refused_are_there_by_the_next_look(scratch: Path) -> None:
    async def body() -> None:
        agent = Agent(refusing=False)
        table = agent.backend._table
        takes, refused = table.apply_text, []

        def refuse(text: str) -> None:
            refused.append(text)
            raise KernelError("nf_tables: no room", errno=12)

        table.apply_text = refuse
        leaving = cidr("more", "10.97.0.0/16", deleting=True)
        agent._cidrs.objects = {leaving.key: leaving}
        agent._cidr_changed(Change(None, leaving))
        agent._program_ranges()
        assert refused
        assert agent.program.mend_wanted
        table.apply_text = takes
        agent.program.mend()
        listed = told(["nft", "list", "set", "ip", nf.TABLE, nf.SERVICE_CIDRS])
        # Services have addresses of a range that is being deleted, or it would be gone.
        assert "10.97.0.0/16" in listed
        agent.close()

    with ServiceNet(scratch):
        in_loop(body)


def test_host_ports_stand_while_a_new_agent_does_not_know_its_pods(scratch: Path) -> None:
    async def body() -> None:
        pod = host_port_pod()
        agent = Agent(refusing=False)
        agent._pods = pods = Informer(agent.api, kinds.POD)
        pods.objects = {pod.key: pod}
        agent._pod_changed(Change(None, pod))
        agent.work()
        elements = ["nft", "list", "map", "ip", nf.TABLE, nf.SERVICES]
        assert ". 8088" in told(elements)
        agent.close()
        next_one = Agent(refusing=False)
        next_one._pods = pods = Informer(next_one.api, kinds.POD)
        starting = asyncio.ensure_future(next_one.start())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not starting.done()
        assert ". 8088" in told(elements)
        pods.objects = {pod.key: pod}
        next_one._pod_changed(Change(None, pod))
        pods.synced.set()
        await starting
        assert ". 8088" in told(elements)
        next_one.close()

    with ServiceNet(scratch):
        in_loop(body)
