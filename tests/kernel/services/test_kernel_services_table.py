"""The table itself: what there is works on without room for more, other forms are replaced."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest
from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS

from podwire.agents.nftable import NftTable, TableForm
from podwire.agents.servicekernel import Ranges
from podwire.errors import KernelError
from podwire.services import nftables as nf
from podwire.services.plan import SETS

FORM = TableForm(nf.TABLE, SETS, nf.render_base, nf.render_ranges)
RANGES = Ranges(SERVICE_CIDRS, CLUSTER_CIDRS)


def run_nft(text: str) -> str:
    words = ["nft", "-f", "-"]
    return subprocess.run(words, input=text, check=True, capture_output=True, text=True).stdout


def has_element() -> bool:
    return "10.96.0.1" in run_nft(f"list set ip {nf.TABLE} {nf.VIPS}\n")


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EPERM, errno.EBUSY])
def test_a_kernel_without_room_costs_no_element(scratch: Path, code: int) -> None:
    table = NftTable(FORM, (4,))
    table.ensure(RANGES)
    run_nft(f"add element ip {nf.TABLE} {nf.VIPS} {{ 10.96.0.1 }}\n")
    takes, tries = table.apply_text, []

    def refuse_once(text: str) -> None:
        tries.append(text)
        if len(tries) == 1:
            raise KernelError("nftables: refused", errno=code)
        takes(text)

    table.apply_text = refuse_once
    with pytest.raises(KernelError):
        table.ensure()
    assert has_element()
    table.close()


def test_a_table_of_another_form_is_replaced(scratch: Path) -> None:
    run_nft(
        f"add table ip {nf.TABLE}\n"
        f"add set ip {nf.TABLE} {nf.VIPS} {{ typeof ip daddr . th dport; }}\n"
    )
    table = NftTable(FORM, (4,))
    table.ensure(RANGES)
    assert "th dport" not in run_nft(f"list set ip {nf.TABLE} {nf.VIPS}\n")
    table.close()
