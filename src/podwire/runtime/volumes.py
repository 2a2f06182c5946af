"""A pod's volumes as directories of the node, for containers that really run.

    volume source -> files (pure where the data is known) -> tree written atomically -> bind mounts
    source changed, token due -> refresh -> the same tree, replaced if it differs

Each projected tree is kubelet's: a dated directory, `..data` pointing at it, and one link per file,
so that a reader sees all of a change or none of it. Source: kubernetes/kubernetes
pkg/volume/util/atomic_writer.go.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from podwire.client import Api
from podwire.errors import ConfigError, ContainerError, NotFoundError
from podwire.objects import kinds
from podwire.objects.core import Container, Pod, ResourceFieldSelector, Volume
from podwire.objects.meta import JsonObject
from podwire.objects.quantity import parse_quantity
from podwire.runtime.config import KubeletConfig
from podwire.runtime.containers import Mount
from podwire.runtime.env import (
    PodFacts,
    expand,
    field_value,
    resource_value,
)

_DEFAULT_MODE = 0o644
_TOKEN_EXPIRY_S = 3607
# Renewed when four fifths of its time or a day have passed (pkg/kubelet/token/token_manager.go).
_TOKEN_RENEW_SHARE, _TOKEN_RENEW_MAX_S = 0.8, 86400.0


@dataclass(frozen=True)
class File:
    data: bytes
    mode: int = _DEFAULT_MODE


Files = dict[str, File]


class _Token(NamedTuple):
    value: bytes
    renew_at: float
    """On the loop's clock."""


