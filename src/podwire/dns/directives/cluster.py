"""What is answered from here: kubernetes, hosts, autopath, dns64."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final, get_args

from podwire.dns import config
from podwire.dns.caddyfile import Line, Token
from podwire.dns.directives.words import (
    Once,
    Setter,
    Site,
    Words,
    at_least_zero,
    flag,
    is_address,
    no_body,
    read_body,
    refused,
    zones_of,
    zones_setter,
)
from podwire.errors import UsageError
from podwire.objects.selectors import parse_label_selector


def parse_kubernetes(line: Line, site: Site) -> config.Kubernetes:
    words = Words(line)
    zones = zones_of(words.rest()) or site.zones
    if all(f".{zone}".endswith((".in-addr.arpa.", ".ip6.arpa.")) for zone in zones):
        words.fail("non-reverse zone name must be used")
    fields = read_body(line, _KUBERNETES)
    if "namespaces" in fields and "namespace_labels" in fields:
        words.fail("namespaces and namespace_labels cannot both be set")
    return config.Kubernetes(zones, **fields)


def _pods(words: Words) -> Mapping[str, Any]:
    mode = words.take("the mode")
    if mode.text not in get_args(config.PodMode):
        raise mode.error(
            f"kubernetes: wrong value for pods: {mode.text},  "
            "must be one of: disabled, verified, insecure"
        )
    return {"pods": mode.text}


def _kubernetes_ttl(words: Words) -> Mapping[str, Any]:
    ttl = words.integer("the TTL")
    if not 0 <= ttl <= 3600:
        words.fail(f"ttl must be in range [0, 3600]: {ttl}")
    return {"ttl": ttl}


def _selector(field: str) -> Setter:
    def read(words: Words) -> Mapping[str, Any]:
        text = " ".join(token.text for token in words.rest("the selector"))
        try:
            return {field: parse_label_selector(text)}
        except UsageError as e:
            words.fail(f"unable to parse label selector value: '{text}': {e}")

    return read


def _ignore(words: Words) -> Mapping[str, Any]:
    value = words.take("empty_service").text
    if value != "empty_service":
        words.fail(f"unable to parse ignore value: '{value}'")
    return {"ignore_empty_service": True}


_OWN_API: Final = "podwire reads the API of its own cluster; delete it"
_UNUSED_TUNING: Final = "there is one watch per kind, which needs no limit; delete it"
_KUBERNETES: Final[Mapping[str, Setter]] = {
    "pods": _pods,
    "endpoint_pod_names": flag("endpoint_pod_names"),
    "ttl": _kubernetes_ttl,
    "namespaces": lambda words: {"namespaces": tuple(t.text for t in words.rest("a namespace"))},
    "namespace_labels": _selector("namespace_labels"),
    "labels": _selector("labels"),
    "noendpoints": flag("noendpoints"),
    "ignore": _ignore,
    "fallthrough": zones_setter("fallthrough"),
    "startup_timeout": lambda words: {"startup_timeout_s": words.duration("the duration")},
    "endpoint": refused(_OWN_API),
    "tls": refused(_OWN_API),
    "kubeconfig": refused(_OWN_API),
    "apiserver_qps": refused(_UNUSED_TUNING),
    "apiserver_burst": refused(_UNUSED_TUNING),
    "apiserver_max_inflight": refused(_UNUSED_TUNING),
    "resyncperiod": refused(_UNUSED_TUNING),
    "upstream": refused("targets of ExternalName Services are resolved by `forward`; delete it"),
    "transfer": refused("zone transfers are refused; delete it"),
    "multicluster": refused("ServiceImports have no zone here; delete it"),
    "zonal": refused("answers do not depend on zones; delete it"),
}


def parse_autopath(line: Line, site: Site) -> config.Autopath:
    words = Words(line)
    no_body(line)
    tokens = words.rest("@kubernetes or a file")
    source = tokens.pop()
    if source.text.startswith("@") and source.text != "@kubernetes":
        raise source.error(f"autopath: plugin {source.text} has no search path; use @kubernetes")
    return config.Autopath(zones_of(tokens) or site.zones, source.text)


def parse_dns64(line: Line, site: Site) -> config.Dns64:
    words = Words(line)
    fields: dict[str, Any] = {}
    if len(words):
        fields["prefix"] = _dns64_prefix(words.take("the prefix"))
    words.end()
    fields |= read_body(
        line,
        {
            "prefix": lambda w: {"prefix": _dns64_prefix(w.take("the prefix"))},
            "translate_all": flag("translate_all"),
            "allow_ipv4": flag("allow_ipv4"),
        },
    )
    return config.Dns64(**fields)


def _dns64_prefix(token: Token) -> str:
    try:
        network = ipaddress.IPv6Network(token.text)
    except ValueError as e:
        raise token.error(f"dns64: {token.text!r} is no IPv6 prefix ({e})") from e
    if network.prefixlen not in (32, 40, 48, 56, 64, 96):
        raise token.error(f"dns64: invalid netmask for /{network.prefixlen}; RFC 6052 has 32 to 96")
    return str(network)


def parse_hosts(line: Line, site: Site) -> config.Hosts:
    words = Words(line)
    fields: dict[str, Any] = {}
    if len(words):
        fields["path"] = words.take("the file").text
    zones = zones_of(words.rest()) or site.zones
    inline = [entry for entry in line.body if entry.name not in _HOSTS]
    for entry in inline:
        if not is_address(entry.name):
            raise entry.error(
                f"hosts: {entry.name!r} is neither an address nor a property; "
                f"known are: {', '.join(_HOSTS)}"
            )
    rest = Line(line.words, tuple(e for e in line.body if e.name in _HOSTS), line.braces)
    fields["inline"] = tuple(" ".join(token.text for token in entry.words) for entry in inline)
    return config.Hosts(zones, **(fields | read_body(rest, _HOSTS)))


def _hosts_ttl(words: Words) -> Mapping[str, Any]:
    ttl = words.integer("the TTL")
    if not 0 < ttl <= 65535:
        words.fail("ttl provided is invalid; write 1 to 65535")
    return {"ttl": ttl}


_HOSTS: Final[Mapping[str, Setter]] = {
    "ttl": _hosts_ttl,
    "no_reverse": flag("reverse", False),
    "reload": lambda w: {"reload_s": at_least_zero(w, "reload", w.duration("the duration"))},
    "fallthrough": zones_setter("fallthrough"),
}


ONCE: Final[Once] = {
    "autopath": parse_autopath,
    "dns64": parse_dns64,
    "hosts": parse_hosts,
    "kubernetes": parse_kubernetes,
}
