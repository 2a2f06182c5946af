"""The comparator of the Service benchmarks: kube-proxy's own nftables layout, as text.

A chain per Service port and one per endpoint; the port's chain picks by `numgen` through an
anonymous verdict map, the endpoint's chain marks hairpins and translates (k/k
pkg/proxy/nftables/proxier.go and its README, v1.33). Written for these benchmarks from that
description; it is what kube-proxy would hand to `nft -f -`, without its bookkeeping around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

TABLE = "ip kube-proxy"
_MARK = "0x00004000"

Backend = tuple[str, int]


def render(services: Iterable[tuple[str, int, list[Backend]]]) -> str:
    """One transaction for (cluster IP, port, endpoints) of every Service."""
    lines = [*_base()]
    for number, (ip, port, endpoints) in enumerate(services):
        lines += _service(number, ip, port, endpoints)
    return "\n".join(lines) + "\n"


def _base() -> Iterator[str]:
    yield f"add table {TABLE}"
    for name, hook, kind, priority in (
        ("filter-forward", "forward", "filter", -110),
        ("nat-prerouting", "prerouting", "nat", -100),
        ("nat-output", "output", "nat", -100),
        ("nat-postrouting", "postrouting", "nat", 100),
    ):
        yield f"add chain {TABLE} {name} {{ type {kind} hook {hook} priority {priority}; }}"
    yield f"add set {TABLE} cluster-ips {{ type ipv4_addr; }}"
    yield f"add map {TABLE} service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}"
    for name in ("services", "mark-for-masquerade", "masquerading", "reject-chain"):
        yield f"add chain {TABLE} {name}"
    yield f"add rule {TABLE} mark-for-masquerade meta mark set meta mark or {_MARK}"
    yield f"add rule {TABLE} masquerading meta mark and {_MARK} == 0 return"
    yield f"add rule {TABLE} masquerading meta mark set meta mark xor {_MARK}"
    yield f"add rule {TABLE} masquerading masquerade fully-random"
    yield f"add rule {TABLE} reject-chain reject"
    yield f"add rule {TABLE} services ip daddr . meta l4proto . th dport vmap @service-ips"
    yield f"add rule {TABLE} filter-forward ct state new ip daddr @cluster-ips goto reject-chain"
    yield f"add rule {TABLE} nat-prerouting jump services"
    yield f"add rule {TABLE} nat-output jump services"
    yield f"add rule {TABLE} nat-postrouting jump masquerading"


def _service(number: int, ip: str, port: int, endpoints: list[Backend]) -> Iterator[str]:
    service = f"service-{number:08X}-bench/s{number}/tcp/http"
    yield f"add chain {TABLE} {service}"
    names = [
        f"endpoint-{number:08X}-{i:04X}-bench/s{number}/tcp/http" for i in range(len(endpoints))
    ]
    for name, (address, target) in zip(names, endpoints, strict=True):
        yield f"add chain {TABLE} {name}"
        yield f"add rule {TABLE} {name} ip saddr {address} jump mark-for-masquerade"
        yield f"add rule {TABLE} {name} meta l4proto tcp dnat to {address}:{target}"
    yield (
        f"add rule {TABLE} {service} ip daddr {ip} tcp dport {port} "
        "ip saddr != 10.0.0.0/8 jump mark-for-masquerade"
    )
    choices = ", ".join(f"{i} : goto {name}" for i, name in enumerate(names))
    yield f"add rule {TABLE} {service} numgen random mod {len(names)} vmap {{ {choices} }}"
    yield f"add element {TABLE} cluster-ips {{ {ip} }}"
    yield f"add element {TABLE} service-ips {{ {ip} . tcp . {port} : goto {service} }}"
