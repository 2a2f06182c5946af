"""Each directive's arguments and block -> its value in `config`, by groups. Pure.

A group is a module with tables: `ONCE`, whose value is that of the block's field of the same name,
and `MANY`, which may be repeated: their values are joined.
"""

from __future__ import annotations

from typing import Final

from podwire.dns.directives import caching, cluster, forwarding, program, rewriting
from podwire.dns.directives.words import Many, Once

ONCE: Final[Once] = {**program.ONCE, **cluster.ONCE, **caching.ONCE}
MANY: Final[Many] = {**program.MANY, **forwarding.MANY, **rewriting.MANY}
