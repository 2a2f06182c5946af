"""Namespaces are made, pinned, entered and removed, and the thread always comes back."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from podwire.errors import HostNamespaceError, KernelError
from podwire.kernel import guard, libc, netns, sysctl


def test_create_open_delete(scratch: Path) -> None:
    before = netns.inode()
    fd = netns.create(scratch / "one")
    assert netns.inode() == before != netns.inode(fd)
    again = netns.open_pin(scratch / "one")
    assert netns.inode(again) == netns.inode(fd)
    netns.delete(scratch / "one")
    netns.delete(scratch / "one")
    assert not (scratch / "one").exists()


def test_a_taken_pin_is_left_alone(scratch: Path) -> None:
    fd = netns.create(scratch / "one")
    before = netns.inode()
    with pytest.raises(KernelError, match="exists"):
        netns.create(scratch / "one")
    assert netns.inode() == before
    assert netns.inode(netns.open_pin(scratch / "one")) == netns.inode(fd)


def test_a_failing_body_leaves_nothing(scratch: Path) -> None:
    before = netns.inode()
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError), netns.creating(scratch / "one"):
        raise ValueError
    assert netns.inode() == before
    assert not (scratch / "one").exists()
    assert len(os.listdir("/proc/self/fd")) == fds


def test_what_is_not_a_pin_is_refused(scratch: Path) -> None:
    (scratch / "file").touch()
    with pytest.raises(KernelError, match="not a pinned"):
        netns.open_pin(scratch / "file")
    with pytest.raises(KernelError, match="No such file"):
        netns.open_pin(scratch / "none")


def test_entered_moves_this_thread_only(scratch: Path) -> None:
    fd = netns.create(scratch / "one")
    before = netns.inode()
    with ThreadPoolExecutor(1) as other:
        other.submit(netns.inode).result()  # start it here: threads inherit their maker's namespace
        with netns.entered(fd):
            assert netns.inode() == netns.inode(fd)
            assert other.submit(netns.inode).result() == before
    with pytest.raises(ValueError), netns.entered(fd):
        raise ValueError
    assert netns.inode() == before


def test_socket_in_lives_there(scratch: Path) -> None:
    fd = netns.create(scratch / "one")
    with netns.socket_in(fd, socket.AF_INET, socket.SOCK_DGRAM) as inside:
        cookie_inside = inside.getsockopt(socket.SOL_SOCKET, 71, 8)  # SO_NETNS_COOKIE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        assert outside.getsockopt(socket.SOL_SOCKET, 71, 8) != cookie_inside


def test_sysctls_are_of_the_namespace(scratch: Path) -> None:
    fd = netns.create(scratch / "one")
    sysctl.write({"net.ipv4.ip_forward": 1, "net/ipv4/conf/lo/forwarding": "1"}, ns=fd)
    assert sysctl.read("net.ipv4.ip_forward", ns=fd) == "1"
    assert sysctl.read("net.ipv4.ip_forward") == "0"
    with pytest.raises(KernelError, match=r"only net\.\*"):
        sysctl.write({"kernel.hostname": "x"}, ns=fd)
    with pytest.raises(KernelError, match="No such file"):
        sysctl.write({"net.ipv4.no_such_key": 1}, ns=fd)


def test_guard_knows_where_it_is() -> None:
    guard.assert_not_host()
    guard.assert_not_host_mounts()
    guard.assert_may_connect("10.0.0.1")


@pytest.mark.stays_on_host
def test_guard_refuses_the_host(tmp_path: Path) -> None:
    assert guard.in_host_network()
    with pytest.raises(HostNamespaceError):
        guard.assert_may_connect("10.0.0.1")
    guard.assert_may_connect("127.0.0.1")
    guard.assert_may_connect("::1")
    with pytest.raises(HostNamespaceError):
        sysctl.write({"net.ipv4.ip_forward": 0})
    with pytest.raises(HostNamespaceError):
        libc.mount("tmpfs", str(tmp_path), "tmpfs")
    told = guard.environment()
    assert told["PODWIRE_HOST_NETNS"] == str(os.stat("/proc/self/ns/net").st_ino)
