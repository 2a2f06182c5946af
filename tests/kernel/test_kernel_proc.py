"""Processes are identified, waited for and named; descriptors travel."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from podwire.errors import KernelError
from podwire.kernel import libc, proc


def sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        try:
            libc.set_pdeathsig(signal.SIGKILL)
            signal.pause()
        finally:
            os._exit(0)
    return pid


def test_identity_survives_nothing_but_the_process() -> None:
    pid = sleeper()
    who = proc.identity(pid)
    assert proc.is_alive(who)
    assert not proc.is_alive(proc.Identity(pid, who.start_ticks + 1, who.boot))
    assert not proc.is_alive(proc.Identity(pid, who.start_ticks, "another boot"))
    fd = proc.open_pidfd(who)
    assert not proc.wait_ended(fd, timeout_s=0)
    os.kill(pid, signal.SIGKILL)
    assert proc.wait_ended(fd, timeout_s=5)
    assert not proc.is_alive(who)  # a zombie
    os.waitpid(pid, 0)
    with pytest.raises(KernelError):
        proc.open_pidfd(who)
    with pytest.raises(KernelError):
        proc.identity(pid)
    os.close(fd)


def test_host_pid_from_inside_a_pid_namespace() -> None:
    host_proc = os.open("/proc", os.O_RDONLY)
    receive, send = os.pipe()
    libc.unshare(libc.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        os.write(send, f"{os.getpid()} {proc.host_pid(host_proc)}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(receive, 100).decode() == f"1 {pid}"


def test_title_and_memory() -> None:
    proc.set_title("podwire agent-node1")
    assert Path("/proc/self/comm").read_text() == "podwire agent-n\n"
    assert Path("/proc/self/cmdline").read_bytes().startswith(b"podwire agent")
    assert proc.pss_kib() > 100
    assert len(proc.boot_id()) == 36
    assert proc.raise_nofile() >= 1024


def test_descriptors_travel() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    receive, send = os.pipe()
    proc.send_fds(left, b"here", [receive])
    message, fds = proc.recv_fds(right, 100, 4)
    assert message == b"here"
    os.write(send, b"x")
    assert os.read(fds[0], 1) == b"x"
    assert not os.get_inheritable(fds[0])
    proc.send_fds(left, b"two", [receive, send])
    with pytest.raises(KernelError, match="more than 0"):
        proc.recv_fds(right, 100, 0)
    left.close()
    assert proc.recv_fds(right, 100, 1) == (b"", [])
    with pytest.raises(KernelError):
        proc.send_fds(right, b"", [])


def test_mount_and_hostname_stay_inside(scratch: Path) -> None:
    (scratch / "m").mkdir()
    libc.mount("tmpfs", str(scratch / "m"), "tmpfs", data="size=64k")
    (scratch / "m" / "file").touch()
    libc.umount2(str(scratch / "m"))
    assert not (scratch / "m" / "file").exists()
    with pytest.raises(KernelError) as caught:
        libc.umount2(str(scratch / "m"))
    assert caught.value.errno == 22
    libc.unshare(libc.CLONE_NEWUTS)
    libc.sethostname("web-0")
    assert socket.gethostname() == "web-0"


def test_start_ticks_grow_with_time() -> None:
    assert 0 < proc.start_ticks(os.getpid()) / os.sysconf("SC_CLK_TCK") <= time.monotonic() + 1
