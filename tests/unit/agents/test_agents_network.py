"""The network agent's pure parts."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from podwire.agents.network import _replace_tables
from podwire.cni.config import NetworkConfig
from podwire.cni.nodenet import Peer, render_nft

NODE = Peer("node-1", (ip_address("172.30.0.2"),), (ip_network("10.244.1.0/24"),))


@pytest.mark.parametrize(
    ("config", "tables"),
    [
        (NetworkConfig(), ["inet podwire-masquerade"]),
        (NetworkConfig(mode="kubenet"), ["inet podwire-masquerade"]),
        (
            NetworkConfig(mode="kubenet", hairpin_mode="promiscuous-bridge"),
            ["inet podwire-masquerade", "bridge podwire-kubenet"],
        ),
    ],
)
def test_tables_are_replaced_in_one_transaction(config: NetworkConfig, tables: list[str]) -> None:
    """`table` before `delete` makes an absent one no error; only what is rendered is deleted."""
    text = _replace_tables(render_nft(NODE, [], config))
    heads = [line for line in text.splitlines() if line.startswith(("table", "delete"))]
    wanted = [line for table in tables for line in (f"table {table}", f"delete table {table}")]
    assert heads == [*wanted, *(f"table {table} {{" for table in tables)]
