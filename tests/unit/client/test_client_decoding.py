"""Objects as real API servers write them: null where a list is empty."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podwire.client.decoding import decode_list, decode_view
from podwire.dns import views
from podwire.objects.discovery import EndpointSlice

META = {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}
# As kubernetes#135968 shows it.
EMPTY = {"metadata": META, "addressType": "IPv4", "endpoints": None, "ports": None}
FULL = {"metadata": META, "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"]}]}


def encoded(*items: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"metadata": {"resourceVersion": "7"}, "items": list(items)})


@pytest.mark.parametrize("view", [EndpointSlice, views.Slice])
def test_null_is_as_good_as_absent(view: Any) -> None:
    found = decode_view(msgspec.json.encode(EMPTY), view)
    assert found == decode_view(msgspec.json.encode({"metadata": META}), view)
    assert (len(found.endpoints), found.service_name) == (0, "web")


@pytest.mark.parametrize("view", [EndpointSlice, views.Slice])
def test_one_of_a_list_does_not_spoil_it(view: Any) -> None:
    items, version = decode_list(encoded(FULL, EMPTY, FULL), view)
    assert [len(item.endpoints) for item in items] == [1, 0, 1]
    assert version == "7"
    assert list(items) == [*decode_list(encoded(FULL), view)[0],
                           decode_view(msgspec.json.encode(EMPTY), view),
                           *decode_list(encoded(FULL), view)[0]]  # fmt: skip


def test_a_list_of_nothing() -> None:
    assert decode_list(b'{"metadata":{"resourceVersion":"7"},"items":null}', EndpointSlice) == (
        [],
        "7",
    )


def test_what_is_wrong_without_nulls_is_wrong() -> None:
    wrong = {"metadata": META, "addressType": 4, "endpoints": None}
    with pytest.raises(msgspec.ValidationError, match="addressType"):
        decode_view(msgspec.json.encode(wrong), EndpointSlice)
    with pytest.raises(msgspec.DecodeError):
        decode_view(b"{", EndpointSlice)
