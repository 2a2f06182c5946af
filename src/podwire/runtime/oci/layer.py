"""One image layer (a tar stream) unpacked into a directory that overlayfs can stack.

    .wh.NAME      -> character device 0:0        (overlayfs' whiteout; needs no privilege since 5.8)
    .wh..wh..opq  -> xattr overlay.opaque = y    (trusted. and user., whichever mount comes later)

A layer is untrusted. Nothing is ever created outside the target: names are split by hand, `..` is
refused, a symlink on the way is followed as the container would see it (inside the target), hard
links must point at a file of the same layer. Devices are left out: the container gets its own
/dev. As root, owners and file capabilities are kept; as any other user all files are that user's.

Source: image-spec layer.md; kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import IO, Final

from podwire.errors import ContainerError

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_CAPABILITY_XATTR: Final = "SCHILY.xattr.security.capability"
_MAX_SYMLINKS: Final = 40


def unpack_layer(stream: IO[bytes], target: Path) -> int:
    """Unpack a plain tar stream into the empty directory `target`; returns the bytes of its files.

    Raises `ContainerError` for a damaged or hostile archive; `target` is then to be thrown away.
    """
    unpacker = _Unpacker(target)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                unpacker.add(tar, member)
    except (tarfile.TarError, EOFError, ValueError) as e:
        raise ContainerError(f"image layer: damaged tar archive: {e}") from e
    except OSError as e:
        raise ContainerError(f"image layer: cannot unpack into {target}: {e}") from e
    unpacker.finish()
    return unpacker.size


class _Unpacker:
    def __init__(self, root: Path) -> None:
        self.size = 0
        self._root = str(root)
        self._as_root = os.geteuid() == 0
        self._parents: dict[tuple[str, ...], str] = {}
        # Modes and times of directories last: a read-only directory could not be filled.
        self._directories: dict[str, tarfile.TarInfo] = {}

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = _parts(member.name)
        if not parts:
            if member.isdir():
                self._directories[self._root] = member
            return
        parent, name = self._parent(parts[:-1]), parts[-1]
        if name.startswith(_WHITEOUT):
            self._whiteout(parent, name)
            return
        path = os.path.join(parent, name)
        if member.isdir():
            self._directory(path, member)
        elif member.isreg() or member.issym() or member.islnk() or member.isfifo():
            self._clear(path)
            self._file(tar, path, member)

    def finish(self) -> None:
        for path, member in reversed(self._directories.items()):
            self._attributes(path, member)

    def _parent(self, parts: tuple[str, ...]) -> str:
        """The real directory for `parts` inside the root, made where missing."""
        known = self._parents.get(parts)
        if known is None:
            known = self._parents[parts] = self._resolve(parts)
        return known

    def _resolve(self, parts: tuple[str, ...]) -> str:
        pending, hops = list(reversed(parts)), 0
        done: list[str] = []
        while pending:
            part = pending.pop()
            if part == "..":
                # Only symlink targets bring it here; the container's root is its own parent.
                if done:
                    done.pop()
                continue
            path = os.path.join(self._root, *done, part)
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                os.mkdir(path, 0o755)
                mode = stat.S_IFDIR
            if stat.S_ISLNK(mode):
                hops += 1
                if hops > _MAX_SYMLINKS:
                    raise ContainerError(
                        f"image layer: /{'/'.join(parts)}: too many symbolic links"
                    )
                link = os.readlink(path)
                if link.startswith("/"):
                    done = []
                pending += reversed([p for p in link.split("/") if p not in ("", ".")])
            elif stat.S_ISDIR(mode):
                done.append(part)
            else:
                raise ContainerError(f"image layer: /{'/'.join(parts)}: goes through a file")
        return os.path.join(self._root, *done)

    def _whiteout(self, parent: str, name: str) -> None:
        if name == _OPAQUE:
            _set_opaque(parent)
        elif not name.startswith(_WHITEOUT * 2):
            hidden = name[len(_WHITEOUT) :]
            if hidden in ("", ".", ".."):
                raise ContainerError(f"image layer: whiteout of {hidden!r}")
            path = os.path.join(parent, hidden)
            # A file of the same layer wins over the whiteout, in either order (layer.md).
            if not os.path.lexists(path):
                os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))

    def _directory(self, path: str, member: tarfile.TarInfo) -> None:
        if os.path.lexists(path) and not stat.S_ISDIR(os.lstat(path).st_mode):
            self._clear(path)
        if not os.path.lexists(path):
            os.mkdir(path, 0o755)
        self._directories[path] = member

    def _clear(self, path: str) -> None:
        """Make room for what replaces `path`: within one layer the later entry counts."""
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        self._parents.clear()
        if stat.S_ISDIR(mode):
            shutil.rmtree(path)
            inside = path + "/"
            self._directories = {
                p: m for p, m in self._directories.items() if p != path and not p.startswith(inside)
            }
        else:
            os.unlink(path)

    def _file(self, tar: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> None:
        if member.issym():
            os.symlink(member.linkname, path)
        elif member.islnk():
            self._hard_link(path, member)
            return
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        else:
            self._regular(tar, path, member)
        self._attributes(path, member)

    def _hard_link(self, path: str, member: tarfile.TarInfo) -> None:
        parts = _parts(member.linkname)
        source = os.path.join(self._parent(parts[:-1]), parts[-1]) if parts else self._root
        if not os.path.lexists(source) or stat.S_ISDIR(os.lstat(source).st_mode):
            raise ContainerError(
                f"image layer: {member.name}: hard link to {member.linkname}, which is not in it"
            )
        os.link(source, path, follow_symlinks=False)

    def _regular(self, tar: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> None:
        source = tar.extractfile(member)
        assert source is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            shutil.copyfileobj(source, file, 1024 * 1024)
        self.size += member.size

    def _attributes(self, path: str, member: tarfile.TarInfo) -> None:
        if self._as_root:
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            mode = member.mode & 0o7777
            # Another user than root must still be able to remove its own directories.
            os.chmod(path, mode if self._as_root or not member.isdir() else mode | 0o700)
            capability = member.pax_headers.get(_CAPABILITY_XATTR)
            if capability and self._as_root:
                value = capability.encode("utf-8", "surrogateescape")
                # A user namespace may not keep the capabilities of the host's files.
                with contextlib.suppress(OSError):
                    os.setxattr(path, "security.capability", value)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in name:
        raise ContainerError(f"image layer: {name!r} leaves the image; refused")
    return parts


def _set_opaque(directory: str) -> None:
    marked = False
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        with contextlib.suppress(OSError):
            os.setxattr(directory, name, b"y")
            marked = True
    if not marked:
        raise ContainerError(
            f"image layer: {directory}: the file system keeps no extended attributes, which opaque "
            "directories need; choose another run directory with PODWIRE_RUN_DIR"
        )
