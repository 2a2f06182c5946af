"""What changes when a cluster leaves kube-proxy's IPVS or iptables mode for nftables. Pure.

    manifests (Services, Nodes, workloads, ConfigMaps) + NodeDump -> advise -> Finding...

Every finding names its object and what to do. Sources: KEP-3866 (nftables), KEP-5343 (default),
KEP-5495 (IPVS leaves), KEP-5707 (externalIPs), KEP-6032 (localhost node ports), Kubernetes
documentation "Virtual IPs and Service Proxies".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from podwire.explain.nodedump import NodeDump, Rule, kube_chains, proxy_config_of
from podwire.objects.meta import View

Severity = Literal["breaks", "changes", "check", "info"]
SEVERITIES: Final[tuple[Severity, ...]] = ("breaks", "changes", "check", "info")
_LOCALHOST: Final = re.compile(r"\b(?:localhost|127\.0\.0\.1|\[::1\]):(\d{4,5})\b")
_WORKLOADS: Final = frozenset(
    {"Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"}
)
_MARKS: Final = re.compile(r"0x0*([48]000)/0x0*\1|mark (?:and|&) 0x0*([48]000)")
_BUILT_IN: Final = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
# Where kube-proxy (any mode) and the kubelet hook in: k/k pkg/proxy/{iptables,ipvs}/proxier.go.
_ENTRANCES: Final = frozenset(
    f"KUBE-{name}"
    for name in (
        "SERVICES",
        "EXTERNAL-SERVICES",
        "NODEPORTS",
        "FORWARD",
        "POSTROUTING",
        "FIREWALL",
        "PROXY-FIREWALL",
        "NODE-PORT",
        "IPVS-FILTER",
        "IPVS-OUT-FILTER",
    )
)
_MIN_KERNEL: Final = (5, 13)
Objects = Sequence[Mapping[str, Any]]


class Finding(View):
    """`breaks` stops working, `changes` works otherwise, `check` may, `info` is good to know."""

    severity: Severity
    object: str
    title: str
    action: str
    source: str = ""


@dataclass(frozen=True)
class Case:
    """What is looked at; `mode` is what the cluster runs now."""

    objects: Objects
    dump: NodeDump

    @property
    def proxy(self) -> Mapping[str, Any]:
        """kube-proxy's configuration, from the dump or from a ConfigMap among the manifests."""
        if self.dump.proxy:
            return self.dump.proxy
        return next((found for o in self.objects if (found := proxy_config_of(o))), {})

    @property
    def mode(self) -> str:
        if self.proxy:
            return str(self.proxy.get("mode") or "iptables")
        return self.dump.mode or "iptables"

    def of_kind(self, *kinds: str) -> Iterator[Mapping[str, Any]]:
        return (o for o in self.objects if o.get("kind") in kinds)

    @property
    def node_ports(self) -> dict[int, str]:
        """Node port -> Service."""
        return {
            port["nodePort"]: name_of(service)
            for service in self.of_kind("Service")
            for port in (service.get("spec") or {}).get("ports") or []
            if port.get("nodePort")
        }


def name_of(obj: Mapping[str, Any]) -> str:
    meta = obj.get("metadata") or {}
    namespace = meta.get("namespace", "")
    where = f"{namespace}/" if namespace else ""
    return f"{str(obj.get('kind', 'object')).lower()} {where}{meta.get('name', '?')}"


def advise(objects: Iterable[Mapping[str, Any]], dump: NodeDump) -> list[Finding]:
    """Everything worth knowing, what breaks first."""
    case = Case(list(objects), dump)
    found = [finding for rule in _RULES for finding in rule(case)]
    return sorted(dict.fromkeys(found), key=lambda f: (SEVERITIES.index(f.severity), f.object))


# --- the mode itself ----------------------------------------------------------------------------


def _mode(case: Case) -> Iterator[Finding]:
    if case.mode == "ipvs":
        yield Finding(
            severity="breaks",
            object="kube-proxy mode ipvs",
            title="deprecated since 1.35; off by default in 1.40 (gate KubeProxyIPVS); its code "
            "goes in 1.43",
            action="move to nftables before upgrading to 1.40",
            source="KEP-5495",
        )
    elif case.mode == "iptables":
        yield Finding(
            severity="info",
            object="kube-proxy mode iptables",
            title="nftables is planned to be the default from 1.40; who gets iptables by default "
            "is warned since 1.37",
            action="set `mode` explicitly, or move to nftables",
            source="KEP-5343",
        )


