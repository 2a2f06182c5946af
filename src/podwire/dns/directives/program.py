"""How the program serves and what it tells: errors, log, health, ready, prometheus, reload, loop,
loadbalance, bind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from podwire.dns import config
from podwire.dns.caddyfile import Line, Token
from podwire.dns.directives.words import (
    Many,
    Once,
    Site,
    Words,
    compile_regex,
    flag,
    is_address,
    no_body,
    read_body,
    zones_of,
)

_LEVELS: Final = ("warning", "error", "info", "debug")


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

    read_body(line, {"consolidate": consolidate, "stacktrace": flag("_")})
    return config.Errors(tuple(rules))


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
        if not is_address(token.text):
            raise token.error(
                f"bind: {token.text!r} is not an IP address; interfaces have none here"
            )
    read_body(line, {})
    return tuple(token.text for token in tokens)


ONCE: Final[Once] = {
    "errors": parse_errors,
    "health": parse_health,
    "loadbalance": parse_loadbalance,
    "loop": parse_loop,
    "prometheus": parse_prometheus,
    "ready": parse_ready,
    "reload": parse_reload,
}
MANY: Final[Many] = {"bind": parse_bind, "log": parse_log}
