from __future__ import annotations

import pytest

from podwire.apiserver.quantity import QuantityError, canonical, parse_quantity


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("1", "1"),
        ("0", "0"),
        ("0.5", "500m"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("1024Mi", "1Gi"),
        ("1536Mi", "1536Mi"),
        ("512", "512"),
        ("0.5Gi", "512Mi"),
        ("1e3", "1e3"),
        ("12e6", "12e6"),
        ("100M", "100M"),
        ("1000k", "1M"),
        ("-1", "-1"),
        ("-1Gi", "-1Gi"),
        ("+2", "2"),
        (".5", "500m"),
        ("1n", "1n"),
        ("0.1n", "1n"),
        ("1Ki", "1Ki"),
    ],
)
def test_the_text_that_is_stored(text: str, stored: str) -> None:
    assert canonical(text) == stored
    assert parse_quantity(stored) == parse_quantity(text)


@pytest.mark.parametrize("text", ["", "x", "1 ", "1.2.3", "--1", "1mm", "Gi", "1KiB", "1m5"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(QuantityError):
        canonical(text)
