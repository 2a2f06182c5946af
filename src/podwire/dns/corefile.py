"""A Corefile's directives -> `config.Corefile`. Pure.

    parse_blocks (syntax) -> directives.ONCE, MANY (name -> parser of a line) -> fields of a Block

The subset is what people really use; what is not in it is refused by name with its place and what
to do instead, never ignored: a server that silently does less than its file says answers wrongly.
Defaults, limits and texts are those of each CoreDNS plugin's setup.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from podwire.dns.caddyfile import Line, RawBlock, parse_blocks
from podwire.dns.config import ORDER, Block, Corefile
from podwire.dns.directives import MANY, ONCE
from podwire.dns.directives.words import Site
from podwire.dns.zones import parse_zone_key

DEFAULT_PORT: Final = 53

Fields = dict[str, Any]

SUPPORTED: Final = frozenset((*ONCE, *MANY))

# CoreDNS's other plugins, and what to do where they stood.
_INSTEAD: Final[Mapping[str, str]] = {
    "acl": "limit who may ask with a NetworkPolicy on the DNS pods",
    "any": "delete it: ANY queries are passed on like others",
    "auto": "serve the zone elsewhere and name that server in a stub domain",
    "azure": "name the zone's servers in a stub domain",
    "bufsize": "delete it: answers over UDP never exceed what the client asked for",
    "cancel": "delete it: a query upstream ends after 5 s at the latest",
    "chaos": "delete it",
    "clouddns": "name the zone's servers in a stub domain",
    "debug": "delete it; the `log` directive prints every query",
    "dnssec": "let the upstream sign its zones",
    "dnstap": "use `log`",
    "erratic": "delete it",
    "etcd": "serve the zone elsewhere and name that server in a stub domain",
    "file": "serve the zone elsewhere and name that server in a stub domain; "
    "single names go into `hosts`",
    "geoip": "delete it",
    "grpc": "use `forward`",
    "header": "delete it",
    "k8s_external": "serve the external zone elsewhere and name that server in a stub domain",
    "local": "write the names into `hosts`",
    "metadata": "delete it",
    "minimal": "delete it",
    "multisocket": "delete it: run more replicas",
    "nomad": "name Nomad's DNS server in a stub domain",
    "nsid": "delete it",
    "pprof": "delete it",
    "proxy": "use `forward`, which has replaced it in CoreDNS too",
    "quic": "use dns://",
    "root": "write whole paths",
    "route53": "name the zone's servers in a stub domain",
    "secondary": "serve the zone elsewhere and name that server in a stub domain",
    "sign": "let the upstream sign its zones",
    "template": "write single names into `hosts`, or map them with `rewrite name`",
    "timeouts": "delete it",
    "tls": "clients inside a cluster ask over UDP and TCP; delete it",
    "trace": "delete it; /metrics has the durations",
    "transfer": "zone transfers are refused; read the API instead",
    "tsig": "delete it",
    "view": "use one server block per zone",
    "whoami": "use `dig +short TXT` against a server that has it",
}


def parse_corefile(
    text: str,
    *,
    file: str = "Corefile",
    files: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Corefile:
    """The configuration; raises `CorefileError` with the place of the first fault, and every
    directive that is not supported.

    `files` by path are what `import` may name; `environment` is for `{$NAME}`.
    """
    raw = parse_blocks(text, file=file, files=files, environment=environment)
    _refuse_unsupported(line for entry in raw for line in entry.lines)
    blocks: list[Block] = []
    seen: dict[tuple[str, int, tuple[str, ...]], str] = {}
    for entry in raw:
        for block in _blocks(entry):
            for zone in block.zones:
                where = (zone, block.port, block.bind)
                if where in seen:
                    raise entry.keys[0].error(
                        f"zone {zone} on port {block.port} is already served by the block in "
                        f"line {seen[where]}; join the two"
                    )
                seen[where] = str(entry.keys[0].line)
            blocks.append(block)
    return Corefile(tuple(blocks))


def _blocks(raw: RawBlock) -> list[Block]:
    """A block whose keys name several ports is one block per port."""
    by_port: dict[int, list[str]] = {}
    for key in raw.keys:
        try:
            zones, port = parse_zone_key(key.text)
        except ValueError as e:
            raise key.error(f"server block {key.text}: {e}") from e
        by_port.setdefault(port or DEFAULT_PORT, []).extend(zones)
    return [_block(raw, tuple(dict.fromkeys(zones)), port) for port, zones in by_port.items()]


def _block(raw: RawBlock, zones: tuple[str, ...], port: int) -> Block:
    site = Site(zones)
    fields: Fields = {}
    for line in raw.lines:
        name = line.name
        if name in ONCE:
            if name in fields:
                raise line.error(f"plugin '{name}' can only be used once per Server Block")
            fields[name] = ONCE[name](line, site)
        else:
            fields[name] = (*fields.get(name, ()), *MANY[name](line, site))
    return Block(zones=zones, port=port, **fields)


def _refuse_unsupported(lines: Iterable[Line]) -> None:
    """All at once: whoever brings a Corefile along wants to know what else it needs."""
    unknown = [line for line in lines if line.name not in ONCE and line.name not in MANY]
    if not unknown:
        return
    first, *others = unknown
    more = (f"; line {other.words[0].line}: {_unsupported(other.name)}" for other in others)
    raise first.error(_unsupported(first.name) + "".join(more))


def _unsupported(name: str) -> str:
    instead = _INSTEAD.get(name)
    if instead is not None:
        return f"plugin '{name}' is not supported; {instead}"
    return f"Unknown directive '{name}'; known are {', '.join(sorted(SUPPORTED))}"


assert set(ORDER) <= SUPPORTED
