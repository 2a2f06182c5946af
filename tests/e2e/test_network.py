"""The pod network in every mode, by real packets: who reaches whom, as whom, how large.

Two nodes with two stand-ins each (TCP 8080, UDP 5353) and one pod on each node's own network:

    node-1 172.30.0.2   a1 a2 host-1        node-2 172.30.0.3   b1 b2 host-2
    outside 203.0.113.10, 2001:db8:113::10
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from podwire.explain.probes.wire import Probe
from podwire.explain.reach import ReachOptions
from podwire.kernel import hooks
from podwire.lab import Lab

PEERS = {"a1": "node-1", "a2": "node-1", "b1": "node-2", "b2": "node-2"}
PEER = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: peer}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: example.com/peer:1
    ports: [{{containerPort: 8080}}, {{containerPort: 5353, protocol: UDP}}]
---
"""
HOST = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: host}}}}
spec:
  nodeName: {node}
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: main, image: example.com/host:1, ports: [{{containerPort: 9000}}]}}
---
"""
MANIFEST = "".join(PEER.format(name=name, node=node) for name, node in PEERS.items())
MANIFEST += HOST.format(name="host-1", node="node-1") + HOST.format(name="host-2", node="node-2")

MODES: dict[str, dict[str, Any]] = {
    "routed": {},
    "kubenet": {"network": "kubenet"},
    "routed-vxlan": {"overlay": "vxlan"},
    "kubenet-vxlan": {"network": "kubenet", "overlay": "vxlan"},
    "ipv6": {"ip_family": "ipv6"},
    "dual": {"ip_family": "dual"},
    "kubenet-dual": {"network": "kubenet", "ip_family": "dual"},
    "vxlan6": {"overlay": "vxlan", "ip_family": "ipv6"},
}
MTU = {"routed-vxlan": 1450, "kubenet-vxlan": 1450, "vxlan6": 1430}


class Net:
    """A lab in one mode, with the pods of `MANIFEST` Ready."""

    def __init__(self, mode: str, lab: Lab) -> None:
        self.mode, self.lab = mode, lab
        self.kubenet = mode.startswith("kubenet")
        self.mtu = MTU.get(mode, 1500)
        self.ips = {
            pod.metadata.name: [entry.ip for entry in pod.status.pod_ips] for pod in lab.pods()
        }

    def own(self, name: str, like: str) -> str:
        """The address of `name` in the family of `like`."""
        version = ip_address(like).version
        return next(ip for ip in self.ips[name] if ip_address(ip).version == version)


@pytest.fixture(scope="module", params=list(MODES))
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with Lab(f"net-{request.param}", nodes=2, **MODES[request.param]) as lab:
        lab.apply_text(MANIFEST)
        yield Net(request.param, lab)


def test_every_pair_by_every_protocol_as_itself(net: Net) -> None:
    """No address is translated between pods, whether they share a node or not."""
    options = ReachOptions(
        sources=("app=peer",),
        destinations=("app=peer",),
        ports=("8080", "5353/udp", "icmp"),
        http=True,
        timeout_s=10.0,
    )
    found = net.lab.reach(options)
    families = len(net.ips["a1"])
    assert families == (2 if "dual" in net.mode else 1)
    assert len(found.answers) == 4 * 3 * 3 * families
    assert found.all_allowed, [a for a in found.answers if a.verdict != "allowed"]
    spoken = [a for a in found.answers if a.port.protocol != "ICMP"]
    for answer in spoken:
        source = found.sources[answer.source]
        assert answer.client in source.addresses
        assert answer.peer == found.destinations[answer.destination].key
    assert found.translated() == []


def test_a_pod_reaches_itself_by_its_own_address(net: Net, tools: Any) -> None:
    for ip in net.ips["a1"]:
        (answer,) = tools.ask(
            net.lab,
            "node-1",
            Probe(source="default/a1", address=ip, port=8080, protocol="http", timeout_s=10),
        )
        assert (answer.verdict, answer.client) == ("allowed", ip)


def test_source_address_at_nodes(net: Net, tools: Any) -> None:
    """kubenet masquerades IPv4 to other nodes (outside 10.0.0.0/8), as upstream; routed does not.

    To its own node's address a pod is never masqueraded (upstream's `! --dst-type LOCAL`).
    """
    for host, far in (("host-1", False), ("host-2", True)):
        for address in net.ips[host]:
            (answer,) = tools.ask(
                net.lab,
                "node-1",
                Probe(
                    source="default/a1", address=address, port=9000, protocol="http", timeout_s=10
                ),
            )
            masqueraded = net.kubenet and far
            seen = net.own("host-1" if masqueraded else "a1", address)
            assert (answer.verdict, answer.client) == ("allowed", seen), address


_OUTSIDE_SERVER = """
import select, socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", 7777))
print("ready", flush=True)
while True:
    ready, _, _ = select.select([s, sys.stdin], [], [])
    if sys.stdin in ready:
        break
    _, peer = s.recvfrom(2048)
    print(peer[0].removeprefix("::ffff:"), flush=True)
    s.sendto(b"ok", peer)
