"""Images made on the spot: layers from (name, kind, content) rows, archives in both formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from podwire.runtime.oci.archive import host_architecture

Row = tuple[str, str, Any]


def layer(*rows: Row) -> bytes:
    """A tar of rows: file (bytes, or (bytes, mode)), dir (mode), symlink, hardlink, char, fifo."""
    buffer = io.BytesIO()
    types = {
        "file": tarfile.REGTYPE,
        "dir": tarfile.DIRTYPE,
        "symlink": tarfile.SYMTYPE,
        "hardlink": tarfile.LNKTYPE,
        "char": tarfile.CHRTYPE,
        "fifo": tarfile.FIFOTYPE,
    }
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, content in rows:
            info = tarfile.TarInfo(name)
            info.type = types[kind]
            info.mode = 0o755 if kind == "dir" else 0o644
            data = b""
            if kind == "file":
                data, info.mode = content if isinstance(content, tuple) else (content, 0o644)
                info.size = len(data)
            elif kind == "dir" and content:
                info.mode = content
            elif kind in ("symlink", "hardlink"):
                info.linkname = content
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def config(layers: list[bytes], **inner: Any) -> bytes:
    return json.dumps(
        {
            "architecture": inner.pop("architecture", host_architecture()),
            "os": "linux",
            "config": inner,
            "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in layers]},
        }
    ).encode()


def docker_save(path: Path, name: str, layers: list[bytes], **inner: Any) -> Path:
    """A `docker save` archive of one image; gzip-compressed when `path` ends in .gz."""
    raw = config(layers, **inner)
    entry = {
        "Config": "config.json",
        "RepoTags": [name],
        "Layers": [f"{i}/layer.tar" for i in range(len(layers))],
    }
    rows: list[Row] = [
        ("manifest.json", "file", json.dumps([entry]).encode()),
        ("config.json", "file", raw),
        *((f"{i}/layer.tar", "file", data) for i, data in enumerate(layers)),
    ]
    data = layer(*rows)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def zstd(data: bytes) -> bytes:
    """Packed as the program does it, which has to be there."""
    return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout


def oci_layout(
    path: Path,
    ref: str,
    layers: list[bytes],
    *,
    nested: bool = False,
    pack: Callable[[bytes], bytes] = gzip.compress,
    **inner: Any,
) -> Path:
    """An OCI layout directory with packed layers; `nested` adds a multi-platform index."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, **extra: Any) -> dict[str, Any]:
        (blobs / digest(data).removeprefix("sha256:")).write_bytes(data)
        return {"digest": digest(data), "size": len(data), **extra}

    def manifest(raw: bytes, packed: list[bytes]) -> bytes:
        document = {"schemaVersion": 2, "config": put(raw), "layers": [put(p) for p in packed]}
        return json.dumps(document).encode()

    main = manifest(config(layers, **inner), [pack(data) for data in layers])
    annotations = {"org.opencontainers.image.ref.name": ref} if ref else {}
    if nested:
        platform = {"os": "linux", "architecture": host_architecture()}
        foreign = {"os": "linux", "architecture": "s390x"}
        index = {
            "manifests": [
                {"digest": "sha256:" + "0" * 64, "size": 1, "platform": foreign},
                put(main, platform=platform),
            ]
        }
        top = put(json.dumps(index).encode(), annotations=annotations)
    else:
        top = put(main, annotations=annotations)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    return path


def busybox_layers(busybox: bytes) -> list[bytes]:
    """A usable root file system around a static busybox."""
    applets = "sh cat echo sleep id env hostname ls nc wget touch kill ps stty tty head mount true"
    return [
        layer(
            *((d, "dir", None) for d in ("bin", "etc", "proc", "dev", "sys", "tmp", "root")),
            ("bin/busybox", "file", (busybox, 0o755)),
            *((f"bin/{applet}", "symlink", "busybox") for applet in applets.split()),
            ("etc/passwd", "file", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/tmp:/bin/sh\n"),
            ("etc/group", "file", b"root:x:0:\napp:x:1001:\nextra:x:2000:app\n"),
        ),
        layer(("etc/motd", "file", b"hello\n")),
    ]
