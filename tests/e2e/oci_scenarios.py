"""What containers must do, each scenario run by test_oci.py in namespaces of its own.

python oci_scenarios.py SCENARIO DIRECTORY FLAVOUR
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.errors import ContainerError
from podwire.kernel import libc, netns
from podwire.runtime.containers import ContainerSpec, ExitStatus, Mount, User
from podwire.runtime.oci import OciRuntime
from podwire.runtime.oci import probe as probe_module
from podwire.runtime.oci.container import OciContainer


def _image_builder() -> Any:
    path = Path(__file__).parents[1] / "unit/runtime/oci/image_builder.py"
    spec = importlib.util.spec_from_file_location("image_builder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A name of 64 characters is the longest that uname(2) has room for.
HOSTNAME = f"web-0.{'d' * 35}.shop.svc.cluster.local"


class Lab:
    def __init__(self, directory: Path, runtime: OciRuntime) -> None:
        self.dir = directory
        self.runtime = runtime
        self.rootless = "4294967295" not in Path("/proc/self/uid_map").read_text()
        self.pin = directory / "pin"

    @staticmethod
    async def make(directory: Path, flavour: str) -> Lab:
        libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
        if flavour == "runc":
            runtime = OciRuntime(
                await probe_module._facts("runc"), directory / "oci", _store(directory)
            )
            runtime._dir.mkdir()
        else:
            found = await OciRuntime.probe(directory / "oci", directory / "images")
            assert found is not None
            assert found.name == "crun", found.name
            runtime = found
        lab = Lab(directory, runtime)
        builder = _image_builder()
        busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
        layers = builder.busybox_layers(busybox)
        archive = builder.docker_save(
            directory / "bb.tar", "bb", layers, Cmd=["sh"], Env=["FROM=image", "BOTH=image"]
        )
        runtime.images.load(archive)
        layout = builder.oci_layout(directory / "layout", "app:1", layers, User="app")
        runtime.images.load(layout)
        lab.make_pod_namespace()
        return lab

    def make_pod_namespace(self) -> None:
        with netns.creating(self.pin) as fd:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        os.close(fd)

    def spec(self, name: str, script: str = "", **kwargs: Any) -> ContainerSpec:
        (self.dir / "logs").mkdir(exist_ok=True)
        (self.dir / "hosts").write_text("127.0.0.1 localhost\n10.0.0.9 friend\n")
        (self.dir / "resolv").write_text("nameserver 10.96.0.10\n")
        defaults: dict[str, Any] = {
            "pod_uid": "uid-1",
            "pod_namespace": "shop",
            "pod_name": "web-0",
            "name": name,
            "attempt": 0,
            "image": "bb",
            "netns": self.pin,
            "hostname": HOSTNAME,
            "hosts_path": self.dir / "hosts",
            "resolv_conf_path": self.dir / "resolv",
            "log_path": self.dir / f"logs/{name}.log",
            "termination_path": self.dir / f"termination-{name}",
        }
        if script:
            defaults["command"] = ("sh", "-c", script)
        return ContainerSpec(**(defaults | kwargs))

    async def start(self, name: str, script: str = "", **kwargs: Any) -> OciContainer:
        return await self.runtime.create_and_start(self.spec(name, script, **kwargs))

    async def run(self, name: str, script: str = "", **kwargs: Any) -> tuple[ExitStatus, str]:
        """Run to the end: how it ended, and its output without the CRI prefix."""
        container = await self.start(name, script, **kwargs)
        async with asyncio.timeout(20):
            ended = await container.wait()
        output = self.log(name)
        await container.remove()
        container.log_path.unlink()
        return ended, output

    def log(self, name: str) -> str:
        lines = (self.dir / f"logs/{name}.log").read_text().splitlines()
        return "\n".join(line.split(" ", 3)[3] for line in lines)

    async def until_logged(self, name: str, text: str) -> None:
        async with asyncio.timeout(20):
            # Another process writes the file, and nothing else tells of it.
            while not (self.dir / f"logs/{name}.log").exists() or text not in self.log(name):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def exits_and_logs(lab: Lab) -> None:
    ended, output = await lab.run("a", "echo out; echo err >&2; printf tail; exit 7")
    assert ended == ExitStatus(7), ended
    assert set(output.splitlines()) == {"out", "err", "tail"}, output
    ended, _ = await lab.run("b", "kill -TERM $$; sleep 5", share_process_namespace=True)
    assert (ended.exit_code, ended.signal) == (143, 15), ended
    container = await lab.start("c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done")
    await lab.until_logged("c", "up")
    await container.kill(signal.SIGTERM)
    assert (await container.wait()).exit_code == 5
    assert (await container.wait()).exit_code == 5
    container = await lab.start("d", "sleep 100")
    await container.kill(signal.SIGKILL)
    assert await container.wait() == ExitStatus(137, signal=9)


async def long_output_is_whole_and_rotated(lab: Lab) -> None:
    ended, output = await lab.run("a", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done")
    assert ended.ok
    assert output == "\n".join(map(str, range(20000)))
    container = await lab.start("b", "head -c 40000 /dev/zero; echo; head -c 12000000 /dev/zero")
    assert (await container.wait()).ok
    first = (lab.dir / "logs/b.log.1").read_bytes().split(b"\n")[:3]
    assert [line.split(b" ")[2] for line in first] == [b"P", b"P", b"F"]
    assert len(first[0].split(b" ", 3)[3]) == 16384
    both = [(lab.dir / f"logs/b.log{suffix}").read_bytes() for suffix in ("", ".1")]
    assert sum(data.count(b"\0") for data in both) == 12040000


async def surroundings(lab: Lab) -> None:
    (lab.dir / "vol").mkdir()
    (lab.dir / "vol/in").write_text("volume")
    script = (
        "hostname; cat /etc/hosts /etc/resolv.conf /vol/in /etc/motd; echo; env; pwd; "
        "echo bye > /dev/termination-log; echo x > /dev/shm/x; "
        "touch /new && echo wrote; touch /vol/x || echo volume is read-only; "
        "cat /sys/kernel/uevent_seqnum > /dev/null && ls /tmpfs && mount | grep ' /tmpfs '"
    )
    ended, output = await lab.run(
        "a",
        script,
        env=(("BOTH", "pod"), ("OWN", "a b")),
        working_dir="/tmp",
        mounts=(
            Mount("/vol", lab.dir / "vol", read_only=True),
            Mount("/tmpfs", None, size_bytes=65536),
        ),
    )
    lines = output.splitlines()
    assert ended.ok, (ended, output)
    for expected in (
        HOSTNAME, "10.0.0.9 friend", "nameserver 10.96.0.10", "volumehello", "FROM=image",
        "BOTH=pod", "OWN=a b", f"HOSTNAME={HOSTNAME}", "HOME=/root", "/tmp", "wrote",
        "volume is read-only",
    ):  # fmt: skip
        assert expected in lines, (expected, output)
    assert (lab.dir / "termination-a").read_text() == "bye\n"
    _, output = await lab.run("b", "ls /new; touch /y; echo end", read_only_rootfs=True)
    assert "/y: Read-only file system" in output, output
    assert "/new: No such file" in output, output
    _, output = await lab.run("c", "cat /dev/shm/x; cat /proc/1/comm; echo $$")
    assert output.splitlines() == ["x", "sh", "1"], output


async def failures_are_told(lab: Lab) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"image": "other"}, "ErrImageNeverPull", "not loaded"),
        ({"command": ("nonsense",)}, "RunContainerError", "nonsense"),
        ({"user": User(must_not_be_root=True)}, "CreateContainerConfigError", "run as root"),
        ({"capabilities_add": ("FLY",)}, "CreateContainerError", "unknown capability FLY"),
        ({"mounts": (Mount("/x", Path("/no/such")),)}, "RunContainerError", "/no/such"),
        ({"netns": None, "sysctls": (("net.x", "1"),)}, "SysctlForbidden", "hostNetwork"),
    ]
    if lab.rootless:
        cases.append(({"user": User(1000)}, "CreateContainerConfigError", "subuid"))
        cases.append(({"image": "app:1"}, "CreateContainerConfigError", "subuid"))
    for number, (changes, reason, text) in enumerate(cases):
        with pytest.raises(ContainerError, match=re.escape(text)) as caught:
            await lab.start(f"f{number}", **({"script": ""} | changes))
        assert caught.value.reason == reason
    assert not list((lab.dir / "oci/uid-1").glob("*/container.json"))
    assert not list((lab.dir / "images/users").iterdir())


async def users(lab: Lab) -> None:
    _, output = await lab.run("a", "id; grep Cap /proc/self/status".replace("grep", "busybox grep"))
    assert "uid=0" in output.splitlines()[0], output
    assert "CapEff:\t00000000a80425fb" in output, output
    _, output = await lab.run("b", "busybox grep CapEff /proc/1/status", capabilities_drop=("ALL",))
    assert "CapEff:\t0000000000000000" in output, output
    if lab.rootless:
        return
    _, output = await lab.run("c", "id", image="app:1")
    assert output.startswith("uid=1000(app) gid=1001(app) groups="), output
    assert "2000" in output, output
    _, output = await lab.run("d", "id", user=User(5, 6, (7,)))
    assert output.startswith("uid=5 gid=6 groups="), output


async def pods_share_localhost(lab: Lab) -> None:
    server = await lab.start("server", "echo hi | nc -l -p 8080; echo served")
    script = "until nc 127.0.0.1 8080 < /dev/null; do sleep 0.05; done"
    _, output = await lab.run("client", script)
    assert output.splitlines()[-1] == "hi", output
    assert (await server.wait()).ok
    holder = await lab.start("holder", "nc -l -p 9090 & echo up; wait")
    await lab.until_logged("holder", "up")
    clash = "until busybox netstat -ltn | busybox grep -q :9090; do sleep 0.05; done; nc -l -p 9090"
    ended, output = await lab.run("clash", clash)
    assert not ended.ok
    assert "Address already in use" in output, output
    await lab.runtime.remove_pod("uid-1")
    assert (await holder.wait()).signal == 9
    assert not (lab.dir / "oci/uid-1").exists()
    await lab.runtime.remove_pod("uid-1")


async def shared_processes(lab: Lab) -> None:
    first = await lab.start(
        "a", "sleep 1000 & echo up; exec sleep 999", share_process_namespace=True
    )
    await lab.until_logged("a", "up")
    _, output = await lab.run("b", "ps", share_process_namespace=True)
    assert "sleep 999" in output, output
    assert "sleep 2147483647" in output, output
    await first.kill(signal.SIGKILL)
    await first.wait()
    _, output = await lab.run("c", "ps", share_process_namespace=True)
    assert "sleep 1000" not in output, output


async def exec_inside(lab: Lab) -> None:
    container = await lab.start("a", "echo mark > /mark; echo up; sleep 100", env=(("E", "1"),))
    await lab.until_logged("a", "up")
    process = await container.exec(["sh", "-c", "cat /mark; echo $E; echo e >&2; exit 3"])
    assert await process.stdout.read() == b"mark\n1\n"
    assert process.stderr is not None
    assert await process.stderr.read() == b"e\n"
    assert (await process.wait()).exit_code == 3
    process = await container.exec(["cat"], stdin=True)
    assert process.stdin is not None
    data = os.urandom(3_000_000)
    reading = asyncio.create_task(process.stdout.read())
    process.stdin.write(data)
    await process.stdin.drain()
    process.stdin.close()
    assert await reading == data
    assert (await process.wait()).ok
    process = await container.exec(["sleep", "1000"])
    async with asyncio.timeout(10):
        while not list((lab.dir / "oci/uid-1").glob("*/exec-*.pid")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        process.kill(signal.SIGKILL)
        assert (await process.wait()).signal == 9
    for command, text in ((["nope"], "not found in $PATH"), (["/etc/motd"], "permission denied")):
        with pytest.raises(ContainerError, match=re.escape(text)):
            await container.exec(command)
    await container.kill(9)
    await container.wait()
    with pytest.raises(ContainerError, match="not running"):
        await container.exec(["true"])


async def exec_on_a_terminal(lab: Lab) -> None:
    container = await lab.start("a", "echo up; sleep 100")
    await lab.until_logged("a", "up")
    script = (
        "until [ \"$(stty size 2>/dev/null)\" = '30 90' ]; do sleep 0.05; done; "
        "tty; read a; echo got $a; exit 4"
    )
    process = await container.exec(["sh", "-c", script], tty=True, stdin=True)
    assert process.stderr is None
    assert process.stdin is not None
    async with asyncio.timeout(20):
        process.resize(90, 30)
        line = await process.stdout.readuntil(b"\n")
        assert b"/dev/" in line, line
        process.stdin.write(b"typed\n")
        await process.stdout.readuntil(b"got typed")
        assert (await process.wait()).exit_code == 4


async def attached(lab: Lab) -> None:
    script = "while read a; do echo got $a; echo e >&2; done; echo over"
    container = await lab.start("a", script, stdin=True)
    onlooker = await container.attach()
    assert onlooker.stdin is not None
    assert onlooker.stderr is not None
    async with asyncio.timeout(20):
        onlooker.stdin.write(b"one\n")
        await onlooker.stdin.drain()
        assert await onlooker.stdout.readline() == b"got one\n"
        assert await onlooker.stderr.readline() == b"e\n"
        gone = await container.attach()
        gone.kill(9)
        onlooker.stdin.close()
        assert await onlooker.stdout.readline() == b"over\n"
        assert await onlooker.stdout.read() == b""
        assert (await container.wait()).ok
        terminal = await lab.start(
            "t", "stty -echo; echo up; read a; tty; stty size", tty=True, stdin=True
        )
        await lab.until_logged("t", "up")
        onlooker = await terminal.attach()
        onlooker.resize(81, 23)
        assert onlooker.stdin is not None
        onlooker.stdin.write(b"x\n")
        assert onlooker.stderr is None
        assert b"/dev/" in await onlooker.stdout.readline()
        assert await onlooker.stdout.readline() == b"23 81\r\n"
        assert (await terminal.wait()).ok


async def survive_the_agent(lab: Lab) -> None:
    """A forked agent starts three containers and is killed; we are the next agent."""
    ready, ready_w = os.pipe()
    agent = os.fork()
    if agent == 0:
        # The parent's event loop must not be touched: a fresh process image is the honest agent.
        arguments = ["--agent", str(lab.dir), lab.runtime.name]
        os.dup2(ready_w, 1)
        os.execv(sys.executable, [sys.executable, __file__, *arguments])
    os.close(ready_w)
    assert (await asyncio.to_thread(os.read, ready, 100)).startswith(b"up")
    os.kill(agent, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, agent, 0)
    containers = {c.name: c for c in await lab.runtime.recover("uid-1")}
    assert sorted(containers) == ["ended", "lost", "running"]
    async with asyncio.timeout(20):
        assert (await containers["ended"].wait()).exit_code == 9
        lost = await containers["lost"].wait()
        assert lost.reason == "ContainerStatusUnknown", lost
        assert containers["lost"].id.startswith(lab.runtime.name + "://")
        process = await containers["running"].exec(["echo", "alive"])
        assert await process.stdout.read() == b"alive\n"
        await containers["running"].kill(signal.SIGTERM)
        assert (await containers["running"].wait()).exit_code == 6
    assert "last words" in lab.log("running")
    await lab.runtime.remove_pod("uid-1")
    assert not (lab.dir / "oci/uid-1").exists()


async def _agent(directory: Path, flavour: str) -> None:
    if flavour == "crun":
        runtime = await OciRuntime.probe(directory / "oci", directory / "images")
        assert runtime is not None
    else:
        facts = await probe_module._facts("runc")
        runtime = OciRuntime(facts, directory / "oci", _store(directory))
    lab = Lab(directory, runtime)
    script = "trap 'echo last words; exit 6' TERM; echo up; while :; do sleep 0.05; done"
    await lab.start("running", script)
    await (await lab.start("ended", "exit 9")).wait()
    await lab.start("lost", "sleep 1000")
    await lab.until_logged("running", "up")
    saved = [json.loads(p.read_text()) for p in (directory / "oci/uid-1").glob("*/container.json")]
    (lost,) = [s["id"] for s in saved if s["name"] == "lost"]
    for pid, command in _commands():
        if f"uid-1/{lost}".encode() in command and b"shim.py" in command:
            os.kill(pid, signal.SIGKILL)
    print("up", flush=True)
    await asyncio.sleep(1000)


async def start_times(lab: Lab) -> None:
    """Not a check: prints milliseconds per start, alone and 20 at once, and a shim's memory."""
    await lab.run("warm", "true")
    alone = []
    for number in range(10):
        begin = time.perf_counter()
        await lab.start(f"s{number}", "sleep 100")
        alone.append((time.perf_counter() - begin) * 1000)
    begin = time.perf_counter()
    many = [lab.start(f"m{number}", "sleep 100") for number in range(20)]
    await asyncio.gather(*many)
    together = (time.perf_counter() - begin) * 1000 / 20
    pss = []
    for pid, command in _commands():
        if b"shim.py" in command:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            pss.append(next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")))
    print(json.dumps({
        "runtime": lab.runtime.name, "rootless": lab.rootless,
        "alone_ms_median": round(sorted(alone)[5], 1), "twenty_at_once_ms_each": round(together, 1),
        "shim_pss_kb": sum(pss) // len(pss), "shims": len(pss),
    }))  # fmt: skip


def _commands() -> Iterator[tuple[int, bytes]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # Processes end while they are listed.
        with contextlib.suppress(OSError):
            yield int(path.parent.name), path.read_bytes()


def _store(directory: Path) -> Any:
    from podwire.runtime.oci import ImageStore

    return ImageStore(directory / "images")


SCENARIOS = [
    exits_and_logs,
    long_output_is_whole_and_rotated,
    surroundings,
    failures_are_told,
    users,
    pods_share_localhost,
    shared_processes,
    exec_inside,
    exec_on_a_terminal,
    attached,
    survive_the_agent,
]


async def _main(name: str, directory: Path, flavour: str) -> None:
    if name == "--agent":
        await _agent(directory, flavour)
        return
    lab = await Lab.make(directory, flavour)
    await globals()[name](lab)
    await lab.runtime.remove_pod("uid-1")


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
