"""OpenAPI documents as kubectl reads them: built when first asked for, then kept as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# SwaggerDoc{swagger: "2.0"}: all that kubectl 1.20's `apply` needs.
OPENAPI_V2 = b"\x0a\x032.0"
OPENAPI_V2_CONTENT_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


@dataclass(frozen=True)
class OpenApiResource:
    """One served resource; `schema` is a CRD's openAPIV3Schema, None for built-in kinds."""

    kind: str
    plural: str
    namespaced: bool
    verbs: tuple[str, ...]
    subresources: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None


def openapi_v3_index(groups: Iterable[tuple[str, str, str]]) -> bytes:
    """The body of /openapi/v3 for (group, version, hash) triples; core's group is ""."""
    raise NotImplementedError


def openapi_v3_document(
    group: str, version: str, resources: Sequence[OpenApiResource]
) -> bytes:
    """The body of /openapi/v3/apis/GROUP/VERSION."""
    raise NotImplementedError
