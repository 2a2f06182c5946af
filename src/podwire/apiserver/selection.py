"""Which objects a list, watch or deletecollection is about: namespace and selectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from podwire.apiserver.registry import Resource
from podwire.apiserver.request import Target
from podwire.apiserver.selectors import (
    FieldSelector,
    LabelSelector,
    parse_field_selector,
    parse_label_selector,
)
from podwire.apiserver.store import Record, Table
from podwire.objects.meta import Key


@dataclass(frozen=True)
class Selection:
    """A filter over records; cheap where nothing is selected."""

    namespace: str
    labels: LabelSelector
    fields: FieldSelector
    name: str | None = None
    """The only name that can match, where the URL or `metadata.name=` says so."""

    @property
    def everything(self) -> bool:
        return self.labels.empty and self.fields.empty and self.name is None

    def matches(self, record: Record) -> bool:
        if self.namespace and record.key.namespace != self.namespace:
            return False
        if self.name is not None and record.key.name != self.name:
            return False
        brief = record.brief
        return (self.labels.empty or self.labels.matches(brief)) and (
            self.fields.empty or self.fields.matches(brief)
        )

    def pick(self, records: Iterable[Record]) -> list[Record]:
        if self.everything:
            return list(records)
        return [record for record in records if self.matches(record)]

    def current(self, table: Table) -> list[Record]:
        """What matches now, in key order."""
        if self.name is not None and self.namespace:
            record = table.records.get(Key(self.namespace, self.name))
            return [record] if record is not None and self.matches(record) else []
        return self.pick(table.snapshot(self.namespace))


def parse_selection(target: Target, query: Mapping[str, str]) -> Selection:
    """Raises BadRequestError for selectors that cannot be read."""
    resource: Resource = target.resource
    fields = parse_field_selector(
        query.get("fieldSelector", ""),
        resource.group,
        resource.version,
        resource.kind,
        resource.selectable if resource.is_custom else (),
    )
    namespace = target.namespace or fields.exact("metadata.namespace") or ""
    return Selection(
        namespace if resource.namespaced else "",
        parse_label_selector(query.get("labelSelector", "")),
        fields,
        target.name or fields.exact("metadata.name"),
    )
