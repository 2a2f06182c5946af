"""What Go's decoder says of values that do not fit: names of types, and what is wrong with times
and base64.

Source: encoding/json (UnmarshalTypeError), time.Parse, encoding/base64.
"""

from __future__ import annotations

import binascii
import functools
import json
import re
from typing import Any

from podwire.apiserver.schema import Schema

GO_INTEGERS = ("int32", "int64")
_GO_NAMED = {
    "Container.imagePullPolicy": "v1.PullPolicy",
    "Container.terminationMessagePolicy": "v1.TerminationMessagePolicy",
    "ContainerPort.protocol": "v1.Protocol",
    "ServicePort.protocol": "v1.Protocol",
    "NetworkPolicyPort.protocol": "v1.Protocol",
    "PodSpec.restartPolicy": "v1.RestartPolicy",
    "PodSpec.dnsPolicy": "v1.DNSPolicy",
    "ServiceSpec.type": "v1.ServiceType",
    "ServiceSpec.sessionAffinity": "v1.ServiceAffinity",
    "DeploymentStrategy.type": "v1.DeploymentStrategyType",
    "Secret.type": "v1.SecretType",
    "HTTPIngressPath.pathType": "v1.PathType",
    "HTTPGetAction.scheme": "v1.URIScheme",
    "Toleration.operator": "v1.TolerationOperator",
    "Toleration.effect": "v1.TaintEffect",
    "LabelSelectorRequirement.operator": "v1.LabelSelectorOperator",
    "ObjectMeta.uid": "types.UID",
}


def go_type(schema: Schema, struct: str, field: str) -> str:
    named = _GO_NAMED.get(f"{struct}.{field}")
    if named:
        return named
    if schema.format == "date-time" or schema.format == "micro-time":
        return "string"
    if schema.int_or_string:
        return "int32"
    if schema.definition:
        return ".".join(schema.definition.split(".")[-2:])
    match schema.type:
        case "object" if schema.additional is not None:
            if schema.additional.format == "quantity":
                return "v1.ResourceList"
            return f"map[string]{go_type(schema.additional, '', '')}"
        case "array" if schema.items is not None:
            return f"[]{go_type(schema.items, '', '')}"
        case "integer":
            return schema.format if schema.format in GO_INTEGERS else "int64"
        case "number":
            return "float64"
        case "boolean":
            return "bool"
        case "string" if schema.format == "byte":
            return "[]uint8"
    return schema.type


def go_json_kind(value: Any, wanted: str = "") -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case str():
            return "string"
        case dict():
            return "object"
        case list():
            return "array"
    # Go shows the digits only where a number was wanted but this one does not fit.
    return f"number {value}" if wanted in GO_INTEGERS else "number"


def base64_problem(text: str) -> int | None:
    """The offset Go's decoder complains about, None for good base64."""
    try:
        raw = text.encode("ascii")
        binascii.a2b_base64(raw, strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        return _base64_offset(text)
    return None


_BASE64 = re.compile(r"[A-Za-z0-9+/]*")


def _base64_offset(text: str) -> int | None:
    kept = [(index, char) for index, char in enumerate(text) if char not in "\r\n"]
    flat = "".join(char for _, char in kept)
    good = _BASE64.match(flat)
    end = good.end() if good else 0
    padding = flat[end:]
    if padding in ("", "=", "==") and len(flat) % 4 == 0 and not (padding and end % 4 < 2):
        return None
    if not padding:
        return len(text) - end % 4
    if padding.startswith("=") and end % 4 >= 2:
        return kept[end][0] + 1 if end % 4 == 3 and len(padding) > 1 else len(text)
    return kept[end][0]


_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,]\d+)?(?:Z|[+-]\d\d:\d\d)", re.ASCII
)


_TIME_PARTS = (
    (r"\d{4}", "2006"),
    ("-", "-"),
    (r"\d\d", "01"),
    ("-", "-"),
    (r"\d\d", "02"),
    ("T", "T"),
    (r"\d\d", "15"),
    (":", ":"),
    (r"\d\d", "04"),
    (":", ":"),
    (r"\d\d(?:[.,]\d+)?", "05"),
    (r"Z|[+-]\d\d:\d\d", "Z07:00"),
)
_TIME_RANGES = (
    ("month", 1, 12),
    ("day", 1, 31),
    ("hour", 0, 23),
    ("minute", 0, 59),
    ("second", 0, 59),
)


@functools.lru_cache(maxsize=256)
def time_problem(text: str) -> str | None:
    """Go's complaint about an RFC 3339 time, None for a good one."""
    match = _TIME.fullmatch(text)
    start = f"parsing time {json.dumps(text)}"
    if match:
        for (name, low, high), digits in zip(_TIME_RANGES, match.groups()[1:], strict=True):
            if not low <= int(digits) <= high:
                return f"{start}: {name} out of range"
        return None
    rest = text
    for pattern, layout in _TIME_PARTS:
        part = re.match(pattern, rest, re.ASCII)
        if part is None:
            return (
                f'{start} as "2006-01-02T15:04:05Z07:00": cannot parse {json.dumps(rest)} '
                f'as "{layout}"'
            )
        rest = rest[part.end() :]
    return f"{start}: extra text: {json.dumps(rest)}"
