"""Where the program's files are: at their paths in a real pod, elsewhere for a built-in image.

A built-in image sees the machine's file system and its pod's network; the lab says where the pod's
own files lie. On a real cluster the mapping is empty and every path is what it says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from podwire.client import Endpoint
from podwire.dns.config import Block, Corefile
from podwire.errors import UsageError

_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True)
class PodFiles:
    """`mounts`: path in the pod -> path of the machine, as the pod's volumes are mounted."""

    mounts: Mapping[str, str] = field(default_factory=dict)

    def path(self, path: str) -> Path:
        """Where the pod's file or directory `path` is: below the longest mount that holds it."""
        wanted = Path(path)
        for target in sorted(self.mounts, key=len, reverse=True):
            if wanted.is_relative_to(target):
                return Path(self.mounts[target]) / wanted.relative_to(target)
        return wanted

    def endpoint(self, env: Mapping[str, str] = os.environ) -> Endpoint:
        """The API server as every pod finds it (client-go's InClusterConfig)."""
        host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT")
        if not host or not port:
            raise UsageError(
                "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and "
                "KUBERNETES_SERVICE_PORT must be defined: run it in a pod, or give --api-socket"
            )
        shown = f"[{host}]" if ":" in host else host
        return Endpoint(
            url=f"https://{shown}:{port}",
            ca_file=self.path(f"{_ACCOUNT}/ca.crt"),
            token_file=self.path(f"{_ACCOUNT}/token"),
        )

    def locate(self, config: Corefile) -> Corefile:
        """The same configuration with every file it names where that file is."""
        return Corefile(tuple(map(self._locate, config.blocks)))

    def _locate(self, block: Block) -> Block:
        forward = tuple(replace(each, to=tuple(map(self._text, each.to))) for each in block.forward)
        hosts = block.hosts and replace(block.hosts, path=self._text(block.hosts.path))
        autopath = block.autopath and replace(
            block.autopath, source=self._text(block.autopath.source)
        )
        return replace(block, forward=forward, hosts=hosts, autopath=autopath)

    def _text(self, text: str) -> str:
        return str(self.path(text)) if text.startswith("/") else text
