"""Rows of packets held against real ones: what every back end's tests share.

What the server saw is what is held against the row. SCTP has no sockets: an INIT chunk is sent by
hand, and connection tracking tells where it went.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from service_injector import Injector
from service_net import PORTS, SCTP, TCP, UDP, Answer, Ask, ServiceNet, address_of, wait
from service_rows import Case, Row, backends_of

from podwire.services.claims import Owner
from podwire.services.endpoints import Backend
from podwire.services.model import PROTOCOLS, compile_service

DROPS = ("no-local-endpoints", "source-ranges", "unallocated", "endpoint-missing", "invalid")
_ROUNDS = 12


def program(net: ServiceNet, row: Row) -> None:
    net.clear()
    for number, (service, slices) in enumerate(row.build()):
        compiled = compile_service(service, slices, row.node)
        net.claims.set(Owner("Service", service.key), compiled.frontends, (f"{number:03}",))
    net.backend.commit()


def ask(case: Case, times: int = 1) -> list[Ask]:
    return [Ask(case.origin, case.dst, case.port, PROTOCOLS[case.protocol])] * times


def dropped_packets(net: ServiceNet) -> int:
    return sum(net.counters(version)[name] for version in (4, 6) for name in DROPS)


def check_drops(net: ServiceNet, cases: Iterable[Case]) -> None:
    """Nothing comes back, and the drop is counted."""
    for case in cases:
        before = dropped_packets(net)
        (answer,) = net.ask(ask(case), patience_s=0.02)
        assert answer.verdict == "dropped", case
        wait(lambda before=before: dropped_packets(net) > before)


def check_others(net: ServiceNet, row: Row, cases: Iterable[Case]) -> None:
    """Refusals at once; where several ends are allowed, all of them in the end and no other."""
    open_cases: dict[Case, set[tuple[str, int]]] = {}
    for case in cases:
        if case.verdict == "dnat":
            open_cases[case] = set()
        else:
            served = case.verdict == "refuse" or case.port in PORTS
            (answer,) = net.ask(ask(case), patience_s=5.0 if served else 0.05)
            check_untouched(case, answer)
    for _ in range(_ROUNDS):
        asks = [a for case, seen in open_cases.items() for a in ask(case, 6 * len(case.ends))]
        answers = iter(net.ask(asks))
        for case, seen in open_cases.items():
            for _ in range(6 * len(case.ends)):
                check_end(case, next(answers), seen)
            if row.sticky:
                assert len(seen) == 1, case
        open_cases = {
            c: seen for c, seen in open_cases.items() if not row.sticky and seen != c.ends
        }
        if not open_cases:
            return
    raise AssertionError(f"never reached: { {str(c): c.ends - s for c, s in open_cases.items()} }")


def check_untouched(case: Case, answer: Answer) -> None:
    if case.verdict == "refuse":
        assert answer.verdict == "refused", (case, answer)
    elif answer.verdict == "answered":
        served = address_of(answer.host, 6 if ":" in case.dst else 4)
        assert (served, answer.port, answer.client) == (case.dst, case.port, answer.source), case


def check_end(case: Case, answer: Answer, seen: set[tuple[str, int]]) -> None:
    assert answer.verdict == "answered", (case, answer)
    end = (answer.host, answer.port)
    assert end in case.ends, (case, answer)
    seen.add(end)
    version = 6 if ":" in case.dst else 4
    hidden = end in case.masqueraded
    wanted = address_of("node", version) if hidden else address_of(case.origin, version)
    assert answer.client == wanted, (case, answer)


def check_packets(net: ServiceNet, row: Row, said: str) -> None:
    """All cases of a programmed row, by TCP and UDP."""
    try:
        check_drops(net, [c for c in row.cases if c.verdict == "drop"])
        check_others(net, row, [c for c in row.cases if c.verdict != "drop"])
    except AssertionError as error:
        raise AssertionError(f"{said}: {error}") from error


def spoken(row: Row) -> tuple[str, ...]:
    """The row's protocols that have sockets here."""
    return tuple(protocol for protocol in row.protocols if PROTOCOLS[protocol] in (TCP, UDP))


def check_inits(injector: Injector, row: Row, cases: list[Case], said: str) -> None:
    found: dict[Case, set[Backend]] = {case: set() for case in cases}
    hidden: dict[Case, set[Backend]] = {case: set() for case in cases}
    waiting = cases
    for _ in range(_ROUNDS):
        asked = [
            (replace(case.packet(), protocol=SCTP), 6 * len(case.ends) or 1) for case in waiting
        ]
        for case, results in zip(waiting, injector.send_all(asked), strict=True):
            assert {r.verdict for r in results} == {case.verdict}, (said, case, results)
            found[case] |= {r.backend for r in results if r.backend}
            hidden[case] |= {r.backend for r in results if r.backend and r.masqueraded}
        waiting = [c for c in waiting if backends_of(found[c]) != c.backends(c.ends)]
        if not waiting or row.sticky:
            break
    for case in cases:
        ends, seen = case.backends(case.ends), backends_of(found[case])
        assert seen <= ends if row.sticky else seen == ends, (said, case)
        masqueraded = case.backends(case.masqueraded) & seen
        assert backends_of(hidden[case]) == masqueraded, (said, case)
