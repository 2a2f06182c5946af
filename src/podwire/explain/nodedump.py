"""What a node says of its kube-proxy: dumps of the usual tools, told apart and read. Pure.

    iptables-save | ipvsadm -Sn | nft list ruleset | uname -r | kube-proxy ConfigMap or config
      -> NodeDump

One file may hold one dump, or several one behind the other: each line is understood by its form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from podwire.errors import UsageError

_KUBE_CHAIN: Final = re.compile(r"\bKUBE-[A-Z0-9-]+")
_IPTABLES_TABLE: Final = re.compile(r"^\*(raw|mangle|nat|filter|security)$")
_RULE: Final = re.compile(r"^(?:\[\d+:\d+\] )?-A (\S+) (.*)$")
_POLICY: Final = re.compile(r"^:(\S+) (ACCEPT|DROP|-)")
_SERVER: Final = re.compile(r"^-A (-[tuf]|--\S+-service) (\S+) (.*)$")
_REAL: Final = re.compile(r"^-a (-[tuf]|--\S+-service) (\S+) -r (\S+) (.*)$")
_KERNEL: Final = re.compile(r"^(?:Linux \S+ )?(\d+\.\d+)(?:\.\d+)?\S*(?: .*)?$")
_NFT_TABLE: Final = re.compile(r"^\s*table (\S+) (\S+) \{")
_NFT_CHAIN: Final = re.compile(r"^\s*chain (\S+) \{")


@dataclass(frozen=True)
class Rule:
    """A rule of iptables or nftables, with where it stands."""

    table: str
    chain: str
    text: str

    @property
    def kube(self) -> bool:
        """kube-proxy's own."""
        return self.chain.startswith("KUBE-") or self.table.endswith(" kube-proxy")

    def __str__(self) -> str:
        return f"{self.table} {self.chain}: {self.text}"


@dataclass(frozen=True)
class VirtualServer:
    """One of IPVS: `address` as ipvsadm prints it, `forwarding` of its real servers."""

    address: str
    scheduler: str
    persistence_s: int = 0
    forwarding: frozenset[str] = frozenset()
    weights: frozenset[int] = frozenset()


@dataclass
class NodeDump:
    """Everything found; `proxy` is a KubeProxyConfiguration as parsed."""

    rules: list[Rule] = field(default_factory=list)
    policies: dict[tuple[str, str], str] = field(default_factory=dict)
    servers: list[VirtualServer] = field(default_factory=list)
    proxy: dict[str, Any] = field(default_factory=dict)
    kernel: str = ""
    sources: list[str] = field(default_factory=list)

    @property
    def mode(self) -> str:
        """What kube-proxy runs as; "" when nothing tells."""
        if self.proxy:
            return str(self.proxy.get("mode") or "iptables")
        if self.servers:
            return "ipvs"
        if any(rule.table.endswith(" kube-proxy") for rule in self.rules):
            return "nftables"
        if any(rule.chain.startswith(("KUBE-SVC-", "KUBE-SERVICES")) for rule in self.rules):
            return "iptables"
        return ""


def parse_dumps(texts: Mapping[str, str]) -> NodeDump:
    """All dumps by name; raises `UsageError` for one in which nothing is understood."""
    dump = NodeDump()
    for name, text in texts.items():
        before = _size(dump)
        if config := find_proxy_config(text):
            dump.proxy = config
        else:
            _read_lines(dump, text)
        if _size(dump) == before:
            raise UsageError(
                f"{name}: is none of iptables-save, ipvsadm -Sn, nft list ruleset, uname -r or a "
                "kube-proxy ConfigMap"
            )
        dump.sources.append(name)
    return dump


def _size(dump: NodeDump) -> tuple[int, ...]:
    return (
        len(dump.rules),
        len(dump.policies),
        len(dump.servers),
        len(dump.proxy),
        len(dump.kernel),
    )


def find_proxy_config(text: str) -> dict[str, Any]:
    """A KubeProxyConfiguration, bare or in a ConfigMap (kubeadm's key is `config.conf`)."""
    if "KubeProxyConfiguration" not in text:
        return {}
    try:
        documents = list(yaml.load_all(text, yaml.CSafeLoader))
    except yaml.YAMLError as error:
        raise UsageError(f"kube-proxy configuration: {error}") from error
    for document in documents:
        if found := proxy_config_of(document):
            return found
    return {}


def proxy_config_of(document: Any) -> dict[str, Any]:
    """The configuration in one object; {} where there is none."""
    if not isinstance(document, dict):
        return {}
    if document.get("kind") == "KubeProxyConfiguration":
        return document
    for value in (document.get("data") or {}).values() if document.get("data") else ():
        if isinstance(value, str) and "KubeProxyConfiguration" in value:
            try:
                inner = yaml.load(value, yaml.CSafeLoader)
            except yaml.YAMLError:
                continue
            if isinstance(inner, dict):
                return inner
    return {}


# --- lines ----------------------------------------------------------------------------------------


def _read_lines(dump: NodeDump, text: str) -> None:
    lines = text.splitlines()
    if any(_IPTABLES_TABLE.match(line) for line in lines):
        _read_iptables(dump, lines)
    elif any(_NFT_TABLE.match(line) for line in lines):
        _read_nft(dump, lines)
    else:
        _read_ipvs(dump, lines)
    for line in lines[:1]:
        if found := _KERNEL.match(line):
            dump.kernel = found[0].removeprefix("Linux ").strip()


def _read_iptables(dump: NodeDump, lines: Iterable[str]) -> None:
    table = ""
    for line in lines:
        if found := _IPTABLES_TABLE.match(line):
            table = found[1]
        elif found := _POLICY.match(line):
            dump.policies[table, found[1]] = found[2]
        elif table and (found := _RULE.match(line)):
            dump.rules.append(Rule(table, found[1], found[2]))


def _read_nft(dump: NodeDump, lines: Iterable[str]) -> None:
    table = chain = ""
    for line in lines:
        stripped = line.strip()
        if found := _NFT_TABLE.match(line):
            table, chain = f"{found[1]} {found[2]}", ""
        elif found := _NFT_CHAIN.match(line):
            chain = found[1]
        elif chain and stripped == "}":
            chain = ""
        elif chain and stripped.startswith("type "):
            if "policy drop" in stripped and " hook " in stripped:
                dump.policies[table, chain] = "DROP"
        elif chain and stripped:
            dump.rules.append(Rule(table, chain, stripped))


def _read_ipvs(dump: NodeDump, lines: Iterable[str]) -> None:
    heads: dict[str, tuple[str, int]] = {}
    methods: dict[str, set[str]] = {}
    weights: dict[str, set[int]] = {}
    for line in lines:
        if found := _SERVER.match(line):
            words = found[3].split()
            heads[found[2]] = (_after(words, "-s") or "wlc", int(_after(words, "-p") or 0))
        elif found := _REAL.match(line):
            words = found[4].split()
            methods.setdefault(found[2], set()).update(w for w in words if w in ("-m", "-g", "-i"))
            weights.setdefault(found[2], set()).add(int(_after(words, "-w") or 1))
    dump.servers += [
        VirtualServer(
            address,
            scheduler,
            persistence,
            frozenset(methods.get(address, ())),
            frozenset(weights.get(address, ())),
        )
        for address, (scheduler, persistence) in heads.items()
    ]


def _after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1] if flag in words[:-1] else ""


def kube_chains(rule: Rule) -> list[str]:
    """kube-proxy's chains a rule speaks of."""
    return _KUBE_CHAIN.findall(rule.text)
