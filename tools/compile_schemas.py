"""Compile Kubernetes' JSON schemas into the package data the API server loads.

The source is PyPI `kubernetes-validate` (a development dependency), which carries the OpenAPI
definitions of each Kubernetes release. Two files come out under `src/podwire/apiserver/data/`:

    structure.json.zlib     definitions without prose: types, fields, merge keys, kinds
    descriptions.json.xz    {definition: {"": prose, field: prose}}, read only for OpenAPI documents

Both are JSON with sorted keys, so the same release always gives the same text.
Run `python tools/compile_schemas.py` after changing the pinned version.
"""

from __future__ import annotations

import json
import lzma
import re
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "src/podwire/apiserver/data"
STRUCTURE = "structure.json.zlib"
DESCRIPTIONS = "descriptions.json.xz"

# Go's `+default` markers that the published definitions lost, yet merge keys depend on.
DEFAULTS = {
    ("io.k8s.api.core.v1.ContainerPort", "protocol"): "TCP",
    ("io.k8s.api.core.v1.ServicePort", "protocol"): "TCP",
}
_DROPPED = frozenset({"description", "x-kubernetes-unions"})
_RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)-local$")


def newest_definitions() -> tuple[str, dict[str, Any]]:
    """The newest release's number and its definitions; ImportError without kubernetes-validate."""
    root = Path(str(files("kubernetes_validate"))) / "kubernetes-json-schema"
    releases = [
        (tuple(map(int, match.groups())), path)
        for path in root.iterdir()
        if (match := _RELEASE.match(path.name))
    ]
    number, path = max(releases)
    text = (path / "_definitions.json").read_text(encoding="utf-8")
    return ".".join(map(str, number)), json.loads(text)["$defs"]


def compile_structure(release: str, definitions: dict[str, Any]) -> bytes:
    """The structural table as JSON text."""
    compact = {name: _compact(node) for name, node in definitions.items()}
    for (name, field), default in DEFAULTS.items():
        compact[name]["properties"][field]["default"] = default
    return _json({"release": release, "definitions": compact})


def compile_descriptions(definitions: dict[str, Any]) -> bytes:
    """The prose of every definition and field as JSON text."""
    table: dict[str, dict[str, str]] = {}
    for name, node in definitions.items():
        prose = {"": node.get("description", "")}
        for field, child in node.get("properties", {}).items():
            prose[field] = child.get("description", "")
        table[name] = {key: text for key, text in prose.items() if text}
    return _json(table)


def _compact(node: dict[str, Any]) -> dict[str, Any]:
    out = {key: value for key, value in node.items() if key not in _DROPPED}
    if isinstance(out.get("type"), list):
        out["type"] = next(kind for kind in out["type"] if kind != "null")
    if "$ref" in out:
        out["$ref"] = out["$ref"].rpartition("/")[2]
    if "properties" in out:
        out["properties"] = {key: _compact(child) for key, child in out["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = _compact(out[key])
    # DeleteOptions and WatchEvent belong to every group; nothing looks them up by kind.
    if len(out.get("x-kubernetes-group-version-kind", ())) > 1:
        del out["x-kubernetes-group-version-kind"]
    return out


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def main() -> None:
    release, definitions = newest_definitions()
    DATA.mkdir(exist_ok=True)
    outputs = {
        STRUCTURE: zlib.compress(compile_structure(release, definitions), 9),
        DESCRIPTIONS: lzma.compress(compile_descriptions(definitions), preset=9),
    }
    for name, content in outputs.items():
        (DATA / name).write_bytes(content)
        print(f"{name}: {len(content)} bytes (Kubernetes {release})")


if __name__ == "__main__":
    main()