def _kernel(case: Case) -> Iterator[Finding]:
    nodes = [
        (name_of(node), str(info.get("kernelVersion", "")))
        for node in case.of_kind("Node")
        if (info := (node.get("status") or {}).get("nodeInfo") or {})
    ]
    if case.dump.kernel:
        nodes.append(("node dump", case.dump.kernel))
    for where, version in nodes:
        numbers = re.findall(r"\d+", version)[:2]
        if len(numbers) == 2 and tuple(map(int, numbers)) < _MIN_KERNEL:
            yield Finding(
                severity="breaks",
                object=where,
                title=f"kernel {version} is older than 5.13, which nftables mode requires",
                action="upgrade the node's kernel first",
                source="KEP-3866",
            )


# --- Services -----------------------------------------------------------------------------------


def _external_ips(case: Case) -> Iterator[Finding]:
    for service in case.of_kind("Service"):
        addresses = (service.get("spec") or {}).get("externalIPs")
        if addresses:
            yield Finding(
                severity="breaks",
                object=name_of(service),
                title=f"externalIPs {', '.join(addresses)}: deprecated since 1.36, not served by "
                "default from 1.40; podwire does not serve them unless told to",
                action="use a LoadBalancer with an address pool, or a Gateway",
                source="KEP-5707, CVE-2020-8554",
            )


def _localhost_node_ports(case: Case) -> Iterator[Finding]:
    ports = case.node_ports
    for workload in case.of_kind(*sorted(_WORKLOADS), "ConfigMap"):
        for port in sorted({int(p) for p in _LOCALHOST.findall(_strings(workload))}):
            if port in ports or 30000 <= port <= 32767:
                owner = f" ({ports[port]})" if port in ports else ""
                yield Finding(
                    severity="breaks",
                    object=name_of(workload),
                    title=f"speaks to node port {port}{owner} at localhost: nftables serves node "
                    "ports at the node's own addresses only",
                    action="use the node's address (status.hostIP), a hostPort, or kube-proxy's "
                    "userspace proxy for localhost (alpha in 1.37)",
                    source="KEP-6032",
                )
    allowed = (case.proxy.get("iptables") or {}).get("localhostNodePorts")
    if case.mode == "iptables" and ports and allowed is not False:
        yield Finding(
            severity="check",
            object="kube-proxy iptables.localhostNodePorts",
            title="node ports answer at 127.0.0.1 today and will not any more",
            action="see whether kubeproxy_iptables_localhost_nodeports_accepted_packets_total "
            "grows; then set it to false as a trial",
            source="KEP-6032",
        )


def _strings(value: Any) -> str:
    """All strings of an object in one."""
    if isinstance(value, str):
        return value + "\n"
    if isinstance(value, Mapping):
        return "".join(_strings(v) for k, v in value.items() if k != "status")
    if isinstance(value, list):
        return "".join(_strings(v) for v in value)
    return ""


def _node_port_addresses(case: Case) -> Iterator[Finding]:
    ports = case.node_ports
    if not ports or case.mode == "nftables":
        return
    told = case.proxy.get("nodePortAddresses") or []
    services = ", ".join(sorted(set(ports.values()))[:3])
    if not told:
        yield Finding(
            severity="changes",
            object="kube-proxy nodePortAddresses",
            title=f"unset: {case.mode} serves node ports at every address of a node, nftables at "
            f"its primary one only ({services})",
            action="point load balancers at the nodes' InternalIP, or set the ranges in question",
            source="KEP-3866",
        )
    elif told != ["primary"]:
        yield Finding(
            severity="check",
            object="kube-proxy nodePortAddresses",
            title=f"{', '.join(told)}: kube-proxy's nftables mode honours it; podwire serves the "
            "node's InternalIPs",
            action="check that these ranges hold the addresses clients use",
            source="KEP-3866",
        )


