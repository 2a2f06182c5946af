"""Server-side printing: which columns `kubectl get` shows for each kind.

A table per kind in `pods`, `workloads`, `network` and `cluster`; kinds without one show NAME and
AGE. Custom kinds bring their own columns (`custom`).
"""

from __future__ import annotations

from podwire.apiserver.printers import cluster, network, workloads
from podwire.apiserver.printers.columns import GENERIC, Column, TableSpec
from podwire.apiserver.printers.pods import POD

_TABLES: dict[tuple[str, str], TableSpec] = {
    ("", "Pod"): POD,
    **workloads.TABLES,
    **network.TABLES,
    **cluster.TABLES,
}


def table_for(group: str, kind: str) -> TableSpec:
    return _TABLES.get((group, kind), GENERIC)


__all__ = ["Column", "TableSpec", "table_for"]
