"""The back end and the kernel: what is applied is there, what others break is mended."""

from __future__ import annotations

from contextlib import closing
from ipaddress import ip_address, ip_network

import pytest
from policy_node_worlds import HERE, KEYS, NODES, addresses_of

from podwire.agents.policykernel import PolicyBackend
from podwire.agents.policyobserver import Observer
from podwire.errors import KernelError
from podwire.kernel import hooks, nft
from podwire.kernel.nfelements import Change, NfElements
from podwire.kernel.nfnames import NfNames
from podwire.policy import nftables as nf
from podwire.policy.model import NetworkPeer, PodsPeer, Policy, PolicyRef, PortRange, Rule, Tier
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.selector import EVERYTHING, Expression, Selector
from podwire.policy.walk import Packet, Tables
from podwire.policy.world import NodeView, PodView


def _policies() -> NodePolicies:
    policies = NodePolicies(HERE, pod_interfaces=("veth*",), logging=nf.Logging(7))
    for name, ips in NODES.items():
        policies.set_node(NodeView(name, {}, tuple(map(ip_address, ips))))
    for key in KEYS:
        policies.set_pod(_pod(key.namespace, key.name, {"app": key.name}))
    return policies


def _pod(namespace: str, name: str, labels: dict[str, str]) -> PodView:
    key = next(key for key in KEYS if key == (namespace, name))
    return PodView(key, labels, addresses_of(key), HERE if name in "ab" else "node-2")


def _policy(name: str = "p", app: str = "c", first: int = 80, last: int = 80) -> Policy:
    ref = PolicyRef("NetworkPolicy", "x", name)
    peers = (
        PodsPeer(Selector((Expression("app", "In", (app,)),)), "x"),
        NetworkPeer(ip_network("203.0.113.0/24")),
    )
    rule = Rule(ref, "ingress", 0, "Accept", peers, (PortRange(6, first, last),))
    subject = PodsPeer(EVERYTHING, "x")
    return Policy(ref, Tier.NETWORK_POLICY, subject, (rule,), (), frozenset(["ingress"]))


def check(backend: PolicyBackend, policies: NodePolicies) -> None:
    """What the kernel has is what the state says, element by element."""
    tables = Tables()
    for version in policies.versions:
        tables.apply_text(nf.render_table(version))
        words = nf.Words(version, policies.generation)
        tables.apply_text(nf.render_generation(words, policies.pod_interfaces))
    for step in policies.rebuild(policies.generation).steps:
        for text in step.text.values():
            tables.apply_text(text)
        tables.apply_elements(step.changes)
    with NfElements() as elements, NfNames() as names:
        for family in ("ip", "ip6"):
            chains, sets = tables.names(family)
            found = names.read(family, nf.TABLE)
            assert set(found.chains) == set(chains)
            assert {*found.sets, *found.maps} == set(sets)
            for name in sets:
                assert elements.dump(family, nf.TABLE, name) == tables.elements(family, name), name


def test_changes_reach_the_kernel_and_leave_nothing_behind():
    policies = _policies()
    backend = PolicyBackend(policies)
    backend.commit()
    check(backend, policies)
    for policy in (
        _policy(),
        _policy(app="d"),
        _policy("q", "a", 100, 5000),
        _policy("q", "a", 200, 5000),
    ):
        policies.set_policy(policy)
        backend.commit()
        check(backend, policies)
    policies.set_pod(_pod("x", "c", {"app": "d"}))
    assert backend.commit().elements
    check(backend, policies)
    policies.remove_pod(KEYS[0])
    policies.remove_policy(_policy("q").ref)
    policies.remove_policy(_policy("p").ref)
    backend.commit()
    check(backend, policies)
    assert not backend.commit().elements
    assert backend.whole
    assert not backend.foreign()
    backend.close()


def test_a_new_agent_takes_over_without_the_old_ones_objects():
    old = _policies()
    old.set_policy(_policy())
    first = PolicyBackend(old)
    first.commit()
    first.close()
    new = _policies()
    new.set_policy(_policy(app="d"))
    second = PolicyBackend(new)
    second.commit()
    assert new.generation == "b"
    check(second, new)
    second.mend()
    assert new.generation == "a"
    check(second, new)
    second.close()


@pytest.mark.parametrize(
    "text",
    [
        "flush ruleset",
        "delete table ip podwire-policy",
        "flush chain ip podwire-policy forward",
        "flush chain ip6 podwire-policy a-forward",
        "delete element ip podwire-policy a-peers { 10.244.2.4 }",
    ],
)
def test_what_others_break_is_told_and_mended(text: str):
    policies = _policies()
    policies.set_policy(_policy())
    with PolicyBackend(policies) as backend:
        backend.commit()
        assert not backend.foreign()
        _in_a_child(text)
        assert backend.foreign()
        backend.commit()
        assert backend.whole
        check(backend, policies)
        assert not backend.foreign()


