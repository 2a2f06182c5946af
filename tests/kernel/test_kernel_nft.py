"""nft transactions commit whole or not at all, in the namespace meant, and fail clearly."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from podwire.errors import HostNamespaceError, KernelError
from podwire.kernel import netns, nft

TABLE = "table ip podwire-t {\n  chain c {\n    tcp dport 80 accept\n  }\n}\n"


@pytest.fixture(params=["library", "program"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of speaking to nftables."""
    if request.param == "program":
        monkeypatch.setattr(nft, "_library", lambda: None)
    return str(request.param)


def test_apply_list_delete(backend: str) -> None:
    nft.apply(TABLE)
    assert "tcp dport 80 accept" in nft.list_table("ip", "podwire-t")
    assert "podwire-t" in nft.list_ruleset()
    nft.delete_table("ip", "podwire-t")
    nft.delete_table("ip", "podwire-t")
    with pytest.raises(KernelError) as caught:
        nft.list_table("ip", "podwire-t")
    assert caught.value.errno == errno.ENOENT
    nft.apply("")


def test_a_bad_line_is_quoted_and_nothing_happens(backend: str) -> None:
    with pytest.raises(KernelError) as caught:
        nft.apply("add table ip podwire-t\nadd rule ip podwire-t nowhere accept\n")
    assert "line 2: 'add rule ip podwire-t nowhere accept'" in str(caught.value)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.stderr is not None
    assert "nowhere" in caught.value.stderr
    assert nft.list_ruleset() == ""
    with pytest.raises(KernelError, match="line 3: 'tcp dprot 80 accept': syntax error"):
        nft.apply(TABLE.replace("dport", "dprot"))


def test_in_another_namespace(backend: str, scratch: Path) -> None:
    fd = netns.create(scratch / "other")
    nft.apply(TABLE, ns=fd)
    assert nft.list_ruleset() == ""
    with nft.Nft.in_ns(fd) as other:
        assert "podwire-t" in other.list_ruleset()
        other.delete_table("ip", "podwire-t")
    assert nft.list_ruleset(ns=fd) == ""


def test_from_many_threads_into_many_namespaces(scratch: Path) -> None:
    fds = [netns.create(scratch / str(n)) for n in range(8)]

    def fill(fd: int, number: int) -> None:
        for _ in range(20):
            nft.apply(f"add table ip podwire-{number}\n", ns=fd)

    threads = [threading.Thread(target=fill, args=(fd, n)) for n, fd in enumerate(fds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [nft.list_ruleset(ns=fd).split()[2] for fd in fds] == [f"podwire-{n}" for n in range(8)]
    assert nft.list_ruleset() == ""


@pytest.mark.stays_on_host
def test_the_host_is_refused() -> None:
    with pytest.raises(HostNamespaceError):
        nft.apply("add table ip podwire-t\n")
