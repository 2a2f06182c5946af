"""The packet table with real packets: every row in both families, over TCP, UDP and SCTP.

What the server saw is what is held against the row. SCTP has no sockets here: an INIT chunk is
sent by hand, and connection tracking tells where it went.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from service_checks import check_inits, check_packets, program, spoken
from service_injector import Injector
from service_net import ServiceNet
from service_rows import GROUPS, variants
from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS

from podwire.agents.servicekernel import Ranges


@pytest.mark.parametrize("group", GROUPS)
def test_rows_by_tcp_and_udp(scratch: Path, group: str) -> None:
    with ServiceNet(scratch) as net:
        net.open(Ranges(SERVICE_CIDRS, CLUSTER_CIDRS))
        for row in GROUPS[group]:
            for suffix, variant in variants(replace(row, protocols=spoken(row))):
                program(net, variant)
                check_packets(net, variant, f"{row.name} ({suffix})")
        for version in (4, 6):
            assert net.counters(version)["endpoint-missing"] == 0


def test_rows_by_sctp(scratch: Path) -> None:
    """Where the INIT went and as whom, by connection tracking."""
    with ServiceNet(scratch) as net, Injector(net) as injector:
        net.open(Ranges(SERVICE_CIDRS, CLUSTER_CIDRS))
        for rows in GROUPS.values():
            for row in rows:
                if "SCTP" not in row.protocols:
                    continue
                for suffix, variant in variants(replace(row, protocols=("SCTP",))):
                    program(net, variant)
                    cases = [case for case in variant.cases if case.origin != "node"]
                    check_inits(injector, variant, cases, f"{row.name} ({suffix})")
