"""How a resolver walks the search list: resolv.conf and a name -> the names it asks for. Pure.

    dots >= ndots, or a final dot: the name itself first; otherwise the search list first

Source: resolv.conf(5), glibc resolv/res_query.c (__res_context_search). musl asks the name itself
only after the whole list, and never does when an answer was NODATA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# MAXNS of glibc and musl.
_MAX_SERVERS: Final = 3
_MAX_NDOTS: Final = 15


@dataclass(frozen=True)
class Resolver:
    """A resolv.conf as a C library reads it."""

    nameservers: tuple[str, ...] = ("127.0.0.1",)
    searches: tuple[str, ...] = ()
    ndots: int = 1
    timeout_s: float = 5.0
    attempts: int = 2


def parse_resolver(text: str) -> Resolver:
    """Unknown lines and options are passed over, as resolvers do."""
    servers: list[str] = []
    searches: tuple[str, ...] = ()
    options: dict[str, str] = {}
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values:
            servers.append(values[0])
        elif keyword == "search":
            searches = tuple(value.rstrip(".") for value in values)
        elif keyword == "options":
            options.update((name, value) for name, _, value in (v.partition(":") for v in values))
    return Resolver(
        tuple(servers[:_MAX_SERVERS]) or Resolver.nameservers,
        searches,
        min(_number(options, "ndots", 1), _MAX_NDOTS),
        float(max(_number(options, "timeout", 5), 1)),
        max(_number(options, "attempts", 2), 1),
    )


def _number(options: dict[str, str], name: str, default: int) -> int:
    text = options.get(name, "")
    return int(text) if text.isdecimal() else default


def candidates(resolver: Resolver, name: str) -> tuple[str, ...]:
    """The absolute names asked for, in order, each with its final dot."""
    if name.endswith("."):
        return (name,)
    itself = f"{name}."
    listed = tuple(f"{name}.{domain}." if domain else itself for domain in resolver.searches)
    ordered = (itself, *listed) if name.count(".") >= resolver.ndots else (*listed, itself)
    return tuple(dict.fromkeys(ordered))


def find_in_hosts(text: str, name: str) -> str:
    """The line of a hosts file that has the name; nsswitch's `files` comes before `dns`."""
    wanted = name.rstrip(".").lower()
    for line in text.splitlines():
        _, *names = line.partition("#")[0].split() or [""]
        if wanted in map(str.lower, names):
            return line.strip()
    return ""
