"""What a node says about its policies: the document of `/policies` on its kubelet API. Pure.

PolicyAgent -> NodePolicyReport -> JSON -> `podwire status policies`, `wait policies`
"""

from __future__ import annotations

from podwire.objects.meta import View


class RuleCount(View):
    """Connections one rule decided on this node: `path` is its field (`spec.ingress[0]`)."""

    path: str
    action: str = "Accept"
    connections: int = 0


class PolicyReport(View):
    """What one node has of one policy.

    `generation` and `revision` are those in force; with `error` they are not, and a former state
    is. `subjects` are the pods of this node it selects. `denied` counts, for a NetworkPolicy, the
    connections to or from its subjects that no rule of any policy accepted; what Deny rules denied
    is theirs.
    """

    kind: str
    namespace: str
    name: str
    generation: int = 0
    revision: int = 0
    staged: bool = False
    error: str = ""
    subjects: int = 0
    rules: tuple[RuleCount, ...] = ()
    denied: int = 0

    def decided(self, action: str) -> int:
        """Connections that its rules of this action decided."""
        return sum(rule.connections for rule in self.rules if rule.action == action)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.namespace, self.name


class NodePolicyReport(View):
    """Everything of one node. Every change up to `revision` it was told of is in the kernel.

    `cut` connections were ended because a change denied them; `dropped` are packets no policy
    speaks of, by reason (`unknown-source`: from behind a pod's interface with an address no
    admitted pod has). Latencies run from the watch event to the kernel's answer, denials to the
    last connection cut.
    """

    node: str
    enforcing: bool = False
    synced: bool = False
    revision: int = 0
    pending: int = 0
    cut: int = 0
    dropped: dict[str, int] = {}
    mended: int = 0
    allow_p99_s: float = 0.0
    deny_p99_s: float = 0.0
    policies: tuple[PolicyReport, ...] = ()
