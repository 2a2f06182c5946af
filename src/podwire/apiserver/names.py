"""What may be a name, a label, a port name: each check gives Kubernetes' complaints, or none.

Source: apimachinery pkg/util/validation/validation.go.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Any

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_RE = re.compile(_LABEL, re.ASCII)
_SUBDOMAIN = _LABEL + r"(\." + _LABEL + r")*"
_SUBDOMAIN_RE = re.compile(_SUBDOMAIN, re.ASCII)
_LABEL_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_LABEL_1035_RE = re.compile(_LABEL_1035, re.ASCII)
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_QUALIFIED_RE = re.compile(_QUALIFIED, re.ASCII)
_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
_VALUE_RE = re.compile(_VALUE, re.ASCII)
_WILDCARD = r"\*\." + _SUBDOMAIN
_WILDCARD_RE = re.compile(_WILDCARD, re.ASCII)
_ENV_RELAXED_RE = re.compile(r"[ -<>-~]+", re.ASCII)
_CONFIG_KEY = r"[-._a-zA-Z0-9]+"
_CONFIG_KEY_RE = re.compile(_CONFIG_KEY, re.ASCII)
_PORT_RE = re.compile(r"[-a-z0-9]+", re.ASCII)

_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character"
)
_LABEL_1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
    "alphabetic character, and end with an alphanumeric character"
)
_QUALIFIED_TEXT = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character"
)
_WILDCARD_TEXT = (
    "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which "
    "must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric "
    "character"
)

_ENV_TEXT = (
    "a valid environment variable name must consist only of printable ASCII characters other "
    "than '='"
)

_IP_TEXT = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
EMPTY = "must be non-empty"


def max_length(limit: int) -> str:
    return f"must be no more than {limit} characters"


def regex_error(text: str, pattern: str, *examples: str) -> str:
    # Two spaces before each further example: that is how Kubernetes prints it.
    shown = " or ".join(f"'{example}', " for example in examples)
    return f"{text} (e.g. {shown}regex used for validation is '{pattern}')"


def in_range(low: int, high: int) -> str:
    return f"must be between {low} and {high}, inclusive"


@lru_cache(maxsize=4096)
def _dns_label(value: str) -> tuple[str, ...]:
    out = []
    if len(value) > 63:
        out.append(max_length(63))
    if not _LABEL_RE.fullmatch(value):
        if _SUBDOMAIN_RE.fullmatch(value):
            out.append("must not contain dots")
        else:
            out.append(regex_error(_LABEL_TEXT, _LABEL, "my-name", "123-abc"))
    return tuple(out)


def is_dns_label(value: str) -> list[str]:
    return list(_dns_label(value))


def is_dns_subdomain(value: str) -> list[str]:
    out = []
    if len(value) > 253:
        out.append(max_length(253))
    if not _SUBDOMAIN_RE.fullmatch(value):
        out.append(regex_error(_SUBDOMAIN_TEXT, _SUBDOMAIN, "example.com"))
    return out


def is_dns_1035_label(value: str) -> list[str]:
    out = []
    if len(value) > 63:
        out.append(max_length(63))
    if not _LABEL_1035_RE.fullmatch(value):
        out.append(regex_error(_LABEL_1035_TEXT, _LABEL_1035, "my-name", "abc-123"))
    return out


def is_wildcard_subdomain(value: str) -> list[str]:
    out = []
    if len(value) > 253:
        out.append(max_length(253))
    if not _WILDCARD_RE.fullmatch(value):
        out.append(regex_error(_WILDCARD_TEXT, _WILDCARD, "*.example.com"))
    return out


@lru_cache(maxsize=4096)
def _qualified_name(value: str) -> tuple[str, ...]:
    out: list[str] = []
    prefix, slash, name = value.rpartition("/")
    if slash and "/" in prefix:
        shape = regex_error(_QUALIFIED_TEXT, _QUALIFIED, "MyName", "my.name", "123-abc")
        prefixed = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        return (f"a qualified name {shape} {prefixed}",)
    if slash:
        if not prefix:
            out.append(f"prefix part {EMPTY}")
        else:
            out += [f"prefix part {text}" for text in is_dns_subdomain(prefix)]
    if not name:
        out.append(f"name part {EMPTY}")
    elif len(name) > 63:
        out.append(f"name part {max_length(63)}")
    if not _QUALIFIED_RE.fullmatch(name):
        shape = regex_error(_QUALIFIED_TEXT, _QUALIFIED, "MyName", "my.name", "123-abc")
        out.append(f"name part {shape}")
    return tuple(out)


def is_qualified_name(value: str) -> list[str]:
    return list(_qualified_name(value))


@lru_cache(maxsize=4096)
def _label_value(value: str) -> tuple[str, ...]:
    out = []
    if len(value) > 63:
        out.append(max_length(63))
    if not _VALUE_RE.fullmatch(value):
        out.append(regex_error(_VALUE_TEXT, _VALUE, "MyValue", "my_value", "12345"))
    return tuple(out)


def is_label_value(value: str) -> list[str]:
    return list(_label_value(value))


def is_port_number(value: Any) -> list[str]:
    return [] if 1 <= value <= 65535 else [in_range(1, 65535)]


def is_port_name(value: str) -> list[str]:
    """An IANA service name: what container ports and named target ports may be called."""
    out = []
    if len(value) > 15:
        out.append(max_length(15))
    if not _PORT_RE.fullmatch(value):
        out.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search("[a-z]", value):
        out.append("must contain at least one letter (a-z)")
    if "--" in value:
        out.append("must not contain consecutive hyphens")
    if value and (value[0] == "-" or value[-1] == "-"):
        out.append("must not begin or end with a hyphen")
    return out


def is_env_var_name(value: str) -> list[str]:
    """Since 1.32 any printable ASCII but `=` is allowed."""
    if not value:
        return ["environment variable name must not be empty"]
    if not _ENV_RELAXED_RE.fullmatch(value):
        return [_ENV_TEXT]
    return []


def is_config_map_key(value: str) -> list[str]:
    out = []
    if len(value) > 253:
        out.append(max_length(253))
    if not _CONFIG_KEY_RE.fullmatch(value):
        text = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
        out.append(regex_error(text, _CONFIG_KEY, "key.name", "KEY_NAME", "key-name"))
    if value == ".":
        out.append("must not be '.'")
    elif value == "..":
        out.append("must not be '..'")
    elif value.startswith(".."):
        out.append("must not start with '..'")
    return out


def is_ip(value: str) -> list[str]:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return [_IP_TEXT]
    return [_IP_TEXT] if "%" in value else []


def is_cidr(value: str) -> list[str]:
    if "/" in value and "%" not in value:
        try:
            ipaddress.ip_interface(value)
        except ValueError:
            pass
        else:
            if value.rpartition("/")[2].isdigit():
                return []
    return ["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"]
