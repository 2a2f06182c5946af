"""iptables text loads in both variants, fails with its line, moves packets; the fake agrees."""

from __future__ import annotations

import errno
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from podwire.errors import HostNamespaceError, KernelError, UnsupportedError
from podwire.kernel import features, iptables, netns
from podwire.kernel.effects import Effects, KernelEffects
from podwire.kernel.fake import FakeKernel
from podwire.kernel.rtnl import Rtnl, loopback_up

NEEDED = pytest.mark.skipif(iptables.variant() is None, reason=iptables.ABSENT)
FLAVOURS = [flavour for flavour in ("-nft", "-legacy") if iptables.variant(flavour)]


@pytest.mark.stays_on_host
@NEEDED
def test_the_host_is_refused() -> None:
    with pytest.raises(HostNamespaceError):
        iptables.save("nat")
    with pytest.raises(HostNamespaceError):
        iptables.restore(iptables.PROBE)


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iptables, "_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert iptables.variant() is None
    assert iptables.working_flavour() is None
    with pytest.raises(UnsupportedError, match="install the package iptables"):
        iptables.restore(iptables.PROBE)
    iptables.restore("")


RULES = {
    "filter": [
        "-p tcp --dport 80 -j ACCEPT",
        "-m conntrack --ctstate NEW,ESTABLISHED,RELATED -j ACCEPT",
        "-m conntrack --ctstate INVALID -j DROP",
        "-m conntrack --ctstate DNAT -j ACCEPT",
        "-m conntrack --ctorigdst 10.0.0.1 --ctorigdstport 80 -j ACCEPT",
        "-p tcp -m multiport --dports 80,90:95 -j ACCEPT",
        "-m limit --limit 1/s -j ACCEPT",
        "-j REJECT",
        "-p tcp -j REJECT --reject-with tcp-reset",
    ],
    "nat": [
        '-m comment --comment "shop/web:http cluster IP" -j RETURN',
        "-m statistic --mode random --probability 0.33333333349 -j RETURN",
        "-m statistic --mode nth --every 3 --packet 0 -j RETURN",
        "-m recent --name SEP --rcheck --seconds 10800 --reap -j RETURN",
        "-m recent --name SEP --set -p tcp -j DNAT --to-destination 10.0.0.1:80",
        "-m mark --mark 0x4000/0x4000 -j RETURN",
        "-m addrtype --dst-type LOCAL -j RETURN",
        "-m addrtype --src-type LOCAL -j RETURN",
        "-p udp -j DNAT --to-destination 10.0.0.1:80",
        "-p tcp -j REDIRECT --to-ports 80",
        "-j MARK --or-mark 0x4000",
        "-j MASQUERADE --random-fully",
        "-j SNAT --to-source 10.0.0.1 --random-fully",
    ],
    "mangle": [
        "-j MARK --set-xmark 0x4000/0x4000",
        "-j CONNMARK --save-mark",
        "-p tcp -j TPROXY --on-port 80 --tproxy-mark 1",
    ],
}


@NEEDED
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_matches_and_targets(flavour: str) -> None:
    for table, rules in RULES.items():
        lines = [f"-A PODWIRE {rule}" for rule in rules]
        text = "\n".join([f"*{table}", ":PODWIRE - [0:0]", *lines, "COMMIT", ""])
        iptables.restore(text, flavour=flavour)
        saved = iptables.save(table, flavour=flavour)
        assert len(re.findall("^-A PODWIRE ", saved, re.MULTILINE)) == len(rules)


@NEEDED
def test_the_probe() -> None:
    found = features.probe()
    assert found.iptables
    assert found.iptables_recent
    assert iptables.working_flavour() == ""
    assert iptables.has_recent()
    assert iptables.variant() in ("nft", "legacy")
    assert "PODWIRE-PROBE" not in iptables.save("nat", 6)


FAILURES = {  # text -> how the error begins
    "*nat\n:PW - [0:0]\n-A PW -j RETURN\n-A PW --bogus\nCOMMIT\n": (
        "iptables: line 4: '-A PW --bogus': unknown option \"--bogus\""
    ),
    "*nat\n:PW - [0:0]\n-A NOWHERE -j RETURN\nCOMMIT\n": (
        "iptables: line 3: '-A NOWHERE -j RETURN': "
    ),
    "*bogus\nCOMMIT\n": "iptables: line 1: '*bogus': ",
    # The nft variant names the rule, the legacy one only the line that commits.
    "*mangle\n-A PREROUTING -p tcp -j DNAT --to-destination 1.1.1.1\nCOMMIT\n": "iptables: line ",
    "*nat\n:PW - [0:0]\n": "iptables: line 3: '': COMMIT expected at line 3",
}


