"""What others are asked for, and which others: forward."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final, get_args

import dns.rcode

from podwire.dns import config
from podwire.dns.caddyfile import Line, Token
from podwire.dns.directives.words import (
    Many,
    Setter,
    Site,
    Words,
    at_least_zero,
    flag,
    number,
    read_body,
    refused,
    zones_of,
)
from podwire.dns.zones import parse_name

MAX_UPSTREAMS: Final = 15
_TLS_INSTEAD: Final = (
    "encrypted upstreams are not supported; name a plain DNS server, or a stub that encrypts"
)


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


def _forward_health(words: Words) -> Mapping[str, Any]:
    fields: dict[str, Any] = {
        "health_check_s": at_least_zero(words, "health_check", words.duration("the duration"))
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
    "force_tcp": flag("force_tcp"),
    "prefer_udp": flag("prefer_udp"),
    "expire": lambda w: {"expire_s": at_least_zero(w, "expire", w.duration("the duration"))},
    "max_fails": number("max_fails"),
    "max_connect_attempts": number("max_connect_attempts"),
    "max_idle_conns": number("max_idle_conns"),
    "policy": _policy,
    "health_check": _forward_health,
    "max_concurrent": number("max_concurrent"),
    "next": _rcodes("next_rcodes"),
    "failover": _rcodes("failover_rcodes"),
    "failfast_all_unhealthy_upstreams": flag("failfast"),
    "tls": refused(_TLS_INSTEAD),
    "tls_servername": refused(_TLS_INSTEAD),
    "doh_method": refused(_TLS_INSTEAD),
    "resolver": refused("name upstreams by address"),
}


MANY: Final[Many] = {"forward": parse_forward}
