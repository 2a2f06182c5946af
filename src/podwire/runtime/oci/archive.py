"""Image archives: what `docker save` and OCI layouts hold, as a list of images with their layers.

    FILE | DIRECTORY -> Blobs (open a member by name) -> manifest.json  (docker save)
                                                      -> index.json -> index -> manifest  (OCI)
                                                      -> [ArchiveImage]

Docker 25 and newer write both; manifest.json wins because it names the images in full. Blobs of
an OCI layout are checked against their digests while they are read.

Source: image-spec image-layout.md, image-index.md, manifest.md; moby image/spec.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import platform as platform_module
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Protocol

from podwire.errors import ContainerError
from podwire.runtime.oci.reference import DIGEST, parse_reference

_MAX_JSON: Final = 8 * 1024 * 1024
_MAX_DEPTH: Final = 4
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_NAME_ANNOTATIONS: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


def host_architecture() -> str:
    """The OCI name (Go's GOARCH) of this machine."""
    machine = platform_module.machine()
    return _MACHINES.get(machine, machine)


@dataclass(frozen=True)
class ArchiveImage:
    """`layers` are member names in the archive, lowest first; `config` is the raw JSON."""

    names: tuple[str, ...]
    config: bytes
    layers: tuple[str, ...]
    manifest_digest: str = ""

    @property
    def id(self) -> str:
        return "sha256:" + hashlib.sha256(self.config).hexdigest()


class Blobs(Protocol):
    """Members by name; `open` raises `KeyError` for an unknown one."""

    def open(self, name: str) -> IO[bytes]: ...

    def has(self, name: str) -> bool: ...


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def _path(self, name: str) -> Path:
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root):
            raise KeyError(name)
        return path

    def has(self, name: str) -> bool:
        return self._path(name).is_file()

    def open(self, name: str) -> IO[bytes]:
        if not self.has(name):
            raise KeyError(name)
        return self._path(name).open("rb")


