"""The holder: pid 1 of a lab, owner of its namespaces and sockets, and the warmed parent.

    launcher (host) --exec--> this module --unshare, fork--> pid 1
    pid 1: mounts -> fabric -> imports -> fork of every component -> loop

Everything a component needs is imported once, here, before the first fork; a component then costs
a few milliseconds and shares its pages. The loop holds no Kubernetes logic: it reaps, restarts
what died (within a second, with back-off) and answers the control socket. It is plain `selectors`,
not asyncio, because it forks. When the holder dies the kernel ends the lab.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from podwire.errors import LabError, PodwireError
from podwire.kernel import libc, netns, proc, userns
from podwire.lab import links, wire
from podwire.lab.childoutput import redirect_to_cri_log, redirect_to_log
from podwire.lab.fabric import Fabric
from podwire.lab.nodelocal import open_node_local
from podwire.lab.paths import LabPaths
from podwire.lab.spec import OUTSIDE, ROUTER, LabSpec, NodeSpec, PublishSpec
from podwire.lab.supervised import Component, Context, Published, Spawned

_LOG = logging.getLogger("podwire.holder")

# The node agent's exit status when its Node object was deleted: take the node down, no restart.
EXIT_NODE_REMOVED = 75
_REMEMBERED_EXITS = 4096
# Descriptors that may ride along with one request.
_MAX_SOCKETS = 64


class HolderArguments(msgspec.Struct):
    """What the launcher passes on the command line, as JSON; descriptors are inherited."""

    root: str
    control_fd: int
    api_fd: int
    progress_fd: int
    publish_fds: dict[str, int] = {}


class HolderRecord(msgspec.Struct, frozen=True):
    """`holder.json`: who the holder is, as the host sees it."""

    pid: int
    start_ticks: int
    boot: str

    @property
    def identity(self) -> proc.Identity:
        return proc.Identity(self.pid, self.start_ticks, self.boot)


class Holder:
    def __init__(self, arguments: HolderArguments) -> None:
        self.paths = LabPaths(Path(arguments.root))
        self.spec = msgspec.json.decode(self.paths.spec.read_bytes(), type=LabSpec)
        self.api_socket = socket.socket(fileno=arguments.api_fd)
        self.control = socket.socket(fileno=arguments.control_fd)
        self.publish_sockets = {
            int(port): socket.socket(fileno=fd) for port, fd in arguments.publish_fds.items()
        }
        self._progress = arguments.progress_fd
        self._host_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.host_pid = 0
        self.incarnation = f"{proc.boot_id()}-{os.getpid()}-{time.time_ns()}"
        self.components: dict[str, Component] = {}
        self.spawned: dict[str, Spawned] = {}
        self.exits: dict[str, int] = {}
        self._fabric: Fabric | None = None
        self._impairments = links.Impairments()
        self._clients: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False

    # --- becoming pid 1 -------------------------------------------------------------------------

    def enter(self) -> None:
        """Unshare and fork into the lab's namespaces; only the child (pid 1) returns."""
        userns.unshare_as_root(
            libc.CLONE_NEWNET
            | libc.CLONE_NEWNS
            | libc.CLONE_NEWPID
            | libc.CLONE_NEWUTS
            | libc.CLONE_NEWIPC
            | libc.CLONE_NEWCGROUP
        )
        if os.fork():
            os._exit(0)
        self.host_pid = proc.host_pid(self._host_proc)
        # Read through the host's /proc: after the mounts below, our own shows inner pids.
        ticks = _start_ticks(self._host_proc, self.host_pid)
        record = HolderRecord(self.host_pid, ticks, proc.boot_id())
        _write_atomically(self.paths.holder, msgspec.json.encode(record))
        self._mounts()
        libc.sethostname(f"podwire-{self.spec.name}")

    def _mounts(self) -> None:
        # A masked /proc (inside some containers) refuses a fresh one; the host's then stays.
        with contextlib.suppress(PodwireError):
            libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
        with contextlib.suppress(PodwireError):
            libc.mount("sysfs", "/sys", "sysfs", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
        with contextlib.suppress(PodwireError):
            libc.mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
        libc.mount("podwire", str(self.paths.namespaces), "tmpfs", data="mode=0700")
        for folder in (self.paths.node_pins, self.paths.pod_pins):
            folder.mkdir(mode=0o700)

    # --- building -------------------------------------------------------------------------------

    def build(self) -> None:
        self._fabric = Fabric(self.spec, self.paths.node_pins)
        self._fabric.build(self.spec)
        self.report("fabric")

    def start_all(self) -> None:
        """Import everything once, then fork."""
        for module in ("podwire.lab.components", "podwire.runtime.standin", "podwire.dns.main"):
            importlib.import_module(module)
        gc.collect()
        gc.freeze()
        self.report("imports")
        self._add(Component("apiserver", "podwire.lab.components:apiserver"))
        self._add(Component("controllers", "podwire.lab.components:controllers"))
        self._add(Component("outside-dns", "podwire.lab.components:outside_dns", host=OUTSIDE))
        if self.spec.load_balancer == "bgp":
            self._add(Component("router", "podwire.lab.router:main", host=ROUTER))
        for node in self.spec.nodes:
            self._add_node_components(node)
        for entry in self.spec.publish:
            if entry.port in self.publish_sockets:
                self._add_publish(entry, self.publish_sockets[entry.port])
        self.start_due()

    def _add(self, component: Component) -> None:
        self.components[component.name] = component

    def _add_node_components(self, node: NodeSpec) -> None:
        self.paths.node(node.name).mkdir(mode=0o700, exist_ok=True)
        for kind in ("standin", "agent"):
            entry = f"podwire.lab.components:{kind}"
            self._add(Component(f"{kind}-{node.name}", entry, node, host=node.name))
        if self.spec.node_local_dns:
            entry = "podwire.lab.components:node_local_dns"
            sockets = open_node_local(self.spec, self.paths.node_pins / node.name)
            name = f"dns-{node.name}"
            self._add(Component(name, entry, node, host=node.name, sockets=sockets))

    def _add_publish(self, entry: PublishSpec, listener: socket.socket) -> None:
        """One relay per port: adding another never ends connections of the first."""
        published = Published(entry, listener)
        name = f"publish-{entry.port}"
        self._add(Component(name, "podwire.lab.components:publish", published=published))

    def report(self, message: str) -> None:
        """A line to the launcher, while it listens."""
        if self._progress >= 0:
            with contextlib.suppress(OSError):
                os.write(self._progress, message.encode() + b"\n")

    def built(self) -> None:
        self.report("started")
        if self._progress >= 0:
            os.close(self._progress)
            self._progress = -1

    # --- processes ------------------------------------------------------------------------------

    def start_due(self) -> None:
        now = time.monotonic()
        for component in self.components.values():
            if component.pid == 0 and component.due is not None and component.due <= now:
                self._start(component)

    def _start(self, component: Component) -> None:
        component.started = time.monotonic()
        component.pid = self._fork(
            component.name,
            lambda: _call_entry(component.entry, self._context(component)),
            pin=self.paths.node_pins / component.host if component.host else None,
            log=self.paths.logs / f"{component.name}.log",
        )

    def _context(self, component: Component) -> Context:
        return Context(
            self.spec,
            self.paths,
            self.incarnation,
            self.api_socket,
            component.node,
            component.published,
            component.sockets,
        )

    def _fork(
        self, title: str, body: Callable[[], None], *, pin: Path | None, log: Path | None
    ) -> int:
        pid = os.fork()
        if pid:
            return pid
        # From here on nothing may return into the holder's loop.
        status = 1
        try:
            self._become_child(title, pin, log)
            body()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _become_child(self, title: str, pin: Path | None, log: Path | None) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for client in self._clients:
            client.close()
        self.control.close()
        self._selector.close()
        if self._progress >= 0:
            os.close(self._progress)
        if log is not None:
            redirect_to_log(log)
        if pin is not None:
            fd = netns.open_pin(pin)
            libc.setns(fd, libc.CLONE_NEWNET)
            os.close(fd)
        proc.set_title(f"podwire-{title}")

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, os.waitstatus_to_exitcode(status))

    def _ended(self, pid: int, code: int) -> None:
        for component in self.components.values():
            if component.pid == pid:
                self._component_ended(component, code)
                return
        for spawned in self.spawned.values():
            if spawned.pid == pid:
                self._spawned_ended(spawned, code if code >= 0 else 128 - code)
                return

    def _component_ended(self, component: Component, code: int) -> None:
        component.pid = 0
        if self._stopping:
            return
        if component.node is not None and code == EXIT_NODE_REMOVED:
            self._remove_node(component.node)
            return
        lived = component.ended(time.monotonic())
        _LOG.warning("%s ended with %d after %.1f s; restarting", component.name, code, lived)

    def _spawned_ended(self, spawned: Spawned, code: int) -> None:
        del self.spawned[spawned.key]
        if spawned.owner in self._clients:
            self._send(spawned.owner, {"event": "exit", "key": spawned.key, "status": code})
            return
        # Its agent is being restarted: keep the answer for the one that adopts.
        while len(self.exits) >= _REMEMBERED_EXITS:
            self.exits.pop(next(iter(self.exits)))
        self.exits[spawned.key] = code

    # --- loop -----------------------------------------------------------------------------------

    def run(self) -> None:
        signal.set_wakeup_fd(self._wakeup_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        self.control.setblocking(False)
        self._selector.register(self.control, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wakeup_read, selectors.EVENT_READ, self._woken)
        while not self._stopping:
            for key, _ in self._selector.select(self._timeout()):
                key.data(key.fileobj)
            self.reap()
            self.start_due()

    def _timeout(self) -> float | None:
        waiting = [c.due for c in self.components.values() if c.pid == 0 and c.due is not None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _woken(self, _: object) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup_read, 512):
                pass

    def _stop(self) -> None:
        self._stopping = True

    def _accept(self, _: object) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, _address = self.control.accept()
            client.settimeout(2.0)
            self._clients[client] = b""
            self._selector.register(client, selectors.EVENT_READ, self._serve)

    def _serve(self, client: socket.socket) -> None:
        fds: list[int] = []
        try:
            data, fds = proc.recv_fds(client, 1 << 16, _MAX_SOCKETS)
        except (PodwireError, OSError):
            data = b""
        if not data:
            self._drop(client)
            return
        *lines, self._clients[client] = (self._clients[client] + data).split(b"\n")
        for line in lines:
            self._send(client, self._answer(client, line, fds))
        for fd in fds:
            os.close(fd)

    def _drop(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        self._clients.pop(client, None)
        client.close()

    def _send(self, client: socket.socket | None, message: wire.Message) -> None:
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(wire.encode(message))

    def _answer(self, client: socket.socket, line: bytes, fds: list[int]) -> wire.Message:
        try:
            request = wire.decode(line)
            operation = _OPERATIONS.get(request.get("op", ""))
            if operation is None:
                raise LabError(f"unknown operation {request.get('op')!r}")
            return {"ok": True, **operation(self, client, request, fds)}
        except (PodwireError, msgspec.MsgspecError, OSError, KeyError, TypeError) as error:
            _LOG.warning("control: %s", error)
            return {"ok": False, "error": str(error) or repr(error)}

    # --- operations -----------------------------------------------------------------------------

    def op_status(self, _c: socket.socket, _r: wire.Message, _f: list[int]) -> wire.Message:
        outer = self._host_pids()
        return {
            "holder": {"pid": self.host_pid, "incarnation": self.incarnation},
            "components": [
                {
                    "name": c.name,
                    "node": c.node.name if c.node else "",
                    "pid": outer.get(c.pid, 0),
                    "running": c.pid != 0,
                    "restarts": c.restarts,
                }
                for c in self.components.values()
            ],
            "spec": msgspec.to_builtins(self.spec),
            "impairments": self._impairments.describe(),
        }

    def _host_pids(self) -> dict[int, int]:
        """Inner pid -> pid on the host, for our children: read through the host's /proc."""
        found: dict[int, int] = {}
        with contextlib.suppress(OSError):
            children = _read_at(self._host_proc, f"{self.host_pid}/task/{self.host_pid}/children")
            for outer in children.split():
                with contextlib.suppress(OSError):
                    for line in _read_at(self._host_proc, f"{outer}/status").splitlines():
                        if line.startswith("NSpid:"):
                            found[int(line.split()[-1])] = int(outer)
        return found

    def op_node_add(self, _c: socket.socket, request: wire.Message, _f: list[int]) -> wire.Message:
        node = msgspec.convert(request["node"], NodeSpec)
        if self.spec.node(node.name) is not None:
            raise LabError(f"node {node.name}: exists already")
        assert self._fabric is not None
        self._fabric.add_node(self.spec, node)
        self._set_spec(msgspec.structs.replace(self.spec, nodes=(*self.spec.nodes, node)))
        self._add_node_components(node)
        return {"node": node.name}

    def _remove_node(self, node: NodeSpec) -> None:
        """The node's agent said its Node object is gone: so is the machine."""
        for name in (f"agent-{node.name}", f"standin-{node.name}", f"dns-{node.name}"):
            component = self.components.pop(name, None)
            if component is None:
                continue
            if component.pid:
                os.kill(component.pid, signal.SIGKILL)
            for sock in component.sockets:
                sock.close()
        assert self._fabric is not None
        self._fabric.remove_node(node)
        remaining = tuple(n for n in self.spec.nodes if n.name != node.name)
        self._set_spec(msgspec.structs.replace(self.spec, nodes=remaining))
        _LOG.info("node %s removed", node.name)

    def _set_spec(self, spec: LabSpec) -> None:
        self.spec = spec
        write_spec(self.paths, spec)

    def op_publish(self, _c: socket.socket, request: wire.Message, fds: list[int]) -> wire.Message:
        """Take a listening socket of the host and relay it."""
        entry = msgspec.convert(request["publish"], PublishSpec)
        if not fds:
            raise LabError("publish: no socket came with the request")
        self._set_spec(msgspec.structs.replace(self.spec, publish=(*self.spec.publish, entry)))
        self._add_publish(entry, socket.socket(fileno=os.dup(fds[0])))
        return {}

    def op_link(self, _c: socket.socket, request: wire.Message, _f: list[int]) -> wire.Message:
        ends = [self.spec.node(name) for name in (request["a"], request["b"])]
        if ends[0] is None or ends[1] is None:
            missing = [n for n, e in zip((request["a"], request["b"]), ends, strict=True) if not e]
            raise LabError(f"link: no node {', '.join(missing)} in lab {self.spec.name}")
        self._impairments.change(ends[0], ends[1], request["impairment"])
        return {"impairments": self._impairments.describe()}

    def op_spawn(
        self, client: socket.socket, request: wire.Message, fds: list[int]
    ) -> wire.Message:
        key: str = request["key"]
        if key in self.spawned:
            raise LabError(f"process {key}: runs already")
        pin = Path(request["netns"]) if request["netns"] else None

        def body() -> None:
            redirect_to_cri_log(Path(request["log"]))
            os.environ.update(request["env"])
            given = {"sockets": fds} if fds else {}
            _call_entry(request["entry"], **request["kwargs"], **given)

        self.exits.pop(key, None)
        title = "-".join(key.split("/")[1:]) or key
        pid = self._fork(title, body, pin=pin, log=None)
        started_at = time.time()
        self.spawned[key] = Spawned(key, pid, started_at, client)
        return {"pid": pid, "started_at": started_at}

    def op_adopt(self, client: socket.socket, request: wire.Message, _f: list[int]) -> wire.Message:
        prefix: str = request["prefix"]
        running = {}
        for key, spawned in self.spawned.items():
            if key.startswith(prefix):
                spawned.owner = client
                running[key] = (spawned.pid, spawned.started_at)
        ended = {key: code for key, code in self.exits.items() if key.startswith(prefix)}
        for key, code in ended.items():
            self._send(client, {"event": "exit", "key": key, "status": code})
            del self.exits[key]
        return {"running": running}

    def op_kill(self, _c: socket.socket, request: wire.Message, _f: list[int]) -> wire.Message:
        spawned = self.spawned.get(request["key"])
        if spawned is not None:
            os.kill(spawned.pid, request["signal"])
        return {}


_OPERATIONS: dict[str, Callable[[Holder, socket.socket, wire.Message, list[int]], wire.Message]] = {
    "status": Holder.op_status,
    "node-add": Holder.op_node_add,
    "publish": Holder.op_publish,
    "link": Holder.op_link,
    "spawn": Holder.op_spawn,
    "adopt": Holder.op_adopt,
    "kill": Holder.op_kill,
}


def _call_entry(entry: str, *args: Any, **kwargs: Any) -> None:
    module, _, function = entry.partition(":")
    getattr(importlib.import_module(module), function)(*args, **kwargs)


def _read_at(folder: int, path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(fd) as file:
        return file.read()


def _start_ticks(host_proc: int, pid: int) -> int:
    return int(_read_at(host_proc, f"{pid}/stat").rpartition(")")[2].split()[19])


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_spec(paths: LabPaths, spec: LabSpec) -> None:
    """Remember what the lab is, in its folder and where its state is kept."""
    for folder in {paths.root, paths.state(spec.state_dir)}:
        _write_atomically(folder / paths.spec.name, msgspec.json.encode(spec))


def main() -> NoReturn:
    arguments = msgspec.json.decode(sys.argv[1], type=HolderArguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    proc.raise_nofile()
    holder = Holder(arguments)
    try:
        holder.enter()
        proc.set_title("podwire-holder")
        holder.build()
        holder.start_all()
        holder.built()
        holder.run()
    except BaseException as error:
        _LOG.exception("the lab could not be built")
        holder.report(f"error {error}")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
