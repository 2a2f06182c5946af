"""[sig-network] LoadBalancers: upstream's cases under their names, from a host beyond the cluster.

outside 203.0.113.10 -- router 172.30.0.254 -- node-1..3 172.30.0.2-4, VIPs 172.30.0.200-250
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from outsideclient import Client, client, drum, entering, run_in

from podwire.lab import Lab
from podwire.objects import kinds
from podwire.objects.core import Service
from podwire.services.loadbalancers import FINALIZER

OUTSIDE, ROUTER = "203.0.113.10", "172.30.0.254"
_NAMES = itertools.count(1)

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      {placing}
      terminationGracePeriodSeconds: 5
      containers:
      - name: main
        image: example.com/web:1
        ports: [{{containerPort: 8080}}, {{containerPort: 8081, protocol: UDP}}]
        lifecycle: {{preStop: {{sleep: {{seconds: 2}}}}}}
---
"""


class Net:
    def __init__(self, lab: Lab, tools: Any, outside: Client) -> None:
        self.lab, self.tools, self.outside = lab, tools, outside
        self.name = ""

    def pods(self, replicas: int = 3, placing: str = "") -> None:
        """A deployment of the test's name, Ready."""
        text = DEPLOYMENT.format(name=self.name, replicas=replicas, placing=placing)
        self.lab.apply_text(text)

    def pods_on(self, *nodes: str) -> None:
        """One pod per node, and no others."""
        name = "kubernetes.io/hostname"
        term = {"matchExpressions": [{"key": name, "operator": "In", "values": list(nodes)}]}
        affinity = {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}
            }
        }
        apart = {
            "maxSkew": 1,
            "topologyKey": name,
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": self.name}},
            # Of a rolling update: old pods do not count.
            "matchLabelKeys": ["pod-template-hash"],
        }
        placing = (
            f"affinity: {json.dumps(affinity)}\n"
            f"      topologySpreadConstraints: {json.dumps([apart])}"
        )
        self.pods(len(nodes), placing)

    def service(
        self, name: str = "", annotations: dict[str, str] | None = None, **spec: Any
    ) -> str:
        """A LoadBalancer of the test's pods (its name by default); returns its name."""
        name = name or self.name
        whole = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "annotations": annotations or {}},
            "spec": {
                "type": "LoadBalancer",
                "selector": {"app": self.name},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
            }
            | spec,
        }
        self.lab.apply_text(json.dumps(whole), wait_s=None)
        return name

    def get(self, name: str = "") -> Service:
        return self.lab.call(lambda api: api.get(kinds.SERVICE, name or self.name, "default"))

    def patch(self, body: dict[str, Any], name: str = "") -> None:
        name = name or self.name
        self.lab.call(lambda api: api.patch(kinds.SERVICE, name, body, "default"))

    def vip(self, name: str = "") -> str:
        return str(self.tools.wait(lambda: self.get(name).status.load_balancer.ingress)[0].ip)

    def wait_answer(self, vip: str, port: int = 80, **options: Any) -> str:
        return str(self.tools.wait(lambda: self.outside.get(vip, port, **options)))

    def events(self, name: str = "") -> dict[str, str]:
        """Reason -> message."""
        found, _ = self.lab.call(lambda api: api.list(kinds.EVENT, "default"))
        name = name or self.name
        return {e.reason: e.message for e in found if e.involved_object.get("name") == name}

    def owners(self, vip: str) -> list[str]:
        """The nodes whose kernels answer for the address."""
        return [
            node.name
            for node in self.lab.spec.nodes
            if f"{vip} dev eth0" in run_in(self.lab, node.name, "ip", "neigh", "show", "proxy")
        ]

    def pod_nodes(self) -> dict[str, str]:
        return {
            pod.metadata.name: pod.spec.node_name
            for pod in self.lab.pods()
            if pod.metadata.labels.get("app") == self.name and not pod.deleting
        }


@pytest.fixture(scope="module")
def lab_net(tools: Any) -> Iterator[Net]:
    with Lab("lbconf", nodes=3) as lab, client(lab) as outside:
        yield Net(lab, tools, outside)


@pytest.fixture
def net(lab_net: Net) -> Iterator[Net]:
    lab_net.name = f"lb-test-{next(_NAMES)}"
    yield lab_net
    lab_net.tools.kubectl(lab_net.lab, "delete", "deployment,service", "--all", "--wait=false")
    lab_net.tools.wait(lambda: not lab_net.lab.pods("default"))


