"""How long others' answers are kept: cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from podwire.dns import config
from podwire.dns.caddyfile import Line
from podwire.dns.directives.words import Once, Setter, Site, Words, flag, read_body, zones_of


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
    "keepttl": flag("keep_ttl"),
}


ONCE: Final[Once] = {"cache": parse_cache}
