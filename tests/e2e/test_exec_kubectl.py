"""exec as real kubectls of every supported version see it, and `exec_client` on the same server.

Only 127.0.0.1 and programs of this machine; skipped where no kubectl is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import pty
import shutil
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from podwire.errors import ApiError
from podwire.runtime.streams import exec_client
from podwire.runtime.streams.client import ExecTarget, Terminal

_spec = importlib.util.spec_from_file_location(
    "exec_server", Path(__file__).parent / "exec_server.py"
)
assert _spec is not None
assert _spec.loader is not None
exec_server = sys.modules.setdefault("exec_server", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(exec_server)

_BIG = 10_000_000


def _kubectls() -> list[Path]:
    found = shutil.which("kubectl")
    if found is None:
        return []
    beside = sorted(Path(found).resolve().parent.glob("kubectl.1.*"))
    extra = [Path(p) for p in os.environ.get("PODWIRE_TEST_KUBECTLS", "").split(":") if p]
    return (beside or [Path(found)]) + extra


@pytest.fixture(params=_kubectls() or [None], ids=lambda p: p.name if p else "no kubectl")
def kubectl(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("no kubectl on this machine")
    path: Path = request.param
    return path


@pytest.fixture
async def server() -> AsyncIterator[Any]:
    async with exec_server.serving() as running:
        yield running


class Kubectl:
    def __init__(self, path: Path, server: Any, home: Path) -> None:
        self.argv = [str(path), "--server", server.url, "exec"]
        self.env = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "xterm"}

    async def spawn(self, *args: str, **kwargs: Any) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*self.argv, *args, env=self.env, **kwargs)

    async def run(self, *args: str, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await self.spawn(
            *args, stdin=null if stdin is None else pipe, stdout=pipe, stderr=pipe
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin)
        assert process.returncode is not None
        return process.returncode, out, err


@pytest.fixture
def run(kubectl: Path, server: Any, tmp_path: Path) -> Kubectl:
    return Kubectl(kubectl, server, tmp_path)


async def test_output_errors_and_exit_code(run: Kubectl) -> None:
    code, out, err = await run.run("p", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (code, out) == (7, b"out\n")
    assert err == b"err\ncommand terminated with exit code 7\n"


async def test_a_program_that_cannot_start(run: Kubectl) -> None:
    code, out, err = await run.run("p", "--", "missing")
    assert (code, out) == (1, b"")
    assert b"no such file in $PATH" in err


async def test_stdin_and_ten_megabytes_both_ways(run: Kubectl) -> None:
    big = os.urandom(_BIG)
    assert await run.run("-i", "p", "--", "cat", stdin=b"hello") == (0, b"hello", b"")
    code, out, err = await run.run("-i", "p", "--", "cat", stdin=big)
    assert (code, len(out), err) == (0, _BIG, b"")
    assert out == big


async def test_the_end_does_not_wait_for_a_background_child(run: Kubectl) -> None:
    async with asyncio.timeout(20):
        assert await run.run("p", "--", "sh", "-c", "sleep 60 & echo done") == (0, b"done\n", b"")


async def test_terminal_size_and_input(run: Kubectl) -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    command = (
        "until [ \"$(stty size)\" = '33 99' ]; do sleep 0.05; done; "
        "echo sized; read a; echo got $a; exit 3"
    )
    process = await run.spawn(
        "-it", "p", "--", "sh", "-c", command, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    screen = await _screen(master)
    async with asyncio.timeout(30):
        await screen.readuntil(b"sized")
        os.write(master, b"typed\r")
        await screen.readuntil(b"got typed")
        assert await process.wait() == 3


async def _screen(master: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: protocol, os.fdopen(os.dup(master), "rb", 0)
    )
    return reader


async def test_a_client_that_leaves_takes_its_process_along(run: Kubectl, server: Any) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await run.spawn("p", "--", "sh", "-c", "echo up; sleep 300", stdout=pipe)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"up\n"
        process.kill()
        await process.wait()
        ended = await server.started[-1].wait()
    assert ended.signal == signal.SIGKILL


# --- our own client, and requests no kubectl makes ------------------------------------------------


def _target(server: Any, *command: str, **options: str) -> ExecTarget:
    query = "&".join(
        [*(f"command={c}" for c in command), *(f"{k}={v}" for k, v in options.items())]
    )
    return ExecTarget(f"{server.url}/api/v1/namespaces/default/pods/p/exec?{query}")


async def test_exec_client_pipes(server: Any, tmp_path: Path) -> None:
    data = os.urandom(1_000_000)
    (tmp_path / "in").write_bytes(data)
    fds = [os.open(tmp_path / n, os.O_RDWR | os.O_CREAT) for n in ("in", "out", "err")]
    target = _target(server, "cat", stdin="true", stdout="true", stderr="true")
    async with asyncio.timeout(20):
        assert await exec_client(target, stdin=True, terminal=Terminal(*fds)) == 0
    assert (tmp_path / "out").read_bytes() == data
    target = _target(server, "sh", "-c", "echo%20e%20>%262;exit%2042", stdout="1", stderr="1")
    assert await exec_client(target, terminal=Terminal(*fds)) == 42
    assert (tmp_path / "err").read_bytes() == b"e\n"
    with pytest.raises(ApiError, match=r"no such file in \$PATH"):
        await exec_client(_target(server, "missing", stdout="1"))


async def test_exec_client_on_a_terminal(server: Any) -> None:
    master, slave = pty.openpty()
    target = _target(
        server, "sh", "-c", "read%20a;stty%20size;exit%205", stdin="1", stdout="1", tty="1"
    )
    os.write(master, b"x\r")
    terminal = Terminal(slave, slave, slave)
    async with asyncio.timeout(20):
        assert await exec_client(target, stdin=True, tty=True, terminal=terminal) == 5
    with contextlib.suppress(OSError):
        os.close(slave)


async def test_exec_client_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with exec_server.serving(str(path)):
        url = "http://podwire/api/v1/namespaces/default/pods/p/exec?command=false&stdout=1"
        assert await exec_client(ExecTarget(url, unix_socket=path)) == 1


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "command=true&stdout=1", 400),
        ({"Upgrade": "SPDY/3.1", "Connection": "Upgrade"}, "command=true", 400),
        (
            {
                "Upgrade": "SPDY/3.1",
                "Connection": "Upgrade",
                "X-Stream-Protocol-Version": "v9.channel.k8s.io",
            },
            "command=true&stdout=1",
            403,
        ),
    ],
    ids=["no upgrade", "no stream", "no common protocol"],
)
async def test_bad_requests_get_an_answer(
    server: Any, headers: dict[str, str], query: str, status: int
) -> None:
    url = f"{server.url}/api/v1/namespaces/default/pods/p/exec?{query}"
    async with aiohttp.ClientSession() as http, http.post(url, headers=headers) as answer:
        assert answer.status == status