# --- LoadBalancers --------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_change_the_type_and_ports(net: Net, protocol: str) -> None:
    """should be able to change the type and ports of a TCP/UDP service"""
    udp, target = protocol == "UDP", 8081 if protocol == "UDP" else 8080
    net.pods(1)
    ports = [{"name": "x", "port": 80, "targetPort": target, "protocol": protocol}]
    net.service(type="ClusterIP", ports=ports)
    net.patch({"spec": {"type": "NodePort"}})
    node_port = net.get().spec.ports[0].node_port
    net.wait_answer("172.30.0.2", node_port, udp=udp)

    net.patch({"spec": {"type": "LoadBalancer"}})
    vip = net.vip()
    pods = set(net.pod_nodes())
    assert net.wait_answer(vip, udp=udp) in pods
    assert net.outside.get("172.30.0.2", node_port, udp=udp) in pods

    # Another node port, then another port: the address stays.
    other = 31000 + node_port % 100
    net.patch({"spec": {"ports": [ports[0] | {"nodePort": other}]}})
    assert net.wait_answer("172.30.0.2", other, udp=udp) in pods
    net.patch({"spec": {"ports": [ports[0] | {"port": 81, "nodePort": other}]}})
    assert net.wait_answer(vip, 81, udp=udp) in pods
    assert net.vip() == vip
    _, error = net.outside.ask(vip, 80, udp=udp)
    assert "Refused" in error

    # Without endpoints it is refused, with them again answered.
    net.tools.kubectl(net.lab, "scale", "deployment", net.name, "--replicas=0")
    net.tools.wait(lambda: "Refused" in net.outside.ask(vip, 81, udp=udp)[1])
    net.tools.kubectl(net.lab, "scale", "deployment", net.name, "--replicas=1")
    net.wait_answer(vip, 81, udp=udp)

    net.patch({"spec": {"type": "ClusterIP", "ports": [ports[0] | {"port": 81}]}})
    net.tools.wait(lambda: not net.get().status.load_balancer.ingress)
    net.tools.wait(lambda: net.owners(vip) == [])
    net.tools.wait(lambda: net.outside.ask(vip, 81, udp=udp, timeout_s=0.2)[1])


def test_source_ranges(net: Net) -> None:
    """should only allow access from service loadbalancer source ranges"""
    net.pods(2)
    net.service(loadBalancerSourceRanges=[f"{OUTSIDE}/32"])
    vip = net.vip()
    net.wait_answer(vip)
    net.patch({"spec": {"loadBalancerSourceRanges": ["203.0.113.99/32"]}})
    net.tools.wait(lambda: "imeout" in net.outside.ask(vip, timeout_s=0.3)[1])
    net.patch({"spec": {"loadBalancerSourceRanges": [" 203.0.113.0/24 "]}})
    net.wait_answer(vip)
    net.patch({"spec": {"loadBalancerSourceRanges": None}})
    net.wait_answer(vip)
    assert "LoadBalancerSourceRanges" in net.tools.wait(
        lambda: "LoadBalancerSourceRanges" in net.events() and net.events()
    )


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_session_affinity(net: Net, policy: str) -> None:
    """should have session affinity work for LoadBalancer service with Local / Cluster traffic
    policy; should be able to switch session affinity ..."""
    net.pods(6)
    net.service(externalTrafficPolicy=policy, sessionAffinity="ClientIP")
    vip = net.vip()
    net.wait_answer(vip)
    assert len({net.outside.get(vip) for _ in range(15)}) == 1
    net.patch({"spec": {"sessionAffinity": "None", "sessionAffinityConfig": None}})
    net.tools.wait(lambda: len({net.outside.get(vip) for _ in range(15)}) > 1)
    net.patch({"spec": {"sessionAffinity": "ClientIP"}})
    net.tools.wait(lambda: len({net.outside.get(vip) for _ in range(15)}) == 1)


def test_cleanup_finalizer(net: Net) -> None:
    """should handle load balancer cleanup finalizer for service"""
    net.service()
    vip = net.vip()
    assert FINALIZER in net.get().metadata.finalizers
    net.patch({"spec": {"type": "ClusterIP"}})
    net.tools.wait(lambda: FINALIZER not in net.get().metadata.finalizers)
    net.patch({"spec": {"type": "LoadBalancer"}})
    net.tools.wait(lambda: FINALIZER in net.get().metadata.finalizers)
    assert net.vip() == vip
    net.tools.wait(lambda: net.owners(vip))
    net.tools.kubectl(net.lab, "delete", "service", net.name, "--wait=true", "--timeout=20s")
    net.tools.wait(lambda: net.owners(vip) == [])
    net.tools.wait(lambda: {"EnsuredLoadBalancer", "DeletedLoadBalancer"} <= net.events().keys())