class _Tar:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._members = {str(PurePosixPath(member.name)): member for member in tar}

    def has(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> IO[bytes]:
        # Old docker save writes a layer shared by two images once, and a symlink beside it.
        member = self._tar.extractfile(self._members[name])
        if member is None:
            raise KeyError(name)
        return member


@contextlib.contextmanager
def open_archive(path: Path, scratch: Path) -> Iterator[Blobs]:
    """The members of an archive or a layout directory; a compressed one is unpacked to `scratch`.

    Raises `ContainerError` when it is neither.
    """
    if path.is_dir():
        yield _Directory(path)
        return
    with contextlib.ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            magic = file.read(4)
            file.seek(0)
            if magic[:2] == _GZIP or magic == _ZSTD:
                # Layers are read out of order, and a compressed file cannot be sought in.
                plain = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
                with decompressed(file) as stream:
                    shutil.copyfileobj(stream, plain, 1024 * 1024)
                plain.seek(0)
                file = plain
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
            blobs = _Tar(tar)
        except (OSError, EOFError, tarfile.TarError) as e:
            raise ContainerError(
                f"image archive {path}: not a tar archive: {e}; "
                "expected the output of `docker save` or an OCI layout"
            ) from e
        yield blobs


@contextlib.contextmanager
def decompressed(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """`stream` (seekable) unpacked when its first bytes say gzip or zstd, else as it is."""
    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == _GZIP:
        with gzip.GzipFile(fileobj=stream) as unpacked:
            yield unpacked  # type: ignore[misc]
    elif magic == _ZSTD:
        with _zstd(stream) as unpacked_zstd:
            yield unpacked_zstd
    else:
        yield stream


@contextlib.contextmanager
def _zstd(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    # Python has no zstd before 3.14; the program is in Debian's package of the same name.
    import subprocess

    program = shutil.which("zstd")
    if program is None:
        raise ContainerError(
            "image layer is zstd-compressed: install the program `zstd` to load it"
        )
    with tempfile.TemporaryFile() as packed:
        shutil.copyfileobj(stream, packed, 1024 * 1024)
        packed.seek(0)
        with subprocess.Popen(
            [program, "-dcq"], stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            yield process.stdout
            if process.wait() != 0:
                raise ContainerError("image layer: zstd cannot decompress it")


def read_images(blobs: Blobs, fallback_name: str, architecture: str = "") -> list[ArchiveImage]:
    """Every image of the archive for this machine's platform.

    `fallback_name` names an image the archive does not name; a bare tag becomes its tag.
    """
    if blobs.has("manifest.json"):
        return [_docker_image(blobs, entry, fallback_name) for entry in _docker_entries(blobs)]
    if blobs.has("index.json"):
        index = _object(_read_json(blobs, "index.json"), "index.json")
        return list(_oci_images(blobs, index, fallback_name, architecture or host_architecture()))
    raise ContainerError(
        "neither manifest.json nor index.json is in it; "
        "expected the output of `docker save` or an OCI layout"
    )


def _docker_entries(blobs: Blobs) -> list[dict[str, Any]]:
    entries = _read_json(blobs, "manifest.json")
    if not isinstance(entries, list) or not entries:
        raise ContainerError("manifest.json: expected a list with at least one image")
    return [_object(entry, "manifest.json") for entry in entries]


def _docker_image(blobs: Blobs, entry: Mapping[str, Any], fallback_name: str) -> ArchiveImage:
    config, layers = entry.get("Config"), entry.get("Layers")
    if not isinstance(config, str) or not isinstance(layers, list):
        raise ContainerError("manifest.json: an image has no Config or no Layers")
    names = [str(parse_reference(tag)) for tag in entry.get("RepoTags") or []]
    return ArchiveImage(
        names=tuple(names) or (str(parse_reference(fallback_name)),),
        config=_read(blobs, config),
        layers=tuple(map(str, layers)),
    )


def _oci_images(
    blobs: Blobs, index: Mapping[str, Any], fallback_name: str, architecture: str
) -> Iterator[ArchiveImage]:
    descriptors = _descriptors(index)
    if not descriptors:
        raise ContainerError("index.json: lists no image")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for descriptor in descriptors:
        grouped.setdefault(_annotated_name(descriptor, fallback_name), []).append(descriptor)
    for name, choices in grouped.items():
        digest, manifest = _choose(blobs, choices, architecture, name)
        config = _object(manifest.get("config"), f"manifest {digest}")
        layers = [_blob(layer) for layer in manifest.get("layers") or []]
        yield ArchiveImage((name,), _read(blobs, _blob(config)), tuple(layers), digest)


def _annotated_name(descriptor: Mapping[str, Any], fallback_name: str) -> str:
    annotations = descriptor.get("annotations") or {}
    value = next((annotations[key] for key in _NAME_ANNOTATIONS if annotations.get(key)), "")
    if not value:
        return str(parse_reference(fallback_name))
    if "/" not in value and ":" not in value:
        # `skopeo copy ... oci:dir:TAG` writes the tag alone.
        fallback = parse_reference(fallback_name)
        return str(parse_reference(f"{fallback.repository}:{value}"))
    return str(parse_reference(value))


def _choose(
    blobs: Blobs, choices: Sequence[Mapping[str, Any]], architecture: str, name: str, depth: int = 0
) -> tuple[str, Mapping[str, Any]]:
    """The manifest (and its digest) for linux/`architecture` among descriptors, nested or not."""
    matching = [c for c in choices if _platform_fits(c.get("platform"), architecture)]
    if not matching or depth > _MAX_DEPTH:
        offered = ", ".join(sorted({_platform_text(c.get("platform")) for c in choices}))
        raise ContainerError(
            f"image {name}: no manifest for linux/{architecture} (it has {offered}); "
            "save the image for this platform"
        )
    # A descriptor that says its platform beats one that does not.
    chosen = max(matching, key=lambda c: c.get("platform") is not None)
    digest = str(chosen.get("digest", ""))
    document = _object(_read_json(blobs, _blob(chosen)), f"manifest {digest}")
    if "manifests" in document:
        return _choose(blobs, _descriptors(document), architecture, name, depth + 1)
    return digest, document


def _platform_fits(platform: Any, architecture: str) -> bool:
    if not isinstance(platform, dict):
        return True
    return (platform.get("os"), platform.get("architecture")) == ("linux", architecture)


def _platform_text(platform: Any) -> str:
    if not isinstance(platform, dict):
        return "an unnamed platform"
    return f"{platform.get('os')}/{platform.get('architecture')}"


def _descriptors(index: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    manifests = index.get("manifests")
    if not isinstance(manifests, list):
        raise ContainerError("index: has no manifests")
    return [_object(entry, "index") for entry in manifests]


def _blob(descriptor: Mapping[str, Any]) -> str:
    digest = str(descriptor.get("digest", ""))
    if not DIGEST.fullmatch(digest):
        raise ContainerError(f"blob digest {digest!r}: only sha256 digests are supported")
    return "blobs/" + digest.replace(":", "/")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ContainerError(f"{what}: expected a JSON object")
    return value


def _read_json(blobs: Blobs, name: str) -> Any:
    try:
        return json.loads(_read(blobs, name))
    except ValueError as e:
        raise ContainerError(f"{name}: not valid JSON: {e}") from e


def _read(blobs: Blobs, name: str) -> bytes:
    try:
        with blobs.open(name) as file:
            data = file.read(_MAX_JSON + 1)
    except (KeyError, OSError, tarfile.TarError) as e:
        raise ContainerError(f"{name}: missing; the archive is incomplete") from e
    if len(data) > _MAX_JSON:
        raise ContainerError(f"{name}: more than {_MAX_JSON} bytes of JSON")
    check_digest(name, hashlib.sha256(data).hexdigest())
    return data


def check_digest(name: str, actual: str) -> None:
    """Raise when `name` is a content-addressed blob whose content is another."""
    parent, _, hexdigest = name.rpartition("/")
    if parent == "blobs/sha256" and hexdigest != actual:
        raise ContainerError(
            f"{name}: the content does not match its digest; the archive is damaged"
        )
