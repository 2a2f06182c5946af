"""Each directive's arguments and block -> its value in `config`. Pure.

A directive is read by a `Words` (its arguments) and a table of the properties its block may have;
unknown properties are refused with those that are known.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast, get_args

import dns.rcode

from podwire.dns import config
from podwire.dns.caddyfile import Line, Token
from podwire.dns.zones import parse_name, parse_zone
from podwire.errors import UsageError
from podwire.objects.selectors import parse_label_selector

MAX_UPSTREAMS: Final = 15
_DURATION_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LEVELS: Final = ("warning", "error", "info", "debug")
_TLS_INSTEAD: Final = (
    "encrypted upstreams are not supported; name a plain DNS server, or a stub that encrypts"
)


@dataclass(frozen=True)
class Site:
    """Where a directive stands: the zones of its server block."""

    zones: tuple[str, ...]


class Words:
    """The arguments of one line, taken one by one."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._rest = list(line.arguments)

    def __len__(self) -> int:
        return len(self._rest)

    def fail(self, message: str) -> NoReturn:
        raise self._line.error(f"{self._line.name}: {message}")

    def take(self, what: str) -> Token:
        if not self._rest:
            self.fail(f"wrong argument count: {what} is missing")
        return self._rest.pop(0)

    def peek(self) -> str | None:
        return self._rest[0].text if self._rest else None

    def rest(self, what: str = "") -> list[Token]:
        """All that is left; `what` must be there at least once."""
        if what and not self._rest:
            self.fail(f"wrong argument count: {what} is missing")
        taken, self._rest = self._rest, []
        return taken

    def end(self) -> None:
        if self._rest:
            extra = self._rest[0]
            raise extra.error(
                f"{self._line.name}: wrong argument count: {extra.text!r} is too many"
            )

    def integer(self, what: str) -> int:
        return parse_integer(self.take(what), what)

    def duration(self, what: str) -> float:
        return parse_duration(self.take(what))


def parse_integer(token: Token, what: str) -> int:
    try:
        return int(token.text)
    except ValueError:
        raise token.error(f"{what} {token.text!r} is not a number") from None


