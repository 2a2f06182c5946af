"""The images of a lab: loaded from archives, unpacked once, found by name.

    images_dir/index.json                  names -> image id, and what was unpacked
              /configs/sha256.HEX.json     image configurations, as they came
              /layers/sha256.HEX/fs        one directory per layer, named by its diff id
              /users/CONTAINER             the id of the image a container was made from
              /tmp, /lock

The command line loads (`podwire image load FILE`) while agents read: writers hold the lock, and
everything appears by rename, so readers need none.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from podwire.errors import ContainerError
from podwire.kernel.files import remove_tree
from podwire.runtime.containers import Image
from podwire.runtime.oci import archive
from podwire.runtime.oci.layer import unpack_layer
from podwire.runtime.oci.reference import parse_reference

_MIN_PREFIX: Final = 6


class Record(msgspec.Struct):
    """What the index keeps of an image; `layers` are diff ids, lowest first."""

    id: str
    layers: list[str]
    size_bytes: int
    loaded_at: float
    names: list[str] = []
    digests: list[str] = []


class Index(msgspec.Struct):
    images: dict[str, Record] = {}
    layer_sizes: dict[str, int] = {}


class ImageConfig(msgspec.Struct, rename="pascal"):
    """The part of an image's `config` that a container inherits (image-spec config.md)."""

    user: str = ""
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str = ""
    volumes: dict[str, Any] | None = None
    stop_signal: str = ""


class _RootFs(msgspec.Struct):
    type: str = "layers"
    diff_ids: list[str] = []


class _ConfigFile(msgspec.Struct):
    config: ImageConfig | None = None
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)
    architecture: str = ""