@NEEDED
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("text", FAILURES)
def test_a_failure_quotes_its_line(text: str, flavour: str) -> None:
    with pytest.raises(KernelError) as caught:
        iptables.restore(text, flavour=flavour)
    assert str(caught.value).startswith(FAILURES[text])
    assert caught.value.command == f"iptables{flavour}-restore --noflush -w 5"
    assert caught.value.stderr
    assert "PW" not in iptables.save("nat", flavour=flavour)


@NEEDED
def test_in_another_namespace(scratch: Path) -> None:
    fd = netns.create(scratch / "other")
    iptables.restore(iptables.PROBE, ns=fd)
    assert "PODWIRE-PROBE" in iptables.save("nat", ns=fd)
    assert "PODWIRE-PROBE" not in iptables.save("nat")


@NEEDED
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_packets_are_spread_over_endpoints(flavour: str) -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    servers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for server in servers:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.2)
    first, second = (server.getsockname()[1] for server in servers)
    iptables.restore(
        "*nat\n:PW - [0:0]\n"
        "-A PW -p udp -m statistic --mode nth --every 2 --packet 0 "
        f"-j DNAT --to-destination 127.0.0.1:{first}\n"
        f"-A PW -p udp -j DNAT --to-destination 127.0.0.1:{second}\n"
        "-A OUTPUT -d 127.0.0.9/32 -p udp --dport 53 -j PW\nCOMMIT\n",
        flavour=flavour,
    )
    for _ in range(6):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", ("127.0.0.9", 53))
    for server in servers:
        for _ in range(3):
            assert server.recv(10) == b"x"
        server.close()


SCENARIOS = {
    "chains": "*nat\n:A - [0:0]\n:B - [0:0]\n-A A -j B\n-A OUTPUT -j A\nCOMMIT\n",
    "twice empties ours only": (
        "*nat\n:A - [0:0]\n-A A -j ACCEPT\n-A OUTPUT -j A\nCOMMIT\n"
        "*nat\n:A - [0:0]\n:OUTPUT ACCEPT [0:0]\n-A A -j RETURN\nCOMMIT\n"
    ),
    "insert and delete": (
        "*filter\n:A - [0:0]\n-A A -j ACCEPT\n-I A -p tcp -j DROP\n-A A -p udp -j DROP\n"
        "-D A -j ACCEPT\nCOMMIT\n"
    ),
    "flush and remove": (
        "*nat\n:A - [0:0]\n:B - [0:0]\n-A A -j B\nCOMMIT\n*nat\n-F A\n-X B\nCOMMIT\n"
    ),
    "remove a used one": "*nat\n:A - [0:0]\n:B - [0:0]\n-A A -j B\n-X B\nCOMMIT\n",
    "the first table stays": (
        "*filter\n:A - [0:0]\nCOMMIT\n*nat\n:A - [0:0]\n-A NOWHERE -j A\nCOMMIT\n"
    ),
    "delete what is not there": "*filter\n:A - [0:0]\n-D A -j ACCEPT\nCOMMIT\n",
    "no such chain to jump to": "*filter\n:A - [0:0]\n-A A -j NOPE\nCOMMIT\n",
    "no such chain to remove": "*filter\n-X NOPE\nCOMMIT\n",
    "new": "*filter\n-N A\n-A A -p tcp -m tcp --dport 80 -j ACCEPT\nCOMMIT\n",
    "comment lines": "# nothing\n*filter\n# more\n:A - [0:0]\n\nCOMMIT\n# end\n",
    "no commit": "*filter\n:A - [0:0]\n",
    "nothing": "",
}


@NEEDED
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_fake_agrees(name: str) -> None:
    def scenario(effects: Effects) -> Any:
        failed = ""
        for family in (4, 6):
            try:
                effects.iptables_restore(SCENARIOS[name], 4 if family == 4 else 6)
            except KernelError as e:
                failed = errno.errorcode.get(e.errno, "?")
        saved = [
            effects.iptables_save(table, family) for table in ("filter", "nat") for family in (4, 6)
        ]
        return failed, [re.sub(r"^#.*\n", "", text, flags=re.MULTILINE) for text in saved]

    assert scenario(FakeKernel()) == scenario(KernelEffects())
