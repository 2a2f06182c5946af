"""This node in the API: registered once, renewed by a Lease, watched for its own deletion."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
import platform
from pathlib import Path

import aiohttp
import msgspec
from msgspec import Struct

from podwire import __version__
from podwire.client import Api, Change, Informer, PatchType
from podwire.errors import AlreadyExistsError, ApiError, NodeRemovedError, NotFoundError
from podwire.objects import kinds
from podwire.objects.core import Node
from podwire.objects.meta import JsonObject, format_micro_time, format_time
from podwire.runtime.config import KubeletConfig

_LOG = logging.getLogger(__name__)
_LEASE_NAMESPACE = "kube-node-lease"
_KUBELET_VERSION = "v1.33.0"


class _Registered(Struct, frozen=True):
    """`NODE_DIR/node.json`: that this node was registered, and in which life of the lab."""

    uid: str
    boot_id: str


def render_node(config: KubeletConfig, runtime_version: str) -> JsonObject:
    """The Node as this machine would register it, without its status."""
    return {
        "metadata": {"name": config.node_name, "labels": _labels(config)},
        "spec": {},
    }


def _labels(config: KubeletConfig) -> dict[str, str]:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "kubernetes.io/hostname": config.node_name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": machine,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": machine,
        **config.labels,
    }


def render_node_status(
    config: KubeletConfig, runtime_version: str, now: str, not_ready: str = ""
) -> JsonObject:
    """Addresses, capacity and conditions; `not_ready` is the reason why pods cannot run yet."""
    resources = {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{_memory_kib()}Ki",
        "ephemeral-storage": "100Gi",
        "pods": str(config.max_pods),
    }
    ready = (
        _condition("Ready", "False", "KubeletNotReady", not_ready, now)
        if not_ready
        else _condition("Ready", "True", "KubeletReady", "kubelet is posting ready status", now)
    )
    pressures = (
        ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    )
    return {
        "addresses": [
            *({"type": "InternalIP", "address": str(ip)} for ip in config.node_ips),
            {"type": "Hostname", "address": config.node_name},
        ],
        "capacity": resources,
        "allocatable": resources,
        "conditions": [
            *(_condition(kind, "False", reason, text, now) for kind, reason, text in pressures),
            ready,
        ],
        "nodeInfo": {
            "architecture": _labels(config)["kubernetes.io/arch"],
            "bootID": config.boot_id,
            "containerRuntimeVersion": runtime_version,
            "kernelVersion": platform.release(),
            "kubeProxyVersion": "",
            "kubeletVersion": _KUBELET_VERSION,
            "machineID": config.node_name,
            "operatingSystem": "linux",
            "osImage": f"podwire {__version__}",
            "systemUUID": config.node_name,
        },
    }


def status_patch(status: JsonObject) -> JsonObject:
    """The strategic merge patch that writes `status`.

    Conditions of others (NetworkUnavailable, PathMTU) stay beside the kubelet's. Addresses are
    replaced: their merge key is the type, and a dual-stack node has two of type InternalIP
    (k/k component-helpers/node/util/status.go, fixupPatchForNodeStatusAddresses).
    """
    return {"status": {**status, "addresses": [*status["addresses"], {"$patch": "replace"}]}}


def _condition(kind: str, status: str, reason: str, message: str, now: str) -> JsonObject:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }


def _memory_kib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024


class NodeRegistration:
    """Registers the node, keeps its Lease, and knows when somebody deleted it."""

    def __init__(
        self, config: KubeletConfig, api: Api, runtime_version: str = "podwire://"
    ) -> None:
        self._config = config
        self._api = api
        self._runtime_version = runtime_version
        self._informer = Informer(
            api, kinds.NODE, field_selector=f"metadata.name={config.node_name}"
        )
        self._informer.on_change(self._changed)
        self.removed = asyncio.Event()
        self.uid = ""
        self.node: Node | None = None
        """As last seen."""

    @property
    def _file(self) -> Path:
        return self._config.node_dir / "node.json"

    async def register(self, *, not_ready: str = "") -> Node:
        """Create or bring up to date this node's Node.

        Raises `NodeRemovedError` when it was registered in this life of the lab and is gone.
        """
        name = self._config.node_name
        try:
            node = await self._api.get(kinds.NODE, name)
            await self._api.patch(kinds.NODE, name, {"metadata": {"labels": _labels(self._config)}})
        except NotFoundError:
            if self._was_registered():
                raise NodeRemovedError(f"node {name}: it was deleted") from None
            try:
                body = render_node(self._config, self._runtime_version)
                node = await self._api.create(kinds.NODE, body)
            except AlreadyExistsError:
                node = await self._api.get(kinds.NODE, name)
        self.uid = node.metadata.uid
        # An agent of this life of the lab was ready: its network stands, and its pods' endpoints
        # must not leave their Services because another took its place.
        stands = node.ready and self._was_registered()
        self.node = await self.report("" if stands else not_ready)
        self._remember()
        return self.node

    async def fetch(self) -> Node:
        """The Node as the API has it now."""
        self.node = await self._api.get(kinds.NODE, self._config.node_name)
        return self.node

    async def report(self, not_ready: str = "") -> Node:
        """Write the node's status."""
        now = format_time(dt.datetime.now(dt.UTC))
        status = render_node_status(self._config, self._runtime_version, now, not_ready)
        return await self._api.patch(
            kinds.NODE,
            self._config.node_name,
            status_patch(status),
            subresource="status",
            patch_type=PatchType.STRATEGIC,
        )

    def _was_registered(self) -> bool:
        try:
            known = msgspec.json.decode(self._file.read_bytes(), type=_Registered)
        except (OSError, msgspec.MsgspecError):
            return False
        return known.boot_id == self._config.boot_id

    def _remember(self) -> None:
        self._config.node_dir.mkdir(parents=True, exist_ok=True)
        record = msgspec.json.encode(_Registered(self.uid, self._config.boot_id))
        self._file.write_bytes(record)

    def forget(self) -> None:
        """The node was removed and has stopped; a later life may register anew."""
        self._file.unlink(missing_ok=True)

    def _changed(self, change: Change[Node]) -> None:
        if change.new is None:
            self.removed.set()
        else:
            self.node = change.new

    async def watch(self) -> None:
        """Follow the Node object until cancelled; sets `removed`."""
        await self._informer.run()

    # -- lease -------------------------------------------------------------------------------------

    async def keep_lease(self) -> None:
        """Renew the node's Lease for ever: the only thing an idle node writes."""
        name = self._config.node_name
        missing = True
        while True:
            try:
                if missing:
                    await self._create_lease(name)
                    missing = False
                else:
                    now = format_micro_time(dt.datetime.now(dt.UTC))
                    await self._api.request(
                        "PATCH",
                        kinds.LEASE.path(_LEASE_NAMESPACE, name),
                        body={"spec": {"renewTime": now}},
                        content_type="application/merge-patch+json",
                        timeout_s=max(self._config.lease_interval_s * 2, 2.0),
                    )
            except NotFoundError:
                missing = True
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                _LOG.info("lease of node %s: %s", name, error)
            await asyncio.sleep(self._config.lease_interval_s)

    async def _create_lease(self, name: str) -> None:
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": self._config.lease_duration_s,
            "renewTime": format_micro_time(dt.datetime.now(dt.UTC)),
        }
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": self.uid}
        meta = {"name": name, "namespace": _LEASE_NAMESPACE, "ownerReferences": [owner]}
        try:
            await self._api.create(kinds.LEASE, {"metadata": meta, "spec": spec})
        except AlreadyExistsError:
            await self._api.patch(kinds.LEASE, name, {"spec": spec}, _LEASE_NAMESPACE)
