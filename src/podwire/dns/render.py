"""A configuration as a Corefile again: what is in force, in the words people wrote it in. Pure.

    parse_corefile(render_corefile(c)) == c

Only what differs from the default is written, so the text is about as short as the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, Final

import dns.rcode
import dns.rdataclass
import dns.rdatatype

from podwire.dns import config
from podwire.objects.meta import LabelSelector, Requirement

_INDENT: Final = "    "


def render_corefile(corefile: config.Corefile) -> str:
    return "\n".join(_render_block(block) for block in corefile.blocks)


def _render_block(block: config.Block) -> str:
    keys = " ".join(_key(zone, block.port) for zone in block.zones)
    lines = [_INDENT + line for line in _lines(block)]
    return "\n".join([f"{keys} {{", *lines, "}", ""])


def _key(zone: str, port: int) -> str:
    return f"{zone}:{port}"


def _lines(block: config.Block) -> Iterator[str]:
    if block.bind:
        yield f"bind {' '.join(block.bind)}"
    if block.errors is not None:
        yield from _directive("errors", _errors(block.errors))
    for log in block.log:
        classes = [] if log.classes == {"all"} else [f"class {' '.join(sorted(log.classes))}"]
        yield from _directive(f"log {' '.join(log.names)} {_quoted(log.format)}", classes)
    if block.health is not None:
        lame = [f"lameduck {_duration(block.health.lameduck_s)}"] if block.health.lameduck_s else []
        yield from _directive(f"health {block.health.address}", lame)
    if block.ready is not None:
        yield f"ready {block.ready.address}"
    if block.prometheus is not None:
        yield f"prometheus {block.prometheus}"
    if block.reload is not None:
        reload = block.reload
        yield f"reload {_duration(reload.interval_s)} {_duration(reload.jitter_s)}"
    if block.kubernetes is not None:
        zones = " ".join(block.kubernetes.zones)
        yield from _directive(f"kubernetes {zones}", _kubernetes(block.kubernetes))
    for forward in block.forward:
        to = " ".join(forward.to)
        yield from _directive(f"forward {forward.source} {to}", _forward(forward))
    if block.cache is not None:
        yield from _directive(f"cache {' '.join(block.cache.zones)}", _cache(block.cache))
    if block.loop:
        yield "loop"
    if block.loadbalance:
        yield "loadbalance"
    if block.hosts is not None:
        hosts = block.hosts
        yield from _directive(f"hosts {hosts.path} {' '.join(hosts.zones)}", _hosts(hosts))
    for rule in block.rewrite:
        yield f"rewrite {'stop' if rule.stop else 'continue'} {_rule(rule)}"
    if block.autopath is not None:
        yield f"autopath {' '.join(block.autopath.zones)} {block.autopath.source}"
    if block.dns64 is not None:
        flags = _flags(block.dns64, translate_all="translate_all", allow_ipv4="allow_ipv4")
        yield from _directive(f"dns64 {block.dns64.prefix}", flags)


def _directive(head: str, body: Iterable[str]) -> Iterator[str]:
    lines = list(body)
    if not lines:
        yield head
        return
    yield f"{head} {{"
    yield from (_INDENT + line for line in lines)
    yield "}"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def _duration(seconds: float) -> str:
    return f"{seconds:f}".rstrip("0").rstrip(".") + "s"


def _flags(value: Any, **names: str) -> Iterator[str]:
    return (word for field, word in names.items() if getattr(value, field))


def _changed(value: Any, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Fields that are not at their default, in the order given."""
    defaults = {field.name: field.default for field in fields(value)}
    for name in names:
        if getattr(value, name) != defaults[name]:
            yield name, getattr(value, name)


def _errors(errors: config.Errors) -> Iterator[str]:
    for rule in errors.consolidate:
        yield f"consolidate {_duration(rule.period_s)} {_quoted(rule.pattern)} {rule.level}"


def _fallthrough(zones: tuple[str, ...] | None) -> Iterator[str]:
    if zones is not None:
        yield " ".join(("fallthrough", *zones))


