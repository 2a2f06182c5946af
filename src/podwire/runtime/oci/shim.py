"""The supervisor of one container: started by the agent, outlives it, ends with its container.

    agent -> python -I -S shim.py run DIR -> fork, setsid -> shim -> crun run --detach -> container
    container stdout, stderr | pty -> shim -> CRI log file, attached clients
    container exit -> shim -> DIR/exit.json, connected agents

The shim is a subreaper, so the container's first process becomes its child and its exit code
cannot be lost, whatever happens to the agent. It has a mount namespace of its own, where the
overlay root file system is mounted: when shim and container are gone so is the mount, and nobody
has to clean up.

It runs from this file alone, with no import beyond a few modules of the standard library and no
site-packages: it starts in 10 ms, and a node holds one per running container. A Python forked
from the agent would be cheaper at first, but drags the agent's threads, locks and descriptors
along.

Protocol on DIR/shim.sock, both ways: type (1 byte), length (4 bytes, big endian), payload.
    to the shim    k signal   a attach   i stdin   c close stdin   r "columns rows"
    from the shim  1 stdout   2 stderr   x exit record
`python -I -S shim.py pause SPEC` makes the pod's shared namespaces instead: see `_pause`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, Final

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUTS: Final = 0x04000000
_CLONE_NEWIPC: Final = 0x08000000
_CLONE_NEWPID: Final = 0x20000000
_CLONE_NEWNET: Final = 0x40000000
_MS_REC_SLAVE: Final = 16384 | 1 << 19
_PR_SET_CHILD_SUBREAPER: Final = 36
_MAX_LINE: Final = 16 * 1024
_READ: Final = 64 * 1024
# An onlooker that does not read is dropped, never waited for: logs and the container come first.
_MAX_BACKLOG: Final = 4 * 1024 * 1024
_DRAIN_S: Final = 1.0

_libc = ctypes.CDLL(None, use_errno=True)
_HEADER: Final = struct.Struct(">cI")


def _call(what: str, result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    arguments = (source.encode(), target.encode(), fstype.encode() or None)
    _call(f"mount {target}", _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None))


class Log:
    """One CRI log file; past `max_bytes` it moves to `.1`, `.1` to `.2` and so on.

    Source: kubernetes/design-proposals-archive node/kubelet-cri-logging.md.
    """

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._rest = {b"stdout": b"", b"stderr": b""}
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: bytes, data: bytes) -> None:
        *lines, rest = (self._rest[stream] + data).split(b"\n")
        prefix = _timestamp() + b" " + stream
        out = []
        for line in lines:
            while len(line) > _MAX_LINE:
                out.append(b"%s P %s\n" % (prefix, line[:_MAX_LINE]))
                line = line[_MAX_LINE:]
            out.append(b"%s F %s\n" % (prefix, line))
        while len(rest) >= _MAX_LINE:
            out.append(b"%s P %s\n" % (prefix, rest[:_MAX_LINE]))
            rest = rest[_MAX_LINE:]
        self._rest[stream] = rest
        self._append(b"".join(out))

    def finish(self) -> None:
        for stream, rest in self._rest.items():
            if rest:
                self._append(b"%s %s F %s\n" % (_timestamp(), stream, rest))

    def _append(self, data: bytes) -> None:
        if not data:
            return
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._size += len(data)
        except OSError:
            # A full disk loses log lines, never the container.
            return

    def _rotate(self) -> None:
        try:
            for number in range(self._files - 1, 0, -1):
                source = self._path if number == 1 else f"{self._path}.{number - 1}"
                if os.path.exists(source):
                    os.rename(source, f"{self._path}.{number}")
        except OSError:
            return
        os.close(self._fd)
        self._open()


def _timestamp() -> bytes:
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % nanos


class Client:
    """One connection on shim.sock."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.attached = False
        self.out = bytearray()
        self._in = bytearray()

    def frames(self) -> list[tuple[bytes, bytes]] | None:
        """What arrived; None when the peer is gone."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self._in += data
        found = []
        while len(self._in) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._in)
            end = _HEADER.size + length
            if len(self._in) < end:
                break
            found.append((kind, bytes(self._in[_HEADER.size : end])))
            del self._in[:end]
        return found

    def send(self, kind: bytes, payload: bytes) -> bool:
        """Queue and try to send; False when the peer is gone or too slow."""
        self.out += _HEADER.pack(kind, len(payload)) + payload
        return self.flush() and len(self.out) < _MAX_BACKLOG

    def flush(self) -> bool:
        try:
            while self.out:
                del self.out[: self.sock.send(self.out)]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


class Shim:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.log = Log(spec["log_path"], spec["log_max_bytes"], spec["log_files"])
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.clients: dict[int, Client] = {}
        self.outputs: dict[int, bytes] = {}
        self.stdin = -1
        self.stdin_queue = bytearray()
        self.stdin_closing = False
        self.pid = 0
        self.pidfd = -1
        self.master = -1

    # --- start ---

    def start(self) -> None:
        """Mount, listen, run the container; raises `OSError` or `RuntimeError`."""
        _call("unshare mounts", _libc.unshare(_CLONE_NEWNS))
        _mount("none", "/", "", _MS_REC_SLAVE, "")
        self._mount_root()
        _call("prctl", _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind("shim.sock")
        listener.listen(64)
        self._register(listener.fileno(), select.POLLIN, lambda _: self._accept(listener))
        if self.spec["tty"]:
            self._run_with_terminal()
        else:
            self._run_with_pipes()
        with open("pid", encoding="ascii") as file:
            self.pid = int(file.read())
        self.pidfd = os.pidfd_open(self.pid)
        self._register(self.pidfd, select.POLLIN, lambda _: None)

    def _mount_root(self) -> None:
        lower, extra = self.spec["lower"], self.spec["overlay_options"]
        try:
            options = f"lowerdir={lower},upperdir=upper,workdir=work{extra}"
            _mount("overlay", "rootfs", "overlay", 0, options)
        except OSError as e:
            # The file system below cannot carry an upper layer (it is an overlay itself, say).
            try:
                _mount("tmpfs", "scratch", "tmpfs", 0, "mode=700")
                os.mkdir("scratch/upper", 0o755)
                os.mkdir("scratch/work")
                options = f"lowerdir={lower},upperdir=scratch/upper,workdir=scratch/work{extra}"
                _mount("overlay", "rootfs", "overlay", 0, options)
            except OSError:
                raise e from None

    def _run_with_pipes(self) -> None:
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        in_w = -1
        if self.spec["stdin"]:
            in_r, in_w = os.pipe()
        else:
            in_r = os.open(os.devnull, os.O_RDONLY)
        try:
            self._run(in_r, out_w, err_w)
        finally:
            for fd in (in_r, out_w, err_w):
                os.close(fd)
        self._read_from(out_r, b"stdout")
        self._read_from(err_r, b"stderr")
        self._write_to(in_w)

    def _run_with_terminal(self) -> None:
        console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        console.bind("console.sock")
        console.listen(1)
        null = os.open(os.devnull, os.O_RDWR)
        self._run(null, null, null)
        connection, _ = console.accept()
        _, (self.master, *_), _, _ = socket.recv_fds(connection, 4096, 1)
        for closing in (connection, console):
            closing.close()
        os.close(null)
        self._read_from(self.master, b"stdout")
        if self.spec["stdin"]:
            self._write_to(os.dup(self.master))

    def _run(self, stdin: int, stdout: int, stderr: int) -> None:
        code = _spawn(self.spec["run"], stdin, stdout, stderr)
        if code != 0:
            raise RuntimeError(_runtime_error() or f"{self.spec['run'][0]} ended with code {code}")

    def _register(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        self.handlers[fd] = handler
        self.poll.register(fd, events)

    def _unregister(self, fd: int) -> None:
        del self.handlers[fd]
        self.poll.unregister(fd)

    def _read_from(self, fd: int, stream: bytes) -> None:
        os.set_blocking(fd, False)
        self.outputs[fd] = stream
        self._register(fd, select.POLLIN, lambda _: self._output(fd))

    def _write_to(self, fd: int) -> None:
        if fd >= 0:
            os.set_blocking(fd, False)
            self.stdin = fd

    # --- the loop ---

    def serve(self) -> int:
        """Until the container's first process ended and its output is written; its wait status."""
        status = None
        while status is None:
            self._once(None)
            status = self._reap()
        self._unregister(self.pidfd)
        if self.spec["shared_pid"]:
            self._kill_stragglers()
        deadline = time.monotonic() + _DRAIN_S
        while self.outputs and (left := deadline - time.monotonic()) > 0:
            self._once(left)
        return status

    def _reap(self) -> int | None:
        """Collect every ended child; the wait status of the container's first process, if ended."""
        found = None
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    found = ended[1]
        except ChildProcessError:
            return found
        return found

    def _once(self, timeout_s: float | None) -> None:
        for fd, _ in self.poll.poll(None if timeout_s is None else timeout_s * 1000):
            handler = self.handlers.get(fd)
            if handler is not None:
                handler(fd)

    def _output(self, fd: int) -> None:
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return
        except OSError:
            # EIO: nobody holds the terminal's other side any more.
            data = b""
        if not data:
            self._unregister(fd)
            del self.outputs[fd]
            return
        stream = self.outputs[fd]
        self.log.write(stream, data)
        kind = b"1" if stream == b"stdout" else b"2"
        for client in [c for c in self.clients.values() if c.attached]:
            self._send(client, kind, data)

    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.setblocking(False)
        client = Client(sock)
        self.clients[sock.fileno()] = client
        self._register(sock.fileno(), select.POLLIN, lambda _: self._client(client))

    def _client(self, client: Client) -> None:
        frames = client.frames()
        if frames is None or not client.flush():
            self._drop(client)
            return
        for kind, payload in frames:
            self._command(client, kind, payload)
        self._watch_writes(client)

    def _send(self, client: Client, kind: bytes, payload: bytes) -> None:
        if client.send(kind, payload):
            self._watch_writes(client)
        else:
            self._drop(client)

    def _watch_writes(self, client: Client) -> None:
        fd = client.sock.fileno()
        if fd in self.clients:
            self.poll.modify(fd, select.POLLIN | (select.POLLOUT if client.out else 0))

    def _drop(self, client: Client) -> None:
        fd = client.sock.fileno()
        if self.clients.pop(fd, None) is not None:
            self._unregister(fd)
            client.sock.close()

    def _command(self, client: Client, kind: bytes, payload: bytes) -> None:
        if kind == b"k":
            # Our own child, not yet waited for: the pid cannot be somebody else's.
            os.kill(self.pid, int(payload))
        elif kind == b"a":
            client.attached = True
        elif kind == b"i":
            self.stdin_queue += payload
            self._feed()
        elif kind == b"c":
            self.stdin_closing = True
            self._feed()
        elif kind == b"r" and self.master >= 0:
            columns, rows = map(int, payload.split())
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def _feed(self) -> None:
        if self.stdin < 0:
            self.stdin_queue.clear()
            return
        try:
            while self.stdin_queue:
                del self.stdin_queue[: os.write(self.stdin, self.stdin_queue)]
        except BlockingIOError:
            if self.stdin not in self.handlers:
                self._register(self.stdin, select.POLLOUT, lambda _: self._feed())
            return
        except OSError:
            self.stdin_closing = True
        if self.stdin in self.handlers:
            self._unregister(self.stdin)
        if self.stdin_closing:
            os.close(self.stdin)
            self.stdin = -1

    def _kill_stragglers(self) -> None:
        """In a shared pid namespace the kernel does not end what the first process left behind.

        They are known by their root: every overlay mount is a device of its own.
        """
        device = os.stat("rootfs").st_dev
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{name}/root/").st_dev == device:
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                continue

    # --- end ---

    def finish(self, status: int) -> None:
        self.log.finish()
        code = os.waitstatus_to_exitcode(status)
        record = {"exit_code": code if code >= 0 else 128 - code, "signal": max(-code, 0)}
        raw = json.dumps(record | {"finished_at": time.time()}).encode()
        with open("exit.json.new", "wb") as file:
            file.write(raw)
        os.rename("exit.json.new", "exit.json")
        # The last connections may still wait in the backlog.
        self._once(0)
        for client in list(self.clients.values()):
            client.sock.setblocking(True)
            client.sock.settimeout(_DRAIN_S)
            client.send(b"x", raw)
        os.unlink("shim.sock")
        null = os.open(os.devnull, os.O_RDWR)
        _spawn(self.spec["delete"], null, null, null)


