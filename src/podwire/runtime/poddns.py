"""A pod's resolv.conf: what its `dnsPolicy`, its `dnsConfig` and its node's own file come to.

    policy -> base (cluster, node or nothing) -> dnsConfig added -> cut to the limits -> text

Whatever had to be left out is said in an Event, because nobody looks for it in a file. Source:
kubernetes/kubernetes pkg/kubelet/network/dns/dns.go; limits of KEP-2595.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from podwire.objects.core import DnsOption, Pod

_MAX_NAMESERVERS: Final = 3
_MAX_SEARCHES: Final = 32
_MAX_SEARCH_CHARS: Final = 2048
# glibc before 2.29 aborts at a search domain of more than 255 bytes.
_MAX_DOMAIN: Final = 253
# Five, so that `_dns._udp.kube-dns.kube-system.svc` still walks the search list.
_CLUSTER_OPTIONS: Final = ("ndots:5",)


@dataclass(frozen=True)
class ResolvConf:
    """What a resolv.conf says. An empty one is a node without a resolver."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def render(self) -> str:
        lines = []
        if self.searches:
            lines.append("search " + " ".join(self.searches))
        lines += [f"nameserver {server}" for server in self.nameservers]
        if self.options:
            lines.append("options " + " ".join(self.options))
        return "".join(f"{line}\n" for line in lines)


NO_RESOLVER: Final = ResolvConf()


@dataclass(frozen=True)
class PodDns:
    """The pod's configuration, and Events it gives reason for: (reason, message)."""

    conf: ResolvConf
    problems: tuple[tuple[str, str], ...] = ()


def parse_resolv_conf(text: str) -> ResolvConf:
    """A node's file as kubelet reads it: name servers and, by name, options add up, of `search` the
    last line counts, and a search domain's trailing dot is dropped (the root alone stays)."""
    nameservers: list[str] = []
    searches: list[str] = []
    options: dict[str, str] = {}
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver":
            nameservers += values[:1]
        elif keyword == "search":
            searches = [value.removesuffix(".") or "." for value in values]
        elif keyword == "options":
            options.update((value.partition(":")[0], value) for value in values)
    return ResolvConf(tuple(nameservers), tuple(searches), tuple(options.values()))


def local_resolver(node_ips: Iterable[IPv4Address | IPv6Address]) -> ResolvConf:
    """Of a node without a resolv.conf: the name server is the machine itself, as resolv.conf(5)
    has it, and nothing is searched."""
    servers = tuple("::1" if ip.version == 6 else "127.0.0.1" for ip in node_ips)
    return ResolvConf(servers or ("127.0.0.1",), (".",))


def compile_pod_dns(
    pod: Pod, cluster_dns: Sequence[str], domain: str, node: ResolvConf = NO_RESOLVER
) -> PodDns:
    """The pod's resolv.conf, within the limits."""
    problems: list[tuple[str, str]] = []
    conf = _base(pod, cluster_dns, domain, node, problems)
    config = pod.spec.dns_config
    if config is not None:
        conf = ResolvConf(
            _merged(conf.nameservers, config.nameservers),
            _merged(conf.searches, config.searches),
            _options(conf.options, config.options),
        )
    servers = _fit_servers(conf.nameservers, problems)
    searches = _fit_searches(conf.searches, problems)
    return PodDns(ResolvConf(servers, searches, conf.options), tuple(problems))


def _base(
    pod: Pod,
    cluster_dns: Sequence[str],
    domain: str,
    node: ResolvConf,
    problems: list[tuple[str, str]],
) -> ResolvConf:
    policy = pod.spec.dns_policy
    if policy == "None":
        return NO_RESOLVER
    # A pod of the node's network resolves as the node does, unless it says otherwise.
    if policy == "Default" or (policy == "ClusterFirst" and pod.spec.host_network):
        return node
    if not cluster_dns:
        who = f"{pod.metadata.name}_{pod.metadata.namespace}({pod.metadata.uid})"
        text = (
            f'pod: "{who}". kubelet does not have ClusterDNS IP configured and cannot create Pod '
            'using "ClusterFirst" policy. Falling back to "Default" policy.'
        )
        problems.append(("MissingClusterDNS", text))
        return node
    searches = node.searches
    if domain:
        own = (f"{pod.metadata.namespace}.svc.{domain}", f"svc.{domain}", domain)
        searches = _merged(own, node.searches)
    return ResolvConf(tuple(cluster_dns), searches, _CLUSTER_OPTIONS)


def _merged(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))


def _options(base: Sequence[str], added: Sequence[DnsOption]) -> tuple[str, ...]:
    """Options by name: the pod's own value replaces the one it had."""
    named = {option.partition(":")[0]: option for option in base}
    for option in added:
        named[option.name] = f"{option.name}:{option.value}" if option.value else option.name
    return tuple(named.values())


def _fit_servers(servers: tuple[str, ...], problems: list[tuple[str, str]]) -> tuple[str, ...]:
    if len(servers) <= _MAX_NAMESERVERS:
        return servers
    kept = servers[:_MAX_NAMESERVERS]
    text = (
        "Nameserver limits were exceeded, some nameservers have been omitted, "
        f"the applied nameserver line is: {' '.join(kept)}"
    )
    problems.append(("DNSConfigForming", text))
    return kept


def _fit_searches(searches: tuple[str, ...], problems: list[tuple[str, str]]) -> tuple[str, ...]:
    kept = [domain for domain in searches[:_MAX_SEARCHES] if len(domain) <= _MAX_DOMAIN]
    while len(" ".join(kept)) > _MAX_SEARCH_CHARS:
        kept.pop()
    if len(kept) == len(searches):
        return searches
    text = (
        "Search Line limits were exceeded, some search paths have been omitted, "
        f"the applied search line is: {' '.join(kept)}"
    )
    problems.append(("DNSConfigForming", text))
    return tuple(kept)