def _kubernetes(settings: config.Kubernetes) -> Iterator[str]:
    for name, value in _changed(settings, ("pods", "ttl")):
        yield f"{name} {value}"
    if settings.namespaces:
        yield f"namespaces {' '.join(settings.namespaces)}"
    for name in ("namespace_labels", "labels"):
        selector: LabelSelector | None = getattr(settings, name)
        if selector is not None:
            yield f"{name} {_selector(selector)}"
    yield from _flags(
        settings,
        endpoint_pod_names="endpoint_pod_names",
        noendpoints="noendpoints",
        ignore_empty_service="ignore empty_service",
    )
    for _, value in _changed(settings, ("startup_timeout_s",)):
        yield f"startup_timeout {_duration(value)}"
    yield from _fallthrough(settings.fallthrough)


def _selector(selector: LabelSelector) -> str:
    return ",".join(map(_requirement, selector.match_expressions or ()))


def _requirement(requirement: Requirement) -> str:
    if requirement.operator == "Exists":
        return requirement.key
    if requirement.operator == "DoesNotExist":
        return f"!{requirement.key}"
    operator = "in" if requirement.operator == "In" else "notin"
    return f"{requirement.key} {operator} ({','.join(requirement.values or ())})"


def _forward(settings: config.Forward) -> Iterator[str]:
    if settings.exclude:
        yield f"except {' '.join(settings.exclude)}"
    yield from _flags(
        settings,
        force_tcp="force_tcp",
        prefer_udp="prefer_udp",
        failfast="failfast_all_unhealthy_upstreams",
    )
    numbers = ("max_fails", "max_connect_attempts", "max_idle_conns", "policy", "max_concurrent")
    for name, value in _changed(settings, numbers):
        yield f"{name} {value}"
    for _, value in _changed(settings, ("expire_s",)):
        yield f"expire {_duration(value)}"
    if any(_changed(settings, ("health_check_s", "health_recursion", "health_domain"))):
        words = ["health_check", _duration(settings.health_check_s)]
        words += [] if settings.health_recursion else ["no_rec"]
        yield " ".join([*words, "domain", settings.health_domain])
    for name, codes in (("next", settings.next_rcodes), ("failover", settings.failover_rcodes)):
        if codes:
            yield " ".join([name, *(dns.rcode.to_text(dns.rcode.Rcode(c)) for c in sorted(codes))])


def _cache(settings: config.Cache) -> Iterator[str]:
    for kind in ("success", "denial"):
        names = [f"{kind}_capacity", f"{kind}_ttl", f"{kind}_min_ttl"]
        if any(_changed(settings, names)):
            yield " ".join([kind, *(str(getattr(settings, name)) for name in names)])
    if settings.prefetch is not None:
        prefetch = settings.prefetch
        yield f"prefetch {prefetch.amount} {_duration(prefetch.gap_s)} {prefetch.percentage}%"
    if settings.stale_s:
        mode = "verify" if settings.stale_verify else "immediate"
        yield f"serve_stale {_duration(settings.stale_s)} {mode}"
    for _, value in _changed(settings, ("servfail_s",)):
        yield f"servfail {_duration(value)}"
    for kind in ("success", "denial"):
        zones = getattr(settings, f"disable_{kind}")
        if zones:
            yield f"disable {kind} {' '.join(zones)}"
    yield from _flags(settings, keep_ttl="keepttl")


def _hosts(settings: config.Hosts) -> Iterator[str]:
    yield from settings.inline
    for _, value in _changed(settings, ("ttl",)):
        yield f"ttl {value}"
    if not settings.reverse:
        yield "no_reverse"
    for _, value in _changed(settings, ("reload_s",)):
        yield f"reload {_duration(value)}"
    yield from _fallthrough(settings.fallthrough)


def _rule(rule: config.RewriteRule) -> str:
    if isinstance(rule, config.NameRule):
        words = ["name", rule.match, _quoted(rule.source), _quoted(rule.target)]
        # Exact rules are always undone in the answer.
        words += ["answer auto"] if rule.auto and rule.match != "exact" else []
        for answer in rule.answers:
            words += ["answer", answer.what, _quoted(answer.pattern), _quoted(answer.replacement)]
        return " ".join(words)
    if isinstance(rule, config.TypeRule):
        source, target = map(dns.rdatatype.RdataType.to_text, (rule.source, rule.target))
        return f"type {source} {target}"
    if isinstance(rule, config.ClassRule):
        source, target = map(dns.rdataclass.RdataClass.to_text, (rule.source, rule.target))
        return f"class {source} {target}"
    return f"ttl {rule.match} {_quoted(rule.pattern)} {rule.low}-{rule.high}"