def _affinity(case: Case) -> Iterator[Finding]:
    for service in case.of_kind("Service"):
        spec = service.get("spec") or {}
        if spec.get("sessionAffinity") == "ClientIP":
            yield Finding(
                severity="changes",
                object=name_of(service),
                title="sessionAffinity ClientIP: who is bound to which endpoint is not taken over; "
                "every client is dealt once more",
                action="move when a new session does no harm, node by node",
                source="KEP-3866",
            )


def _unlisted_ports(case: Case) -> Iterator[Finding]:
    count = sum(
        1 for s in case.of_kind("Service") if (s.get("spec") or {}).get("clusterIP") != "None"
    )
    if case.mode == "nftables" or not (count or case.dump.servers):
        return
    yield Finding(
        severity="changes",
        object="cluster IPs",
        title="a port no Service has is refused at a cluster IP, and an address no Service has is "
        "dropped; "
        + (
            "IPVS lets such packets reach the node itself"
            if case.mode == "ipvs"
            else "iptables lets such packets leave the node"
        ),
        action="nothing, unless something relies on it",
        source="KEP-3866",
    )


# --- IPVS ---------------------------------------------------------------------------------------


def _schedulers(case: Case) -> Iterator[Finding]:
    configured = (case.proxy.get("ipvs") or {}).get("scheduler") or ""
    if case.mode == "ipvs" and configured not in ("", "rr"):
        yield _scheduler(f"kube-proxy ipvs.scheduler {configured}", configured)
    addresses = _owners_of_addresses(case)
    for server in case.dump.servers:
        host = server.address.rpartition(":")[0].strip("[]")
        owner = addresses.get(host)
        where = f"{owner} ({server.address})" if owner else f"virtual server {server.address}"
        if server.scheduler != (configured or "rr"):
            yield _scheduler(where, server.scheduler)
        if server.forwarding & {"-g", "-i"}:
            yield Finding(
                severity="breaks",
                object=where,
                title="answers go past the node (direct routing or tunnel); nftables translates "
                "both ways",
                action="keep such a server out of kube-proxy's hands, or let answers come back",
            )
        if len(server.weights - {0}) > 1:
            yield Finding(
                severity="changes",
                object=where,
                title="its endpoints have different weights; kube-proxy's nftables mode has none",
                action="with podwire, annotate the EndpointSlice networking.podwire.dev/weights",
            )


_INSTEAD: Final = {
    "sh": "sessionAffinity: ClientIP, or podwire's annotation "
    "networking.podwire.dev/balancing: maglev-source",
    "mh": "podwire's annotation networking.podwire.dev/balancing: maglev",
}


def _scheduler(where: str, scheduler: str) -> Finding:
    otherwise = "nothing, unless endpoints differ in strength: then weights"
    return Finding(
        severity="changes",
        object=where,
        title=f"IPVS scheduler {scheduler}: nftables chooses at random; nodes never shared what "
        "they count, so lc and its like balanced each node by itself",
        action=_INSTEAD.get(scheduler, otherwise),
        source="KEP-5495",
    )


def _owners_of_addresses(case: Case) -> dict[str, str]:
    found: dict[str, str] = {}
    for service in case.of_kind("Service"):
        spec, status = service.get("spec") or {}, service.get("status") or {}
        ingress = (status.get("loadBalancer") or {}).get("ingress") or []
        addresses = [
            spec.get("clusterIP"),
            *(spec.get("clusterIPs") or []),
            *(i.get("ip") for i in ingress),
        ]
        found |= {str(a): name_of(service) for a in addresses if a}
    return found


