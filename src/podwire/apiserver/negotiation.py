"""What a client wants to read: plain objects, Tables or PartialObjectMetadata; JSON or YAML.

Source: apiserver pkg/endpoints/handlers/negotiation, apimachinery meta/v1 Table.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from podwire.errors import ApiError

Shape = Literal["object", "table", "partial"]


@dataclass(frozen=True)
class Format:
    """The negotiated form of an answer; `version` is meta.k8s.io's for tables and partials."""

    shape: Shape = "object"
    version: str = "v1"
    yaml: bool = False
    include: str = "Metadata"
    """includeObject of tables: None, Metadata or Object."""

    @property
    def content_type(self) -> str:
        return "application/yaml" if self.yaml else "application/json"


_SHAPES: dict[str, Shape] = {
    "Table": "table",
    "PartialObjectMetadata": "partial",
    "PartialObjectMetadataList": "partial",
}


@functools.lru_cache(maxsize=256)
def negotiate(accept: str, include: str = "Metadata") -> Format:
    """The first form in an Accept header that can be served. Raises ApiError 406."""
    for clause in (accept or "*/*").split(","):
        media, *parameters = (part.strip() for part in clause.split(";"))
        options = dict(p.partition("=")[::2] for p in parameters)
        wanted = options.get("as", "")
        if media not in ("application/json", "application/yaml", "*/*", "application/*"):
            continue
        yaml = media == "application/yaml"
        if not wanted:
            return Format(yaml=yaml)
        if wanted in _SHAPES and options.get("v") in ("v1", "v1beta1"):
            return Format(_SHAPES[wanted], options["v"], yaml, include or "Metadata")
    raise ApiError(
        "only the following media types are accepted: application/json, application/yaml",
        code=406,
        reason="NotAcceptable",
    )
