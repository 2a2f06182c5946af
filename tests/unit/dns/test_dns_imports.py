"""Files a Corefile imports: found where the pod's volumes are, in turn, and parsed with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from podwire.dns.imports import read_imports
from podwire.dns.main import read_corefile
from podwire.dns.podfiles import PodFiles
from podwire.errors import CorefileError

CONF = "/etc/coredns/Corefile"


@pytest.fixture
def files(tmp_path: Path) -> PodFiles:
    """A ConfigMap, and another that is mounted below it."""
    for folder in ("config", "custom"):
        (tmp_path / folder).mkdir()
    mounts = {"/etc/coredns": "config", "/etc/coredns/custom": "custom"}
    return PodFiles({path: str(tmp_path / folder) for path, folder in mounts.items()})


def write(files: PodFiles, name: str, text: str) -> None:
    files.path(f"/etc/coredns/{name}").write_text(text)


def test_files_are_imported_from_where_they_are_mounted(files: PodFiles) -> None:
    write(files, "Corefile", ".:53 {\n import custom/*.override\n}\nimport custom/*.server\n")
    write(files, "custom/a.override", "cache 7\n")
    write(files, "custom/b.override", "import /etc/coredns/more\n")
    write(files, "custom/c.txt", "nonsense\n")
    write(files, "more", "forward . 192.0.2.1\n")
    write(files, "custom/stub.server", "stub.example:53 {\n forward . 192.0.2.2\n}\n")
    corefile, folders = read_corefile(CONF, files)
    whole, stub = corefile.blocks
    assert whole.cache is not None
    assert whole.cache.success_ttl == 7
    assert whole.forward[0].to == ("192.0.2.1",)
    assert (stub.zones, stub.forward[0].to) == (("stub.example.",), ("192.0.2.2",))
    assert folders == {"/etc/coredns", "/etc/coredns/custom"}


def test_variables_are_the_programs(files: PodFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM", "192.0.2.7")
    write(files, "Corefile", ".:53 {\n forward . {$UPSTREAM}\n}\n")
    corefile, _ = read_corefile(CONF, files)
    assert corefile.blocks[0].forward[0].to == ("192.0.2.7",)


def test_nothing_to_import_is_nothing_and_its_folder_is_known(files: PodFiles) -> None:
    write(files, "Corefile", ".:53 {\n import missing/*.override\n}\n")
    corefile, folders = read_corefile(CONF, files)
    assert len(corefile.blocks) == 1
    assert folders == {"/etc/coredns/missing"}


def test_a_file_that_is_named_has_to_be_there(files: PodFiles) -> None:
    write(files, "Corefile", ".:53 {\n import missing\n}\n")
    with pytest.raises(CorefileError, match=r"Corefile:2:9: File to import not found: missing"):
        read_corefile(CONF, files)


def test_faults_are_told_by_the_file_they_are_in(files: PodFiles) -> None:
    write(files, "Corefile", ".:53 {\n import custom/*.override\n}\n")
    write(files, "custom/a.override", "nil\n")
    with pytest.raises(CorefileError, match=r"/etc/coredns/custom/a\.override:1:1: Unknown"):
        read_corefile(CONF, files)


def test_files_that_import_each_other_are_read_once(files: PodFiles) -> None:
    write(files, "a", "import b\n")
    write(files, "b", "import a\n")
    found = read_imports(CONF, "import a\n", files.path, {})
    assert set(found.texts) == {"/etc/coredns/a", "/etc/coredns/b"}
