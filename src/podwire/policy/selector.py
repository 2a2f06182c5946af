"""Label selectors as values: normalised, hashable, so that equal ones are found to be one. Pure.

    matchLabels + matchExpressions -> Selector: sorted expressions, all of which must hold

`a: b` and `a In [b]` are the same selector. NotIn and DoesNotExist match what lacks the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from podwire.objects.meta import LabelSelector

OPERATORS: Final = frozenset({"In", "NotIn", "Exists", "DoesNotExist"})


class Expression(NamedTuple):
    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if self.operator == "In":
            return value is not None and value in self.values
        if self.operator == "NotIn":
            return value is None or value not in self.values
        return (value is not None) == (self.operator == "Exists")

    def __str__(self) -> str:
        match self.operator:
            case "In" if len(self.values) == 1:
                return f"{self.key}={self.values[0]}"
            case "NotIn" if len(self.values) == 1:
                return f"{self.key}!={self.values[0]}"
            case "In" | "NotIn":
                return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"
            case "Exists":
                return self.key
        return f"!{self.key}"


@dataclass(frozen=True, slots=True)
class Selector:
    """All `expressions` must hold; none of them: everything matches."""

    expressions: tuple[Expression, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(expression.matches(labels) for expression in self.expressions)

    def __str__(self) -> str:
        """As kubectl writes it; "" selects everything."""
        return ",".join(map(str, self.expressions))


EVERYTHING: Final = Selector()


def normalise(selector: LabelSelector) -> Selector:
    """Raises `ValueError` for an operator that is none and for In or NotIn without values."""
    expressions = {
        Expression(key, "In", (value,)) for key, value in (selector.match_labels or {}).items()
    }
    for requirement in selector.match_expressions or ():
        operator, values = requirement.operator, tuple(sorted(set(requirement.values or ())))
        if operator not in OPERATORS:
            raise ValueError(f"{operator!r} is not a valid label selector operator")
        if operator in ("In", "NotIn") and not values:
            raise ValueError(f"{operator} of {requirement.key!r} needs values")
        expressions.add(Expression(requirement.key, operator, values if "In" in operator else ()))
    return Selector(tuple(sorted(expressions)))
