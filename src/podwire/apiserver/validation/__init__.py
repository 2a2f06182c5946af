"""Semantic validation: Kubernetes' rules, field paths and texts, per kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from podwire.apiserver.schema import Schema
from podwire.errors import InvalidError


@dataclass(frozen=True)
class FieldError:
    """One rule broken at one field; `reason` is a cause reason (`FieldValueRequired`, ...)."""

    reason: str
    field: str
    message: str


def validate_create(kind: str, obj: dict[str, Any], schema: Schema | None = None) -> list[FieldError]:
    """What forbids creating a defaulted object; empty when nothing does."""
    raise NotImplementedError


def validate_update(
    kind: str,
    new: dict[str, Any],
    old: dict[str, Any],
    schema: Schema | None = None,
    *,
    subresource: str = "",
) -> list[FieldError]:
    """What forbids replacing `old` by `new` (both defaulted)."""
    raise NotImplementedError


def invalid(kind: str, group: str, name: str, errors: Sequence[FieldError]) -> InvalidError:
    """The 422 kubectl prints: `Deployment.apps "x" is invalid: [spec.a: ..., spec.b: ...]`."""
    raise NotImplementedError
