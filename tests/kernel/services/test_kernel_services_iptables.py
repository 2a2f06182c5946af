"""Services by iptables with real packets: the packet table, restarts, refusals, foreign hands.

Packets are made by hand and connection tracking tells where they went (`service_injector`), in
both families, over TCP, UDP and SCTP.
"""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest
from service_injector import Injector
from service_net import ServiceNet, wait
from service_rows import (
    GROUPS,
    MIXED,
    VIP,
    Case,
    Row,
    Svc,
    backends_of,
    row,
    to,
    translate,
    variants,
)
from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS

from podwire.agents.iptablesbackend import IptablesBackend
from podwire.agents.servicekernel import Ranges
from podwire.kernel import iptables
from podwire.kernel.nfmonitor import NfMonitor
from podwire.services.claims import Owner
from podwire.services.endpoints import Backend
from podwire.services.iptplan import parse_save
from podwire.services.model import compile_service

pytestmark = pytest.mark.skipif(iptables.variant() is None, reason=iptables.ABSENT)
GOLDEN = Path(__file__).parents[2] / "golden" / "services-iptables"
RANGES = Ranges(SERVICE_CIDRS, CLUSTER_CIDRS)
FLAVOURS = [flavour for flavour in ("-nft", "-legacy") if iptables.variant(flavour)]
_ROUNDS = 12


def make_net(scratch: Path, flavour: str | None = None) -> ServiceNet:
    net = ServiceNet(scratch, make_backend=functools.partial(IptablesBackend, flavour=flavour))
    net.open(RANGES)
    return net


def program(net: ServiceNet, shown: Row) -> None:
    net.clear()
    for number, (service, slices) in enumerate(shown.build()):
        compiled = compile_service(service, slices, shown.node)
        net.claims.set(Owner("Service", service.key), compiled.frontends, (f"{number:03}",))
    net.backend.commit()


# --- the text -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.txt")), ids=lambda path: path.stem)
def test_a_golden_text_is_saved_as_it_was_written(path: Path, flavour: str) -> None:
    text = path.read_text()
    family: iptables.Family = 6 if path.stem.endswith("ipv6") else 4
    iptables.restore(text, family, flavour=flavour)
    written: dict[str, str] = {}
    for transaction in text.split("COMMIT\n")[:-1]:
        table, _, lines = transaction.removeprefix("*").partition("\n")
        # A jump is inserted, and saved like any rule.
        written[table] = written.get(table, "") + re.sub("^-I ", "-A ", lines, flags=re.MULTILINE)
    for table, lines in written.items():
        saved_lines = iptables.save(table, family, flavour=flavour)
        assert parse_save(saved_lines) == parse_save(lines)


# --- packets ------------------------------------------------------------------------------------


def sticky(shown: Row) -> bool:
    """Maglev is none of iptables' ways to choose: there it is random."""
    return any(svc.spec.get("sessionAffinity") == "ClientIP" for svc in shown.services)


def sendable(shown: Row) -> list[Case]:
    """SCTP has no sockets here, so the node itself cannot send it."""
    return [c for c in shown.cases if c.origin != "node" or c.protocol in ("TCP", "UDP")]


def check(injector: Injector, shown: Row) -> None:
    cases = sendable(shown)
    found: dict[Case, set[Backend]] = {case: set() for case in cases}
    hidden: dict[Case, set[Backend]] = {case: set() for case in cases}
    waiting = cases
    for _ in range(_ROUNDS):
        asked = [(case.packet(), 6 * len(case.ends) or 1) for case in waiting]
        for case, results in zip(waiting, injector.send_all(asked), strict=True):
            wanted = {case.verdict}
            if wanted == {"pass"}:
                wanted.add("refuse")  # nobody listens there
            assert {r.verdict for r in results} <= wanted, (case, results)
            found[case] |= {r.backend for r in results if r.backend}
            hidden[case] |= {r.backend for r in results if r.backend and r.masqueraded}
        waiting = [c for c in waiting if backends_of(found[c]) != c.backends(c.ends)]
        if not waiting or sticky(shown):
            break
    for case in cases:
        ends, seen = case.backends(case.ends), backends_of(found[case])
        if sticky(shown):
            assert seen <= ends, case
            assert len(seen) <= 1, case
        else:
            assert seen == ends, case
        # The node's source is the one its masquerading would give it.
        if case.origin != "node":
            assert backends_of(hidden[case]) == case.backends(case.masqueraded) & seen, case


