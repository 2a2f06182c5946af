"""What a pod sees as /etc/hosts, /etc/resolv.conf and its host name: pure text, kubelet's form.

Source: kubernetes/kubernetes pkg/kubelet/kubelet_pods.go (managedHostsFileContent) and
pkg/kubelet/network/dns/dns.go (limits: 3 name servers, 32 search domains, 2048 characters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from podwire.objects.core import HostAlias, Pod

_MAX_NAMESERVERS: Final = 3
_MAX_SEARCHES: Final = 32
_MAX_SEARCH_CHARS: Final = 2048
_MAX_HOSTNAME: Final = 63
_MANAGED: Final = """\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


@dataclass(frozen=True)
class ResolvConf:
    """A node's own resolver configuration, for pods that inherit it (`dnsPolicy: Default`)."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


NO_RESOLVER: Final = ResolvConf()


def hostname(pod: Pod, domain: str) -> tuple[str, str]:
    """The pod's host name and its domain ("" without `subdomain`); `setHostnameAsFQDN` is applied
    by `kernel_hostname`."""
    name = pod.spec.hostname or pod.metadata.name[:_MAX_HOSTNAME].rstrip("-.")
    if not pod.spec.subdomain:
        return name, ""
    return name, f"{pod.spec.subdomain}.{pod.metadata.namespace}.svc.{domain}"


def kernel_hostname(pod: Pod, domain: str, node: str) -> str:
    """What uname(2) says inside the pod: the node's name in a pod of the host's network."""
    if pod.spec.host_network:
        return node
    name, suffix = hostname(pod, domain)
    return f"{name}.{suffix}" if suffix and pod.spec.set_hostname_as_fqdn else name


def render_hosts(
    pod_ips: Sequence[str], name: str, domain: str, aliases: Sequence[HostAlias] = ()
) -> str:
    """kubelet's hosts file of a pod with its own network namespace."""
    own = f"{name}.{domain}\t{name}" if domain else name
    return _MANAGED + "".join(f"{ip}\t{own}\n" for ip in pod_ips) + _aliases(aliases)


def render_host_network_hosts(node_hosts: str, aliases: Sequence[HostAlias] = ()) -> str:
    """The node's hosts file as a hostNetwork pod gets it, with its aliases behind."""
    head = "# Kubernetes-managed hosts file (host network).\n"
    return head + node_hosts + _aliases(aliases)


def _aliases(aliases: Sequence[HostAlias]) -> str:
    if not aliases:
        return ""
    lines = [f"{alias.ip}\t" + "\t".join(alias.hostnames) for alias in aliases]
    return "\n# Entries added by HostAliases.\n" + "\n".join(lines) + "\n"


def render_resolv_conf(
    pod: Pod, cluster_dns: Sequence[str], domain: str, node: ResolvConf = NO_RESOLVER
) -> str:
    """The pod's resolv.conf by `dnsPolicy` and `dnsConfig`."""
    nameservers, searches, options = _by_policy(pod, cluster_dns, domain, node)
    config = pod.spec.dns_config
    if config is not None:
        nameservers = _merged(nameservers, config.nameservers)
        searches = _merged(searches, config.searches)
        named = {option.partition(":")[0]: option for option in options}
        for option in config.options:
            value = option.value
            named[option.name] = option.name if value in (None, "") else f"{option.name}:{value}"
        options = list(named.values())
    lines = []
    searches = _fit(searches)
    if searches:
        lines.append("search " + " ".join(searches))
    lines += [f"nameserver {server}" for server in nameservers[:_MAX_NAMESERVERS]]
    if options:
        lines.append("options " + " ".join(options))
    return "".join(f"{line}\n" for line in lines)


def _by_policy(
    pod: Pod, cluster_dns: Sequence[str], domain: str, node: ResolvConf
) -> tuple[list[str], list[str], list[str]]:
    policy = pod.spec.dns_policy
    if policy == "None":
        return [], [], []
    cluster_first = policy == "ClusterFirstWithHostNet" or (
        policy == "ClusterFirst" and not pod.spec.host_network
    )
    if not cluster_first or not cluster_dns:
        return list(node.nameservers), list(node.searches), list(node.options)
    searches = [f"{pod.metadata.namespace}.svc.{domain}", f"svc.{domain}", domain]
    return list(cluster_dns), _merged(searches, node.searches), ["ndots:5"]


def _merged(first: Sequence[str], second: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*first, *second]))


def _fit(searches: list[str]) -> list[str]:
    fitting: list[str] = []
    for domain in searches[:_MAX_SEARCHES]:
        if len(" ".join([*fitting, domain])) > _MAX_SEARCH_CHARS:
            break
        fitting.append(domain)
    return fitting


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file as a whole, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
