"""Who is meant: the words of `--from` and `--to`.

    outside               the host outside of the cluster
    node/NAME, node/*     nodes themselves; a bare word that is a node's name means that node too
    NS/NAME, NAME         a pod, or the pods of an owner (Deployment, StatefulSet...), * ? as globs
    NS/                   every pod of a namespace
    NS/app=web,tier!=db   pods of a namespace by labels, in kubectl's syntax
    app=web               pods of all namespaces by labels

A label key with a prefix (`app.kubernetes.io/name=web`) is told from a namespace by its dot, which
a namespace cannot have.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from podwire.errors import UsageError
from podwire.explain.endpoints import Endpoint
from podwire.objects.meta import LabelSelector
from podwire.objects.selectors import parse_label_selector

_EXPRESSION: Final = re.compile(r"[=!(]|\s(in|notin)\s")

SYSTEM_NAMESPACE = "kube-system"


@dataclass(frozen=True)
class Selector:
    """One parsed selector; `text` is what the user wrote."""

    text: str
    namespace: str = "*"
    name: str = "*"
    labels: LabelSelector | None = None
    kinds: frozenset[str] = frozenset({"Pod"})

    def matches(self, endpoint: Endpoint) -> bool:
        if endpoint.kind not in self.kinds:
            return False
        if endpoint.kind != "Pod":
            return fnmatch.fnmatchcase(endpoint.name, self.name)
        if not fnmatch.fnmatchcase(endpoint.namespace, self.namespace):
            return False
        if self.labels is not None:
            return self.labels.matches(endpoint.labels)
        return fnmatch.fnmatchcase(endpoint.name, self.name) or fnmatch.fnmatchcase(
            endpoint.owner_name, self.name
        )


def parse_selector(text: str) -> Selector:
    """Raises `UsageError` for what is not a selector."""
    stripped = text.strip()
    if stripped == "outside":
        return Selector(text, name="outside", kinds=frozenset({"Outside"}))
    if not stripped:
        raise UsageError("selector '': is empty; write NS/POD, NS/app=web, app=web or outside")
    head, slash, tail = stripped.partition("/")
    if head in ("node", "nodes") and slash and not _EXPRESSION.search(tail):
        return Selector(text, name=tail or "*", kinds=frozenset({"Node"}))
    if not slash or ("." in head and _EXPRESSION.search(stripped)) or _EXPRESSION.search(head):
        namespace, rest = "*", stripped
    else:
        namespace, rest = head, tail
    if _EXPRESSION.search(rest):
        return Selector(text, namespace, labels=parse_label_selector(rest))
    # A bare word may name a pod, an owner or a node.
    kinds = frozenset({"Pod"}) if slash else frozenset({"Pod", "Node"})
    return Selector(text, namespace, rest or "*", kinds=kinds)


def select(endpoints: Sequence[Endpoint], texts: Iterable[str]) -> list[Endpoint]:
    """The endpoints any selector matches, in their own order; no selectors mean every pod but
    the cluster's own (kube-system), which a selector has to name.

    Raises `UsageError` for a selector that matches nothing: a typo must not pass as "no traffic".
    """
    selectors = [parse_selector(text) for text in texts]
    if not selectors:
        return [e for e in endpoints if e.kind == "Pod" and e.namespace != SYSTEM_NAMESPACE]
    for selector in selectors:
        if not any(selector.matches(endpoint) for endpoint in endpoints):
            raise UsageError(
                f"selector {selector.text!r}: matches no running pod; "
                "`kubectl get pods -A --show-labels` lists what there is"
            )
    return [e for e in endpoints if any(selector.matches(e) for selector in selectors)]