class Volumes:
    """Prepares a container's mounts; every failure is a `ContainerError` that may be retried."""

    def __init__(self, config: KubeletConfig, api: Api) -> None:
        self._config = config
        self._api = api
        # By pod UID, then by what was asked for: containers of a pod share a token, as upstream.
        self._tokens: dict[str, dict[tuple[str, int], _Token]] = {}

    def refreshable(self, pod: Pod) -> bool:
        """Whether the pod has volumes whose content follows the API."""
        return any(_follows_api(volume) for volume in pod.spec.volumes)

    async def refresh(self, pod: Pod, facts: PodFacts) -> float | None:
        """Replace the trees that differ from what the API has; the seconds until a token is due."""
        containers = [*pod.spec.containers, *pod.spec.init_containers]
        for volume in pod.spec.volumes:
            directory = self._directory(pod, volume)
            if not _follows_api(volume) or not directory.is_dir():
                continue
            user = next(
                (c for c in containers if any(m.name == volume.name for m in c.volume_mounts)),
                containers[0],
            )
            await self._source(pod, user, volume, facts)
        tokens = self._tokens.get(pod.metadata.uid, {}).values()
        now = asyncio.get_running_loop().time()
        return min((max(token.renew_at - now, 1.0) for token in tokens), default=None)

    def forget(self, uid: str) -> None:
        """The pod is gone; its tokens with it."""
        self._tokens.pop(uid, None)

    def _directory(self, pod: Pod, volume: Volume) -> Path:
        return self._config.pods_dir / pod.metadata.uid / "volumes" / volume.name

    async def prepare(
        self, pod: Pod, container: Container, env: Mapping[str, str], facts: PodFacts
    ) -> tuple[Mount, ...]:
        """The bind mounts of one container, with the trees behind them written."""
        volumes = {volume.name: volume for volume in pod.spec.volumes}
        prepared: dict[str, Path] = {}
        mounts = []
        for mount in container.volume_mounts:
            volume = volumes.get(mount.name)
            if volume is None:
                raise ContainerError(
                    f'volume "{mount.name}" not found in pod {pod.key}',
                    reason="CreateContainerConfigError",
                )
            if mount.name not in prepared:
                prepared[mount.name] = await self._source(pod, container, volume, facts)
            source = prepared[mount.name]
            below = expand(mount.sub_path_expr, env) if mount.sub_path_expr else mount.sub_path
            if below:
                source = _below(source, below, create=volume.empty_dir is not None)
            projected = volume.empty_dir is None and volume.host_path is None
            mounts.append(Mount(mount.mount_path, source, mount.read_only or projected))
        return tuple(mounts)

    async def _source(
        self, pod: Pod, container: Container, volume: Volume, facts: PodFacts
    ) -> Path:
        directory = self._directory(pod, volume)
        if volume.empty_dir is not None:
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o777)
            return directory
        if volume.host_path is not None:
            return _host_path(volume.host_path)
        try:
            files = await self._files(pod, container, volume, facts)
        except ConfigError as error:
            raise ContainerError(
                f'MountVolume.SetUp failed for volume "{volume.name}" : {error}',
                reason="FailedMount",
            ) from error
        await asyncio.to_thread(write_tree, directory, files)
        return directory

    async def _files(
        self, pod: Pod, container: Container, volume: Volume, facts: PodFacts
    ) -> Files:
        namespace = pod.metadata.namespace
        if volume.config_map is not None:
            return await self._config_map(namespace, volume.config_map, "name")
        if volume.secret is not None:
            return await self._secret(namespace, volume.secret, "secretName")
        if volume.downward_api is not None:
            return downward_files(pod, container, volume.downward_api, facts)
        if volume.projected is not None:
            files: Files = {}
            mode = volume.projected.get("defaultMode")
            for source in volume.projected.get("sources") or []:
                files |= await self._projection(pod, container, source, facts, mode)
            return files
        raise ConfigError("this kind of volume is not supported; use emptyDir or hostPath")

    async def _projection(
        self, pod: Pod, container: Container, source: JsonObject, facts: PodFacts, mode: int | None
    ) -> Files:
        namespace = pod.metadata.namespace
        match source:
            case {"configMap": dict(config_map)}:
                return await self._config_map(namespace, _with_mode(config_map, mode), "name")
            case {"secret": dict(secret)}:
                return await self._secret(namespace, _with_mode(secret, mode), "name")
            case {"downwardAPI": dict(downward)}:
                return downward_files(pod, container, _with_mode(downward, mode), facts)
            case {"serviceAccountToken": dict(token)}:
                return {token["path"]: File(await self._token(pod, token), mode or _DEFAULT_MODE)}
        raise ConfigError(f"unsupported projection {next(iter(source), '')!r}")

    async def _config_map(self, namespace: str, source: JsonObject, name_key: str) -> Files:
        name = source.get(name_key, "")
        try:
            found = await self._api.get(kinds.CONFIG_MAP, name, namespace)
        except NotFoundError:
            if source.get("optional"):
                return {}
            raise ConfigError(f'configmap "{name}" not found') from None
        data = {key: value.encode() for key, value in found.data.items()}
        data |= {key: base64.b64decode(value) for key, value in found.binary_data.items()}
        return pick(data, source, "configmap references non-existent config key")

    async def _secret(self, namespace: str, source: JsonObject, name_key: str) -> Files:
        name = source.get(name_key, "")
        try:
            found = await self._api.get(kinds.SECRET, name, namespace)
        except NotFoundError:
            if source.get("optional"):
                return {}
            raise ConfigError(f'secret "{name}" not found') from None
        data = {key: base64.b64decode(value) for key, value in found.data.items()}
        return pick(data, source, "references non-existent secret key")

    async def _token(self, pod: Pod, source: JsonObject) -> bytes:
        meta = pod.metadata
        account = pod.spec.service_account_name or "default"
        expiry_s = int(source.get("expirationSeconds") or _TOKEN_EXPIRY_S)
        asked = (source.get("audience") or "", expiry_s)
        now = asyncio.get_running_loop().time()
        known = self._tokens.get(meta.uid, {}).get(asked)
        if known is not None and now < known.renew_at:
            return known.value
        spec: dict[str, Any] = {
            "expirationSeconds": expiry_s,
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": meta.name,
                "uid": meta.uid,
            },
        }
        if source.get("audience"):
            spec["audiences"] = [source["audience"]]
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {},
            "spec": spec,
        }
        path = kinds.SERVICE_ACCOUNT.path(meta.namespace, account, "token")
        try:
            answer = await self._api.request("POST", path, body=body)
        except NotFoundError:
            raise ConfigError(f'serviceaccounts "{account}" not found') from None
        token: str = msgspec.json.decode(answer)["status"]["token"]
        value = token.encode()
        renew_at = now + min(expiry_s * _TOKEN_RENEW_SHARE, _TOKEN_RENEW_MAX_S)
        self._tokens.setdefault(meta.uid, {})[asked] = _Token(value, renew_at)
        return value


