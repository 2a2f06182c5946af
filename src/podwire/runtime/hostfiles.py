"""What a pod sees as /etc/hosts and its host name: pure text, kubelet's form.

Source: kubernetes/kubernetes pkg/kubelet/kubelet_pods.go (managedHostsFileContent,
GeneratePodHostNameAndDomain) and pkg/kubelet/util/util.go (GetNodenameForKernel); KEP-1797,
KEP-4762.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from podwire.errors import ContainerError
from podwire.objects.core import HostAlias, Pod

_MAX_HOSTNAME: Final = 63
# uname(2) has 65 bytes for a node name, the last one zero.
_MAX_FQDN: Final = 64
_MANAGED: Final = """\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


def hostname(pod: Pod, domain: str) -> tuple[str, str]:
    """The pod's host name and its domain ("" without `subdomain`, and with `hostnameOverride`,
    which is the whole name); `setHostnameAsFQDN` is applied by `kernel_hostname`."""
    spec = pod.spec
    if spec.hostname_override:
        return _truncated(spec.hostname_override), ""
    name = _truncated(spec.hostname or pod.metadata.name)
    if not spec.subdomain:
        return name, ""
    return name, f"{spec.subdomain}.{pod.metadata.namespace}.svc.{domain}"


def _truncated(name: str) -> str:
    if len(name) <= _MAX_HOSTNAME:
        return name
    return name[:_MAX_HOSTNAME].rstrip("-.")


def kernel_hostname(pod: Pod, domain: str, node: str) -> str:
    """What uname(2) says inside the pod: the node's name in a pod of the host's network.

    Raises `ContainerError` for a name the kernel has no room for: such a pod does not start.
    """
    if pod.spec.host_network:
        return node
    name, suffix = hostname(pod, domain)
    if not suffix or not pod.spec.set_hostname_as_fqdn:
        return name
    fqdn = f"{name}.{suffix}"
    if len(fqdn) > _MAX_FQDN:
        raise ContainerError(
            f"failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too "
            f"long ({_MAX_FQDN} characters is the max, {len(fqdn)} characters requested)",
            reason="FailedCreatePodSandBox",
        )
    return fqdn


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


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file as a whole, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
