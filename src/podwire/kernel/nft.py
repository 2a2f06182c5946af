"""nftables transactions as text: what `nft -f` reads, committed whole or not at all.

    text -> libnftables in this process (0.2 ms a transaction), or the `nft` program where the
    library is missing (4 ms)

A library context keeps the namespace it was made in, so an `Nft` may be used from anywhere
afterwards. Listing is for tests and diagnostics only: it costs seconds on a large ruleset and no
hot path may depend on it. Requires nft 0.9.1 (`destroy` is not used: it needs 1.0.7 and Linux 6.3).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
import subprocess
import threading
from typing import Final

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import guard, netns
from podwire.kernel.handle import Handle

_LIBRARY: Final = "libnftables.so.1"
_STDERR_LIMIT: Final = 2000
# libnftables keeps symbol tables per process in some versions; one transaction at a time is safe
# in all of them, and an agent has only one to send anyway.
_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock()))


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        lib = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError:
        return None
    lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_free.argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
        getattr(lib, name).restype = ctypes.c_char_p
    lib.nft_run_cmd_from_filename.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return lib


def in_process() -> bool:
    """Whether transactions are made by this process, and not by the `nft` program."""
    return _library() is not None


class Nft(Handle):
    """The nftables ruleset of one network namespace."""

    def __init__(self) -> None:
        """Open in the calling thread's namespace; `HostNamespaceError` when that is the host's."""
        guard.assert_not_host("nftables")
        self._context: int | None = None
        self._namespace = -1
        library = _library()
        if library is None:
            self._namespace = netns.current()
            return
        with _lock:
            context = library.nft_ctx_new(0)
            if not context:
                raise KernelError("nftables: libnftables gave no context", errno=errno.ENOMEM)
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
        self._context = context

    def close(self) -> None:
        library = _library()
        if self._context is not None and library is not None:
            with _lock:
                library.nft_ctx_free(self._context)
        if self._namespace >= 0:
            os.close(self._namespace)
        self._context, self._namespace = None, -1

    def apply(self, text: str) -> None:
        """Commit the text as one transaction; nothing happens when any of it is wrong.

        Errors: `KernelError` with the errno where nft names one, nft's own report (which quotes the
        offending line) as `stderr`.
        """
        if text.strip():
            self._run(text)

    def list_table(self, family: str, name: str) -> str:
        """The table as text; `KernelError` ENOENT when there is none."""
        return self._run(f"list table {family} {name}\n")

    def list_ruleset(self) -> str:
        return self._run("list ruleset\n")

    def delete_table(self, family: str, name: str) -> None:
        """Delete the table; an absent one is fine."""
        self._run(render_delete(family, name))

    def _run(self, text: str) -> str:
        library = _library()
        if self._context is None or library is None:
            return self._run_program(text)
        # Errors name a line only in files, so the text goes through one that has no name.
        file = os.memfd_create("nft")
        try:
            _write_all(file, text.encode())
            return self._run_file(library, text, f"/proc/self/fd/{file}")
        finally:
            os.close(file)

    def _run_file(self, library: ctypes.CDLL, text: str, path: str) -> str:
        with _lock:
            failed = library.nft_run_cmd_from_filename(self._context, path.encode())
            output = library.nft_ctx_get_output_buffer(self._context) or b""
            report = library.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise _error(text, report.decode(errors="replace"), None)
        return str(output.decode())

    def _run_program(self, text: str) -> str:
        if self._namespace < 0:
            raise KernelError("nftables: the handle is closed")
        try:
            with netns.entered(self._namespace):
                # The child is a copy of this thread, so it starts in this namespace.
                done = subprocess.run(
                    ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
                )
        except FileNotFoundError as e:
            raise UnsupportedError(
                f"nftables: neither {_LIBRARY} nor the nft program is installed; "
                "install the package nftables",
                errno=errno.ENOENT,
            ) from e
        if done.returncode:
            raise _error(text, done.stderr, "nft -f -")
        return done.stdout


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


_POSITION: Final = re.compile(r"^(?:\S+?):(\d+):(\d+)-(\d+): Error: (.*)$", re.MULTILINE)
_ERRNO_OF: Final = {os.strerror(code): code for code in errno.errorcode}


def render_delete(family: str, name: str) -> str:
    """What deletes a table, there or not: within one transaction the `add` makes it valid."""
    return f"add table {family} {name}\ndelete table {family} {name}\n"


def _error(text: str, report: str, command: str | None) -> KernelError:
    found = _POSITION.search(report)
    if found:
        number, reason = int(found[1]), found[4]
        lines = text.splitlines()
        line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        message = f"nftables: line {number}: {line[:200]!r}: {reason}"
    else:
        message = f"nftables: {report.strip().splitlines()[0] if report.strip() else 'failed'}"
        reason = message
    # "Could not process rule: REASON", "REASON; did you mean table 'x' in family ip?"
    tail = reason.partition("; did you mean")[0].rpartition(": ")[2]
    code = _ERRNO_OF.get(tail, 0)
    if code:
        message = message.removesuffix(tail).removesuffix(": ")  # KernelError says it
    return KernelError(message, errno=code, command=command, stderr=report[:_STDERR_LIMIT])


def _opened(ns: int | None) -> Nft:
    return Nft() if ns is None else Nft.in_ns(ns)


def apply(text: str, ns: int | None = None) -> None:
    """Commit `text` in the namespace `ns` (None: the calling thread's). See `Nft.apply`."""
    with _opened(ns) as nft:
        nft.apply(text)


def list_table(family: str, name: str, ns: int | None = None) -> str:
    with _opened(ns) as nft:
        return nft.list_table(family, name)


def list_ruleset(ns: int | None = None) -> str:
    with _opened(ns) as nft:
        return nft.list_ruleset()


def delete_table(family: str, name: str, ns: int | None = None) -> None:
    """Delete the table; an absent one is fine."""
    with _opened(ns) as nft:
        nft.delete_table(family, name)
