"""CRI logs as `kubectl logs` wants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from podwire.errors import BadRequestError, InvalidError
from podwire.runtime.logs import LogOptions, format_line, read_log, tail_offset

LINES = b"".join(
    b"2026-01-01T00:00:0%d.000000001Z %s F line %d\n" % (n, b"stderr" if n == 3 else b"stdout", n)
    for n in range(5)
)


async def read(path: Path, **options: object) -> bytes:
    chosen = LogOptions(**options)  # type: ignore[arg-type]
    return b"".join([chunk async for chunk in read_log(path, chosen, lambda: True)])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "c.0.log"
    path.write_bytes(LINES)
    return path


async def test_whole_log(log: Path) -> None:
    assert await read(log) == b"line 0\nline 1\nline 2\nline 3\nline 4\n"


@pytest.mark.parametrize(("count", "first"), [(0, b""), (1, b"line 4\n"), (9, b"line 0\nline 1\n")])
async def test_tail(log: Path, count: int, first: bytes) -> None:
    assert (await read(log, tail_lines=count)).startswith(first)
    assert LINES[tail_offset(log, count) :].count(b"\n") == min(count, 5)


async def test_options(log: Path) -> None:
    assert await read(log, stream="Stderr") == b"line 3\n"
    assert await read(log, limit_bytes=9) == b"line 0\nli"
    assert await read(log, since=1767225603.5) == b"line 4\n"
    assert (await read(log, timestamps=True, tail_lines=1)).startswith(b"2026-01-01T00:00:04.0")
    assert await read(log, follow=True, tail_lines=1) == b"line 4\n"


def test_partial_lines_are_joined() -> None:
    options = LogOptions()
    pieces = [b"T stdout P one \n", b"T stdout P two \n", b"T stdout F three\n", b"broken\n"]
    assert b"".join(format_line(p, options) for p in pieces) == b"one two three\n"


async def test_missing_file_is_empty(tmp_path: Path) -> None:
    assert await read(tmp_path / "none.log") == b""


def test_parse_refuses_what_upstream_refuses() -> None:
    assert LogOptions.parse({"sinceSeconds": "10", "follow": "true"}, 100.0).since == 90.0
    with pytest.raises(InvalidError):
        LogOptions.parse({"tailLines": "-1"}, 0)
    with pytest.raises(BadRequestError):
        LogOptions.parse({"limitBytes": "x"}, 0)
