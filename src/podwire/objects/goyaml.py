"""YAML as Go's reader reads it for Kubernetes: what kubectl takes for text is text here. Pure.

PyYAML makes dates of `2020-01-01` and 45296 of `12:34:56`; in manifests both are strings.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class GoLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as sigs.k8s.io/yaml reads it: string keys, no timestamps, no base-60 numbers."""

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        self.flatten_mapping(node)
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _yaml_key(self.construct_object(key_node, deep=True), key_node.start_mark)
            if key in out:
                line = key_node.start_mark.line + 1
                self.duplicates.append(f'line {line}: key "{key}" already set in map')
            out[key] = self.construct_object(value_node, deep=deep)
        return out


def _yaml_key(key: Any, mark: yaml.Mark) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return "true" if key else "false"
    if key is None or isinstance(key, int | float):
        return "null" if key is None else str(key)
    problem = f"unsupported map key {key!r}; keys are strings"
    raise yaml.constructor.ConstructorError(None, None, problem, mark)


_YAML_INT = re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_YAML_FLOAT = re.compile(
    r"(?:[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"
)
_OWN_RESOLVERS = ("timestamp", "int", "float")


def _prepare_loader() -> None:
    kept = {
        first: [(tag, regexp) for tag, regexp in rows if not tag.endswith(_OWN_RESOLVERS)]
        for first, rows in GoLoader.yaml_implicit_resolvers.items()
    }
    GoLoader.yaml_implicit_resolvers = kept
    for tag, pattern in (("int", _YAML_INT), ("float", _YAML_FLOAT)):
        GoLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list("-+0123456789."))

    def mapping(loader: Any, node: yaml.MappingNode) -> Any:
        out: dict[str, Any] = {}
        yield out
        out.update(loader.construct_mapping(node))

    GoLoader.add_constructor("tag:yaml.org,2002:map", mapping)


_prepare_loader()
