"""The syntax of a Corefile, without the meaning of its directives. Pure.

    text -> tokens -> snippets and imports replaced -> RawBlock(keys, lines), Line(words, body)

The form is Caddy 1's: words parted by blanks, `"quoted words"`, `# comments`, `{$VARIABLES}` of the
environment, `(snippet) { ... }` used by `import snippet`, files named by `import path`.
Source: coredns/caddy caddyfile/{lexer,parse}.go.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from podwire.errors import CorefileError

# Upstream's guard against snippets that import each other.
MAX_IMPORTS: Final = 1000
_VARIABLE: Final = re.compile(r"\{\$([^}]+)\}|\{%([^%]+)%\}")


@dataclass(frozen=True)
class Token:
    text: str
    file: str
    line: int
    column: int
    quoted: bool = False

    def error(self, message: str) -> CorefileError:
        return CorefileError(message, file=self.file, line=self.line, column=self.column)

    def opens(self) -> bool:
        return self.text == "{" and not self.quoted

    def closes(self) -> bool:
        return self.text == "}" and not self.quoted


@dataclass(frozen=True)
class Line:
    """`words` is never empty; `body` is what stood in braces behind them."""

    words: tuple[Token, ...]
    body: tuple[Line, ...] = ()
    braces: bool = False

    @property
    def name(self) -> str:
        return self.words[0].text

    @property
    def arguments(self) -> tuple[Token, ...]:
        return self.words[1:]

    def error(self, message: str) -> CorefileError:
        return self.words[0].error(message)


@dataclass(frozen=True)
class RawBlock:
    keys: tuple[Token, ...]
    lines: tuple[Line, ...]


def parse_blocks(
    text: str,
    *,
    file: str = "Corefile",
    files: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[RawBlock]:
    """Server blocks in order; `files` are those that `import` may name, by path."""
    reader = _Reader(file, text, files or {}, environment or {})
    return list(reader.blocks())


def tokenize(text: str, file: str) -> list[list[Token]]:
    """Tokens by line; a quoted word belongs to the line it begins on."""
    rows: list[list[Token]] = [[]]
    at, line, start = 0, 1, 0
    while at < len(text):
        char = text[at]
        if char == "\n":
            line, start = line + 1, at + 1
            rows.append([])
            at += 1
        elif char.isspace() or char == "\ufeff":
            at += 1
        elif char == "#":
            at = _until(text, at, "\n")
        elif char == '"':
            word, end = _quoted(text, at + 1)
            if end > len(text):
                raise CorefileError(
                    'a quotation mark is not closed; write a second "',
                    file=file,
                    line=line,
                    column=at - start + 1,
                )
            rows[-1].append(Token(word, file, line, at - start + 1, quoted=True))
            breaks = text.count("\n", at, end)
            if breaks:
                line, start = line + breaks, text.rindex("\n", at, end) + 1
            at = end
        else:
            end = at
            while end < len(text) and not text[end].isspace():
                end += 1
            rows[-1].append(Token(text[at:end], file, line, at - start + 1))
            at = end
    return [row for row in rows if row]


def _until(text: str, at: int, mark: str) -> int:
    end = text.find(mark, at)
    return len(text) if end < 0 else end


def _quoted(text: str, at: int) -> tuple[str, int]:
    """The word, and where it ends; past the text where it does not. Only `\\"` is an escape."""
    word: list[str] = []
    while at < len(text):
        if text.startswith('\\"', at):
            word.append('"')
            at += 2
        elif text[at] == '"':
            return "".join(word), at + 1
        else:
            word.append(text[at])
            at += 1
    return "".join(word), at + 1


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`{$NAME}` and `{%NAME%}`; a variable that is not there is nothing."""
    return _VARIABLE.sub(lambda m: environment.get(m[1] or m[2], ""), text)


