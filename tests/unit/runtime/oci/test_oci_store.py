"""Loading, finding and removing images; layers from hostile archives."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import stat
import sys
import tarfile
from pathlib import Path

import pytest

from podwire.errors import ContainerError
from podwire.runtime.oci.layer import unpack_layer
from podwire.runtime.oci.reference import parse_reference
from podwire.runtime.oci.store import ImageStore

_spec = importlib.util.spec_from_file_location(
    "image_builder", Path(__file__).parent / "image_builder.py"
)
assert _spec is not None
assert _spec.loader is not None
build = sys.modules.setdefault("image_builder", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(build)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("me/app", "docker.io/me/app:latest"),
        ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:2", "localhost:5000/app:2"),
        ("index.docker.io/library/x", "docker.io/library/x:latest"),
        ("a@sha256:" + "0" * 64, "docker.io/library/a@sha256:" + "0" * 64),
        ("a:1@sha256:" + "0" * 64, "docker.io/library/a:1@sha256:" + "0" * 64),
    ],
)
def test_references_are_normalised_as_docker_does(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full
    assert str(parse_reference(full)) == full


@pytest.mark.parametrize(
    "text", ["", "Nginx", "a b", "a:", "a@", "a@sha256:12", "/a", "a//b", "-a"]
)
def test_bad_references(text: str) -> None:
    with pytest.raises(ContainerError, match="invalid reference format") as caught:
        parse_reference(text)
    assert caught.value.reason == "InvalidImageName"


LAYERS = [
    build.layer(("etc", "dir", None), ("etc/a", "file", b"one")),
    build.layer(("etc/b", "file", b"two")),
]


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not here")
def test_layers_packed_with_zstd(tmp_path: Path) -> None:
    layout = build.oci_layout(tmp_path / "layout", "app:1", LAYERS, pack=build.zstd)
    (image,) = ImageStore(tmp_path / "images").load(layout)
    assert image.size_bytes == 6
    archive = tmp_path / "app.tar.zst"
    archive.write_bytes(
        build.zstd(build.docker_save(tmp_path / "app.tar", "b:1", LAYERS).read_bytes())
    )
    (image,) = ImageStore(tmp_path / "others").load(archive)
    assert image.names == ("docker.io/library/b:1",)


ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not here")
def test_a_damaged_zstd_layer_is_refused(tmp_path: Path) -> None:
    def pack(data: bytes) -> bytes:
        return ZSTD_MAGIC + b"damaged"

    layout = build.oci_layout(tmp_path / "layout", "app:1", LAYERS, pack=pack)
    store = ImageStore(tmp_path / "images")
    with pytest.raises(ContainerError, match=r"damaged tar archive|cannot decompress it"):
        store.load(layout)
    assert store.images() == []


@pytest.mark.parametrize("what", ["layers", "archive"])
def test_zstd_without_its_program_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if what == "layers":
        path = build.oci_layout(tmp_path / "layout", "app:1", LAYERS, pack=lambda d: ZSTD_MAGIC + d)
    else:
        path = tmp_path / "app.tar.zst"
        path.write_bytes(ZSTD_MAGIC + b"anything")
    with pytest.raises(ContainerError, match="install the program `zstd`"):
        ImageStore(tmp_path / "images").load(path)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_docker_save(tmp_path: Path, suffix: str) -> None:
    file = build.docker_save(tmp_path / f"x{suffix}", "app:1", LAYERS, Cmd=["a"], Env=["A=b"])
    store = ImageStore(tmp_path / "images")
    (image,) = store.load(file)
    assert image.names == ("docker.io/library/app:1",)
    assert image.size_bytes == 6
    assert store.config(image.id).cmd == ["a"]
    lower, upper = store.layer_dirs(image.id)
    assert (lower / "etc/a").read_bytes() == b"one"
    assert (upper / "etc/b").read_bytes() == b"two"
    for name in ("app:1", "docker.io/library/app:1", image.id, image.id[7:19]):
        found = store.resolve(name)
        assert found is not None
        assert found.id == image.id
    assert store.resolve("app") is None
    assert ImageStore(tmp_path / "images").images() == store.images()
    assert not list((tmp_path / "images/tmp").iterdir())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("ref", "name"),
    [("v2", "my-app:v2"), ("ghcr.io/a/b:v3", "ghcr.io/a/b:v3"), ("", "my-app:latest")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_oci_layout(tmp_path: Path, nested: bool, ref: str, name: str, packed: bool) -> None:
    path = build.oci_layout(tmp_path / "My_App", ref, LAYERS, nested=nested)
    if packed:
        with tarfile.open(tmp_path / "my-app.tar", "w") as tar:
            tar.add(path, arcname=".")
        path = tmp_path / "my-app.tar"
    store = ImageStore(tmp_path / "images")
    (image,) = store.load(path)
    assert image.names == (str(parse_reference(name)),)
    (record,) = json.loads((tmp_path / "images/index.json").read_text())["images"].values()
    assert store.resolve(f"anything@{record['digests'][0]}") is not None


def test_a_name_moves_and_layers_are_shared_and_collected(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    (first,) = store.load(build.docker_save(tmp_path / "1.tar", "app", LAYERS))
    (second,) = store.load(build.docker_save(tmp_path / "2.tar", "app", LAYERS[:1]))
    found = store.resolve("app")
    assert found is not None
    assert found.id == second.id
    assert store.layer_dirs(first.id)[0] == store.layer_dirs(second.id)[0]
    store.remove(first.id)
    assert len(list((tmp_path / "images/layers").iterdir())) == 1
    store.acquire("c1", second.id)
    with pytest.raises(ContainerError, match=r"used by 1 container"):
        store.remove("app")
    store.release("c1")
    store.remove("app")
    assert store.images() == []
    assert not list((tmp_path / "images/layers").iterdir())
    with pytest.raises(ContainerError, match="not loaded"):
        store.remove("app")


def test_bad_archives_are_told_apart(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")

    def fails(path: Path, text: str) -> None:
        with pytest.raises(ContainerError, match=text):
            store.load(path)
        assert store.images() == []
        assert not list((tmp_path / "images/tmp").iterdir())

    fails(tmp_path / "none.tar", "No such file")
    (tmp_path / "text.tar").write_text("hello")
    fails(tmp_path / "text.tar", "not a tar archive")
    (tmp_path / "half.tar.gz").write_bytes(b"\x1f\x8b\x08\x00garbage")
    fails(tmp_path / "half.tar.gz", "not a tar archive")
    (tmp_path / "other.tar").write_bytes(build.layer(("x", "file", b"")))
    fails(tmp_path / "other.tar", "neither manifest.json nor index.json")
    fails(build.docker_save(tmp_path / "arch.tar", "a", [], architecture="s390x"), "is for s390x")
    layout = build.oci_layout(tmp_path / "damaged", "a:1", LAYERS)
    for blob in (layout / "blobs/sha256").iterdir():
        blob.write_bytes(blob.read_bytes() + b" ")
    fails(layout, "does not match its digest")
    wrong = build.docker_save(tmp_path / "wrong.tar", "a", LAYERS)
    wrong.write_bytes(wrong.read_bytes().replace(b"one", b"eno"))
    fails(wrong, "does not match its diff id")


# --- layers ---------------------------------------------------------------------------------------


def _unpack(tmp_path: Path, *rows: object) -> Path:
    target = tmp_path / "outer/fs"
    target.mkdir(parents=True)
    unpack_layer(io.BytesIO(build.layer(*rows)), target)
    return target


def test_whiteouts_become_overlay_whiteouts(tmp_path: Path) -> None:
    root = _unpack(
        tmp_path,
        ("etc/.wh.gone", "file", b""),
        ("etc/.wh.back", "file", b""),
        ("etc/back", "file", b"x"),
        ("etc/kept", "file", b"x"),
        ("etc/.wh.kept", "file", b""),
        (".wh..wh.plnk", "file", b""),
    )
    assert stat.S_ISCHR(os.lstat(root / "etc/gone").st_mode)
    assert os.lstat(root / "etc/gone").st_rdev == 0
    assert (root / "etc/back").read_bytes() == b"x"
    assert (root / "etc/kept").read_bytes() == b"x"
    assert sorted(p.name for p in root.iterdir()) == ["etc"]


def test_opaque_directories_are_marked(tmp_path: Path) -> None:
    try:
        root = _unpack(tmp_path, ("d/.wh..wh..opq", "file", b""), ("d/new", "file", b""))
    except ContainerError as e:
        pytest.skip(str(e))
    marks = [n for n in os.listxattr(root / "d") if n.endswith("overlay.opaque")]
    assert marks
    assert (root / "d/new").exists()


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([("../evil", "file", b"x")], "leaves the image"),
        ([("a/../../evil", "file", b"x")], "leaves the image"),
        ([("x", "hardlink", "../../evil")], "leaves the image"),
        ([("x", "hardlink", "/etc/passwd")], "not in it"),
        ([(".wh...", "file", b"")], "whiteout"),
        ([("f", "file", b""), ("f/x", "file", b"")], "goes through a file"),
        ([("l", "symlink", "l"), ("l/x", "file", b"")], "too many symbolic links"),
    ],
)
def test_hostile_layers_are_refused(tmp_path: Path, rows: list[object], text: str) -> None:
    with pytest.raises(ContainerError, match=text):
        _unpack(tmp_path, *rows)
    assert [p.name for p in (tmp_path / "outer").iterdir()] == ["fs"]


def test_symlinks_lead_to_where_the_container_sees_them(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    root = _unpack(
        tmp_path,
        ("lib", "symlink", "/usr/lib"),
        ("lib/a", "file", b"a"),
        ("up", "symlink", "../../../outside"),
        ("up/b", "file", b"b"),
        ("abs", "symlink", str(tmp_path / "outside")),
        ("abs/c", "file", b"c"),
        ("file", "symlink", str(tmp_path / "outside/d")),
        ("file", "file", b"d"),
    )
    assert (root / "usr/lib/a").read_bytes() == b"a"
    assert (root / "outside/b").read_bytes() == b"b"
    assert (root / "file").read_bytes() == b"d"
    assert not list((tmp_path / "outside").iterdir())


def test_devices_are_left_out_and_the_rest_keeps_its_kind(tmp_path: Path) -> None:
    root = _unpack(
        tmp_path,
        ("dev/sda", "char", None),
        ("ro", "dir", 0o555),
        ("ro/f", "file", (b"x", 0o4755)),
        ("ro/h", "hardlink", "ro/f"),
        ("pipe", "fifo", None),
    )
    assert not (root / "dev/sda").exists()
    assert (root / "ro/f").stat().st_ino == (root / "ro/h").stat().st_ino
    assert (root / "ro/f").stat().st_mode & 0o7777 == 0o4755
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert (root / "ro").stat().st_mode & 0o077 == 0o055