def test_without_node_ports(net: Net) -> None:
    """should be able to create LoadBalancer Service without NodePort and change it"""
    net.pods(2)
    net.service(allocateLoadBalancerNodePorts=False)
    vip = net.vip()
    assert net.wait_answer(vip) in net.pod_nodes()
    assert net.get().spec.ports[0].node_port == 0
    net.patch({"spec": {"allocateLoadBalancerNodePorts": True}})
    net.tools.wait(lambda: net.get().spec.ports[0].node_port)
    assert net.wait_answer("172.30.0.2", net.get().spec.ports[0].node_port) in net.pod_nodes()
    net.wait_answer(vip)


@pytest.mark.parametrize("second", ["node-1", "node-2"], ids=["the same node", "another node"])
def test_udp_when_the_server_pod_cycles(net: Net, second: str) -> None:
    """should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on
    the same nodes / different nodes"""
    ports = [{"port": 80, "targetPort": 8081, "protocol": "UDP"}]
    net.pods_on("node-1")
    net.service(ports=ports)
    vip = net.vip()
    first = net.wait_answer(vip, udp=True)
    one_way = [
        *entering(net.lab, "outside"),
        "bash",
        "-c",
        f"exec 3<>/dev/udp/{vip}/80; for i in $(seq 100000); do echo -n x >&3; done",
    ]
    with subprocess.Popen(one_way, stderr=subprocess.DEVNULL) as sender:
        net.pods_on(second)
        net.tools.kubectl(net.lab, "delete", "pod", first, "--wait=false")
        net.tools.wait(lambda: net.outside.get(vip, udp=True) != first)
        sender.kill()
    assert net.pod_nodes()[net.wait_answer(vip, udp=True)] == second


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_rolling_update(net: Net, policy: str) -> None:
    """should not have connectivity disruption during rolling update with externalTrafficPolicy"""
    net.pods_on("node-1", "node-2", "node-3")
    net.service(externalTrafficPolicy=policy)
    vip = net.vip()
    net.wait_answer(vip)
    with drum(net.lab, vip, timeout_s=2.0) as beating:
        beating.flow(20)
        net.tools.kubectl(net.lab, "rollout", "restart", f"deployment/{net.name}")
        net.tools.kubectl(net.lab, "rollout", "status", f"deployment/{net.name}", "--timeout=60s")
        beating.flow(50)
        beats = beating.stop()
    assert [beat for beat in beats if not beat.answered] == []


# --- LoadBalancers ExternalTrafficPolicy: Local ---------------------------------------------------


def test_local_preserves_the_source(net: Net) -> None:
    """should work for type=LoadBalancer"""
    net.pods_on("node-2")
    net.service(externalTrafficPolicy="Local")
    vip = net.vip()
    net.wait_answer(vip)
    assert net.owners(vip) == ["node-2"]
    assert net.outside.get(vip, path="/clientip").startswith(OUTSIDE)
    assert net.get().spec.health_check_node_port

    # With policy Cluster the node stands between.
    net.patch({"spec": {"externalTrafficPolicy": "Cluster"}})
    net.tools.wait(lambda: net.outside.get(vip, path="/clientip").startswith("172.30.0."))


def test_local_targets_nodes_with_endpoints_only(net: Net) -> None:
    """should target all nodes with endpoints; should only target nodes with endpoints"""
    net.pods_on("node-1")
    net.service(externalTrafficPolicy="Local")
    vip = net.vip()
    for node in ("node-1", "node-2", "node-3"):
        net.pods_on(node)
        net.tools.wait(lambda node=node: net.owners(vip) == [node])
        net.tools.wait(lambda node=node: set(net.pod_nodes().values()) == {node})
        assert net.pod_nodes()[net.wait_answer(vip)] == node


def test_local_works_from_pods(net: Net) -> None:
    """should work from pods"""
    net.pods_on("node-1", "node-2")
    net.service(externalTrafficPolicy="Local")
    vip = net.vip()
    net.wait_answer(vip)
    pod = net.lab.pod(net.name)
    found = {pod.probe(vip, 80).verdict for _ in range(4)}
    assert found == {"allowed"}
    # A node without an endpoint reaches it like any pod, by whichever endpoint there is.
    with client(net.lab, "node-3") as node:
        assert node.get(vip) in net.pod_nodes()