def _follows_api(volume: Volume) -> bool:
    sources = (volume.config_map, volume.secret, volume.projected, volume.downward_api)
    return any(source is not None for source in sources)


def _with_mode(source: JsonObject, mode: int | None) -> JsonObject:
    return source if mode is None else {"defaultMode": mode, **source}


def pick(data: Mapping[str, bytes], source: JsonObject, complaint: str) -> Files:
    """The keys a ConfigMap or Secret source selects, under the paths it gives them."""
    mode = source.get("defaultMode") or _DEFAULT_MODE
    items = source.get("items")
    if not items:
        return {key: File(value, mode) for key, value in data.items()}
    files: Files = {}
    for item in items:
        key = item["key"]
        if key not in data:
            if source.get("optional"):
                continue
            raise ConfigError(f"{complaint}: {key}")
        files[item["path"]] = File(data[key], item.get("mode") or mode)
    return files


def downward_files(pod: Pod, container: Container, source: JsonObject, facts: PodFacts) -> Files:
    """The files of a downwardAPI volume."""
    mode = source.get("defaultMode") or _DEFAULT_MODE
    files: Files = {}
    for item in source.get("items") or []:
        if "fieldRef" in item:
            text = field_value(pod, item["fieldRef"]["fieldPath"], facts)
        else:
            ref = msgspec.convert(item["resourceFieldRef"], ResourceFieldSelector)
            text = resource_value(pod, container, ref, facts.allocatable)
        files[item["path"]] = File(text.encode(), item.get("mode") or mode)
    return files


def write_tree(directory: Path, files: Files) -> None:
    """Make `files` the visible content of `directory`, in one rename where that changes any."""
    directory.mkdir(parents=True, exist_ok=True)
    if _shows(directory, files):
        return
    fresh = directory / f"..{secrets.token_hex(8)}"
    for path, file in files.items():
        parts = Path(path).parts
        if os.path.isabs(path) or ".." in parts or not parts:
            raise ContainerError(f"volume path {path!r} must stay inside the volume")
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
        target.chmod(file.mode)
    fresh.mkdir(exist_ok=True)
    link = directory / "..data"
    former = os.readlink(link) if link.is_symlink() else None
    temporary = directory / "..data_tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(fresh.name)
    temporary.replace(link)
    visible = {Path(path).parts[0] for path in files}
    for name in visible:
        entry = directory / name
        if not entry.is_symlink():
            entry.symlink_to(Path("..data") / name)
    for entry in directory.iterdir():
        if not entry.name.startswith("..") and entry.name not in visible:
            entry.unlink(missing_ok=True)
    if former is not None:
        shutil.rmtree(directory / former, ignore_errors=True)


def _shows(directory: Path, files: Files) -> bool:
    """Whether the tree is there already, to the byte and mode, with a link for every file."""
    data = directory / "..data"
    if not data.is_symlink():
        return False
    found = {str(path.relative_to(data)): path for path in data.rglob("*") if path.is_file()}
    names = {name for name in os.listdir(directory) if not name.startswith("..")}
    return (
        found.keys() == files.keys()
        and names == {Path(path).parts[0] for path in files}
        and all(
            path.read_bytes() == files[name].data
            and path.stat().st_mode & 0o7777 == files[name].mode
            for name, path in found.items()
        )
    )


def _host_path(source: JsonObject) -> Path:
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch(exist_ok=True)
    checks = {
        "Directory": path.is_dir,
        "File": path.is_file,
        "Socket": path.is_socket,
        "CharDevice": path.is_char_device,
        "BlockDevice": path.is_block_device,
    }
    if kind in checks and not checks[kind]():
        raise ContainerError(
            f"hostPath type check failed: {path} is not a {kind.lower()}", reason="FailedMount"
        )
    return path


def _below(source: Path, relative: str, *, create: bool) -> Path:
    if os.path.isabs(relative) or ".." in Path(relative).parts:
        raise ContainerError(
            f"subPath {relative!r} must be a relative path without '..'",
            reason="CreateContainerConfigError",
        )
    target = source / relative
    if create and not target.exists():
        target.mkdir(parents=True)
    return target


def size_limit(source: JsonObject) -> int | None:
    """The `sizeLimit` of an emptyDir in bytes."""
    limit = source.get("sizeLimit")
    return int(parse_quantity(limit)) if limit is not None else None
