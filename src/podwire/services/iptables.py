"""The iptables form of Services: kube-proxy's chains, as `iptables-save` prints them. Pure.

    nat     PREROUTING        -> SERVICES
            OUTPUT            -> OUTPUT -> SERVICES       (the node's own packets: marked)
            SERVICES          -> one rule per frontend    -> SVC | SVL | EXT | FW
            SERVICES          -> NODEPORTS                (destination is the node itself)
            FW   allowed sources -> EXT;                  EXT: mark -> SVC, or by client SVC | SVL
            SVC  policy Cluster, SVL policy Local: by `recent`, then by `statistic` -> DNAT | SEP
            SEP  mark a pod that meets itself, remember the client, DNAT
            POSTROUTING       -> POSTROUTING: what is marked is masqueraded
    filter  INPUT, FORWARD, OUTPUT -> SERVICES: REJECT or DROP what nat had no endpoint for
            then, at an address of the service CIDR -> VIPS: REJECT at a cluster IP; else DROP

Chains of the whole node begin with `PODWIRE-`, those of one Service port with `PW-` and a hash of
it; nobody else's are touched, and in a built-in chain there is one jump. Rules are written exactly
as they are saved, so that what stands in the kernel is compared as text.
Source: k/k pkg/proxy/iptables/proxier.go; where this differs from it is in the README.
"""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from typing import Final, Literal, NamedTuple, TypeAlias

from podwire.kernel import hooks
from podwire.services.endpoints import Backend
from podwire.services.model import PROTOCOL_NAMES, Frontend, FrontendKey, Network

Table: TypeAlias = Literal["filter", "nat"]
Chains: TypeAlias = dict[str, str]
"""Chain name to its rules: whole `-A` lines, each with its line end."""

SERVICES: Final = "PODWIRE-SERVICES"
NODEPORTS: Final = "PODWIRE-NODEPORTS"
OUTPUT: Final = "PODWIRE-OUTPUT"
INPUT: Final = "PODWIRE-INPUT"
FORWARD: Final = "PODWIRE-FORWARD"
POSTROUTING: Final = "PODWIRE-POSTROUTING"
MARK_MASQ: Final = "PODWIRE-MARK-MASQ"
OFF_CLUSTER: Final = "PODWIRE-OFF-CLUSTER"
VIPS: Final = "PODWIRE-VIPS"
PREFIXES: Final = ("PODWIRE-", "PW-")

JUMPS: Final[dict[Table, dict[str, str]]] = {
    "filter": {"INPUT": INPUT, "FORWARD": FORWARD, "OUTPUT": OUTPUT},
    "nat": {"PREROUTING": SERVICES, "OUTPUT": OUTPUT, "POSTROUTING": POSTROUTING},
}
"""By table: the built-in chains, and where our one rule in them leads."""

_MARK: Final = f"0x{hooks.SERVICES_MASQUERADE_MARK:x}"
_MARKED: Final = f"{_MARK}/{_MARK}"
_REJECT: Final = {
    4: "REJECT --reject-with icmp-port-unreachable",
    6: "REJECT --reject-with icmp6-port-unreachable",
}
_ANYONE: Final = {4: "255.255.255.255", 6: ":".join(["ffff"] * 8)}
# xt_statistic keeps a probability as 31 bits.
_PROBABILITY_ONE: Final = 1 << 31


def jump_rule(chain: str, target: str) -> str:
    """Our rule in a built-in chain."""
    return f'-A {chain} -m comment --comment "podwire: Services" -j {target}\n'


def is_ours(chain: str) -> bool:
    return chain.startswith(PREFIXES)


# --- one Service port ---------------------------------------------------------------------------


