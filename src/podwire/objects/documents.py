"""Manifests as people keep them: files and folders -> objects, each knowing where it was read.

    files -> YAML or JSON texts -> documents with file:line, lists taken apart

Nothing is decided here about what the objects mean. With `marks`, a document also knows the line of
each of its fields, so that a verdict can point at the rule that made it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from podwire.errors import UsageError
from podwire.objects.goyaml import GoLoader
from podwire.objects.meta import JsonObject

SUFFIXES: Final = (".yaml", ".yml", ".json")
_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
# `cat a.yaml b.yaml` where `a` does not end its last line and `b` begins with a marker.
_GLUED: Final = re.compile(r"^(.*[^\s-])---[ \t]*\n[ \t]*(?:#.*)?$", re.MULTILINE)
_MOST_NODES: Final = 2_000_000
"""Of one document, unless it says most of them itself: aliases may double it with each line."""
_DEEPEST: Final = 200
_INDENTED: Final = re.compile(rf"^[ -]{{{_DEEPEST}}}", re.MULTILINE)
_BRACKETS: Final = re.compile(r"[][{}]")
Problem = Callable[[str], None]


@dataclass(frozen=True)
class Document:
    """One object of a manifest and where it was read; `node` only with `marks`."""

    origin: str
    obj: JsonObject
    node: yaml.Node | None = field(default=None, compare=False, repr=False)

    @property
    def kind(self) -> str:
        return str(self.obj.get("kind", ""))

    @property
    def api_version(self) -> str:
        return str(self.obj.get("apiVersion", ""))

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def name(self) -> str:
        return str((self.obj.get("metadata") or {}).get("name", ""))

    @property
    def namespace(self) -> str:
        """ "" where none is written."""
        return str((self.obj.get("metadata") or {}).get("namespace") or "")

    def line_of(self, path: str) -> str:
        """`file:line` of a field such as `spec.ingress[0].from`; of the nearest one around it
        where it is not written."""
        file = self.origin.rpartition(":")[0]
        return f"{file}:{_line(self.node, path)}" if self.node is not None else self.origin


def _line(node: yaml.Node, path: str) -> int:
    line = node.start_mark.line
    for name, index in _STEP.findall(path):
        if name and isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in reversed(node.value) if pair[0].value == name), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line, pair[1]
        elif index and isinstance(node, yaml.SequenceNode) and int(index) < len(node.value):
            node = node.value[int(index)]
            line = node.start_mark.line
        else:
            break
    return line + 1


def repeated_keys(node: yaml.Node | None, path: str = "") -> Iterator[tuple[str, int]]:
    """Fields that are there twice, with the line of the last: the others are lost."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from repeated_keys(item, f"{path}[{index}]")
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        below = f"{path}.{key.value}" if path else str(key.value)
        if below in seen:
            yield below, key.start_mark.line + 1
        seen.add(below)
        yield from repeated_keys(value, below)


def load(
    paths: Sequence[str | Path], *, marks: bool = False, stray: Problem | None = None
) -> list[Document]:
    """Every object in the files, folders (recursively) and `-` (standard input), in order.

    An object that is there twice is refused. So is YAML that is no Kubernetes object, unless there
    is `stray`: it is told then, and refusing duplicates is left to who knows which objects count.
    Text that is no YAML is refused always. Raises `UsageError`.
    """
    documents = [d for path in paths for d in _load_path(str(path), marks, stray)]
    if stray is None:
        refuse_duplicates(documents)
    return documents


def refuse_duplicates(documents: Iterable[Document], namespace: str = "default") -> None:
    """Raise `UsageError` where two documents are one object: which of them wins would be chance."""
    seen: dict[tuple[str, str, str, str], str] = {}
    for document in documents:
        if not document.name:
            continue  # generateName
        scope = document.namespace or namespace
        identity = (document.group, document.kind, scope, document.name)
        if identity in seen:
            written = f"{document.namespace}/" if document.namespace else ""
            raise UsageError(
                f"{document.origin}: {document.kind} {written}{document.name}: "
                f"is already in {seen[identity]}; keep one of them"
            )
        seen[identity] = document.origin


def _load_path(path: str, marks: bool, stray: Problem | None) -> Iterator[Document]:
    if path == "-":
        yield from parse(_stdin(), "<stdin>", marks=marks, stray=stray)
        return
    if path.startswith(("http://", "https://")):
        raise UsageError(
            f"{path}: podwire does not reach out of the machine; "
            f"`curl -L {path} | podwire apply -f -`"
        )
    found = Path(path)
    if found.is_dir():
        files = sorted(f for f in found.rglob("*") if f.suffix in SUFFIXES and f.is_file())
        if not files:
            raise UsageError(f"{path}: holds no {', '.join(SUFFIXES)} file")
    elif found.is_file():
        files = [found]
    else:
        raise UsageError(f"{path}: no such file or folder")
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{file}: not YAML: is not UTF-8 at byte {error.start}") from error
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from error
        yield from parse(text, str(file), marks=marks, stray=stray)


def _stdin() -> str:
    try:
        text = sys.stdin.read()
        text.encode()  # what could not be decoded may have been let through
    except UnicodeError as error:
        raise UsageError("<stdin>: not YAML: is not UTF-8") from error
    return text


