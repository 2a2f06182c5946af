"""Rules of env and envFrom of containers. Source: pkg/apis/core/validation/validation.go."""

from __future__ import annotations

from podwire.apiserver import names
from podwire.apiserver.fields import FieldError, invalid_value, not_supported, required
from podwire.apiserver.validation.meta import Raw, each, invalid_each

_ENV_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")


def validate_env(container: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, env in each(container, "env", path):
        name = env.get("name") or ""
        if not name:
            out.append(required(f"{at}.name"))
        else:
            out += invalid_each(f"{at}.name", name, names.is_env_var_name(name))
        source = env.get("valueFrom")
        if isinstance(source, dict):
            out += _env_source(env, source, f"{at}.valueFrom")
    return out


def _env_source(env: Raw, source: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    given = [key for key in _ENV_SOURCES if isinstance(source.get(key), dict)]
    for key in given:
        out += _env_reference(key, source[key], f"{path}.{key}")
    if not given:
        text = (
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or "
            "`secretKeyRef`"
        )
        out.append(invalid_value(path, "", text))
    elif env.get("value"):
        out.append(invalid_value(path, "", "may not be specified when `value` is not empty"))
    elif len(given) > 1:
        text = "may not have more than one field specified at a time"
        out.append(invalid_value(path, "", text))
    return out


_FIELD_REFS = frozenset(
    {
        *("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName"),
        *("spec.serviceAccountName", "status.hostIP", "status.hostIPs"),
        *("status.podIP", "status.podIPs"),
    }
)


def _env_reference(key: str, ref: Raw, path: str) -> list[FieldError]:
    if key == "fieldRef":
        return _field_ref(ref, path)
    out: list[FieldError] = []
    if key == "resourceFieldRef":
        return [] if ref.get("resource") else [required(f"{path}.resource")]
    if key in ("configMapKeyRef", "secretKeyRef"):
        if not ref.get("name"):
            out.append(required(f"{path}.name"))
        if not ref.get("key"):
            out.append(required(f"{path}.key"))
        else:
            out += invalid_each(f"{path}.key", ref["key"], names.is_config_map_key(ref["key"]))
    return out


def _field_ref(ref: Raw, path: str) -> list[FieldError]:
    field = ref.get("fieldPath") or ""
    if not field:
        return [required(f"{path}.fieldPath")]
    subscript = field.startswith(("metadata.labels['", "metadata.annotations['"))
    if field in _FIELD_REFS or (subscript and field.endswith("']")):
        return []
    if field.startswith(("metadata.", "spec.", "status.")):
        return [not_supported(f"{path}.fieldPath", field, sorted(_FIELD_REFS))]
    text = f"error converting fieldPath: field label not supported: {field}"
    return [invalid_value(f"{path}.fieldPath", field, text)]


def validate_env_from(container: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, source in each(container, "envFrom", path):
        if source.get("prefix"):
            problems = names.is_env_var_name(source["prefix"])
            out += invalid_each(f"{at}.prefix", source["prefix"], problems)
        given = [key for key in ("configMapRef", "secretRef") if isinstance(source.get(key), dict)]
        if not given:
            text = "must specify one of: `configMapRef` or `secretRef`"
            out.append(invalid_value(at, "", text))
        elif len(given) > 1:
            text = "may not have more than one field specified at a time"
            out.append(invalid_value(at, "", text))
        out += [required(f"{at}.{key}.name") for key in given if not source[key].get("name")]
    return out
