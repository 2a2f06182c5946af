"""What a Corefile imports, read: with `import custom/*.override` clusters add to the one they get.

    text -> its `import` lines -> files of their folders -> theirs in turn -> texts by path, folders

Paths are the pod's; `locate` tells where they are. The folders are to be watched, those that are
not there (an optional ConfigMap) as well as those that are.
Source: coredns/caddy caddyfile/parse.go (doImport).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from podwire.dns.caddyfile import expand, globbed, tokenize

# The parser has upstream's guard against files that import each other; this is one of reading.
_MAX_FILES: Final = 1000


@dataclass
class Imports:
    texts: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)


def read_imports(
    file: str, text: str, locate: Callable[[str], Path], environment: Mapping[str, str]
) -> Imports:
    """Everything `text` and what it imports may name; what cannot be read is not there."""
    found = Imports()
    unread = [(file, text)]
    while unread:
        for pattern in _patterns(*unread.pop(), environment):
            folder = posixpath.dirname(pattern)
            found.folders.add(folder)
            for name in _names(locate(folder), folder, pattern):
                if name not in found.texts and len(found.texts) < _MAX_FILES:
                    found.texts[name] = _read(locate(name))
                    unread.append((name, found.texts[name]))
    return found


def _patterns(file: str, text: str, environment: Mapping[str, str]) -> Iterator[str]:
    for row in tokenize(text, file):
        if row[0].text == "import" and not row[0].quoted and len(row) == 2:
            yield posixpath.join(posixpath.dirname(file), expand(row[1].text, environment))


def _names(place: Path, folder: str, pattern: str) -> list[str]:
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return []
    names = (posixpath.join(folder, entry.name) for entry in entries if entry.is_file())
    return [name for name in names if globbed(name, pattern)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