def parse_duration(token: Token) -> float:
    """Go's time.ParseDuration: `1h30m`, `500ms`, `0`; seconds."""
    text = token.text.lstrip("+-")
    parts = _DURATION_PART.findall(text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise token.error(f"duration {token.text!r} is not valid; write 30s, 5m or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return -seconds if token.text.startswith("-") else seconds


def zones_of(tokens: list[Token]) -> tuple[str, ...]:
    """Zones in their normal form, ranges written out."""
    zones: list[str] = []
    for token in tokens:
        try:
            zones += parse_zone(token.text)
        except ValueError as e:
            raise token.error(str(e)) from e
    return tuple(dict.fromkeys(zones))


Setter = Callable[[Words], Mapping[str, Any]]


def read_body(line: Line, known: Mapping[str, Setter]) -> dict[str, Any]:
    """The fields that the block's properties set; every one has to be known and used up."""
    fields: dict[str, Any] = {}
    for entry in line.body:
        setter = known.get(entry.name)
        if setter is None:
            names = ", ".join(known) or "none"
            raise entry.error(f"{line.name}: unknown property '{entry.name}'; known are: {names}")
        if entry.braces:
            raise entry.error(f"{line.name}: {entry.name}: takes no block of its own")
        words = Words(entry)
        fields.update(setter(words))
        words.end()
    return fields


def no_body(line: Line) -> None:
    if line.braces:
        raise line.error(f"{line.name}: takes no block")


def _flag(field: str, value: bool = True) -> Setter:
    return lambda words: {field: value}


def _zones_setter(field: str) -> Setter:
    return lambda words: {field: zones_of(words.rest())}


# errors, log, health, ready, prometheus, reload, loop, loadbalance, bind


def parse_errors(line: Line, site: Site) -> config.Errors:
    Words(line).end()
    rules: list[config.Consolidate] = []

    def consolidate(words: Words) -> Mapping[str, Any]:
        period_s = words.duration("the duration")
        pattern = words.take("the regular expression")
        level = words.take("the level").text if len(words) else "error"
        if period_s <= 0:
            words.fail("the duration has to be above 0")
        if level not in _LEVELS:
            words.fail(f"unknown log level {level!r}; use one of {', '.join(_LEVELS)}")
        compile_regex(pattern)
        rules.append(config.Consolidate(period_s, pattern.text, level))
        return {}

    read_body(line, {"consolidate": consolidate, "stacktrace": _flag("_")})
    return config.Errors(tuple(rules))


def compile_regex(token: Token) -> re.Pattern[str]:
    try:
        return re.compile(token.text)
    except re.error as e:
        raise token.error(f"invalid regex matching pattern: {token.text} ({e})") from e


def parse_log(line: Line, site: Site) -> tuple[config.Log, ...]:
    words = Words(line).rest()
    layout = "{common}"
    if words and ("{" in words[-1].text or words[-1].quoted):
        layout = words.pop().text
    names = zones_of(words) or (".",)
    classes: set[str] = set()

    def read_class(words: Words) -> Mapping[str, Any]:
        for token in words.rest("a class"):
            if token.text not in get_args(config.ResponseClass):
                raise token.error(
                    f"log: unknown class {token.text!r}; use all, success, denial or error"
                )
            classes.add(token.text)
        return {}

    read_body(line, {"class": read_class})
    found = cast("frozenset[config.ResponseClass]", frozenset(classes or {"all"}))
    return (config.Log(names, layout, found),)


def _listener(token: Token, default_host: str = "") -> str:
    host, colon, port = token.text.rpartition(":")
    if not colon or not port.isdigit():
        raise token.error(f"{token.text!r} is not an address; write [HOST]:PORT")
    return f"{host or default_host}:{port}"


def parse_health(line: Line, site: Site) -> config.Health:
    words = Words(line)
    address = _listener(words.take("the address")) if len(words) else ":8080"
    words.end()
    fields = read_body(line, {"lameduck": lambda w: {"lameduck_s": w.duration("the duration")}})
    return config.Health(address, **fields)


def parse_ready(line: Line, site: Site) -> config.Ready:
    words = Words(line)
    address = _listener(words.take("the address")) if len(words) else ":8181"
    words.end()
    read_body(line, {"monitor": lambda w: {"_": w.take("until-ready or continuously")}})
    return config.Ready(address)


def parse_prometheus(line: Line, site: Site) -> str:
    words = Words(line)
    address = _listener(words.take("the address")) if len(words) else "localhost:9153"
    words.end()
    read_body(line, {})
    return address


def parse_reload(line: Line, site: Site) -> config.Reload:
    words = Words(line)
    no_body(line)
    interval = words.duration("the interval") if len(words) else 30.0
    jitter = words.duration("the jitter") if len(words) else min(15.0, interval / 2)
    words.end()
    if interval and interval < 2:
        words.fail("interval value must be greater or equal to 2s")
    return config.Reload(interval, min(jitter, interval / 2))


def parse_loop(line: Line, site: Site) -> bool:
    Words(line).end()
    no_body(line)
    return True


def parse_loadbalance(line: Line, site: Site) -> bool:
    words = Words(line)
    policy = words.take("the policy").text if len(words) else "round_robin"
    if policy != "round_robin":
        words.fail(f"policy {policy!r} is not supported; use round_robin")
    words.end()
    read_body(line, {})
    return True


def parse_bind(line: Line, site: Site) -> tuple[str, ...]:
    tokens = Words(line).rest("an address")
    for token in tokens:
        if not _is_address(token.text):
            raise token.error(
                f"bind: {token.text!r} is not an IP address; interfaces have none here"
            )
    read_body(line, {})
    return tuple(token.text for token in tokens)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# kubernetes, autopath, dns64


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


def _refused(instead: str) -> Setter:
    def read(words: Words) -> Mapping[str, Any]:
        words.fail(f"is not supported; {instead}")

    return read


_OWN_API: Final = "podwire reads the API of its own cluster; delete it"
_UNUSED_TUNING: Final = "there is one watch per kind, which needs no limit; delete it"
_KUBERNETES: Final[Mapping[str, Setter]] = {
    "pods": _pods,
    "endpoint_pod_names": _flag("endpoint_pod_names"),
    "ttl": _kubernetes_ttl,
    "namespaces": lambda words: {"namespaces": tuple(t.text for t in words.rest("a namespace"))},
    "namespace_labels": _selector("namespace_labels"),
    "labels": _selector("labels"),
    "noendpoints": _flag("noendpoints"),
    "ignore": _ignore,
    "fallthrough": _zones_setter("fallthrough"),
    "startup_timeout": lambda words: {"startup_timeout_s": words.duration("the duration")},
    "endpoint": _refused(_OWN_API),
    "tls": _refused(_OWN_API),
    "kubeconfig": _refused(_OWN_API),
    "apiserver_qps": _refused(_UNUSED_TUNING),
    "apiserver_burst": _refused(_UNUSED_TUNING),
    "apiserver_max_inflight": _refused(_UNUSED_TUNING),
    "resyncperiod": _refused(_UNUSED_TUNING),
    "upstream": _refused("targets of ExternalName Services are resolved by `forward`; delete it"),
    "transfer": _refused("zone transfers are refused; delete it"),
    "multicluster": _refused("ServiceImports have no zone here; delete it"),
    "zonal": _refused("answers do not depend on zones; delete it"),
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
            "translate_all": _flag("translate_all"),
            "allow_ipv4": _flag("allow_ipv4"),
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


# forward


def parse_forward(line: Line, site: Site) -> tuple[config.Forward, ...]:
    words = Words(line)
    source = zones_of([words.take("the zone")])[0]
    to = tuple(parse_upstream(token) for token in words.rest("an upstream"))
    if len(to) > MAX_UPSTREAMS:
        words.fail(f"more than {MAX_UPSTREAMS} TOs configured: {len(to)}")
    return (config.Forward(source, to, **read_body(line, _FORWARD)),)


def parse_upstream(token: Token) -> str:
    """`ADDRESS`, `ADDRESS:PORT`, `[V6]:PORT`, or the path of a file like resolv.conf."""
    text = token.text.removeprefix("dns://")
    if "://" in text:
        raise token.error(f"forward: {text}: {_TLS_INSTEAD}")
    if text.startswith("/"):
        return text
    try:
        split_address(text)
    except ValueError:
        raise token.error(
            f"forward: not an IP address or file: {text!r}; names are not resolved here"
        ) from None
    return text


def split_address(text: str, default_port: int = 53) -> tuple[str, int]:
    """Address and port of an upstream; ValueError if it is none."""
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and (host.startswith("[") or ":" not in host):
        number = int(port)
        if not 0 < number < 65536:
            raise ValueError(f"{number} is not a port")
        return str(ipaddress.ip_address(host.strip("[]"))), number
    return str(ipaddress.ip_address(text.strip("[]"))), default_port


def _at_least_zero(words: Words, name: str, value: float) -> float:
    if value < 0:
        words.fail(f"{name} can't be negative: {value:g}")
    return value


def _number(field: str) -> Setter:
    return lambda w: {field: int(_at_least_zero(w, field, w.integer("the number")))}


def _forward_health(words: Words) -> Mapping[str, Any]:
    fields: dict[str, Any] = {
        "health_check_s": _at_least_zero(words, "health_check", words.duration("the duration"))
    }
    while len(words):
        option = words.take("an option")
        if option.text == "no_rec":
            fields["health_recursion"] = False
        elif option.text == "domain":
            name = words.take("the domain")
            try:
                fields["health_domain"] = parse_name(name.text)
            except ValueError as e:
                raise name.error(f"health_check: invalid domain name {name.text}") from e
        else:
            raise option.error(f"health_check: unknown option {option.text}")
    return fields


def _policy(words: Words) -> Mapping[str, Any]:
    policy = words.take("the policy")
    if policy.text not in get_args(config.Policy):
        raise policy.error(
            f"forward: unknown policy '{policy.text}'; use random, round_robin or sequential"
        )
    return {"policy": policy.text}


def _rcodes(field: str) -> Setter:
    def read(words: Words) -> Mapping[str, Any]:
        found = set()
        for token in words.rest("an RCODE"):
            try:
                rcode = dns.rcode.from_text(token.text)
            except dns.rcode.UnknownRcode as e:
                raise token.error(f"{token.text} is not a valid rcode") from e
            if rcode == dns.rcode.NOERROR:
                raise token.error("NOERROR cannot be used")
            found.add(int(rcode))
        return {field: frozenset(found)}

    return read


_FORWARD: Final[Mapping[str, Setter]] = {
    "except": lambda words: {"exclude": zones_of(words.rest("a zone"))},
    "force_tcp": _flag("force_tcp"),
    "prefer_udp": _flag("prefer_udp"),
    "expire": lambda w: {"expire_s": _at_least_zero(w, "expire", w.duration("the duration"))},
    "max_fails": _number("max_fails"),
    "max_connect_attempts": _number("max_connect_attempts"),
    "max_idle_conns": _number("max_idle_conns"),
    "policy": _policy,
    "health_check": _forward_health,
    "max_concurrent": _number("max_concurrent"),
    "next": _rcodes("next_rcodes"),
    "failover": _rcodes("failover_rcodes"),
    "failfast_all_unhealthy_upstreams": _flag("failfast"),
    "tls": _refused(_TLS_INSTEAD),
    "tls_servername": _refused(_TLS_INSTEAD),
    "doh_method": _refused(_TLS_INSTEAD),
    "resolver": _refused("name upstreams by address"),
}


# cache


def parse_cache(line: Line, site: Site) -> config.Cache:
    words = Words(line)
    fields: dict[str, Any] = {}
    first = words.peek()
    if first is not None and re.fullmatch(r"[+-]?\d+", first):
        ttl = _positive_ttl(words, words.integer("the TTL"))
        fields |= {"success_ttl": ttl, "denial_ttl": ttl}
    zones = zones_of(words.rest()) or site.zones

    def disable(words: Words) -> Mapping[str, Any]:
        kind = words.take("success or denial")
        if kind.text not in ("success", "denial"):
            raise kind.error(
                f"cache: cache type for disable must be success or denial: {kind.text}"
            )
        return {f"disable_{kind.text}": zones_of(words.rest()) or site.zones}

    return config.Cache(zones, **(fields | read_body(line, {**_CACHE, "disable": disable})))


def _positive_ttl(words: Words, ttl: int) -> int:
    if ttl <= 0:
        words.fail(f"cache TTL can not be zero or negative: {ttl}")
    return ttl


def _capacity(kind: str) -> Setter:
    def read(words: Words) -> Mapping[str, Any]:
        fields = {f"{kind}_capacity": words.integer("the capacity")}
        if len(words):
            fields[f"{kind}_ttl"] = _positive_ttl(words, words.integer("the TTL"))
        if len(words):
            low = words.integer("the minimal TTL")
            if low < 0:
                words.fail(f"cache min TTL can not be negative: {low}")
            fields[f"{kind}_min_ttl"] = low
        return fields

    return read


def _prefetch(words: Words) -> Mapping[str, Any]:
    amount = words.integer("the amount")
    if amount < 0:
        words.fail(f"prefetch amount should be positive: {amount}")
    gap_s = words.duration("the duration") if len(words) else 60.0
    percentage = 10
    if len(words):
        token = words.take("the percentage")
        number = token.text.removesuffix("%")
        if number == token.text or not number.isdigit():
            raise token.error(f"last character of percentage should be `%`, but is: {token.text!r}")
        percentage = int(number)
        if not 10 <= percentage <= 90:
            raise token.error(f"percentage should fall in range [10, 90]: {percentage}")
    return {"prefetch": config.Prefetch(amount, gap_s, percentage) if amount else None}


def _serve_stale(words: Words) -> Mapping[str, Any]:
    stale_s = words.duration("the duration") if len(words) else 3600.0
    if stale_s < 0:
        words.fail("invalid negative duration for serve_stale")
    mode = words.take("the mode").text.lower() if len(words) else "immediate"
    if mode not in ("immediate", "verify"):
        words.fail(f"invalid value for serve_stale refresh mode: {mode}; use immediate or verify")
    return {"stale_s": stale_s, "stale_verify": mode == "verify"}


def _servfail(words: Words) -> Mapping[str, Any]:
    duration = words.duration("the duration")
    if duration < 0:
        words.fail("invalid negative ttl for servfail")
    if duration > 300:
        words.fail("caching SERVFAIL responses over 5 minutes is not permitted")
    return {"servfail_s": duration}


_CACHE: Final[Mapping[str, Setter]] = {
    "success": _capacity("success"),
    "denial": _capacity("denial"),
    "prefetch": _prefetch,
    "serve_stale": _serve_stale,
    "servfail": _servfail,
    "keepttl": _flag("keep_ttl"),
}


# hosts


def parse_hosts(line: Line, site: Site) -> config.Hosts:
    words = Words(line)
    fields: dict[str, Any] = {}
    if len(words):
        fields["path"] = words.take("the file").text
    zones = zones_of(words.rest()) or site.zones
    inline = [entry for entry in line.body if entry.name not in _HOSTS]
    for entry in inline:
        if not _is_address(entry.name):
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
    "no_reverse": _flag("reverse", False),
    "reload": lambda w: {"reload_s": _at_least_zero(w, "reload", w.duration("the duration"))},
    "fallthrough": _zones_setter("fallthrough"),
}