def _ipvs_habits(case: Case) -> Iterator[Finding]:
    if case.mode != "ipvs":
        return
    yield Finding(
        severity="changes",
        object="cluster IPs",
        title="ping to a cluster IP is answered by IPVS (the address is on kube-ipvs0) and refused "
        "by nftables",
        action="have monitoring ask a port instead",
        source="KEP-3866",
    )
    yield Finding(
        severity="check",
        object="kube-ipvs0",
        title="cluster IPs and load balancer addresses are no longer on an interface of the node",
        action="look for whatever binds, lists or announces them there; remove kube-ipvs0 and run "
        "`ipvsadm -C` and `kube-proxy --cleanup` after the change",
        source="KEP-5495",
    )
    ipvs = case.proxy.get("ipvs") or {}
    strict = ipvs.get("strictARP") is True
    metallb = [name_of(o) for o in case.objects if "metallb" in str(o.get("apiVersion", ""))]
    if strict or metallb:
        yield Finding(
            severity="info",
            object=metallb[0] if metallb else "kube-proxy ipvs.strictARP",
            title="strictARP exists because IPVS puts load balancer addresses on kube-ipvs0; with "
            "nftables nobody but the speaker answers ARP for them",
            action="drop the setting after the move"
            + ("" if strict else "; until then it should be true"),
            source="MetalLB, installation",
        )
    for key in ("excludeCIDRs", "tcpTimeout", "tcpFinTimeout", "udpTimeout"):
        if ipvs.get(key) not in (None, "", "0s", []):
            yield Finding(
                severity="changes",
                object=f"kube-proxy ipvs.{key}",
                title=f"{ipvs[key]}: has no meaning any more",
                action="set conntrack's timeouts instead"
                if "imeout" in key
                else "own virtual servers need not be excluded: nftables touches its table only",
            )


# --- firewalls ----------------------------------------------------------------------------------


def _firewalls(case: Case) -> Iterator[Finding]:
    for rule in case.dump.rules:
        if rule.kube or _is_proxys_jump(rule):
            continue
        chains = kube_chains(rule)
        if chains:
            yield Finding(
                severity="breaks",
                object=str(rule),
                title=f"speaks of {', '.join(dict.fromkeys(chains))}, which will not be there",
                action="write it in a table of its own: before priority dstnat it sees Service "
                "addresses, after it endpoints",
                source="KEP-3866",
            )
        elif found := _MARKS.search(rule.text):
            yield Finding(
                severity="check",
                object=str(rule),
                title=f"matches mark 0x{found[1] or found[2]}, which is kube-proxy's own",
                action="do not rely on marks of a proxy",
                source="KEP-3866",
            )
        elif "kube-ipvs0" in rule.text:
            yield Finding(
                severity="breaks",
                object=str(rule),
                title="matches kube-ipvs0, which will not be there",
                action="match addresses or ports instead",
            )
    yield from _closed_inputs(case)


def _is_proxys_jump(rule: Rule) -> bool:
    """The jumps from built-in chains into kube-proxy's and the kubelet's are their own."""
    chains = kube_chains(rule)
    return len(chains) == 1 and chains[0] in _ENTRANCES and rule.chain.upper() in _BUILT_IN


def _closed_inputs(case: Case) -> Iterator[Finding]:
    for (table, chain), policy in case.dump.policies.items():
        closed = policy == "DROP" and chain.upper() == "INPUT"
        if closed and case.node_ports and case.mode == "iptables":
            yield Finding(
                severity="check",
                object=f"{table} {chain}",
                title="drops by default: iptables mode lets packets to node ports pass "
                "(KUBE-NODEPORTS), nftables mode does not open a firewall",
                action=f"allow node ports yourself: {_port_words(case.node_ports)}",
                source="KEP-3866",
            )


def _port_words(ports: Mapping[int, str]) -> str:
    shown = [str(port) for port in sorted(ports)[:5]]
    return ", ".join(shown) + (", ..." if len(ports) > 5 else "")


def _proxy_settings(case: Case) -> Iterator[Finding]:
    iptables = case.proxy.get("iptables") or {}
    if iptables.get("masqueradeAll") and case.mode != "nftables":
        yield Finding(
            severity="check",
            object="kube-proxy iptables.masqueradeAll",
            title="has to be said again as nftables.masqueradeAll; podwire masquerades only where "
            "answers would get lost",
            action="see whether it is needed at all",
        )
    feature = (case.proxy.get("featureGates") or {}).get("KubeProxyIPVS")
    if feature:
        yield Finding(
            severity="info",
            object="kube-proxy featureGates.KubeProxyIPVS",
            title="keeps IPVS alive from 1.40 on; the gate goes with the code in 1.43",
            action="take it out after the move",
            source="KEP-5495",
        )


_RULES: Final = (
    _mode,
    _kernel,
    _external_ips,
    _localhost_node_ports,
    _node_port_addresses,
    _affinity,
    _unlisted_ports,
    _schedulers,
    _ipvs_habits,
    _firewalls,
    _proxy_settings,
)
