"""What both transports and the client share: channel numbers, protocol names, the final Status."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from podwire.runtime.containers import ExitStatus

V5: Final = "v5.channel.k8s.io"
V4: Final = "v4.channel.k8s.io"
# v5 adds CLOSE to v4: with v4 a client cannot say that its stdin ended.
WEBSOCKET_PROTOCOLS: Final = (V5, V4)
SPDY_PROTOCOLS: Final = (V4,)


class Channel(enum.IntEnum):
    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4
    CLOSE = 255


class Resize(msgspec.Struct, rename="pascal"):
    """`TerminalSize`, one JSON object per change of the client's window."""

    width: int
    height: int


def exit_status_object(exit_status: ExitStatus) -> dict[str, Any]:
    """The `Status` that ends an exec, as the kubelet words it."""
    if exit_status.exit_code == 0:
        return {"metadata": {}, "status": "Success"}
    code = exit_status.exit_code
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def internal_error_object(message: str) -> dict[str, Any]:
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {message}",
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    }


def exit_code_of(status: Mapping[str, Any]) -> int | None:
    """The exit code inside a final `Status`; None when it reports another kind of failure."""
    if status.get("status") == "Success":
        return 0
    if status.get("reason") == "NonZeroExitCode":
        for cause in (status.get("details") or {}).get("causes") or []:
            if cause.get("reason") == "ExitCode" and str(cause.get("message", "")).isdigit():
                return int(cause["message"])
    return None