def _spawn(argv: list[str], stdin: int, stdout: int, stderr: int) -> int:
    """Run a program to its end with these streams; its exit code."""
    actions = [
        (os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, stdout, stderr))
    ]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _runtime_error() -> str:
    """The last message in the runtime's own log (one JSON object per line)."""
    try:
        with open("runtime.log", encoding="utf-8", errors="replace") as file:
            lines = file.read().strip().splitlines()
    except OSError:
        return ""
    if not lines:
        return ""
    try:
        return str(json.loads(lines[-1])["msg"])
    except (ValueError, KeyError, TypeError):
        return lines[-1]


def _report(record: dict[str, Any]) -> None:
    """Answer the agent, which reads our stdout, and let go of its descriptors."""
    os.write(1, json.dumps(record).encode())
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _run(directory: str) -> None:
    os.chdir(directory)
    if os.fork():
        os._exit(0)
    os.setsid()
    # Below 3 nothing may be opened: those numbers are given to the container.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with open("shim.json", encoding="utf-8") as file:
        shim = Shim(json.load(file))
    try:
        shim.start()
    except (OSError, RuntimeError) as e:
        _report({"error": str(e)})
        if shim.spec["delete"]:
            _spawn(shim.spec["delete"], 0, 1, 2)
        return
    _report({"pid": shim.pid})
    shim.finish(shim.serve())


