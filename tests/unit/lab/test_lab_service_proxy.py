"""`--service-proxy`: what a lab is told, and where it is refused before anything is built."""

from __future__ import annotations

import pytest

from podwire.errors import UnsupportedError
from podwire.kernel import features
from podwire.lab import launch
from podwire.lab.spec import LabSpec


def test_the_agents_are_told() -> None:
    assert LabSpec().service_config().backend == "nftables"
    assert LabSpec(service_proxy="iptables").service_config().backend == "iptables"


def test_without_iptables_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "probe", features.Features)
    launch._check_kernel(LabSpec())
    with pytest.raises(
        UnsupportedError, match=r"lab podwire: no usable iptables: .* install iptables$"
    ):
        launch._check_kernel(LabSpec(service_proxy="iptables"))
    kubenet = LabSpec(network="kubenet")
    with pytest.raises(UnsupportedError, match=r"no br_netfilter: .* --network-policy none$"):
        launch._check_kernel(kubenet)
    launch._check_kernel(LabSpec(network="kubenet", network_policy="none"))
