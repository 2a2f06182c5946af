"""Services through IPVS, with real packets: the rows every back end is held to, and IPVS's own.

This needs a kernel with ip_vs and the program ipvsadm: `./test --all` runs it in QEMU
(tests/vm/test_vm_ipvs.py), anywhere else it is skipped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from service_checks import check_packets, program, spoken
from service_net import ServiceNet
from service_rows import GROUPS, variants
from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS

from podwire.agents.ipvsbackend import IpvsBackend
from podwire.agents.servicekernel import Ranges
from podwire.errors import UnsupportedError
from podwire.kernel import ipvs as kernel

RANGES = Ranges(SERVICE_CIDRS, CLUSTER_CIDRS)


@contextlib.contextmanager
def serving(scratch: Path) -> Iterator[ServiceNet]:
    """node-1 with IPVS; skips where the kernel has none."""
    try:
        kernel.check()
    except UnsupportedError as error:
        pytest.skip(str(error))
    with ServiceNet(scratch, backend=IpvsBackend) as net:
        net.open(RANGES)
        yield net


@pytest.mark.parametrize("group", GROUPS)
def test_rows(scratch: Path, group: str) -> None:
    failed = []
    with serving(scratch) as net:
        for row in GROUPS[group]:
            for suffix, variant in variants(replace(row, protocols=spoken(row))):
                program(net, variant)
                try:
                    check_packets(net, variant, f"{row.name} ({suffix})")
                except AssertionError as error:
                    failed.append(str(error))
    assert not failed, "\n".join(failed)