"""
# A lab without IPv6 has no AF_INET6 sockets to bind.
_OUTSIDE_SERVER4 = (
    _OUTSIDE_SERVER.replace('("::", 7777)', '("", 7777)')
    .replace("s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)\n", "")
    .replace("AF_INET6", "AF_INET")
)


def seen_outside(tools: Any, lab: Lab, address: str, **probe: Any) -> tuple[str, str]:
    """What address the outside host sees when pod a1 asks it, and the probe's verdict."""
    program = _OUTSIDE_SERVER if 6 in lab.spec.families else _OUTSIDE_SERVER4
    command = [sys.executable, "-m", "podwire", "exec", "--lab", lab.name, "outside", "--"]
    with subprocess.Popen(
        [*command, sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert _line(server) == "ready"
        (answer,) = tools.ask(
            lab,
            "node-1",
            Probe(source="default/a1", address=address, port=7777, protocol="udp", **probe),
        )
        seen = _line(server)
        server.stdin.close()
        return seen, answer.verdict


def _line(server: subprocess.Popen[str]) -> str:
    """The next line it prints; "" when none comes."""
    assert server.stdout is not None
    ready, _, _ = select.select([server.stdout], [], [], 20)
    return server.stdout.readline().strip() if ready else ""


def test_to_the_outside_as_the_node(net: Net, tools: Any) -> None:
    for address in ("203.0.113.10", "2001:db8:113::10"):
        if ip_address(address).version in net.lab.spec.families:
            seen, verdict = seen_outside(tools, net.lab, address, timeout_s=10)
            assert (seen, verdict) == (net.own("host-1", address), "allowed")


def test_pods_mtu(net: Net, tools: Any) -> None:
    link = tools.inside_json(net.lab, "a1", "ip", "-j", "link", "show", "eth0")[0]
    assert link["mtu"] == net.mtu
    for ip in net.ips["b1"]:
        question = {"source": "default/a1", "address": ip, "protocol": "icmp"}
        fits, small, large = tools.ask(
            net.lab,
            "node-1",
            Probe(**question, size=net.mtu, timeout_s=10),
            Probe(**question, timeout_s=10),
            Probe(**question, size=net.mtu + 1, timeout_s=1),
        )
        assert (fits.verdict, small.verdict) == ("allowed", "allowed")
        assert large.verdict != "allowed"


def test_path_mtu_is_verified_between_all_nodes(net: Net, tools: Any) -> None:
    def verified() -> bool:
        document = json.loads(net.lab.call(lambda api: api.request("GET", "/api/v1/nodes")))
        found = [
            condition
            for node in document["items"]
            for condition in node["status"]["conditions"]
            if condition["type"] == "PathMTU"
        ]
        expected = f"packets of {net.mtu} bytes reach every node unfragmented"
        return len(found) == 2 and all(
            (c["status"], c["message"]) == ("True", expected) for c in found
        )

    assert tools.wait(verified)


def test_neighbours_are_permanent_on_both_ends(net: Net, tools: Any) -> None:
    """Ordinary entries count machine-wide; only a node's uplink may have them."""
    for pod, node in (("a1", "node-1"), ("b2", "node-2")):
        entries = tools.inside_json(net.lab, pod, "ip", "-j", "neigh", "show")
        assert entries
        assert {tuple(e["state"]) for e in entries} == {("PERMANENT",)}, entries
        entries = tools.inside_json(net.lab, node, "ip", "-j", "neigh", "show", "nud", "all")
        of_node = {ip for name, at in PEERS.items() if at == node for ip in net.ips[name]}
        permanent = {e["dst"] for e in entries if e["state"] == ["PERMANENT"]}
        assert of_node <= permanent
        others = [
            e
            for e in entries
            if e["dev"] != "eth0" and e["state"] not in (["PERMANENT"], ["NOARP"])
        ]
        assert others == []


def test_only_registered_hooks(net: Net, tools: Any) -> None:
    known = {(h.family, h.table, h.chain, h.hook, h.type, h.priority) for h in hooks.HOOKS}
    net.lab.link("node-1", "node-2", "loss", "0.01%")
    try:
        holder = tools.pids(net.lab)["holder"]
        lab_net = ["nsenter", f"--target={holder}", "--net", "--user", "--preserve-credentials"]
        places = [
            tools.inside_json(net.lab, node, "nft", "-j", "list", "ruleset")
            for node in ("node-1", "node-2")
        ]
        done = subprocess.run(
            [*lab_net[: 3 if os.geteuid() == 0 else None], "nft", "-j", "list", "ruleset"],
            capture_output=True,
            check=True,
        )
        places.append(json.loads(done.stdout))
    finally:
        net.lab.link("node-1", "node-2", "up")
    for place in places:
        for entry in place["nftables"]:
            if "table" in entry:
                assert entry["table"]["name"].startswith("podwire-")
            if "hook" in entry.get("chain", {}):
                c = entry["chain"]
                header = (c["family"], c["table"], c["name"], c["hook"], c["type"], c["prio"])
                assert header in known
    assert len(places[2]["nftables"]) > 1, "the impaired link has a table"
    assert tools.inside_json(net.lab, "a1", "nft", "-j", "list", "ruleset")["nftables"][1:] == []


@pytest.mark.parametrize("network", ["routed", "kubenet"])
def test_masquerade_can_be_switched_off(network: Any, tools: Any) -> None:
    """`--non-masquerade-cidr 0.0.0.0/0`: pods go out as themselves (and no answer finds back)."""
    options: Any = {"network": network, "non_masquerade_cidrs": ("0.0.0.0/0",)}
    with Lab(f"nomasq-{network}", nodes=1, **options) as lab:
        lab.apply_text(PEER.format(name="a1", node="node-1"))
        seen, verdict = seen_outside(tools, lab, "203.0.113.10", timeout_s=0.5)
        assert seen == lab.pod("a1").ip
        assert verdict == "dropped"


@pytest.mark.parametrize("network", ["routed", "kubenet"])
def test_non_masquerade_cidrs_may_hold_the_nodes(network: Any, tools: Any) -> None:
    options: Any = {
        "network": network,
        "non_masquerade_cidrs": ("10.244.0.0/16", "172.30.0.0/24"),
    }
    with Lab(f"keep-{network}", nodes=2, **options) as lab:
        lab.apply_text(
            PEER.format(name="a1", node="node-1") + HOST.format(name="host-2", node="node-2")
        )
        (answer,) = tools.ask(
            lab,
            "node-1",
            Probe(
                source="default/a1",
                address=lab.pod("host-2").ip,
                port=9000,
                protocol="http",
                timeout_s=10,
            ),
        )
        assert (answer.verdict, answer.client) == ("allowed", lab.pod("a1").ip)
        seen, _ = seen_outside(tools, lab, "203.0.113.10", timeout_s=10)
        assert seen == "172.30.0.2"


@pytest.mark.parametrize("mode", ["hairpin-veth", "promiscuous-bridge", "none"])
def test_kubenet_hairpin_modes(mode: Any, tools: Any) -> None:
    """Ports reflect, or the bridge is promiscuous and its doubles are dropped, or neither."""
    with Lab(f"hp-{mode}", nodes=1, network="kubenet", hairpin_mode=mode, dns="none") as lab:
        lab.apply_text("".join(PEER.format(name=n, node="node-1") for n in ("a1", "a2")))
        ports = [
            link
            for link in tools.inside_json(lab, "node-1", "ip", "-j", "-d", "link", "show")
            if link.get("linkinfo", {}).get("info_slave_kind") == "bridge"
        ]
        assert len(ports) == 2
        reflecting = {p["linkinfo"]["info_slave_data"]["hairpin"] for p in ports}
        assert reflecting == {mode == "hairpin-veth"}
        (bridge,) = tools.inside_json(lab, "node-1", "ip", "-j", "link", "show", "cbr0")
        assert ("PROMISC" in bridge["flags"]) == (mode == "promiscuous-bridge")
        rules = tools.inside(lab, "node-1", "nft", "list", "ruleset")
        assert (hooks.KUBENET_TABLE in rules) == (mode == "promiscuous-bridge")
        found = lab.reach(
            ReachOptions(sources=("app=peer",), destinations=("app=peer",), timeout_s=10.0)
        )
        assert len(found.answers) == 4
        assert found.all_allowed


# --- addresses ----------------------------------------------------------------------------------


def pod_document(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        lab.call(lambda api: api.request("GET", f"/api/v1/namespaces/default/pods/{name}"))
    )
    return found


def delete_pod(lab: Lab, tools: Any, name: str) -> None:
    lab.call(lambda api: api.request("DELETE", f"/api/v1/namespaces/default/pods/{name}"))
    tools.wait(lambda: name not in {pod.metadata.name for pod in lab.pods()})


def test_addresses_run_out_and_come_back(tools: Any) -> None:
    """A /29 has five pod addresses; the sixth pod waits, says why, and starts when one is freed."""
    with Lab("full", nodes=1, node_mask=29, pod_cidrs=("10.244.0.0/24",), dns="none") as lab:
        names = [f"p{i}" for i in range(5)]
        lab.apply_text("".join(PEER.format(name=n, node="node-1") for n in names))
        assert len({pod.status.pod_ip for pod in lab.pods()}) == 5
        lab.apply_text(PEER.format(name="late", node="node-1"), wait_s=None)

        def event() -> Any:
            document = json.loads(lab.call(lambda api: api.request("GET", "/api/v1/events")))
            return [
                e["message"]
                for e in document["items"]
                if e["reason"] == "FailedCreatePodSandBox" and e["involvedObject"]["name"] == "late"
            ]

        assert "no IP addresses available in range 10.244.0.0/29" in tools.wait(event)[0]
        late = pod_document(lab, "late")["status"]
        assert late["phase"] == "Pending"
        (container,) = late["containerStatuses"]
        assert container["state"]["waiting"]["reason"]
        conditions = {c["type"]: c for c in late["conditions"]}
        assert conditions["PodReadyToStartContainers"]["status"] == "False"
        assert conditions["Ready"]["status"] == "False"
        freed = lab.pod("p3").ip
        delete_pod(lab, tools, "p3")
        lab.wait_ready(30)
        assert lab.pod("late").ip == freed


def test_addresses_are_not_reused_at_once(net: Net, tools: Any) -> None:
    before = set(net.ips["a2"])
    delete_pod(net.lab, tools, "a2")
    net.lab.apply_text(PEER.format(name="a2", node="node-1"))
    pod = pod_document(net.lab, "a2")
    after = [entry["ip"] for entry in pod["status"]["podIPs"]]
    taken = {ip for ips in net.ips.values() for ip in ips} | before
    assert not taken & set(after)
    net.ips["a2"] = after


def test_a_restarted_agent_keeps_pods_and_addresses(net: Net, tools: Any) -> None:
    def facts() -> dict[str, Any]:
        return {
            pod.metadata.name: (
                pod.metadata.uid,
                [entry.ip for entry in pod.status.pod_ips],
                [status.container_id for status in pod.status.container_statuses],
            )
            for pod in net.lab.pods()
        }

    before = facts()
    agent = tools.pids(net.lab)["agent-node-1"]
    os.kill(agent, signal.SIGKILL)
    tools.wait(lambda: tools.pids(net.lab)["agent-node-1"] not in (0, agent))
    # What is applied now is programmed by the new agent, so it has started.
    net.lab.apply_text(PEER.format(name="fresh", node="node-1"))
    delete_pod(net.lab, tools, "fresh")
    assert facts() == before
    options = ReachOptions(sources=("app=peer",), destinations=("app=peer",), timeout_s=10.0)
    assert net.lab.reach(options).all_allowed
