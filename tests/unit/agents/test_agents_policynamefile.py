"""Learned names survive their agent; what a kill left half written is passed over."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from podwire.agents import policynamefile
from podwire.agents.policynamefile import NameFile
from podwire.policy.names import Answer

ONE, TWO = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def test_the_next_agent_knows_the_newest_of_each(tmp_path: Path) -> None:
    path = tmp_path / "names.jsonl"
    before = NameFile(path)
    assert before.load() == []
    before.add([Answer("a.example", frozenset({ONE, TWO}), 30.0)], 100.0)
    before.add([Answer("b.example", frozenset({ONE}), 5.0)], 101.0)
    before.add([Answer("a.example", frozenset({TWO, ONE}), 30.0)], 120.0)
    with path.open("ab") as file:
        file.write(b'{"name":"c.exam')
    rows = NameFile(path).load()
    assert [(row.name, row.at) for row in rows] == [("b.example", 101.0), ("a.example", 120.0)]
    assert rows[1].answer(130.0) == Answer("a.example", frozenset({ONE, TWO}), 20.0)
    assert rows[1].answer(90.0).ttl_s == 30.0, "a clock that was set back gives no more"
    assert path.read_bytes().count(b"\n") == 2


def test_the_file_does_not_grow_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "names.jsonl"
    file = NameFile(path)
    for i in range(policynamefile._MOST_LINES + 10):
        file.add([Answer("a.example", frozenset({ONE}), 30.0)], float(i))
    assert path.read_bytes().count(b"\n") < 20


def test_a_folder_that_is_not_there_is_no_fault(tmp_path: Path) -> None:
    file = NameFile(tmp_path / "gone" / "names.jsonl")
    file.add([Answer("a.example", frozenset({ONE}), 30.0)], 1.0)
    assert file.load() == []
