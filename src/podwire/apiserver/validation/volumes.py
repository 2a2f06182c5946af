"""Rules of a pod's volumes. Source: pkg/apis/core/validation/validation.go."""

from __future__ import annotations

from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import FieldError, duplicate, forbidden, invalid_value, required
from podwire.apiserver.validation.meta import Raw, each, invalid_each

_NEEDED_IN_VOLUME = {
    "secret": "secretName",
    "configMap": "name",
    "hostPath": "path",
    "persistentVolumeClaim": "claimName",
    "nfs": "server",
    "csi": "driver",
}


def validate_volumes(spec: Raw, path: str) -> tuple[set[str], list[FieldError]]:
    out: list[FieldError] = []
    seen: set[str] = set()
    for at, volume in each(spec, "volumes", path):
        name = volume.get("name") or ""
        if not name:
            out.append(required(f"{at}.name"))
        else:
            out += invalid_each(f"{at}.name", name, names.is_dns_label(name))
        if name and name in seen:
            out.append(duplicate(f"{at}.name", name))
        seen.add(name)
        sources = [key for key, value in volume.items() if key != "name" and value is not None]
        if not sources:
            out.append(required(at, "must specify a volume type"))
        for key in sources[1:]:
            text = "may not specify more than 1 volume type"
            out.append(forbidden(f"{at}.{key}", text))
        for key in sources[:1]:
            needed = _NEEDED_IN_VOLUME.get(key)
            if needed and not volume[key].get(needed):
                out.append(required(f"{at}.{key}.{needed}"))
            out += _items(volume[key], f"{at}.{key}")
    return seen, out


def _items(source: Any, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    if not isinstance(source, dict):
        return out
    mode = source.get("defaultMode")
    if mode is not None and not 0 <= mode <= 0o777:
        text = "must be a number between 0 and 0777 (octal), both inclusive"
        out.append(invalid_value(f"{path}.defaultMode", mode, text))
    for at, item in each(source, "items", path):
        if "fieldRef" not in item and "resourceFieldRef" not in item and not item.get("key"):
            out.append(required(f"{at}.key"))
        if not item.get("path"):
            out.append(required(f"{at}.path"))
        else:
            out += validate_local_path(item["path"], f"{at}.path")
    return out


def validate_local_path(value: str, path: str) -> list[FieldError]:
    if value.startswith("/"):
        return [invalid_value(path, value, "must be a relative path")]
    if ".." in value.split("/"):
        return [invalid_value(path, value, "must not contain '..'")]
    return []