def test_what_was_counted_names_only_policies_that_are():
    policies = _policies()
    policies.set_policy(_policy())
    policies.set_policy(_policy("q"))
    with PolicyBackend(policies) as backend:
        backend.commit()
        isolated = next(o for o in policies.outcomes().values() if o.isolating)
        accepted = next(o for o in policies.outcomes().values() if o.policy)
        assert {ref.name for ref in isolated.isolating} == {"p", "q"}
        assert accepted.policy == PolicyRef("NetworkPolicy", "x", "p")
        backend._keep(isolated, 3, 300)
        backend._keep(accepted, 5, 500)
        policies.remove_policy(accepted.policy)
        backend.commit()
        counted = {o: c for o, c in backend.outcomes().items() if c.packets}
        rest = isolated._replace(isolating=(PolicyRef("NetworkPolicy", "x", "q"),))
        assert counted == {rest: (3, 300)}
        policies.remove_policy(rest.isolating[0])
        backend.commit()
        assert backend.outcomes() == {rest._replace(isolating=()): (3, 300)}


@pytest.mark.parametrize("text", ["flush ruleset", "delete table ip podwire-observe"])
def test_what_is_observed_is_again_after_others_took_it_away(text: str):
    policies = _policies()
    policies.set_policy(_policy())
    observer = Observer((4, 6), "veth*")
    with PolicyBackend(policies) as backend, closing(observer), NfNames() as names:
        backend.commit()
        observer.want(passed=True, answers=True)
        backend.own_text()
        assert not backend.foreign()
        before = names.read("ip", hooks.OBSERVE_TABLE)
        assert any(before)
        _in_a_child(text)
        assert backend.foreign()
        assert backend.whole == (text != "flush ruleset")
        observer.forget()
        backend.commit()
        observer.want(passed=True, answers=True)
        backend.own_text()
        assert names.read("ip", hooks.OBSERVE_TABLE) == before
        assert not backend.foreign()


def _in_a_child(text: str) -> None:
    """By another process: the calling one's changes are its own."""
    import subprocess

    subprocess.run(["nft", "-f", "-"], input=text + "\n", text=True, check=True)


def test_an_error_in_the_middle_leaves_the_former_state_and_is_mended():
    policies = _policies()
    policies.set_policy(_policy())
    with PolicyBackend(policies) as backend, NfElements() as elements:
        backend.commit()
        # An element the plan wants to add is there with other data: the kernel refuses.
        key = (b"\xc6\x33\x64\x00", b"\xc6\x33\x64\xff")
        elements.apply([Change("ip", nf.TABLE, "a-networks", add=[(key, b"\x09\0\0\0")])])
        before = nft.list_table("ip", nf.TABLE)
        ref = PolicyRef("NetworkPolicy", "x", "r")
        peer = NetworkPeer(__import__("ipaddress").ip_network("198.51.100.0/24"))
        rule = Rule(ref, "ingress", 0, "Accept", (peer,))
        policies.set_policy(
            Policy(
                ref,
                Tier.NETWORK_POLICY,
                PodsPeer(EVERYTHING, "x"),
                (rule,),
                isolates=frozenset(["ingress"]),
            )
        )
        with pytest.raises(KernelError, match="a-networks"):
            backend.commit()
        assert not backend.whole
        after = nft.list_table("ip", nf.TABLE)
        for name in ("a-peers", "a-ingress", "a-networks"):
            assert _part(before, name) == _part(after, name)
        backend.commit()
        assert backend.whole
        check(backend, policies)


def _part(listing: str, name: str) -> str:
    return listing.partition(f"map {name} {{")[2].partition("\n\t}")[0]


def test_a_generation_half_built_by_an_agent_that_died_is_removed():
    policies = _policies()
    policies.set_policy(_policy())
    with PolicyBackend(policies) as backend:
        backend.commit()
        words = nf.Words(4, "b")
        nft.apply(nf.render_generation(words, ()))
        other = _policies()
        with PolicyBackend(other) as successor:
            successor.commit()
            check(successor, other)


def test_packets_are_not_needed_to_read_zero():
    policies = _policies()
    policies.set_policy(_policy())
    with PolicyBackend(policies) as backend:
        backend.commit()
        assert {*backend.outcomes().values()} <= {(0, 0)}
        assert backend.drops() == dict.fromkeys(nf.COUNTERS, 0)
    assert Packet
