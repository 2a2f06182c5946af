"""The table that is there only while somebody wants to know."""

from __future__ import annotations

import pytest

from podwire.kernel import hooks
from podwire.policy.nftables import log_prefix
from podwire.policy.observing import PASSED, is_denied, is_passed, render_observation


@pytest.mark.parametrize("version", [4, 6])
def test_nothing_is_left_when_nothing_is_wanted(version: int) -> None:
    family = {4: "ip", 6: "ip6"}[version]
    text = render_observation(version, "veth*", passed=False, answers="ignored")
    assert text == f"table {family} podwire-observe\ndelete table {family} podwire-observe\n"


def test_chains_are_those_of_the_registry() -> None:
    text = render_observation(4, "veth*", passed=True, answers="copied")
    own = [hook for hook in hooks.OBSERVE if hook.family == "ip"]
    assert all(hook.render() in text for hook in own)
    assert text.count("policy accept") == len(own)
    assert text.count("ct state new") == 2
    assert text.count("sport 53") == 2


def test_only_what_is_wanted() -> None:
    assert "sport 53" not in render_observation(4, "", passed=True, answers="ignored")
    assert "ct state new" not in render_observation(4, "", passed=False, answers="copied")
    assert "ifname" not in render_observation(4, "", passed=True, answers="copied")


def test_answers_are_held_where_the_kernel_can() -> None:
    text = render_observation(6, "veth*", passed=False, answers="held")
    assert text.count("udp sport 53 ct direction reply queue flags bypass to 20568") == 2
    assert "log" not in text


def test_prefixes_tell_what_became_of_a_packet() -> None:
    assert is_passed(PASSED)
    assert not is_denied(PASSED)
    assert is_denied(log_prefix("egress", 12))
    assert not is_passed(log_prefix("egress", 12))
    assert not is_denied("somebody else: ")
