"""Label selectors as people write them on a line. Pure."""

from __future__ import annotations

import re
from typing import Final

from podwire.errors import UsageError
from podwire.objects.meta import LabelSelector, Requirement

_SET: Final = re.compile(r"^(?P<key>\S+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)$")
_KEY: Final = re.compile(r"^([A-Za-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
_COMMA_OUTSIDE_PARENTHESES: Final = re.compile(r",(?![^(]*\))")


def parse_label_selector(text: str) -> LabelSelector:
    """kubectl's `a=b,c!=d,e in (x,y),f notin (z),g,!h`."""
    parts = [part.strip() for part in _COMMA_OUTSIDE_PARENTHESES.split(text)]
    return LabelSelector(match_expressions=[_requirement(part, text) for part in parts if part])


def _requirement(part: str, whole: str) -> Requirement:
    if match := _SET.match(part):
        operator = "In" if match["op"] == "in" else "NotIn"
        values = [value.strip() for value in match["values"].split(",")]
        return _checked(Requirement(key=match["key"], operator=operator, values=values), whole)
    if part.startswith("!"):
        return _checked(Requirement(key=part[1:].strip(), operator="DoesNotExist"), whole)
    for sign, operator in (("!=", "NotIn"), ("==", "In"), ("=", "In")):
        key, found, value = part.partition(sign)
        if found:
            requirement = Requirement(key=key.strip(), operator=operator, values=[value.strip()])
            return _checked(requirement, whole)
    return _checked(Requirement(key=part, operator="Exists"), whole)


def _checked(requirement: Requirement, whole: str) -> Requirement:
    if not _KEY.match(requirement.key):
        raise UsageError(f"selector {whole!r}: {requirement.key!r} is not a label key")
    return requirement
