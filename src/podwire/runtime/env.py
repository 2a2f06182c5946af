"""A container's environment: Services, `envFrom`, literals, references, `$(NAME)`. Pure.

Source: kubernetes/kubernetes pkg/kubelet/kubelet_pods.go (makeEnvironmentVariables) and
third_party/forked/golang/expansion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from podwire.errors import ConfigError
from podwire.objects.core import Container, EnvFromSource, EnvVarSource, Pod, ResourceFieldSelector
from podwire.objects.quantity import parse_quantity, round_up

_EXPANSION: Final = re.compile(r"\$(\$|\(([^()]*)\))?")
_INDEXED: Final = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")

Data = Mapping[str, str]
Lookup = Callable[[str], Data | None]


@dataclass(frozen=True)
class PodFacts:
    """What the pod's own fields cannot say: its addresses, its node, and the node's resources."""

    pod_ips: Sequence[str] = ()
    host_ips: Sequence[str] = ()
    node_name: str = ""
    allocatable: Mapping[str, str] = field(default_factory=dict)


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace `$(NAME)` where NAME is known; `$$` is a literal dollar; unknown names stay."""

    def replace(match: re.Match[str]) -> str:
        whole, escaped, name = match.group(0), match.group(1), match.group(2)
        if escaped == "$":
            return "$"
        return known.get(name, whole) if name is not None else whole

    return _EXPANSION.sub(replace, text)


def environment(
    pod: Pod,
    container: Container,
    facts: PodFacts,
    config_maps: Lookup,
    secrets: Lookup,
    *,
    services: Mapping[str, str] = MappingProxyType({}),
    lenient: bool = False,
) -> dict[str, str]:
    """The variables in order; later ones win, and any of them wins over those of `services`, which
    may be referred to all the same. Raises `ConfigError` for a missing reference unless `lenient`
    (a stand-in does not read its environment)."""
    env = dict(services)
    for source in container.env_from:
        try:
            env.update(_env_from(source, config_maps, secrets))
        except ConfigError:
            if not lenient:
                raise
    for variable in container.env:
        if variable.value_from is None:
            env[variable.name] = expand(variable.value, env)
            continue
        try:
            value = _value_from(pod, container, variable.value_from, facts, config_maps, secrets)
        except ConfigError:
            if not lenient:
                raise
            continue
        if value is not None:
            env[variable.name] = value
    return env


def _env_from(
    source: EnvFromSource, config_maps: Lookup, secrets: Lookup
) -> Iterable[tuple[str, str]]:
    for ref, lookup, kind in (
        (source.config_map_ref, config_maps, "configmap"),
        (source.secret_ref, secrets, "secret"),
    ):
        if ref is None:
            continue
        data = lookup(ref.name)
        if data is None:
            if ref.optional:
                continue
            raise ConfigError(f'{kind} "{ref.name}" not found')
        for key, value in data.items():
            yield source.prefix + key, value


def _value_from(
    pod: Pod,
    container: Container,
    source: EnvVarSource,
    facts: PodFacts,
    config_maps: Lookup,
    secrets: Lookup,
) -> str | None:
    if source.field_ref is not None:
        return field_value(pod, source.field_ref.field_path, facts)
    if source.resource_field_ref is not None:
        return resource_value(pod, container, source.resource_field_ref, facts.allocatable)
    for ref, lookup, kind, title in (
        (source.config_map_key_ref, config_maps, "configmap", "ConfigMap"),
        (source.secret_key_ref, secrets, "secret", "Secret"),
    ):
        if ref is None:
            continue
        data = lookup(ref.name)
        if data is None:
            if ref.optional:
                return None
            raise ConfigError(f'{kind} "{ref.name}" not found')
        if ref.key not in data:
            if ref.optional:
                return None
            namespace = pod.metadata.namespace
            raise ConfigError(f"couldn't find key {ref.key} in {title} {namespace}/{ref.name}")
        return data[ref.key]
    return None


def field_value(pod: Pod, path: str, facts: PodFacts) -> str:
    """The downward API's fields. Raises `ConfigError` for a path it does not have."""
    meta = pod.metadata
    indexed = _INDEXED.fullmatch(path)
    if indexed:
        return getattr(meta, indexed.group(1)).get(indexed.group(2), "")  # type: ignore[no-any-return]
    match path:
        case "metadata.name":
            return meta.name
        case "metadata.namespace":
            return meta.namespace
        case "metadata.uid":
            return meta.uid
        case "metadata.labels":
            return _render_map(meta.labels)
        case "metadata.annotations":
            return _render_map(meta.annotations)
        case "spec.nodeName":
            return facts.node_name
        case "spec.serviceAccountName":
            return pod.spec.service_account_name
        case "status.podIP":
            return facts.pod_ips[0] if facts.pod_ips else ""
        case "status.podIPs":
            return ",".join(facts.pod_ips)
        case "status.hostIP":
            return facts.host_ips[0] if facts.host_ips else ""
        case "status.hostIPs":
            return ",".join(facts.host_ips)
    raise ConfigError(f"unsupported fieldPath: {path}")


def _render_map(values: Mapping[str, str]) -> str:
    def quote(value: str) -> str:
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'

    return "\n".join(f"{key}={quote(value)}" for key, value in sorted(values.items()))


def resource_value(
    pod: Pod, container: Container, ref: ResourceFieldSelector, allocatable: Mapping[str, str]
) -> str:
    """`resourceFieldRef`, divided and rounded up; a limit not set is what the node can give."""
    target = next(
        (
            c
            for c in [*pod.spec.containers, *pod.spec.init_containers]
            if c.name == ref.container_name
        ),
        container,
    )
    bound, _, resource = ref.resource.partition(".")
    values = target.resources.limits if bound == "limits" else target.resources.requests
    fallback = allocatable.get(resource, "0") if bound == "limits" else "0"
    try:
        amount = parse_quantity(values.get(resource, fallback))
        divisor = parse_quantity(ref.divisor or 1) or Decimal(1)
    except ValueError as error:
        raise ConfigError(f"invalid quantity for {ref.resource}") from error
    return str(round_up(amount / divisor))
