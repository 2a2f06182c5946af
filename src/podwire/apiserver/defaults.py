"""What Kubernetes fills in: defaulting per kind, as `pkg/apis/*/v1/defaults.go` of 1.33."""

from __future__ import annotations

from typing import Any

from podwire.apiserver.schema import Schema


def apply_defaults(group: str, kind: str, obj: dict[str, Any], schema: Schema | None = None) -> None:
    """Set defaults in place: Kubernetes' own for built-in kinds, the schema's for custom ones.

    Cluster-assigned values (clusterIP, nodePort, tokens, tolerations) are not defaults.
    """
    raise NotImplementedError
