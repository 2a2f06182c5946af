"""What a Corefile says, as values. Pure.

    Corefile text -> parse_corefile -> Corefile(blocks) -> chains, listeners, probes

One `Block` is one set of zones on one port. A field is None (or empty, or False) where the block
does not name the plugin; every default inside is CoreDNS's. Zones are text, lower case, with the
final dot. Durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from podwire.objects.meta import LabelSelector

# Order of plugins in a chain, whatever the order in the file: coredns plugin.cfg.
ORDER: Final = (
    "errors",
    "log",
    "dns64",
    "loadbalance",
    "cache",
    "rewrite",
    "autopath",
    "hosts",
    "kubernetes",
    "loop",
    "forward",
)

Policy = Literal["random", "round_robin", "sequential"]
PodMode = Literal["disabled", "insecure", "verified"]
Match = Literal["exact", "prefix", "suffix", "substring", "regex"]
ResponseClass = Literal["all", "success", "denial", "error"]


@dataclass(frozen=True)
class Consolidate:
    """Errors that match are counted and printed once per period."""

    period_s: float
    pattern: str
    level: str = "error"


@dataclass(frozen=True)
class Errors:
    consolidate: tuple[Consolidate, ...] = ()


@dataclass(frozen=True)
class Log:
    """One `log` line of the block: whose names, in which format, which classes."""

    names: tuple[str, ...] = (".",)
    format: str = "{common}"
    classes: frozenset[ResponseClass] = frozenset({"all"})


@dataclass(frozen=True)
class Health:
    address: str = ":8080"
    lameduck_s: float = 0.0


@dataclass(frozen=True)
class Ready:
    address: str = ":8181"


@dataclass(frozen=True)
class Reload:
    interval_s: float = 30.0
    jitter_s: float = 15.0


@dataclass(frozen=True)
class Kubernetes:
    """`fallthrough`: None is off, () is for all zones. `namespaces`: () is all."""

    zones: tuple[str, ...]
    pods: PodMode = "disabled"
    endpoint_pod_names: bool = False
    ttl: int = 5
    namespaces: tuple[str, ...] = ()
    namespace_labels: LabelSelector | None = None
    labels: LabelSelector | None = None
    noendpoints: bool = False
    ignore_empty_service: bool = False
    fallthrough: tuple[str, ...] | None = None
    startup_timeout_s: float = 5.0


@dataclass(frozen=True)
class Forward:
    """`to` are `address[:port]` texts and paths of files like resolv.conf."""

    source: str
    to: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    force_tcp: bool = False
    prefer_udp: bool = False
    expire_s: float = 10.0
    max_fails: int = 2
    max_connect_attempts: int = 0
    max_idle_conns: int = 0
    policy: Policy = "random"
    health_check_s: float = 0.5
    health_recursion: bool = True
    health_domain: str = "."
    max_concurrent: int = 0
    next_rcodes: frozenset[int] = frozenset()
    failover_rcodes: frozenset[int] = frozenset()
    failfast: bool = False


@dataclass(frozen=True)
class Prefetch:
    """An entry asked for `amount` times, without a gap of `gap_s`, in its last `percentage`."""

    amount: int
    gap_s: float = 60.0
    percentage: int = 10


@dataclass(frozen=True)
class Cache:
    """`stale_s`: 0 is off. `disable_*`: zones whose answers of that class are not kept."""

    zones: tuple[str, ...]
    success_capacity: int = 9984
    success_ttl: int = 3600
    success_min_ttl: int = 5
    denial_capacity: int = 9984
    denial_ttl: int = 1800
    denial_min_ttl: int = 5
    prefetch: Prefetch | None = None
    stale_s: float = 0.0
    stale_verify: bool = False
    servfail_s: float = 5.0
    disable_success: tuple[str, ...] = ()
    disable_denial: tuple[str, ...] = ()
    keep_ttl: bool = False


@dataclass(frozen=True)
class Hosts:
    """`inline` are lines in the form of hosts(5); `fallthrough` as in `Kubernetes`."""

    zones: tuple[str, ...]
    path: str = "/etc/hosts"
    inline: tuple[str, ...] = ()
    ttl: int = 3600
    reverse: bool = True
    reload_s: float = 5.0
    fallthrough: tuple[str, ...] | None = None


@dataclass(frozen=True)
class AnswerRule:
    """`answer name` or `answer value`: a regular expression over the answer's records."""

    what: Literal["name", "value"]
    pattern: str
    replacement: str


@dataclass(frozen=True)
class NameRule:
    match: Match
    source: str
    target: str
    auto: bool = False
    answers: tuple[AnswerRule, ...] = ()
    stop: bool = True


@dataclass(frozen=True)
class TypeRule:
    source: int
    target: int
    stop: bool = True


@dataclass(frozen=True)
class ClassRule:
    source: int
    target: int
    stop: bool = True


@dataclass(frozen=True)
class TtlRule:
    """The answers' TTLs are brought into `low`-`high`."""

    match: Match
    pattern: str
    low: int
    high: int
    stop: bool = True


RewriteRule = NameRule | TypeRule | ClassRule | TtlRule


@dataclass(frozen=True)
class Autopath:
    """`source` is `@kubernetes` or the path of a file like resolv.conf."""

    zones: tuple[str, ...]
    source: str = "@kubernetes"


@dataclass(frozen=True)
class Dns64:
    prefix: str = "64:ff9b::/96"
    translate_all: bool = False
    allow_ipv4: bool = False


@dataclass(frozen=True)
class Block:
    """The plugins of some zones on one port."""

    zones: tuple[str, ...]
    port: int = 53
    bind: tuple[str, ...] = ()
    errors: Errors | None = None
    log: tuple[Log, ...] = ()
    health: Health | None = None
    ready: Ready | None = None
    prometheus: str | None = None
    reload: Reload | None = None
    kubernetes: Kubernetes | None = None
    forward: tuple[Forward, ...] = ()
    cache: Cache | None = None
    loop: bool = False
    loadbalance: bool = False
    hosts: Hosts | None = None
    rewrite: tuple[RewriteRule, ...] = ()
    autopath: Autopath | None = None
    dns64: Dns64 | None = None


@dataclass(frozen=True)
class Corefile:
    blocks: tuple[Block, ...] = field(default=())

    def on_port(self, port: int) -> tuple[Block, ...]:
        """The blocks one listener serves."""
        return tuple(block for block in self.blocks if block.port == port)

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple(sorted({block.port for block in self.blocks}))
