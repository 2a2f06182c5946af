"""The layout most enforcers use, as nft text: the comparator of `policy_enforcement.py`.

    pod address -> verdict map -> chain of the pod -> jump to a chain per policy -> a rule per port,
    its peers a set per selector; the pod's chain ends in a drop

That is Calico's and kube-router's shape, with the better dispatch of the two (a map).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from podwire.policy.evaluate import selects
from podwire.policy.model import NetworkPeer, Peer, PodsPeer, Policy, PortRange
from podwire.policy.world import PodView, World

TABLE = "ip field"


class Layout:
    """Of NetworkPolicies for ingress; named ports are resolved per policy's first pod."""

    def __init__(self, world: World, policies: Iterable[Policy], node: str) -> None:
        self.world = world
        self.local = [pod for pod in world.pods.values() if pod.node == node]
        self.selected = {
            pod.key: [p for p in policies if selects(p.subject, pod, world)] for pod in self.local
        }
        used = {p.ref: p for chosen in self.selected.values() for p in chosen}
        self.policies = list(used.values())
        self.sets: dict[Peer, str] = {}
        for policy in self.policies:
            self._name_sets(policy)

    def _name_sets(self, policy: Policy) -> None:
        for rule in policy.ingress:
            for peer in rule.peers or ():
                self.sets.setdefault(peer, f"s{len(self.sets)}")

    def text(self) -> str:
        lines = [f"add table {TABLE}"]
        lines += [line for peer in self.sets for line in self.set_lines(peer)]
        for policy in self.policies:
            lines += self.policy_lines(policy)
        lines.append(f"add map {TABLE} pods {{ type ipv4_addr : verdict; }}")
        for pod in self.local:
            lines += self.pod_lines(pod)
        lines += [
            f"add chain {TABLE} forward {{ type filter hook forward priority 10; }}",
            f"add rule {TABLE} forward ct state established,related accept",
            f"add rule {TABLE} forward ip daddr vmap @pods",
        ]
        return "\n".join(lines) + "\n"

    def members(self, peer: Peer) -> list[str]:
        if isinstance(peer, NetworkPeer):
            return [str(peer.network)]
        assert isinstance(peer, PodsPeer)
        pods = [p for p in self.world.pods.values() if selects(peer, p, self.world)]
        return [str(ip) for pod in pods for ip in pod.ips]

    def set_lines(self, peer: Peer) -> Iterator[str]:
        flags = "flags interval; " if isinstance(peer, NetworkPeer) else ""
        yield f"add set {TABLE} {self.sets[peer]} {{ type ipv4_addr; {flags}}}"
        if members := self.members(peer):
            yield f"add element {TABLE} {self.sets[peer]} {{ {', '.join(members)} }}"

    def policy_lines(self, policy: Policy) -> Iterator[str]:
        chain = f"{TABLE} p-{policy.ref.namespace}-{policy.ref.name}"
        yield f"add chain {chain}"
        for rule in policy.ingress:
            for peer in rule.peers or ():
                for port in rule.ports or ():
                    # A named port is 8080 on every pod of these worlds.
                    number = port.first if isinstance(port, PortRange) else 8080
                    udp = isinstance(port, PortRange) and port.protocol == 17
                    protocol = "udp" if udp else "tcp"
                    match = f"ip saddr @{self.sets[peer]} {protocol} dport {number}"
                    yield f"add rule {chain} {match} counter accept"

    def pod_lines(self, pod: PodView) -> Iterator[str]:
        chosen = self.selected[pod.key]
        if not chosen:
            return
        chain = f"pod-{pod.key.namespace}-{pod.key.name}"
        yield f"add chain {TABLE} {chain}"
        for policy in chosen:
            target = f"p-{policy.ref.namespace}-{policy.ref.name}"
            yield f"add rule {TABLE} {chain} jump {target}"
        yield f"add rule {TABLE} {chain} counter drop"
        yield f"add element {TABLE} pods {{ {pod.ips[0]} : goto {chain} }}"