class Group(NamedTuple):
    """What shares chains: one port of a Service in one family; of a pod, one hostPort."""

    version: int
    namespace: str
    name: str
    port: str
    protocol: int

    def __str__(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{self.namespace}/{self.name}{port}"

    def chain(self, kind: str, what: str = "") -> str:
        """`PW-SVC-` and 16 characters: iptables allows 28 in all."""
        text = f"{self}|{self.protocol}|{what}"
        digest = hashlib.blake2b(text.encode(), digest_size=10).digest()
        return f"PW-{kind}-{base64.b32encode(digest).decode()}"


def group_of(frontend: Frontend) -> Group:
    key, port = frontend.key, frontend.port_name
    if frontend.role == "HostPort":
        # A pod's ports may be without names.
        port = f"hostPort {Backend(key.ip, key.port)}"
    version = 4 if len(key.ip) == 4 else 6
    return Group(version, *frontend.service, port, key.protocol)


@dataclass
class Rendered:
    """A group's own chains of both tables, and its rules in the chains all groups share."""

    nat: Chains = field(default_factory=dict)
    filter: Chains = field(default_factory=dict)
    services: list[str] = field(default_factory=list)
    node_ports: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    vips: list[str] = field(default_factory=list)

    @property
    def shared(self) -> tuple[list[str], ...]:
        return self.services, self.node_ports, self.leftovers, self.vips


@dataclass(frozen=True)
class Node:
    """What all groups of one family are rendered with. `affinity` needs the match `recent`."""

    version: int
    service_cidrs: tuple[Network, ...] = ()
    cluster_cidrs: tuple[Network, ...] = ()
    affinity: bool = True

    @classmethod
    def of(
        cls,
        version: int,
        service_cidrs: Iterable[Network],
        cluster_cidrs: Iterable[Network],
        *,
        affinity: bool = True,
    ) -> Node:
        return cls(
            version,
            tuple(sorted({n for n in service_cidrs if n.version == version}, key=str)),
            tuple(sorted({n for n in cluster_cidrs if n.version == version}, key=str)),
            affinity,
        )


def render_group(group: Group, frontends: Mapping[FrontendKey, Frontend], node: Node) -> Rendered:
    """Everything one Service port needs; the same for the same frontends in any order."""
    rendered = Rendered()
    writer = _GroupWriter(group, node, rendered)
    ordered = [frontends[key] for key in sorted(frontends)]
    cluster = next((b for f in ordered if (b := _cluster_backends(f)) is not None), None)
    for frontend in ordered:
        writer.frontend(frontend, cluster)
    return rendered


def _cluster_backends(frontend: Frontend) -> tuple[Backend, ...] | None:
    """The backends of policy Cluster, where the frontend tells."""
    if frontend.internal is not None:
        return frontend.internal
    return frontend.backends if frontend.masquerade else None


class _GroupWriter:
    def __init__(self, group: Group, node: Node, rendered: Rendered) -> None:
        self._group = group
        self._node = node
        self._to = rendered
        self._protocol = PROTOCOL_NAMES[group.protocol].lower()

    def frontend(self, frontend: Frontend, cluster: tuple[Backend, ...] | None) -> None:
        kind = "SVC" if cluster is None or frontend.backends == cluster else "SVL"
        target = self._entry(frontend, kind)
        if target and frontend.ranges is not None:
            target = self._firewall(frontend, target)
        if target:
            at_node = frontend.role in ("NodePort", "HostPort")
            rules = self._to.node_ports if at_node else self._to.services
            chain = NODEPORTS if at_node else SERVICES
            rules.append(self._to_frontend(chain, frontend, _ROLES[frontend.role], target))
        self._leftovers(frontend, target)
        if frontend.exclusive:
            self._to.vips.append(
                f'-A {VIPS} -d {_host(frontend.key.ip)} -m comment --comment "no such port" '
                f"-j {_REJECT[self._node.version]}\n"
            )

    def _to_frontend(
        self, chain: str, frontend: Frontend, comment: str, target: str, source: str = ""
    ) -> str:
        key = frontend.key
        # As saved: source, destination, protocol, matches; "-m" words in `source` come last.
        before, after = (source, "") if source.startswith("-s") else ("", source)
        return (
            f"-A {chain} {before}-d {_host(key.ip)} -p {self._protocol} "
            f'-m comment --comment "{self._group} {comment}" '
            f"-m {self._protocol} --dport {key.port} {after}-j {target}\n"
        )

    # --- nat --------------------------------------------------------------------------------------

    def _entry(self, frontend: Frontend, kind: str) -> str:
        """The chain that serves the frontend; "" where it has no backend for anybody."""
        if frontend.internal is not None:
            return self._external_local(frontend)
        if not frontend.backends:
            return ""
        chain = self._choice(kind, frontend, frontend.backends)
        if not frontend.masquerade:
            return chain
        name = self._group.chain("EXT")
        comment = f'-m comment --comment "masquerade traffic for {self._group} from anywhere"'
        self._to.nat[name] = f"-A {name} {comment} -j {MARK_MASQ}\n-A {name} -j {chain}\n"
        return name

    def _external_local(self, frontend: Frontend) -> str:
        """externalTrafficPolicy Local binds only clients from beyond the cluster."""
        if not frontend.internal and not frontend.backends:
            return ""
        name = self._group.chain("EXT")
        inner = "RETURN"
        if frontend.internal:
            inner = self._choice("SVC", frontend, frontend.internal)
        rules = [
            f'-A {name} {source}-m comment --comment "{whose} traffic for {self._group}" '
            f"{after}-j {inner}\n"
            for source, after, whose in self._cluster_clients()
        ]
        if frontend.backends:
            rules.append(f"-A {name} -j {self._choice('SVL', frontend, frontend.backends)}\n")
        self._to.nat[name] = "".join(rules)
        return name

    def _cluster_clients(self) -> Iterator[tuple[str, str, str]]:
        for cidr in self._node.cluster_cidrs:
            yield f"-s {cidr} ", "", "pod"
        yield "", "-m addrtype --src-type LOCAL ", "node"

    def _firewall(self, frontend: Frontend, target: str) -> str:
        """loadBalancerSourceRanges: others come back and end in the filter table."""
        name = self._group.chain("FW", str(frontend.key))
        comment = f'-m comment --comment "{self._group} source range"'
        self._to.nat[name] = "".join(
            f"-A {name} {source}{comment} -j {target}\n" for source in _sources(frontend)
        )
        return name

    def _choice(self, kind: str, frontend: Frontend, backends: Sequence[Backend]) -> str:
        """The chain that chooses a backend: the one this client had, else by weight."""
        name = self._group.chain(kind)
        if name in self._to.nat:
            return name
        affinity_s = frontend.affinity_s if self._node.affinity else 0
        rules = []
        if affinity_s:
            rules += [self._remembered(name, backend, affinity_s) for backend in backends]
        chances = _chances(backends, frontend.weights)
        for backend, chance in zip(backends, chances, strict=True):
            # 1.8.9 (nf_tables) needs 88 s to load 100,000 chains, and crashes when it saves them;
            # 100,000 rules are no trouble. So only what needs two rules has a chain of its own.
            if backend.local or affinity_s:
                head, target = f"-A {name}", self._endpoint(backend, bool(affinity_s))
            else:
                head = f"-A {name} -p {self._protocol}"
                target = f"DNAT --to-destination {backend}"
            rules.append(f"{head} {self._leads_to(backend)} {chance}-j {target}\n")
        self._to.nat[name] = "".join(rules)
        return name

    def _leads_to(self, backend: Backend) -> str:
        return f'-m comment --comment "{self._group} -> {backend}"'

    def _remembered(self, chain: str, backend: Backend, affinity_s: int) -> str:
        name = self._endpoint(backend, True)
        return (
            f"-A {chain} {self._leads_to(backend)} -m recent --rcheck --seconds {affinity_s} "
            f"--reap --name {name} --mask {_ANYONE[self._node.version]} --rsource -j {name}\n"
        )

    def _endpoint(self, backend: Backend, affinity: bool) -> str:
        """Mark a pod that meets itself, remember the client, translate."""
        name = self._group.chain("SEP", str(backend))
        if name in self._to.nat:
            return name
        comment = f'-m comment --comment "{self._group}"'
        rules = ""
        if backend.local:
            rules = f"-A {name} -s {_host(backend.ip)} {comment} -j {MARK_MASQ}\n"
        remember = ""
        if affinity:
            mask = _ANYONE[self._node.version]
            remember = f"-m recent --set --name {name} --mask {mask} --rsource "
        self._to.nat[name] = (
            f"{rules}-A {name} -p {self._protocol} {comment} {remember}"
            f"-j DNAT --to-destination {backend}\n"
        )
        return name

    # --- filter -----------------------------------------------------------------------------------

    def _leftovers(self, frontend: Frontend, target: str) -> None:
        """What nat let pass: first who may not, then for whom there is no endpoint."""
        reject = _REJECT[self._node.version]
        rules = []
        if frontend.internal is not None and not frontend.internal:
            rules += [
                self._to_frontend(SERVICES, frontend, "has no endpoints", reject, source + after)
                for source, after, _ in self._cluster_clients()
            ]
        if not frontend.backends and frontend.empty == "refuse":
            rules = [self._to_frontend(SERVICES, frontend, "has no endpoints", reject)]
        elif not frontend.backends:
            rules.append(self._to_frontend(SERVICES, frontend, "has no local endpoints", "DROP"))
        if frontend.ranges is not None:
            self._to.leftovers.append(self._refuse_others(frontend, bool(rules)))
        self._to.leftovers += rules

    def _refuse_others(self, frontend: Frontend, more: bool) -> str:
        comment = "outside of its source ranges"
        if not more:
            return self._to_frontend(SERVICES, frontend, comment, "DROP")
        name = self._group.chain("FW", str(frontend.key))
        allowed = "".join(f"-A {name} {source}-j RETURN\n" for source in _sources(frontend))
        self._to.filter[name] = f"{allowed}-A {name} -j DROP\n"
        return self._to_frontend(SERVICES, frontend, comment, name)


_ROLES: Final = {
    "ClusterIP": "cluster IP",
    "NodePort": "node port",
    "LoadBalancer": "loadbalancer IP",
    "ExternalIP": "external IP",
    "HostPort": "host port",
}


def _host(ip: bytes) -> str:
    if len(ip) == 4:
        return f"{socket.inet_ntoa(ip)}/32"
    return f"{socket.inet_ntop(socket.AF_INET6, ip)}/128"


def _sources(frontend: Frontend) -> Iterator[str]:
    """`-s CIDR ` for each allowed range; "" for the whole family, as it is saved."""
    for first, last in frontend.ranges or ():
        networks: Iterable[Network]
        if len(first) == 4:
            networks = summarize_address_range(IPv4Address(first), IPv4Address(last))
        else:
            networks = summarize_address_range(IPv6Address(first), IPv6Address(last))
        for network in networks:
            yield f"-s {network} " if network.prefixlen else ""


def _chances(backends: Sequence[Backend], weights: Mapping[bytes, int] | None) -> Iterator[str]:
    """Of those that are left, each takes its share; the last takes the rest."""
    numbers = [weights.get(b.ip, 1) for b in backends] if weights else [1] * len(backends)
    left = sum(numbers)
    for number in numbers[:-1]:
        yield _statistic(number, left)
        left -= number
    yield ""


def _statistic(number: int, left: int) -> str:
    found = _STATISTIC.get((number, left))
    if found is None:
        share = round(_PROBABILITY_ONE * number / left) / _PROBABILITY_ONE
        found = f"-m statistic --mode random --probability {share:.11f} "
        _STATISTIC[number, left] = found
    return found


_STATISTIC: Final[dict[tuple[int, int], str]] = {}


# --- the whole node -------------------------------------------------------------------------------


def render_nat_base(node: Node, groups: Iterable[Rendered]) -> Chains:
    """The chains of `nat` that all groups share, dispatch included."""
    services: list[str] = []
    node_ports: list[str] = []
    for group in groups:
        services += group.services
        node_ports += group.node_ports
    head = [
        f'-A {SERVICES} -d {cidr} -m comment --comment "service CIDR" -j {OFF_CLUSTER}\n'
        for cidr in node.service_cidrs
    ]
    services.append(
        f'-A {SERVICES} -m comment --comment "node ports; must be the last rule" '
        f"-m addrtype --dst-type LOCAL -j {NODEPORTS}\n"
    )
    inside = [
        f'-A {OFF_CLUSTER} -s {cidr} -m comment --comment "cluster CIDR" -j RETURN\n'
        for cidr in node.cluster_cidrs
    ]
    return {
        MARK_MASQ: f"-A {MARK_MASQ} -j MARK --set-xmark {_MARKED}\n",
        OFF_CLUSTER: "".join([*inside, f"-A {OFF_CLUSTER} -j {MARK_MASQ}\n"]),
        NODEPORTS: "".join(node_ports),
        SERVICES: "".join([*head, *services]),
        # The node's source address was chosen for the Service's, not for the endpoint's. What is
        # not for a Service comes back from SERVICES, and without the mark.
        OUTPUT: (
            f"-A {OUTPUT} -j {MARK_MASQ}\n"
            f"-A {OUTPUT} -j {SERVICES}\n"
            f"-A {OUTPUT} -j MARK --set-xmark 0x0/{_MARK}\n"
        ),
        # The mark goes, so that a packet that meets these rules again (in a tunnel, on another
        # bridge) is not masqueraded twice (k/k#78547).
        POSTROUTING: (
            f"-A {POSTROUTING} -m mark ! --mark {_MARKED} -j RETURN\n"
            f"-A {POSTROUTING} -j MARK --set-xmark {_MARK}/0x0\n"
            f'-A {POSTROUTING} -m comment --comment "Services: answers come back through here" '
            "-j MASQUERADE --random-fully\n"
        ),
    }


def render_filter_base(node: Node, groups: Iterable[Rendered]) -> Chains:
    """The chains of `filter` that all groups share."""
    leftovers: list[str] = []
    vips: set[str] = set()
    for group in groups:
        leftovers += group.leftovers
        vips.update(group.vips)
    chains = {
        VIPS: "".join(sorted(vips)),
        # What has an endpoint is through; only the others are looked up.
        SERVICES: "".join([f"-A {SERVICES} -m conntrack --ctstate DNAT -j RETURN\n", *leftovers]),
    }
    for chain in (INPUT, FORWARD, OUTPUT):
        rules = [f"-A {chain} -m conntrack --ctstate NEW -j {SERVICES}\n"]
        if chain == FORWARD:
            # Not translated, an answer would reach its client with the pod's address and kill the
            # connection (k/k#74839).
            rules.insert(0, f"-A {chain} -m conntrack --ctstate INVALID -j DROP\n")
        for cidr in node.service_cidrs:
            rules += [
                f"-A {chain} -d {cidr} -m conntrack --ctstate NEW -j {VIPS}\n",
                f'-A {chain} -d {cidr} -m comment --comment "no Service there" -j DROP\n',
            ]
        chains[chain] = "".join(rules)
    return chains