@pytest.mark.parametrize("group", GROUPS)
def test_rows(scratch: Path, group: str) -> None:
    with make_net(scratch) as net, Injector(net) as injector:
        for shown in GROUPS[group]:
            for suffix, variant in variants(shown):
                program(net, variant)
                try:
                    check(injector, variant)
                except AssertionError as error:
                    raise AssertionError(f"{shown.name} ({suffix}): {error}") from error


SIMPLE = row("a cluster IP", Svc({}, MIXED), to("here-c outside", VIP, "here-a far-a"))


def simple() -> Row:
    """Two endpoints; what is masqueraded is another row's."""
    return translate(SIMPLE, 4, "TCP")


def reached(injector: Injector) -> set[tuple[bytes, int]]:
    case = simple().cases[0]
    return set(backends_of(r.backend for r in injector.send(case.packet(), 40) if r.backend))


def both_ends() -> set[tuple[bytes, int]]:
    case = simple().cases[0]
    return set(case.backends(case.ends))


# --- what else happens to tables ----------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_agent_that_starts_again_sends_nothing(scratch: Path, flavour: str) -> None:
    with make_net(scratch, flavour) as net, Injector(net) as injector:
        program(net, simple())
        before = saved(flavour)
        again = IptablesBackend((4, 6), net.claims, flavour=flavour)
        for owner in net.claims.owners:  # as at a start: all is claimed anew
            frontends = net.claims.of(owner)
            net.claims.set(owner, ())
            net.claims.set(owner, frontends)
        again.open(RANGES)
        monitor = NfMonitor()
        again.mend()
        assert monitor.read() == []
        monitor.close()
        again.close()
        assert saved(flavour) == before
        assert reached(injector) == both_ends()


def saved(flavour: str = "") -> list[str]:
    return [
        re.sub(r"^#.*\n|\[\d+:\d+\]", "", iptables.save(table, family, flavour=flavour), flags=re.M)
        for table in ("filter", "nat")
        for family in (4, 6)
    ]


def run(*command: str) -> None:
    subprocess.run(command, check=True)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_refused_partial_restore_is_followed_by_a_whole_one(scratch: Path, flavour: str) -> None:
    with make_net(scratch, flavour) as net, Injector(net) as injector:
        before = saved(flavour)
        for family in ("iptables", "ip6tables"):
            for table in ("nat", "filter"):
                run(f"{family}{flavour}", "-t", table, "-F")
                run(f"{family}{flavour}", "-t", table, "-X")
        program(net, simple())
        assert reached(injector) == both_ends()
        net.clear()
        assert saved(flavour) == before


DEEDS = [
    "-t nat -F",
    "-t filter -D FORWARD 1",
    "-t nat -F PODWIRE-SERVICES",
    "-t nat -I PODWIRE-SERVICES -j RETURN",
]


@pytest.mark.parametrize("deed", DEEDS)
def test_foreign_changes_are_noticed_and_mended(scratch: Path, deed: str) -> None:
    with make_net(scratch, "-nft") as net, Injector(net) as injector:
        program(net, simple())
        assert net.backend.foreign() == [], "what podwire did itself"
        before = saved()
        run("iptables", *deed.split())
        assert net.backend.foreign()
        net.backend.mend()
        assert net.backend.foreign() == []
        assert saved() == before
        assert reached(injector) == both_ends()


def test_others_rules_are_none_of_ours(scratch: Path) -> None:
    with make_net(scratch, "-nft") as net:
        run("iptables", "-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
        run("iptables", "-t", "nat", "-N", "DOCKER")
        run("iptables", "-t", "nat", "-A", "PREROUTING", "-j", "DOCKER")
        assert net.backend.foreign() == []
        program(net, simple())
        net.backend.mend()
        net.clear()
        assert "-A FORWARD -s 192.0.2.1/32 -j DROP" in iptables.save("filter")
        assert "-A PREROUTING -j DOCKER" in iptables.save("nat")


@pytest.mark.skipif("-legacy" not in FLAVOURS, reason="no legacy programs here")
def test_x_tables_are_looked_at_every_so_often(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podwire.agents.iptablesbackend._LOOK_S", 0.01)
    with make_net(scratch, "-legacy") as net, Injector(net) as injector:
        program(net, simple())
        wait(lambda: net.backend.foreign() == [])
        run("iptables-legacy", "-t", "nat", "-F")
        (told,) = net.backend.foreign()
        assert told.startswith("table nat (IPv4): ")
        net.backend.mend()
        assert net.backend.foreign() == []
        assert reached(injector) == both_ends()
