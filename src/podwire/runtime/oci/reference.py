"""Image names as Docker normalises them: `nginx` is `docker.io/library/nginx:latest`.

Source: github.com/distribution/reference (grammar and `ParseNormalizedNamed`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from podwire.errors import ContainerError

_DEFAULT_DOMAIN: Final = "docker.io"
_PATH: Final = re.compile(
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
)
_DOMAIN: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """`tag` is empty only when there is a digest."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """Raises `ContainerError` (InvalidImageName) for what no registry would accept."""
    rest, _, digest = text.partition("@")
    head, slash, tail = rest.partition("/")
    # The first part is a registry only if it looks like a host: Docker's rule.
    if slash and ("." in head or ":" in head or head == "localhost"):
        domain, remainder = head, tail
    else:
        domain, remainder = _DEFAULT_DOMAIN, rest
    if domain == "index.docker.io":
        domain = _DEFAULT_DOMAIN
    path, _, tag = remainder.partition(":")
    if domain == _DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    valid = (
        _DOMAIN.fullmatch(domain)
        and _PATH.fullmatch(path)
        and (not tag or _TAG.fullmatch(tag))
        and (not digest or DIGEST.fullmatch(digest))
        and not rest.endswith(":")
        and not text.endswith("@")
    )
    if not valid:
        raise ContainerError(
            f'image {text}: couldn\'t parse image name "{text}": invalid reference format',
            reason="InvalidImageName",
        )
    return Reference(domain, path, tag or ("" if digest else "latest"), digest)
