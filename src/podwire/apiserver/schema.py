"""Structural schemas: what a kind's fields are, for built-in kinds and CRD documents alike."""

from __future__ import annotations

from typing import Any


class Schema:
    """One node: a type with its fields, and what Kubernetes says about merging, defaults, limits."""


def builtin(group: str, version: str, kind: str) -> Schema | None:
    """The schema of a built-in kind; None where Kubernetes has no such kind. Cached."""
    raise NotImplementedError


def builtin_kinds() -> frozenset[tuple[str, str, str]]:
    """Every built-in (group, version, kind)."""
    raise NotImplementedError


def schema_from_crd(document: dict[str, Any], *, kind: str = "") -> Schema:
    """The schema for a CRD version's `openAPIV3Schema` (apiVersion, kind, metadata are added)."""
    raise NotImplementedError


def prune(obj: dict[str, Any], schema: Schema) -> list[str]:
    """Remove unknown fields in place; returns their paths (`spec.foo[0].bar`)."""
    raise NotImplementedError


def apply_schema_defaults(obj: dict[str, Any], schema: Schema) -> None:
    """Set the schema's defaults in place (CRDs: `default`)."""
    raise NotImplementedError
