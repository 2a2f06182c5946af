"""What network plugins make of policies where Kubernetes leaves a choice, or where they lack
something: as data, each cell with its source. Pure.

    Profile: Semantics (what a verdict is), limits (what of a policy counts), cells (the words)
    policies + Profile -> honour -> the policies as that plugin reads them, and what it does not

A profile is a plugin with its defaults, in the version its title names; options of a plugin that
change an answer are named in the cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Final, Literal, NamedTuple, TypeAlias

from podwire.policy.evaluate import Semantics
from podwire.policy.model import (
    LAST_PORT,
    PROTOCOLS,
    DomainPeer,
    NamedPort,
    Network,
    NetworkPeer,
    NodesPeer,
    Peer,
    Policy,
    PolicyRef,
    PortMatch,
    PortRange,
    Rule,
    Tier,
)

Question: TypeAlias = Literal[
    "ipBlock and pods",
    "ipBlock and nodes",
    "Baseline",
    "hairpin",
    "hostNetwork",
    "own node",
    "endPort",
    "SCTP",
    "named ports",
    "established",
    "ICMP",
    "cluster policies",
]
QUESTIONS: Final[Mapping[Question, str]] = {
    "ipBlock and pods": "does an ipBlock match a pod's address",
    "ipBlock and nodes": "does an ipBlock match a node's address",
    "Baseline": "is Baseline asked for ingress of a pod that is isolated for egress only",
    "hairpin": "is a pod that meets itself through a Service judged",
    "hostNetwork": "who is a hostNetwork pod",
    "own node": "may a pod and its own node always talk",
    "endPort": "are ranges of ports enforced",
    "SCTP": "is SCTP told apart",
    "named ports": "what is a named port",
    "established": "what becomes of connections that a change denies",
    "ICMP": "what about ICMP to and from isolated pods",
    "cluster policies": "which of the cluster-scoped kinds are enforced",
}

CNP: Final = "ClusterNetworkPolicy"
ANP: Final = "AdminNetworkPolicy"
BANP: Final = "BaselineAdminNetworkPolicy"
_SCTP: Final = PROTOCOLS["SCTP"]
_PRIVATE: Final = tuple(
    map(
        ip_network,
        ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
    )
)


class Cell(NamedTuple):
    says: str
    source: str


@dataclass(frozen=True)
class Limits:
    """What of a policy counts. `gated` kinds do only where an option or another build is chosen.

    `named_ports`: `resolved` on the destination; `protocol`: as if no port were written.
    """

    kinds: frozenset[str] = frozenset({"NetworkPolicy", CNP, ANP, BANP})
    gated: frozenset[str] = frozenset()
    end_port: bool = True
    sctp: bool = True
    named_ports: Literal["resolved", "protocol"] = "resolved"
    nodes_peers: bool = True
    domain_peers: bool = True


@dataclass(frozen=True)
class Profile:
    name: str
    title: str
    cells: Mapping[Question, Cell]
    semantics: Semantics = field(default_factory=Semantics)
    limits: Limits = field(default_factory=Limits)


# --- the profiles -------------------------------------------------------------------------------

_CONCEPT: Final = "kubernetes.io: Network Policies"
_NPA: Final = "network-policy-api"
_OVN_POLICY: Final = "ovn-kubernetes go-controller/pkg/ovn/gress_policy.go"
_KNP: Final = "kube-network-policies pkg/networkpolicy/networkpolicy.go"
_KNP_DATAPLANE: Final = "kube-network-policies pkg/dataplane/controller.go"
_CALICO: Final = "calico libcalico-go/lib/backend/k8s/conversion"
_CILIUM_DOCS: Final = "cilium Documentation/network/kubernetes/policy.rst"
_ANTREA_DOCS: Final = "antrea docs/antrea-network-policy.md, Notes and constraints"
_BY_ADDRESS: Final = "yes: by address alone"
_AS_NODE: Final = "its node: never selected, known by the node's address"
_PORTLESS: Final = "only rules without ports allow it"

DEFAULT_PROFILE: Final = Profile(
    "default",
    "podwire",
    {
        "ipBlock and pods": Cell(_BY_ADDRESS, "k/k test/e2e/network/netpol (three CIDR specs)"),
        "ipBlock and nodes": Cell(_BY_ADDRESS, "k/k test/e2e/network/netpol"),
        "Baseline": Cell("yes: each direction alone", "enhancements PR #4688"),
        "hairpin": Cell("yes, both directions", f"{_NPA} PR #390"),
        "hostNetwork": Cell(_AS_NODE, _CONCEPT),
        "own node": Cell("yes", _CONCEPT),
        "endPort": Cell("yes", "KEP-2079"),
        "SCTP": Cell("yes", "KEP-614"),
        "named ports": Cell("the destination's, by name and protocol", _CONCEPT),
        "established": Cell("cut (an option keeps them)", "website PR #43438 leaves it open"),
        "ICMP": Cell(_PORTLESS, f"{_CONCEPT}: undefined"),
        "cluster policies": Cell(f"{CNP}, {ANP}, {BANP}", f"{_NPA} v0.2.0, v0.1.7"),
    },
)

CALICO: Final = Profile(
    "calico",
    "Calico 3.32, iptables or nftables data plane",
    {
        "ipBlock and pods": Cell(_BY_ADDRESS, f"{_CALICO}/conversion.go (Nets, NotNets)"),
        "ipBlock and nodes": Cell(_BY_ADDRESS, f"{_CALICO}/conversion.go"),
        "Baseline": Cell("yes: each direction alone", f"{_CALICO}/clusternetworkpolicy.go"),
        "hairpin": Cell(
            "yes: judged as it is forwarded", f"{_NPA} #343; Calico says nothing of it"
        ),
        "hostNetwork": Cell(_AS_NODE, "docs.tigera.io: Host endpoints"),
        "own node": Cell(
            "from the node always; to it by DefaultEndpointToHostAction",
            "calico #1683, docs.tigera.io: Felix configuration",
        ),
        "endPort": Cell("yes", f"{_CALICO}/conversion.go"),
        "SCTP": Cell("yes", "docs.tigera.io: NetworkPolicy, protocols"),
        "named ports": Cell("the destination's, by name and protocol", f"{_CALICO}/conversion.go"),
        "established": Cell("kept", "calico #6399"),
        "ICMP": Cell(_PORTLESS, f"{_CALICO}/conversion.go (a port implies its protocol)"),
        "cluster policies": Cell(
            f"{CNP} with networks and named ports, without nodes and domainNames; {ANP} and {BANP} "
            "in 3.29 to 3.31",
            f"{_NPA} PR #376",
        ),
    },
    limits=Limits(kinds=frozenset({"NetworkPolicy", CNP}), nodes_peers=False, domain_peers=False),
)

CILIUM: Final = Profile(
    "cilium",
    "Cilium 1.16 and later, defaults",
    {
        "ipBlock and pods": Cell(
            "no: pods have identities (policy-cidr-match-mode=pods since PR #47227)",
            f"{_CILIUM_DOCS}, cilium #9209",
        ),
        "ipBlock and nodes": Cell(
            "no, unless policy-cidr-match-mode=nodes", f"{_CILIUM_DOCS}, cilium #20550"
        ),
        "Baseline": Cell("yes: each direction alone", "cilium #23380"),
        "hairpin": Cell("no: always allowed", "cilium PR #15321"),
        "hostNetwork": Cell("the identity host or remote-node", "cilium #20550"),
        "own node": Cell("yes (allow-localhost=auto)", "cilium docs: policy enforcement"),
        "endPort": Cell("yes; before 1.16 only `port` is", "cilium PR #32807, #28684"),
        "SCTP": Cell("no, unless sctp.enabled: SCTP is dropped", "cilium docs: SCTP (beta)"),
        "named ports": Cell("the destination's, by name and protocol", "cilium docs: policy"),
        "established": Cell("cut: every packet is judged", "cilium PR #2700"),
        "ICMP": Cell(_PORTLESS, "cilium docs: policy, ICMP"),
        "cluster policies": Cell(f"{CNP} in the newest versions only", "cilium #23380"),
    },
    Semantics(ipblock_matches_pods=False, hairpin_judged=(), ipblock_matches_nodes=False),
    Limits(
        kinds=frozenset({"NetworkPolicy", CNP}),
        gated=frozenset({CNP}),
        sctp=False,
        nodes_peers=False,
        domain_peers=False,
    ),
)

OVN: Final = Profile(
    "ovn",
    "OVN-Kubernetes",
    {
        "ipBlock and pods": Cell(_BY_ADDRESS, f"{_OVN_POLICY} getMatchFromIPBlock"),
        "ipBlock and nodes": Cell(_BY_ADDRESS, f"{_OVN_POLICY} getMatchFromIPBlock"),
        "Baseline": Cell("yes: each direction alone", "ovn-kubernetes docs: AdminNetworkPolicy"),
        "hairpin": Cell(
            "egress only: ingress from the hairpin address is always allowed",
            "ovn-kubernetes docs: network policy, allow-hairpinning",
        ),
        "hostNetwork": Cell(
            "its node, which namespaceSelector with podSelector {} matches too",
            "docs.openshift.com: About network policy",
        ),
        "own node": Cell("yes", "docs.openshift.com: About network policy"),
        "endPort": Cell("yes", f"{_OVN_POLICY} getL4Match"),
        "SCTP": Cell("yes", f"{_OVN_POLICY} getL4Match"),
        "named ports": Cell(
            "every port of the protocol: names are not resolved", "ovn-kubernetes #2117"
        ),
        "established": Cell("cut: every packet is judged", f"{_NPA} #305"),
        "ICMP": Cell(_PORTLESS, "docs.openshift.com: About network policy"),
        "cluster policies": Cell(f"{ANP}, {BANP}; not {CNP}", f"{_NPA} conformance v0.1.2"),
    },
    Semantics(hairpin_judged=("egress",)),
    Limits(
        kinds=frozenset({"NetworkPolicy", ANP, BANP}),
        named_ports="protocol",
        domain_peers=False,
    ),
)

ANTREA: Final = Profile(
    "antrea",
    "Antrea 2, with AntreaProxy",
    {
        "ipBlock and pods": Cell(
            f"{_BY_ADDRESS}, though meant for outsiders", f"{_ANTREA_DOCS}, ipBlock"
        ),
        "ipBlock and nodes": Cell(_BY_ADDRESS, f"{_ANTREA_DOCS}, ipBlock"),
        "Baseline": Cell("yes: each direction alone", "antrea docs/admin-network-policy.md"),
        "hairpin": Cell("egress only: ingress is always allowed", f"{_ANTREA_DOCS}, PR #5687"),
        "hostNetwork": Cell(_AS_NODE, _ANTREA_DOCS),
        "own node": Cell("yes", "antrea PR #1816"),
        "endPort": Cell("yes", "antrea #1638"),
        "SCTP": Cell("yes", "antrea #1297"),
        "named ports": Cell("the destination's, by name and protocol", _ANTREA_DOCS),
        "established": Cell("kept", _ANTREA_DOCS),
        "ICMP": Cell(_PORTLESS, _ANTREA_DOCS),
        "cluster policies": Cell(
            f"{ANP}, {BANP} since 1.13, {CNP} since 2.7, behind the gate AdminNetworkPolicy",
            "antrea docs/admin-network-policy.md",
        ),
    },
    Semantics(hairpin_judged=("egress",)),
    Limits(gated=frozenset({CNP, ANP, BANP}), nodes_peers=False, domain_peers=False),
)

KUBE_NETWORK_POLICIES: Final = Profile(
    "kube-network-policies",
    "kube-network-policies 1.1, kindnet",
    {
        "ipBlock and pods": Cell(_BY_ADDRESS, f"{_KNP} evaluateIPBlocks"),
        "ipBlock and nodes": Cell(_BY_ADDRESS, f"{_KNP} evaluateIPBlocks"),
        "Baseline": Cell("no: any NetworkPolicy that selects the pod is final", _KNP),
        "hairpin": Cell("yes: judged before it is masqueraded", _KNP_DATAPLANE),
        "hostNetwork": Cell(_AS_NODE, _KNP),
        "own node": Cell(
            "only what root processes of the node send; newer versions judge egress to it",
            f"{_KNP_DATAPLANE}, #65",
        ),
        "endPort": Cell("yes", f"{_KNP} evaluatePorts"),
        "SCTP": Cell("yes", f"{_KNP} evaluatePorts"),
        "named ports": Cell("the destination's; sidecars' names are not known", _KNP),
        "established": Cell("kept, unless strict mode judges them anew", f"{_KNP_DATAPLANE}"),
        "ICMP": Cell(_PORTLESS, f"{_KNP_DATAPLANE}, #191"),
        "cluster policies": Cell(
            f"{CNP} by install-cnp.yaml, {ANP} and {BANP} by install-anp.yaml",
            "kube-network-policies README",
        ),
    },
    Semantics(baseline_per_direction=False),
    Limits(gated=frozenset({CNP, ANP, BANP}), nodes_peers=False),
)

PROFILES: Final[Mapping[str, Profile]] = {
    profile.name: profile
    for profile in (DEFAULT_PROFILE, CALICO, CILIUM, OVN, ANTREA, KUBE_NETWORK_POLICIES)
}


# --- policies as a plugin reads them --------------------------------------------------------------


class Unhonoured(NamedTuple):
    """A part of a policy that a plugin reads otherwise; `path` is its field, "" the policy."""

    policy: PolicyRef
    path: str
    text: str
    question: Question
    only_maybe: bool = False


def honour(policies: Iterable[Policy], profile: Profile) -> tuple[list[Policy], list[Unhonoured]]:
    """The policies as `profile` enforces them; kinds behind an option count as enforced."""
    kept: list[Policy] = []
    found: list[Unhonoured] = []
    for policy in policies:
        kind = policy.ref.kind
        if kind not in profile.limits.kinds:
            text = f"{kind} is not enforced at all"
            found.append(Unhonoured(policy.ref, "", text, "cluster policies"))
            continue
        if kind in profile.limits.gated:
            text = f"{kind} is enforced only where that is chosen"
            found.append(Unhonoured(policy.ref, "", text, "cluster policies", only_maybe=True))
        reader = _Reader(policy, profile, found)
        kept.append(
            replace(
                policy,
                ingress=tuple(map(reader.rule, policy.ingress)),
                egress=tuple(map(reader.rule, policy.egress)),
            )
        )
    return kept, found


def _may_be_inside(peer: NetworkPeer) -> bool:
    """Whether it has addresses that clusters give to pods and nodes (RFC 1918, 6598, 4193)."""
    return any(
        _overlap(private, peer.network) and not any(_covers(hole, private) for hole in peer.holes)
        for private in _PRIVATE
    )


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and (_covers(one, other) or _covers(other, one))


def _covers(wide: Network, narrow: Network) -> bool:
    return (
        wide.version == narrow.version
        and wide.prefixlen <= narrow.prefixlen
        and narrow.network_address in wide
    )


@dataclass
class _Reader:
    """One policy under the limits of one plugin."""

    policy: Policy
    profile: Profile
    found: list[Unhonoured]

    @property
    def limits(self) -> Limits:
        return self.profile.limits

    def rule(self, rule: Rule) -> Rule:
        for i, peer in enumerate(rule.peers or ()):
            self._address(rule, peer, i)
        if any(self._is_unknown(peer) for peer in rule.peers or ()):
            word = "from" if rule.direction == "ingress" else "to"
            self._tell(f"{rule.path}.{word}", *self._closed(rule))
            return self._without_peers(rule)
        if rule.ports is None:
            return rule
        ports = tuple(
            kept
            for i, port in enumerate(rule.ports)
            for kept in self._port(port, f"{rule.path}.{self._port_word}[{i}]")
        )
        return replace(rule, ports=ports)

    @property
    def _port_word(self) -> str:
        return "protocols" if self.policy.ref.kind == CNP else "ports"

    def _tell(self, path: str, text: str, question: Question) -> None:
        self.found.append(Unhonoured(self.policy.ref, path, text, question))

    # --- peers ---

    def _address(self, rule: Rule, peer: Peer, index: int) -> None:
        """Files do not say which addresses pods and nodes will have; private ones, mostly."""
        semantics = self.profile.semantics
        if not isinstance(peer, NetworkPeer) or not _may_be_inside(peer):
            return
        missed = [
            what
            for what, matched in (
                ("pods", semantics.ipblock_matches_pods),
                ("nodes", semantics.ipblock_matches_nodes),
            )
            if not matched
        ]
        if missed:
            word = "from" if rule.direction == "ingress" else "to"
            text = f"{peer.network} matches no {' and no '.join(missed)}, only addresses outside"
            question: Question = "ipBlock and nodes" if missed == ["nodes"] else "ipBlock and pods"
            path = f"{rule.path}.{word}[{index}]"
            self.found.append(Unhonoured(self.policy.ref, path, text, question, only_maybe=True))

    def _is_unknown(self, peer: Peer) -> bool:
        return (isinstance(peer, NodesPeer) and not self.limits.nodes_peers) or (
            isinstance(peer, DomainPeer) and not self.limits.domain_peers
        )

    def _closed(self, rule: Rule) -> tuple[str, Question]:
        names = {"nodes" if isinstance(p, NodesPeer) else "domainNames"
                 for p in rule.peers or () if self._is_unknown(p)}  # fmt: skip
        what = "matches nothing" if rule.action == "Accept" else "denies everything"
        return f"peers {', '.join(sorted(names))} are not known: the rule {what}", (
            "cluster policies"
        )

    def _without_peers(self, rule: Rule) -> Rule:
        """What the specification wants of a peer nobody knows: the rule fails closed."""
        if rule.action == "Accept":
            return replace(rule, peers=(), ports=None)
        return replace(rule, action="Deny", peers=None, ports=None)

    # --- ports ---

    def _port(self, port: PortMatch, path: str) -> Iterator[PortMatch]:
        if isinstance(port, NamedPort):
            yield from self._named(port, path)
        elif port.protocol == _SCTP and not self.limits.sctp:
            self._tell(f"{path}.protocol", "SCTP is dropped, whatever rules say", "SCTP")
        elif port.last > port.first and not self.limits.end_port and port.first:
            text = f"only port {port.first} of {port.first}-{port.last} is matched"
            self._tell(f"{path}.endPort", text, "endPort")
            yield replace(port, last=port.first)
        else:
            yield port

    def _named(self, port: NamedPort, path: str) -> Iterator[PortMatch]:
        """OVN-Kubernetes resolves names in cluster policies only."""
        plain = self.policy.tier is Tier.NETWORK_POLICY
        if self.limits.named_ports == "resolved" or not plain or port.protocol is None:
            yield port
            return
        text = f"the name {port.name} is not resolved: every port of the protocol is open"
        self._tell(f"{path}.port", text, "named ports")
        yield PortRange(port.protocol, 0, LAST_PORT)
