"""Every netfilter table, base chain, priority and mark podwire owns, in one place.

Services, policy, masquerade, mesh redirect and tracing meet on the same hooks; a feature takes its
names and priorities from here, ARCHITECTURE.md prints this table, and a test fails on any table or
base chain in a lab that it does not list. Names start with `podwire-`, except for the built-in
chains of iptables: those are everybody's, and podwire has one jump in each to chains of its own.
Nothing else is ever touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Hook:
    """One base chain. `priority` is the number nft prints; lower runs first."""

    owner: str
    family: str
    table: str
    chain: str
    hook: str
    type: str
    priority: int

    def render(self) -> str:
        """The chain's header, e.g. `type nat hook postrouting priority 100; policy accept;`."""
        return f"type {self.type} hook {self.hook} priority {self.priority}; policy accept;"


MASQUERADE_TABLE: Final = "podwire-masquerade"
KUBENET_TABLE: Final = "podwire-kubenet"
IMPAIR_TABLE: Final = "podwire-impair"
SERVICES_TABLE: Final = "podwire-services"
TRACE_TABLE: Final = "podwire-trace"
IPVS_TABLE: Final = "podwire-ipvs"
POLICY_TABLE: Final = "podwire-policy"
OBSERVE_TABLE: Final = "podwire-observe"
IPVS_DEVICE: Final = "podwire-ipvs0"

RAW: Final = -300
DSTNAT: Final = -100
FILTER: Final = 0
SRCNAT: Final = 100

# The packet mark of the first packet of a connection that must come back through this node; set on
# its way in, cleared where it leaves. Kube-proxy's bit, so that what knows it keeps working.
SERVICES_MASQUERADE_MARK: Final = 0x4000

# With --service-proxy ipvs: the first packet of a connection from within the cluster to an external
# address with policy Local has the mark of a virtual server of its own, 0x5-------, instead of
# whatever it had. IPVS compares the whole mark, so the masquerade bit is never set in it.
IPVS_MARK_BASE: Final = 0x50000000
IPVS_MARK_MASK: Final = 0xF0000000 | SERVICES_MASQUERADE_MARK

MASQUERADE: Final = Hook(
    "cni", "inet", MASQUERADE_TABLE, "postrouting", "postrouting", "nat", SRCNAT
)
KUBENET_DEDUP: Final = Hook("cni", "bridge", KUBENET_TABLE, "output", "output", "filter", -200)
IMPAIR: Final = Hook("lab", "bridge", IMPAIR_TABLE, "forward", "forward", "filter", -200)


def _services(
    chain: str, hook: str, kind: str, priority: int, table: str = SERVICES_TABLE
) -> tuple[Hook, ...]:
    return tuple(
        Hook("services", family, table, chain, hook, kind, priority) for family in ("ip", "ip6")
    )


SERVICES_PREROUTING: Final = _services("prerouting", "prerouting", "nat", DSTNAT)
SERVICES_OUTPUT: Final = _services("output", "output", "nat", DSTNAT)
SERVICES_POSTROUTING: Final = _services("postrouting", "postrouting", "nat", SRCNAT)
SERVICES_FORWARD: Final = _services("forward", "forward", "filter", FILTER)
SERVICES_LEAVING: Final = _services("leaving", "output", "filter", FILTER)
SERVICES: Final = (
    *SERVICES_PREROUTING,
    *SERVICES_OUTPUT,
    *SERVICES_POSTROUTING,
    *SERVICES_FORWARD,
    *SERVICES_LEAVING,
)

# There only while `podwire why` sends a probe: the table belongs to a socket and goes with it.
TRACE: Final = tuple(
    Hook("explain", family, TRACE_TABLE, hook, hook, "filter", RAW - 50)
    for family in ("ip", "ip6")
    for hook in ("prerouting", "output")
)
# With --service-proxy iptables, instead of SERVICES; of legacy iptables nft shows nothing.
IPTABLES: Final = tuple(
    Hook("services", family, kind, hook.upper(), hook, kind, priority)
    for family in ("ip", "ip6")
    for hook, kind, priority in (
        ("prerouting", "nat", DSTNAT),
        ("input", "filter", FILTER),
        ("forward", "filter", FILTER),
        ("output", "nat", DSTNAT),
        ("output", "filter", FILTER),
        ("postrouting", "nat", SRCNAT),
    )
)
# With --service-proxy ipvs, instead of SERVICES. IPVS itself is at input 99, output -98 and forward
# 100: behind the chains that judge, and its packets leave through postrouting.
IPVS: Final = (
    *_services("prerouting", "prerouting", "nat", DSTNAT, IPVS_TABLE),
    *_services("output", "output", "nat", DSTNAT, IPVS_TABLE),
    *_services("postrouting", "postrouting", "nat", SRCNAT, IPVS_TABLE),
    *_services("forward", "forward", "filter", FILTER, IPVS_TABLE),
    *_services("leaving", "output", "filter", FILTER, IPVS_TABLE),
)

# Behind what Services drops, between destination and source translation: the packet has the pod's
# own port and the client's own address. Nothing on input and output: a pod's own node may always.
POLICY: Final = tuple(
    Hook("policy", family, POLICY_TABLE, "forward", "forward", "filter", FILTER + 10)
    for family in ("ip", "ip6")
)

# There only while somebody wants to know: what policies let pass, and what DNS answers to pods.
OBSERVE: Final = tuple(
    Hook("policy", family, OBSERVE_TABLE, hook, hook, "filter", FILTER + 11)
    for family in ("ip", "ip6")
    for hook in ("forward", "output")
)

HOOKS: Final = (
    MASQUERADE,
    KUBENET_DEDUP,
    IMPAIR,
    *SERVICES,
    *TRACE,
    *IPTABLES,
    *IPVS,
    *POLICY,
    *OBSERVE,
)
