"""Rules of probes and lifecycle hooks. Source: pkg/apis/core/validation/validation.go."""

from __future__ import annotations

from podwire.apiserver import names
from podwire.apiserver.fields import FieldError, forbidden, invalid_value, required
from podwire.apiserver.validation.meta import (
    Raw,
    check_enum,
    invalid_each,
    non_negative,
    validate_port_or_name,
)

_HANDLERS = ("exec", "grpc", "httpGet", "sleep", "tcpSocket")


def validate_probe(probe: Raw, path: str, kind: str) -> list[FieldError]:
    out = _handler(probe, path)
    out += non_negative(
        probe,
        path,
        *("initialDelaySeconds", "timeoutSeconds", "periodSeconds"),
        *("successThreshold", "failureThreshold"),
    )
    grace = probe.get("terminationGracePeriodSeconds")
    if kind != "readinessProbe":
        if (probe.get("successThreshold") or 1) != 1:
            threshold = probe["successThreshold"]
            out.append(invalid_value(f"{path}.successThreshold", threshold, "must be 1"))
        if grace is not None and grace <= 0:
            text = "must be greater than 0"
            out.append(invalid_value(f"{path}.terminationGracePeriodSeconds", grace, text))
    elif grace is not None:
        text = "must not be set for readinessProbes"
        out.append(invalid_value(f"{path}.terminationGracePeriodSeconds", grace, text))
    return out


def validate_lifecycle(container: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for name in ("postStart", "preStop"):
        hook = (container.get("lifecycle") or {}).get(name)
        if isinstance(hook, dict):
            out += _handler(hook, f"{path}.lifecycle.{name}")
    return out


def _handler(obj: Raw, path: str) -> list[FieldError]:
    given = [key for key in _HANDLERS if isinstance(obj.get(key), dict)]
    if not given:
        return [required(path, "must specify a handler type")]
    out = [
        forbidden(f"{path}.{key}", "may not specify more than 1 handler type") for key in given[1:]
    ]
    return _action(given[0], obj[given[0]], f"{path}.{given[0]}") + out


def _action(kind: str, action: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    match kind:
        case "exec":
            if not action.get("command"):
                out.append(required(f"{path}.command"))
        case "httpGet":
            if not action.get("path"):
                out.append(required(f"{path}.path"))
            out += validate_port_or_name(action.get("port", 0), f"{path}.port")
            out += check_enum(action, path, "scheme", ("HTTP", "HTTPS"))
        case "tcpSocket":
            out += validate_port_or_name(action.get("port", 0), f"{path}.port")
        case "grpc":
            port = action.get("port") or 0
            out += invalid_each(f"{path}.port", port, names.is_port_number(port))
    return out
