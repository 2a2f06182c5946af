"""From a pod's container to a `ContainerSpec`: references looked up, volumes laid out as files."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
from collections.abc import Mapping

from podwire.client import Api
from podwire.errors import NotFoundError
from podwire.objects import kinds
from podwire.objects.core import Container, Pod
from podwire.objects.meta import format_time
from podwire.objects.quantity import parse_quantity
from podwire.runtime.config import KubeletConfig
from podwire.runtime.containers import (
    ContainerSpec,
    Resources,
    User,
)
from podwire.runtime.env import PodFacts, environment, expand
from podwire.runtime.hostfiles import kernel_hostname
from podwire.runtime.sandbox import Sandbox
from podwire.runtime.servicelinks import ServiceLinks
from podwire.runtime.state import Slot
from podwire.runtime.volumes import Volumes


class SpecBuilder:
    """Reads ConfigMaps and Secrets when a container that refers to them starts."""

    def __init__(self, config: KubeletConfig, api: Api, allocatable: Mapping[str, str]) -> None:
        self._config = config
        self._api = api
        self._allocatable = allocatable
        self.volumes = Volumes(config, api)
        self.links = ServiceLinks(api)

    def facts(self, sandbox: Sandbox) -> PodFacts:
        return PodFacts(
            sandbox.ips,
            tuple(map(str, self._config.node_ips)),
            self._config.node_name,
            self._allocatable,
        )

    async def environment(
        self,
        pod: Pod,
        container: Container,
        sandbox: Sandbox,
        *,
        started_at: float = 0.0,
        lenient: bool = False,
    ) -> dict[str, str]:
        """Raises `ConfigError` for a missing reference. For a container that started earlier, at
        `started_at`, Services made since do not count."""
        maps, secrets = await self._references(pod, container)
        until = format_time(dt.datetime.fromtimestamp(started_at, dt.UTC)) if started_at else ""
        services = await self.links.variables(pod, until)
        facts = self.facts(sandbox)
        env = environment(
            pod, container, facts, maps.get, secrets.get, services=services, lenient=lenient
        )
        return {
            "HOSTNAME": kernel_hostname(pod, self._config.cluster_domain, self._config.node_name),
            **env,
        }

    async def _references(
        self, pod: Pod, container: Container
    ) -> tuple[dict[str, Mapping[str, str]], dict[str, Mapping[str, str]]]:
        maps: set[str] = set()
        secrets: set[str] = set()
        for source in container.env_from:
            if source.config_map_ref is not None:
                maps.add(source.config_map_ref.name)
            if source.secret_ref is not None:
                secrets.add(source.secret_ref.name)
        for variable in container.env:
            origin = variable.value_from
            if origin is not None and origin.config_map_key_ref is not None:
                maps.add(origin.config_map_key_ref.name)
            if origin is not None and origin.secret_key_ref is not None:
                secrets.add(origin.secret_key_ref.name)
        if not maps and not secrets:
            return {}, {}
        namespace = pod.metadata.namespace
        found = await asyncio.gather(
            asyncio.gather(*(self._config_map(namespace, name) for name in sorted(maps))),
            asyncio.gather(*(self._secret(namespace, name) for name in sorted(secrets))),
        )
        known_maps = dict(zip(sorted(maps), found[0], strict=True))
        known_secrets = dict(zip(sorted(secrets), found[1], strict=True))
        return (
            {name: data for name, data in known_maps.items() if data is not None},
            {name: data for name, data in known_secrets.items() if data is not None},
        )

    async def _config_map(self, namespace: str, name: str) -> Mapping[str, str] | None:
        try:
            return (await self._api.get(kinds.CONFIG_MAP, name, namespace)).data
        except NotFoundError:
            return None

    async def _secret(self, namespace: str, name: str) -> Mapping[str, str] | None:
        try:
            secret = await self._api.get(kinds.SECRET, name, namespace)
        except NotFoundError:
            return None
        return {
            key: base64.b64decode(value).decode(errors="surrogateescape")
            for key, value in secret.data.items()
        }

    async def build(self, pod: Pod, slot: Slot, sandbox: Sandbox) -> ContainerSpec:
        """Everything resolved. Raises `ContainerError` where something is missing."""
        container = slot.spec
        env = await self.environment(pod, container, sandbox)
        mounts = await self.volumes.prepare(pod, container, env, self.facts(sandbox))
        directory = self._config.pods_dir / sandbox.uid
        attempt = f"{container.name}.{slot.attempt}"
        termination = directory / "termination" / attempt
        termination.parent.mkdir(exist_ok=True)
        termination.touch()
        termination.chmod(0o666)
        security = container.security_context
        capabilities = security.capabilities if security is not None else None
        pod_security = pod.spec.security_context
        return ContainerSpec(
            pod_uid=sandbox.uid,
            pod_namespace=pod.metadata.namespace,
            pod_name=pod.metadata.name,
            name=container.name,
            attempt=slot.attempt,
            image=container.image,
            netns=sandbox.pin(self._config.pins_dir),
            hostname=kernel_hostname(pod, self._config.cluster_domain, self._config.node_name),
            hosts_path=directory / "hosts",
            resolv_conf_path=directory / "resolv.conf",
            log_path=directory / "logs" / f"{attempt}.log",
            termination_path=termination,
            termination_message_path=container.termination_message_path,
            command=tuple(expand(word, env) for word in container.command),
            args=tuple(expand(word, env) for word in container.args),
            env=tuple(env.items()),
            working_dir=container.working_dir,
            user=_user(pod, container),
            mounts=mounts,
            tty=container.tty,
            stdin=container.stdin,
            read_only_rootfs=security is not None and security.read_only_root_filesystem,
            privileged=security is not None and security.privileged,
            allow_privilege_escalation=security is None
            or security.allow_privilege_escalation is not False,
            capabilities_add=tuple(capabilities.add) if capabilities else (),
            capabilities_drop=tuple(capabilities.drop) if capabilities else (),
            sysctls=tuple((s.name, s.value) for s in pod_security.sysctls) if pod_security else (),
            share_process_namespace=pod.spec.share_process_namespace,
            resources=_resources(container),
            annotations=pod.metadata.annotations,
        )


def _user(pod: Pod, container: Container) -> User:
    """The container's security context over the pod's."""
    own, shared = container.security_context, pod.spec.security_context
    uid = gid = non_root = None
    groups: tuple[int, ...] = ()
    if shared is not None:
        uid, gid, non_root = shared.run_as_user, shared.run_as_group, shared.run_as_non_root
        extra = [shared.fs_group] if shared.fs_group is not None else []
        groups = (*shared.supplemental_groups, *extra)
    if own is not None:
        uid = own.run_as_user if own.run_as_user is not None else uid
        gid = own.run_as_group if own.run_as_group is not None else gid
        non_root = own.run_as_non_root if own.run_as_non_root is not None else non_root
    return User(uid, gid, groups, bool(non_root))


def _resources(container: Container) -> Resources:
    limits = container.resources.limits
    cpu, memory = limits.get("cpu"), limits.get("memory")
    return Resources(
        int(parse_quantity(cpu) * 1000) if cpu is not None else None,
        int(parse_quantity(memory)) if memory is not None else None,
    )
