"""Every error podwire raises on purpose.

    PodwireError
    ├── UsageError            the user asked for something impossible; the message says what to do
    │   ├── CorefileError         a Corefile says something wrong or unsupported (has its place)
    │   └── PolicyError           a network policy means nothing as it is written (object and field)
    ├── LabError              a lab cannot be built, found or changed
    │   ├── LabNotFoundError
    │   └── LabExistsError
    ├── KernelError           a system call, netlink request or nft transaction failed (has errno)
    │   ├── HostNamespaceError    an effect was about to happen in the namespace podwire started in
    │   └── UnsupportedError      this kernel or machine lacks the feature
    ├── AddressError          bad or overlapping CIDRs, no addresses left
    │   └── ExhaustedError
    ├── RecommendationError   recommended policies fail their own check: nothing is recommended
    ├── ContainerError        a sandbox, container or image could not be made to work
    │   └── ConfigError           something a container refers to is missing or malformed
    ├── NodeRemovedError      this node's Node was deleted: its agent is to end for good
    └── ApiError              a Kubernetes API answered with a Status (has code, reason, causes)
        ├── BadRequestError 400   ├── UnauthorizedError 401   ├── ForbiddenError 403
        ├── NotFoundError 404     ├── ConflictError 409       ├── AlreadyExistsError 409
        ├── ExpiredError 410      └── InvalidError 422

Messages begin with the object they are about (`pod shop/web-0: ...`) and end with what to do next
where that is known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class PodwireError(Exception):
    """The root of the tree; the command line prints it without a traceback and exits 1."""

    exit_code = 1


class UsageError(PodwireError):
    exit_code = 2


class CorefileError(UsageError):
    """`line` and `column` count from 1."""

    def __init__(self, message: str, *, file: str, line: int, column: int) -> None:
        self.file, self.line, self.column = file, line, column
        super().__init__(f"{file}:{line}:{column}: {message}")


class PolicyError(UsageError):
    """`policy` is the object in words, `path` the field, e.g. `spec.ingress[0].from[1].ipBlock`."""

    def __init__(self, policy: object, path: str, message: str) -> None:
        self.policy, self.path, self.message = str(policy), path, message
        super().__init__(f"{policy}: {path}: {message}")


class LabError(PodwireError):
    pass


class LabNotFoundError(LabError):
    exit_code = 3


class LabExistsError(LabError):
    pass


class KernelError(PodwireError):
    """`errno` is the kernel's; `command` and `stderr` are set where a program was run."""

    def __init__(
        self, message: str, *, errno: int = 0, command: str | None = None, stderr: str | None = None
    ) -> None:
        self.errno = errno
        self.command = command
        self.stderr = stderr
        parts = [message]
        if errno:
            parts.append(os.strerror(errno))
        if command:
            parts.append(f"command: {command}")
        if stderr:
            parts.append(stderr.strip())
        super().__init__(": ".join(parts))


class HostNamespaceError(KernelError):
    pass


class UnsupportedError(KernelError):
    pass


class AddressError(PodwireError):
    pass


class ExhaustedError(AddressError):
    pass


class RecommendationError(PodwireError):
    pass


class ContainerError(PodwireError):
    """`reason` is the Kubernetes Event reason (`FailedCreatePodSandBox`, `ErrImagePull`, ...)."""

    def __init__(self, message: str, *, reason: str = "Failed") -> None:
        self.reason = reason
        super().__init__(message)


class ConfigError(ContainerError):
    """What kubelet reports as CreateContainerConfigError."""

    def __init__(self, message: str, *, reason: str = "CreateContainerConfigError") -> None:
        super().__init__(message, reason=reason)


class NodeRemovedError(PodwireError):
    pass


@dataclass(frozen=True)
class Cause:
    """One entry of `Status.details.causes`: reason, message and the field path."""

    reason: str
    message: str
    field: str = ""


class ApiError(PodwireError):
    """A Kubernetes `Status` as an exception: what servers raise and clients receive.

    Source: apimachinery meta/v1 Status; `details` is its StatusDetails without the causes.
    """

    code = 500
    reason = "InternalError"

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        reason: str | None = None,
        causes: Sequence[Cause] = (),
        details: dict[str, Any] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if reason is not None:
            self.reason = reason
        self.causes = tuple(causes)
        self.details = details or {}
        self.retry_after_s = retry_after_s

    def status(self) -> dict[str, Any]:
        """The `Status` object to send."""
        details = dict(self.details)
        if self.causes:
            details["causes"] = [
                {k: v for k, v in vars(cause).items() if v != ""} for cause in self.causes
            ]
        if self.retry_after_s is not None:
            details["retryAfterSeconds"] = self.retry_after_s
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if details:
            status["details"] = details
        return status

    @staticmethod
    def from_status(status: dict[str, Any], code: int) -> ApiError:
        """The typed error for a received `Status` (or for any body, then with `code` only)."""
        by_code = _BY_CODE.get(code)
        reason = status.get("reason") or (by_code.reason if by_code else "Unknown")
        details = dict(status.get("details") or {})
        causes = [
            Cause(c.get("reason", ""), c.get("message", ""), c.get("field", ""))
            for c in details.pop("causes", None) or []
        ]
        cls = _BY_REASON.get(reason) or by_code or ApiError
        return cls(
            status.get("message") or f"the server answered {code}",
            code=status.get("code") or code,
            reason=reason,
            causes=causes,
            retry_after_s=details.pop("retryAfterSeconds", None),
            details=details,
        )


class BadRequestError(ApiError):
    code, reason = 400, "BadRequest"


class UnauthorizedError(ApiError):
    code, reason = 401, "Unauthorized"


class ForbiddenError(ApiError):
    code, reason = 403, "Forbidden"


class NotFoundError(ApiError):
    code, reason = 404, "NotFound"


class ConflictError(ApiError):
    code, reason = 409, "Conflict"


class AlreadyExistsError(ApiError):
    code, reason = 409, "AlreadyExists"


class ExpiredError(ApiError):
    code, reason = 410, "Expired"


class InvalidError(ApiError):
    code, reason = 422, "Invalid"


_TYPED: tuple[type[ApiError], ...] = (
    BadRequestError,
    UnauthorizedError,
    ForbiddenError,
    NotFoundError,
    ConflictError,
    AlreadyExistsError,
    ExpiredError,
    InvalidError,
)
_BY_REASON = {cls.reason: cls for cls in _TYPED}
_BY_CODE = {cls.code: cls for cls in _TYPED if cls is not AlreadyExistsError}