def parse(
    text: str, origin: str, *, marks: bool = False, stray: Problem | None = None
) -> Iterator[Document]:
    """The objects of one YAML or JSON text; a `List` is taken apart."""
    reader = _Reader(origin, marks, stray)
    suspect = _may_exceed(text)
    try:
        loader = GoLoader(_unglued(text))
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                if suspect:
                    _refuse_excess(node, origin)
                yield from reader.documents(_construct(loader, node, origin), node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = "; is it a template? `helm template` makes YAML of it" if "{{" in text else ""
        raise UsageError(f"{where}: not YAML: {problem}{hint}") from error


def _construct(loader: GoLoader, node: yaml.Node, origin: str) -> Any:
    """A tag that does not fit its text, as `!!int x`, fails in one of many ways."""
    try:
        return loader.construct_document(node)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        where = f"{origin}:{node.start_mark.line + 1}"
        raise UsageError(f"{where}: not YAML: a value is not what its tag says: {error}") from error


def _may_exceed(text: str) -> bool:
    """Whether it could be larger or deeper than it looks: of most texts a glance tells."""
    if ("&" in text and "*" in text) or _INDENTED.search(text):
        return True
    depth = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            return True
    return False


def _refuse_excess(node: yaml.Node, origin: str) -> None:
    """Raise for what is without end, or nearly, once its aliases are followed."""
    found: dict[int, tuple[int, int]] = {}
    inside: set[int] = set()

    def weigh(node: yaml.Node) -> tuple[int, int]:
        """How many nodes, and how deep."""
        own = id(node)
        where = f"{origin}:{node.start_mark.line + 1}: not YAML"
        if own in inside:
            raise UsageError(f"{where}: contains itself")
        if own not in found:
            inside.add(own)
            if len(inside) > _DEEPEST:
                raise UsageError(f"{where}: nested more than {_DEEPEST} times")
            parts = [weigh(part) for part in _below(node)]
            count, depth = 1 + sum(n for n, _ in parts), 1 + max((d for _, d in parts), default=0)
            aliased = count > _MOST_NODES and count > 10 * len(found)
            if aliased or depth > _DEEPEST:
                raise UsageError(f"{where}: document contains excessive aliasing")
            found[own] = count, depth
            inside.discard(own)
        return found[own]

    weigh(node)


def _below(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _unglued(text: str) -> str:
    """Markers that concatenating files left at the end of a line, on a line of their own; lines
    keep their numbers. Text that is YAML as it stands is left alone."""
    if not _GLUED.search(text):
        return text
    try:
        for _ in yaml.parse(text, yaml.CSafeLoader):
            pass
    except yaml.YAMLError:
        return _GLUED.sub(r"\1\n---", text)
    return text


@dataclass(frozen=True)
class _Reader:
    """What all documents of one text share."""

    file: str
    marks: bool
    stray: Problem | None

    def documents(self, value: Any, node: yaml.Node) -> Iterator[Document]:
        if value is None:
            return
        origin = f"{self.file}:{node.start_mark.line + 1}"
        try:
            if isinstance(value, dict) and _is_list(value):
                yield from self._items(value, node)
                return
            _check(value, origin)
        except UsageError as error:
            if self.stray is None:
                raise
            self.stray(str(error))
            return
        yield Document(origin, value, node if self.marks else None)

    def _items(self, value: JsonObject, node: yaml.Node) -> Iterator[Document]:
        """Items of a typed list (`PodList`) need not repeat its kind and version."""
        kind = str(value["kind"]).removesuffix("List")
        if value["items"] is None:
            return
        for item, own in zip(value["items"], _item_nodes(node), strict=True):
            if kind and isinstance(item, dict):
                item.setdefault("kind", kind)
                item.setdefault("apiVersion", value.get("apiVersion"))
            yield from self.documents(item, own)


def _is_list(value: JsonObject) -> bool:
    items = value.get("items", ...)
    return str(value.get("kind", "")).endswith("List") and isinstance(items, list | None)


def _item_nodes(node: yaml.Node) -> list[yaml.Node]:
    # The last of several equal keys counts, as it does when the value is made.
    nodes: list[yaml.Node] = [pair[1] for pair in node.value if pair[0].value == "items"][-1].value
    return nodes


def _check(value: Any, origin: str) -> None:
    if not isinstance(value, dict):
        raise UsageError(f"{origin}: expected a Kubernetes object, found {type(value).__name__}")
    for name in ("apiVersion", "kind"):
        if not isinstance(value.get(name), str) or not value[name]:
            raise UsageError(f"{origin}: Object '{name}' is missing")
    kind, metadata = value["kind"], value.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise UsageError(f"{origin}: {kind}: metadata is not a map")
    for name, given in (metadata or {}).items():
        if name in ("name", "namespace", "generateName") and not isinstance(given, str | None):
            raise UsageError(f"{origin}: {kind}: metadata.{name} is not a string; quote it")
    if not (metadata or {}).get("name") and not (metadata or {}).get("generateName"):
        raise UsageError(f"{origin}: {kind}: metadata.name is missing")