class _Reader:
    """Takes lines one by one, putting what is imported in the place of its `import`."""

    def __init__(
        self, file: str, text: str, files: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        self._files = files
        self._environment = environment
        self._snippets: dict[str, list[list[Token]]] = {}
        self._rows = list(reversed(tokenize(text, file)))
        self._imports = 0

    def blocks(self) -> Iterator[RawBlock]:
        while (row := self._next()) is not None:
            keys, opened = self._keys(row)
            if self._snippet(keys, opened):
                continue
            yield RawBlock(tuple(keys), self._lines(opened))

    def _next(self) -> list[Token] | None:
        while self._rows:
            row = self._rows.pop()
            if row[0].text != "import" or row[0].quoted:
                return [self._expanded(token) for token in row]
            self._import(row)
        return None

    def _expanded(self, token: Token) -> Token:
        text = expand(token.text, self._environment)
        if text == token.text:
            return token
        return Token(text, token.file, token.line, token.column, token.quoted)

    def _keys(self, row: list[Token]) -> tuple[list[Token], Token | None]:
        """The zones before a block's brace; they go on in the next line after a comma."""
        keys: list[Token] = []
        while True:
            for index, token in enumerate(row):
                if token.opens():
                    _nothing_behind(row, index)
                    if not keys:
                        raise token.error("a server block names no zone; write `.:53 {`")
                    return keys, token
                if token.closes():
                    raise token.error("'}' closes nothing; delete it")
                keys += [
                    Token(part, token.file, token.line, token.column)
                    for part in token.text.split(",")
                    if part
                ]
            if not row[-1].text.endswith(","):
                return keys, self._brace_below()
            following = self._next()
            if following is None:
                raise row[-1].error("another zone has to follow the comma; delete it")
            row = following

    def _brace_below(self) -> Token | None:
        if not self._rows or not self._rows[-1][0].opens():
            return None
        row = self._rows.pop()
        _nothing_behind(row, 0)
        return row[0]

    def _snippet(self, keys: Sequence[Token], opened: Token | None) -> bool:
        first = keys[0].text if keys else ""
        if len(keys) != 1 or not (first.startswith("(") and first.endswith(")")):
            return False
        name = first[1:-1]
        if opened is None:
            raise keys[0].error(f"snippet {first}: has no braces; write `{first} {{`")
        if name in self._snippets:
            raise keys[0].error(f"redeclaration of previously declared snippet {name}")
        self._snippets[name] = self._raw_until_closed(opened)
        return True

    def _raw_until_closed(self, opened: Token) -> list[list[Token]]:
        """Rows of a snippet as they stand: its imports are replaced where it is used."""
        rows: list[list[Token]] = []
        depth = 1
        while self._rows:
            row = self._rows.pop()
            depth += sum(token.opens() for token in row) - sum(token.closes() for token in row)
            if depth == 0:
                if row[:-1]:
                    rows.append(row[:-1])
                return rows
            rows.append(row)
        raise opened.error("'{' is never closed; write the missing '}'")

    def _import(self, row: list[Token]) -> None:
        if len(row) != 2:
            raise row[0].error("import takes one argument: the name of a snippet, or a path")
        self._imports += 1
        if self._imports > MAX_IMPORTS:
            raise row[0].error(
                f"maximum import depth ({MAX_IMPORTS}) exceeded; a cycle of imports?"
            )
        target = self._expanded(row[1])
        rows = self._snippets.get(target.text)
        if rows is None:
            rows = self._from_files(target)
        self._rows += reversed(rows)

    def _from_files(self, target: Token) -> list[list[Token]]:
        pattern = target.text
        if not pattern.startswith("/"):
            pattern = posixpath.join(posixpath.dirname(target.file), pattern)
        names = sorted(name for name in self._files if globbed(name, pattern))
        if not names and not any(mark in pattern for mark in "*?["):
            raise target.error(
                f"File to import not found: {target.text}; "
                "there is no snippet of that name either (snippets stand before their use)"
            )
        return [row for name in names for row in tokenize(self._files[name], name)]

    def _lines(self, opened: Token | None) -> tuple[Line, ...]:
        """The lines up to the closing brace, or up to the end where there was no opening one."""
        lines: list[Line] = []
        while (row := self._next()) is not None:
            if row[0].closes():
                if opened is None:
                    raise row[0].error("'}' closes nothing; delete it")
                _nothing_behind(row, 0)
                return tuple(lines)
            lines.append(self._line(row))
        if opened is not None:
            raise opened.error("'{' is never closed; write the missing '}'")
        return tuple(lines)

    def _line(self, row: list[Token]) -> Line:
        for index, token in enumerate(row):
            if token.closes():
                raise token.error("'}' has to stand in a line of its own")
            if token.opens():
                if index == 0:
                    raise token.error("'{' stands behind no directive; delete it or name one")
                _nothing_behind(row, index)
                return Line(tuple(row[:index]), self._lines(token), braces=True)
        return Line(tuple(row))


def _nothing_behind(row: Sequence[Token], index: int) -> None:
    if len(row) > index + 1:
        raise row[index + 1].error(f"a new line has to begin after '{row[index].text}'")


def globbed(name: str, pattern: str) -> bool:
    """As filepath.Glob: a `*` does not cross folders."""
    return (
        posixpath.dirname(name) == posixpath.dirname(pattern)
        and fnmatch.fnmatchcase(posixpath.basename(name), posixpath.basename(pattern))
    )  # fmt: skip