# --- this implementation's own -------------------------------------------------------------------


def test_shown_by_kubectl(net: Net) -> None:
    net.service()
    vip = net.vip()
    line = net.tools.kubectl(net.lab, "get", "service", net.name, "--no-headers")
    assert line.split()[1:4] == ["LoadBalancer", net.get().spec.cluster_ip, vip]
    assert net.get().status.load_balancer.ingress[0].ip_mode == "VIP"


def test_an_unlisted_port_is_refused_and_nobody_has_the_address(net: Net) -> None:
    net.pods(1)
    net.service()
    vip = net.vip()
    net.wait_answer(vip)
    assert "Refused" in net.outside.ask(vip, 81)[1]
    for node in net.lab.spec.nodes:
        assert f" {vip}/" not in run_in(net.lab, node.name, "ip", "-o", "addr")


def test_an_internal_balancer_is_for_nodes_and_pods(net: Net) -> None:
    net.pods(2)
    net.service(annotations={"networking.podwire.dev/load-balancer": "internal"})
    vip = net.vip()
    assert vip.startswith("172.30.0.19")
    pod = net.lab.pod(net.name)
    net.tools.wait(lambda: pod.can_reach(vip, 80))
    with client(net.lab, "node-1") as node:
        assert node.get(vip) in net.pod_nodes()
    assert "imeout" in net.outside.ask(vip, timeout_s=0.5)[1]
    # Out of the other pool once the annotation goes.
    net.patch({"metadata": {"annotations": {"networking.podwire.dev/load-balancer": None}}})
    net.tools.wait(lambda: net.vip().startswith("172.30.0.2"))
    net.wait_answer(net.vip())


def test_a_fixed_address_and_one_that_is_taken(net: Net) -> None:
    net.pods(1)
    net.service(loadBalancerIP="172.30.0.233")
    assert net.vip() == "172.30.0.233"
    other = net.service(f"{net.name}-b", loadBalancerIP="172.30.0.233")
    said = net.tools.wait(lambda: net.events(other).get("SyncLoadBalancerFailed"))
    assert "172.30.0.233 is not available: it is in use by service default/" in said
    assert not net.get(other).status.load_balancer.ingress
    net.tools.kubectl(net.lab, "delete", "service", net.name)
    assert net.vip(other) == "172.30.0.233"
    net.wait_answer("172.30.0.233")


def test_a_shared_address(net: Net) -> None:
    net.pods(1)
    sharing = {"networking.podwire.dev/allow-shared-ip": net.name}
    net.service(annotations=sharing)
    other = net.service(
        f"{net.name}-b",
        annotations=sharing,
        ports=[{"port": 80, "targetPort": 8081, "protocol": "UDP"}],
    )
    vip = net.vip()
    assert net.vip(other) == vip
    assert net.wait_answer(vip) == net.wait_answer(vip, udp=True)
    # Without its neighbour's consent it has to move, and both work on.
    net.patch(
        {"metadata": {"annotations": {"networking.podwire.dev/allow-shared-ip": None}}}, other
    )
    net.tools.wait(lambda: net.vip(other) != vip)
    net.wait_answer(net.vip(other), udp=True)
    net.wait_answer(vip)


def test_another_class_is_somebody_elses(net: Net) -> None:
    net.service(loadBalancerClass="example.com/other")
    ours = net.service(f"{net.name}-b", loadBalancerClass="podwire.dev/l2")
    net.vip(ours)
    other = net.get()
    assert other.status.load_balancer.ingress == []
    assert other.metadata.finalizers == []


def test_the_agents_restart_does_not_move_an_address(net: Net) -> None:
    net.pods(2)
    net.service()
    vip = net.vip()
    net.wait_answer(vip)
    (owner,) = net.tools.wait(lambda: net.owners(vip))
    pid = net.tools.pids(net.lab)[f"agent-{owner}"]
    with drum(net.lab, vip, timeout_s=1.0) as beating:
        beating.flow(10)
        os.kill(pid, signal.SIGKILL)
        net.tools.wait(lambda: net.tools.pids(net.lab)[f"agent-{owner}"] not in (0, pid))
        beating.flow(100)
        beats = beating.stop()
    assert [beat for beat in beats if not beat.answered] == []
    assert net.owners(vip) == [owner]
