"""Queueing on a device, to make a good link bad: delay, loss and rate.

    packet -> htb root -> class by skb priority (nft: `meta priority set 1:10`), else the default
    class -> leaf queue

The `tc` program does it: impairments are set by people, never on a hot path.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Sequence
from typing import ClassVar, Final, TypeAlias

from msgspec import Struct

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import guard, netns

# As good as unlimited for a virtual link, and the largest rate every tc version stores exactly.
UNLIMITED_BIT: Final = 32_000_000_000
_DEFAULT_MINOR: Final = 0xFFFF


class Netem(Struct, frozen=True, kw_only=True):
    """Delay, jitter and loss; needs the kernel module sch_netem."""

    delay_ms: float = 0
    jitter_ms: float = 0
    loss_percent: float = 0
    duplicate_percent: float = 0
    limit_packets: int = 10_000

    kind: ClassVar[str] = "netem"

    def __str__(self) -> str:
        text = f"netem limit {self.limit_packets}"
        if self.delay_ms or self.jitter_ms:
            text += f" delay {self.delay_ms}ms {self.jitter_ms}ms"
        if self.loss_percent:
            text += f" loss {self.loss_percent}%"
        if self.duplicate_percent:
            text += f" duplicate {self.duplicate_percent}%"
        return text


class Tbf(Struct, frozen=True, kw_only=True):
    """A rate, enforced by a token bucket."""

    rate_bit: int
    burst_bytes: int = 32_768
    latency_ms: float = 50

    kind: ClassVar[str] = "tbf"

    def __str__(self) -> str:
        return f"tbf rate {self.rate_bit}bit burst {self.burst_bytes}b latency {self.latency_ms}ms"


Leaf: TypeAlias = Netem | Tbf


class Class(Struct, frozen=True, kw_only=True):
    """Packets whose skb priority is 1:`minor` (hexadecimal, as tc prints it)."""

    minor: int
    rate_bit: int = UNLIMITED_BIT
    ceil_bit: int | None = None
    leaf: Leaf | None = None


def render(device: str, classes: Sequence[Class], default: Class | None = None) -> str:
    """The `tc -batch` text that gives `device` these classes. Pure."""
    everything = [*classes, default or Class(minor=_DEFAULT_MINOR)]
    lines = [f"qdisc replace dev {device} root handle 1: htb default {everything[-1].minor:x}"]
    for each in everything:
        ceil = each.ceil_bit or each.rate_bit
        lines.append(
            f"class replace dev {device} parent 1: classid 1:{each.minor:x} "
            f"htb rate {each.rate_bit}bit ceil {ceil}bit quantum 60000"
        )
        if each.leaf is not None:
            lines.append(f"qdisc replace dev {device} parent 1:{each.minor:x} {each.leaf}")
    return "\n".join(lines) + "\n"


def apply(
    device: str,
    classes: Sequence[Class] = (),
    default: Class | None = None,
    ns: int | None = None,
) -> None:
    """Make the queueing of `device` exactly this; what does not match a class takes `default`.

    Errors: `UnsupportedError` naming the module where the kernel lacks a queueing discipline, and
    then the device has no queueing of ours at all.
    """
    # A replaced htb keeps its old classes, so start from nothing.
    delete(device, ns)
    try:
        _run(["tc", "-batch", "-"], render(device, classes, default), ns)
    except KernelError:
        delete(device, ns)
        raise


def delete(device: str, ns: int | None = None) -> None:
    """Give `device` back its default queueing; one without ours is fine."""
    try:
        _run(["tc", "qdisc", "del", "dev", device, "root"], "", ns)
    except KernelError as e:
        # "Cannot delete qdisc with handle of zero": only the default one is there.
        if "handle of zero" not in (e.stderr or "") and e.errno != errno.ENOENT:
            raise


def show(device: str, ns: int | None = None) -> str:
    """What `tc` prints about the qdiscs of `device`: for tests and diagnostics."""
    return _run(["tc", "qdisc", "show", "dev", device], "", ns)


def _run(command: Sequence[str], text: str, ns: int | None) -> str:
    try:
        with netns.maybe_entered(ns):
            guard.assert_not_host("traffic control")
            done = subprocess.run(
                list(command), input=text, capture_output=True, text=True, check=False
            )
    except FileNotFoundError as e:
        raise UnsupportedError(
            "traffic control: the tc program is not installed; install the package iproute2",
            errno=errno.ENOENT,
        ) from e
    if done.returncode:
        raise _error(command, text, done.stderr)
    return done.stdout


def _error(command: Sequence[str], text: str, stderr: str) -> KernelError:
    if "qdisc kind is unknown" in stderr:
        words = text.split()
        module = "sch_netem" if "netem" in words else "sch_tbf" if "tbf" in words else "sch_htb"
        return UnsupportedError(
            f"traffic control: this kernel has no {module}; load or install the module {module}",
            errno=errno.ENOENT,
            command=" ".join(command),
            stderr=stderr,
        )
    missing = "No such file" in stderr or "Cannot find device" in stderr
    return KernelError(
        "traffic control",
        errno=(errno.ENODEV if "Cannot find device" in stderr else errno.ENOENT) if missing else 0,
        command=" ".join(command),
        stderr=stderr,
    )