def _pause(text: str) -> None:
    """Hold a pod's ipc and uts (and pid) namespaces: `sleep` is all that stays, 0.1 MB of its own.

    SIGCHLD is ignored, which survives exec and makes the kernel reap what is orphaned to it: as
    pid 1 of a shared pid namespace it needs no code for that.
    """
    spec = json.loads(text)
    flags = _CLONE_NEWIPC | _CLONE_NEWUTS | (_CLONE_NEWPID if spec["pid"] else 0)
    os.chdir("/")
    if spec["netns"]:
        fd = os.open(spec["netns"], os.O_RDONLY)
        _call("setns", _libc.setns(fd, _CLONE_NEWNET))
        os.close(fd)
    _call("unshare", _libc.unshare(flags))
    name = spec["hostname"].encode()
    _call("sethostname", _libc.sethostname(name, ctypes.c_size_t(len(name))))
    ready, ready_w = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ready_w)
        # EOF comes with exec: only then is nothing of ours left in the child.
        failure = os.read(ready, 1000)
        _report({"error": failure.decode()} if failure else {"pid": pid})
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        os.execv(spec["sleep"], ["sleep", "2147483647"])
    except OSError as e:
        os.write(ready_w, str(e).encode())
        os._exit(1)


def main() -> None:
    # Some event loops leak descriptors into children (uvloop); held here they would never close.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    mode, argument = sys.argv[1:]
    try:
        _run(argument) if mode == "run" else _pause(argument)
    except OSError as e:
        _report({"error": str(e)})
        os._exit(1)


if __name__ == "__main__":
    main()
