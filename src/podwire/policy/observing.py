"""What is copied from the kernel for people to see: connections that passed, answers of DNS. Pure.

    forward 11, behind the policies ─▶ a connection's first packets ─▶ log group POLICY_LOG
    forward 11, output 11           ─▶ DNS answers to pods          ─▶ queue NAMES_QUEUE, or
                                                                       log group NAMES_LOG

An answer that is held goes on once its addresses are in force, so the pod's first packet gets
through; where the kernel has no queues (CONFIG_NFT_QUEUE) it is copied, and the pod may be faster.
What policies deny, they log themselves. The table is there only while somebody asked.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from podwire.kernel import hooks
from podwire.policy.nftables import (
    FAMILY_NAMES,
    NAMES_LOG,
    NAMES_QUEUE,
    POLICY_LOG,
    parse_log_prefix,
)

Answers: TypeAlias = Literal["ignored", "copied", "held"]

TABLE: Final = hooks.OBSERVE_TABLE
PASSED: Final = "podwire-policy passed "
_ANSWER_BYTES: Final = 1500


def is_passed(prefix: str) -> bool:
    return prefix == PASSED


def is_denied(prefix: str) -> bool:
    """Policies log nothing else."""
    return parse_log_prefix(prefix) is not None


def render_observation(version: int, pods: str, *, passed: bool, answers: Answers) -> str:
    """Replaces whatever is there in one transaction; nothing is left when nothing is wanted.

    `pods` is the interfaces of pods (nft's pattern), "" where they are not known.
    """
    family = FAMILY_NAMES[version]
    lines = [f"table {family} {TABLE}", f"delete table {family} {TABLE}"]
    if passed or answers != "ignored":
        lines.append(f"table {family} {TABLE} {{")
        for hook in hooks.OBSERVE:
            rules = _rules(hook.hook, pods, passed, answers) if hook.family == family else []
            if rules:
                lines += [f"  chain {hook.chain} {{", f"    {hook.render()}"]
                lines += [f"    {rule}" for rule in rules]
                lines.append("  }")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _rules(hook: str, pods: str, passed: bool, answers: Answers) -> list[str]:
    incoming, outgoing = (f'{way} "{pods}" ' if pods else "" for way in ("iifname", "oifname"))
    rules = []
    if answers != "ignored":
        copied = f"log group {NAMES_LOG} snaplen {_ANSWER_BYTES}"
        held = f"queue flags bypass to {NAMES_QUEUE}"
        does = held if answers == "held" else copied
        rules.append(f"{outgoing}udp sport 53 ct direction reply {does}")
    if passed and hook == "forward":
        # Without a limit: what is not seen here is missing where people look for it.
        log = f'log prefix "{PASSED}" group {POLICY_LOG}'
        rules.append(f"{incoming}ct state new {log} return")
        if pods:
            rules.append(f"{outgoing}ct state new {log}")
    return rules
