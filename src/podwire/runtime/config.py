"""What one node's kubelet is told at start, and where it keeps things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from podwire.runtime.containers import ProbeDelays


@dataclass(frozen=True)
class KubeletConfig:
    """`node_ips`: the primary family first. `boot_id` changes when the node's namespaces are new.

    `pins_dir` holds a pin per pod sandbox; `images_dir` is shared by all nodes of a lab.
    `volatile_dir`, best on a tmpfs, takes what need not outlive the sandboxes: records, host files,
    logs, volumes. Six files a pod are dear on a disk file system that has just removed as many
    (ext4 passes over inodes freed within the last minutes, one by one).
    """

    node_name: str
    node_ips: tuple[IPv4Address | IPv6Address, ...]
    node_dir: Path
    pins_dir: Path
    images_dir: Path
    boot_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    cluster_dns: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    probe_delays: ProbeDelays = "standin"
    max_pods: int = 1100
    families: tuple[int, ...] = (4,)
    lease_interval_s: float = 2.0
    lease_duration_s: int = 6
    pod_workers: int = 32
    volatile_dir: Path | None = None

    @property
    def kubelet_socket(self) -> Path:
        return self.node_dir / "kubelet.sock"

    @property
    def standin_socket(self) -> Path:
        return self.node_dir / "standin.sock"

    @property
    def pods_dir(self) -> Path:
        return (self.volatile_dir or self.node_dir) / "pods"