class ImageStore:
    """`load`, `remove` for writers; `resolve`, `images`, `config`, `layer_dirs` for readers."""

    def __init__(self, images_dir: Path) -> None:
        self._dir = images_dir
        self._cached: tuple[tuple[int, int], Index] | None = None

    # --- reading ---

    def images(self) -> list[Image]:
        return [_image(record) for record in self._index().images.values()]

    def resolve(self, reference: str) -> Image | None:
        """The image by name, `name@digest`, id or prefix of the id; None when it is not loaded."""
        record = self._find(reference)
        return None if record is None else _image(record, reference)

    def config(self, image_id: str) -> ImageConfig:
        return self._config_file(image_id).config or ImageConfig()

    def layer_dirs(self, image_id: str) -> list[Path]:
        """The unpacked layers, lowest first."""
        return [self._layer(diff_id) / "fs" for diff_id in self._record(image_id).layers]

    # --- containers that use an image ---

    def acquire(self, container_id: str, image_id: str) -> None:
        """Keep the image from being removed while the container is there."""
        users = self._dir / "users"
        users.mkdir(parents=True, exist_ok=True)
        (users / container_id).write_text(image_id)

    def release(self, container_id: str) -> None:
        (self._dir / "users" / container_id).unlink(missing_ok=True)

    # --- writing ---

    def load(self, path: Path, name: str = "") -> list[Image]:
        """Load every image of an archive or OCI layout directory.

        `name` is for archives that name nothing; without it the file's own name serves. A name that
        was another image's before moves to the new one. Raises `ContainerError`.
        """
        for part in ("configs", "layers", "tmp", "users"):
            (self._dir / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        fallback = name or _name_from_file(path)
        with self._locked(), archive.open_archive(path, self._dir / "tmp") as blobs:
            try:
                images = archive.read_images(blobs, fallback)
                records = [self._load_one(blobs, image) for image in images]
            except ContainerError as e:
                raise ContainerError(f"image archive {path}: {e}", reason=e.reason) from e
        return [_image(record) for record in records]

    def _load_one(self, blobs: archive.Blobs, image: archive.ArchiveImage) -> Record:
        diff_ids = self._diff_ids(image)
        index = self._index(fresh=True)
        for member, diff_id in zip(image.layers, diff_ids, strict=True):
            if diff_id not in index.layer_sizes or not self._layer(diff_id).is_dir():
                index.layer_sizes[diff_id] = self._unpack(blobs, member, diff_id)
        _write_atomically(self._config_path(image.id), image.config)
        return self._enter(index, image, diff_ids)

    def _enter(self, index: Index, image: archive.ArchiveImage, diff_ids: list[str]) -> Record:
        for other in index.images.values():
            other.names = [name for name in other.names if name not in image.names]
        former = index.images.get(image.id)
        record = Record(
            id=image.id,
            layers=diff_ids,
            size_bytes=sum(index.layer_sizes[diff_id] for diff_id in diff_ids),
            loaded_at=time.time(),
            names=sorted({*image.names, *(former.names if former else ())}),
            digests=sorted({image.manifest_digest, *(former.digests if former else ())} - {""}),
        )
        index.images[image.id] = record
        self._save(index)
        return record

    def _diff_ids(self, image: archive.ArchiveImage) -> list[str]:
        try:
            config = msgspec.json.decode(image.config, type=_ConfigFile)
        except msgspec.MsgspecError as e:
            raise ContainerError(f"image {image.names[0]}: bad configuration: {e}") from e
        diff_ids = config.rootfs.diff_ids
        if len(diff_ids) != len(image.layers):
            raise ContainerError(
                f"image {image.names[0]}: {len(image.layers)} layers, "
                f"but its configuration lists {len(diff_ids)}"
            )
        if config.architecture and config.architecture != archive.host_architecture():
            raise ContainerError(
                f"image {image.names[0]}: is for {config.architecture}, this machine is "
                f"{archive.host_architecture()}; save the image for this platform"
            )
        return diff_ids

    def _unpack(self, blobs: archive.Blobs, member: str, diff_id: str) -> int:
        staging = Path(tempfile.mkdtemp(dir=self._dir / "tmp"))
        try:
            (staging / "fs").mkdir(mode=0o755)
            size = self._unpack_into(blobs, member, diff_id, staging / "fs")
            target = self._layer(diff_id)
            remove_tree(target)
            staging.rename(target)
            return size
        except BaseException:
            remove_tree(staging)
            raise

    def _unpack_into(self, blobs: archive.Blobs, member: str, diff_id: str, target: Path) -> int:
        try:
            raw = blobs.open(member)
        except (KeyError, OSError) as e:
            raise ContainerError(f"layer {member}: missing; the archive is incomplete") from e
        with raw:
            if member.startswith("blobs/sha256/"):
                checked = _Hashing(raw)
                checked.drain()
                archive.check_digest(member, checked.digest().removeprefix("sha256:"))
                raw.seek(0)
            try:
                with archive.decompressed(raw) as plain:
                    hashed = _Hashing(plain)
                    size = unpack_layer(hashed, target)  # type: ignore[arg-type]
                    hashed.drain()
            except (OSError, EOFError) as e:
                raise ContainerError(f"layer {member}: cannot decompress it: {e}") from e
        if hashed.digest() != diff_id:
            raise ContainerError(
                f"layer {member}: the content does not match its diff id; the archive is damaged"
            )
        return size

    def remove(self, reference: str, *, force: bool = False) -> Image:
        """Remove a name, and the image with its layers when that was the last (or an id is given).

        Raises `ContainerError` when it is not loaded, or containers use it and not `force`.
        """
        with self._locked():
            record = self._find(reference)
            if record is None:
                raise ContainerError(f"image {reference}: not loaded; see `podwire image ls`")
            removed = _image(record, reference)
            users = self._users(record.id)
            by_name = [name for name in record.names if name == _normalised(reference)]
            if len(record.names) > 1 and by_name:
                self._drop_name(record.id, by_name[0])
                return removed
            if users and not force:
                raise ContainerError(
                    f"image {reference}: used by {len(users)} container(s), e.g. {users[0][:12]}; "
                    "delete the pods first"
                )
            self._drop_image(record.id)
            return removed

    def _drop_name(self, image_id: str, name: str) -> None:
        index = self._index(fresh=True)
        index.images[image_id].names.remove(name)
        self._save(index)

    def _drop_image(self, image_id: str) -> None:
        index = self._index(fresh=True)
        del index.images[image_id]
        kept = {diff_id for record in index.images.values() for diff_id in record.layers}
        unused = index.layer_sizes.keys() - kept
        index.layer_sizes = {k: v for k, v in index.layer_sizes.items() if k in kept}
        # The index first: a crash in between leaves directories that the next load replaces.
        self._save(index)
        self._config_path(image_id).unlink(missing_ok=True)
        for diff_id in unused:
            remove_tree(self._layer(diff_id))

    # --- files ---

    def _users(self, image_id: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [p.name for p in (self._dir / "users").iterdir() if p.read_text() == image_id]
        return []

    def _find(self, reference: str) -> Record | None:
        index = self._index()
        text = reference.removeprefix("sha256:")
        if len(text) >= _MIN_PREFIX and all(c in "0123456789abcdef" for c in text):
            found = [r for r in index.images.values() if r.id[len("sha256:") :].startswith(text)]
            if len(found) == 1:
                return found[0]
        parsed = parse_reference(reference)
        for record in index.images.values():
            if parsed.digest and parsed.digest in (record.id, *record.digests):
                return record
            if not parsed.digest and str(parsed) in record.names:
                return record
        return None

    def _record(self, image_id: str) -> Record:
        record = self._index().images.get(image_id)
        if record is None:
            raise ContainerError(f"image {image_id}: not loaded", reason="ErrImageNeverPull")
        return record

    def _config_file(self, image_id: str) -> _ConfigFile:
        try:
            return msgspec.json.decode(self._config_path(image_id).read_bytes(), type=_ConfigFile)
        except FileNotFoundError as e:
            raise ContainerError(f"image {image_id}: not loaded", reason="ErrImageNeverPull") from e

    def _config_path(self, image_id: str) -> Path:
        return self._dir / "configs" / f"{image_id.replace(':', '.')}.json"

    def _layer(self, diff_id: str) -> Path:
        algorithm, _, hexdigest = diff_id.partition(":")
        if algorithm != "sha256" or len(hexdigest) != 64 or not hexdigest.isalnum():
            raise ContainerError(f"layer {diff_id!r}: only sha256 diff ids are supported")
        return self._dir / "layers" / f"sha256.{hexdigest}"

    def _index(self, *, fresh: bool = False) -> Index:
        """The index; read again only when the file changed, unless a copy to change is wanted."""
        path = self._dir / "index.json"
        try:
            found = path.stat()
            key = (found.st_ino, found.st_mtime_ns)
            if not fresh and self._cached is not None and self._cached[0] == key:
                return self._cached[1]
            index = msgspec.json.decode(path.read_bytes(), type=Index)
        except FileNotFoundError:
            return Index()
        except msgspec.MsgspecError as e:
            raise ContainerError(
                f"{path}: damaged: {e}; remove it and load the images again"
            ) from e
        if not fresh:
            self._cached = (key, index)
        return index

    def _save(self, index: Index) -> None:
        _write_atomically(self._dir / "index.json", msgspec.json.encode(index))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._dir / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _Hashing:
    """Reads through and hashes what passed; tarfile asks for nothing but `read`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def drain(self) -> None:
        """Read what follows the archive's end marker: it belongs to the digest."""
        while self.read(1024 * 1024):
            pass

    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def _image(record: Record, reference: str = "") -> Image:
    name = reference or (record.names[0] if record.names else record.id)
    return Image(name, record.id, record.size_bytes, tuple(record.names))


def _normalised(reference: str) -> str:
    with contextlib.suppress(ContainerError):
        return str(parse_reference(reference))
    return reference


def _name_from_file(path: Path) -> str:
    stem = path.resolve().name.lower()
    for suffix in (".gz", ".tgz", ".zst", ".tar"):
        stem = stem.removesuffix(suffix)
    cleaned = "".join(c if c.isalnum() and c.isascii() else "-" for c in stem).strip("-")
    return "-".join(filter(None, cleaned.split("-"))) or "image"


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
