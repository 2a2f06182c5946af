"""Any order of events on one node: addresses that go from pod to pod, names that come back, nodes
that move. After each plan the walk says what `evaluate` says, and after the end nothing is left."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from ipaddress import ip_address

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from policy_node_walks import apply, check, fresh_tables
from policy_node_worlds import HERE, NAMESPACES, expected, is_forwarded, labels, names, policies

from podwire.objects.meta import Key
from podwire.policy.evaluate import Flow, Party, PolicySet
from podwire.policy.model import Address, Policy, PolicyRef
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.numbers import Numbers
from podwire.policy.world import ContainerPort, LiveWorld, NodeView, PodView

KEYS = [Key(namespace, name) for namespace in NAMESPACES for name in "abc"]
HERE_IPS = [(ip_address(f"10.244.1.{n}"), ip_address(f"fd00:244:0:1::{n}")) for n in (2, 3)]
AWAY_IPS = [(ip_address(f"10.244.2.{n}"), ip_address(f"fd00:244:0:2::{n}")) for n in (2, 3)]
NODE_IPS = [(ip_address(f"172.30.0.{n}"),) for n in (2, 3, 4)]
OUTSIDE = ip_address("203.0.113.10")
PLACES = [(HERE, ips) for ips in HERE_IPS] + [("node-2", ips) for ips in AWAY_IPS]
PORTS = (ContainerPort("web", 6, 80),)


class Node(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = NodePolicies(HERE, pod_interfaces=("veth*",))
        self.tables = fresh_tables(self.state)
        self.empty = _size(self.state)
        self.world = LiveWorld()
        self.pods: dict[Key, PodView] = {}
        self.nodes: dict[str, NodeView] = {}
        self.namespaces: set[str] = set()
        self.names: dict[str, frozenset[Address]] = {}
        self.policies: dict[PolicyRef, Policy] = {}
        self.planned = True

    # --- events -----------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        place=st.sampled_from(PLACES),
        families=st.sampled_from([slice(0, 2), slice(0, 1), slice(1, 2), slice(0, 0)]),
        own=labels,
        ports=st.sampled_from([(), PORTS]),
        host_network=st.sampled_from([False, False, False, True]),
    )
    def a_pod_comes(
        self,
        key: Key,
        place: tuple[str, tuple[Address, ...]],
        families: slice,
        own: dict[str, str],
        ports: tuple[ContainerPort, ...],
        host_network: bool,
    ) -> None:
        """Of a name that was another pod's, too: its end comes first, in the same batch."""
        if key in self.pods:
            self._remove(key)
        node, ips = place
        self._set(PodView(key, own, ips[families], node, ports, host_network))

    @precondition(lambda self: self.pods)
    @rule(which=st.integers(0, 99), own=labels)
    def a_pod_has_other_labels(self, which: int, own: dict[str, str]) -> None:
        pod = self._one(which)
        self._set(PodView(pod.key, own, pod.ips, pod.node, pod.ports, pod.host_network))

    @precondition(lambda self: self.pods)
    @rule(which=st.integers(0, 99), to=st.integers(0, 1))
    def a_pod_has_another_address(self, which: int, to: int) -> None:
        """Its sandbox was made anew."""
        pod = self._one(which)
        ips = (HERE_IPS if pod.node == HERE else AWAY_IPS)[to]
        self._set(PodView(pod.key, pod.labels, ips, pod.node, pod.ports, pod.host_network))

    @precondition(lambda self: self.pods)
    @rule(which=st.integers(0, 99))
    def a_pod_goes(self, which: int) -> None:
        self._remove(self._one(which).key)

    @rule(name=st.sampled_from(NAMESPACES), own=labels)
    def a_namespace_is(self, name: str, own: dict[str, str]) -> None:
        self.namespaces.add(name)
        self.world.set_namespace(name, own)
        self.state.set_namespace(name, own)
        self.planned = False

    @precondition(lambda self: self.namespaces)
    @rule()
    def a_namespace_goes(self) -> None:
        name = self.namespaces.pop()
        self.world.set_namespace(name, None)
        self.state.remove_namespace(name)
        self.planned = False

    @rule(name=st.sampled_from([HERE, "node-2"]), own=labels, ips=st.sampled_from(NODE_IPS))
    def a_node_is(self, name: str, own: dict[str, str], ips: tuple[Address, ...]) -> None:
        node = self.nodes[name] = NodeView(name, own, ips)
        self.world.set_node(node)
        self.state.set_node(node)
        self.planned = False

    @precondition(lambda self: self.nodes)
    @rule()
    def a_node_goes(self) -> None:
        name, _ = self.nodes.popitem()
        self.world.remove_node(name)
        self.state.remove_node(name)
        self.planned = False

    @rule(found=names)
    def names_are(self, found: dict[str, frozenset[Address]]) -> None:
        self.names = found
        self.state.set_names(found)
        self.planned = False

    @rule(policy=policies())
    def a_policy_is(self, policy: Policy) -> None:
        self.policies[policy.ref] = policy
        self.state.set_policy(policy)
        self.planned = False

    @precondition(lambda self: self.policies)
    @rule(which=st.integers(0, 99), again=st.booleans())
    def a_policy_goes(self, which: int, again: bool) -> None:
        ref = sorted(self.policies)[which % len(self.policies)]
        policy = self.policies.pop(ref)
        self.state.remove_policy(ref)
        self.planned = False
        if again:
            self.a_policy_is(policy)

    # --- what must hold ---------------------------------------------------------------------------

    @rule()
    def all_of_it_is_committed(self) -> None:
        apply(self.state.plan(), self.tables)
        self.planned = True

    @invariant()
    def the_kernel_says_what_evaluate_says(self) -> None:
        if self.planned:
            world = self.world.view(self.names)
            policy_set = PolicySet(self.policies.values())
            check(
                self.tables,
                self.state,
                [(flow, expected(flow, world, policy_set)) for flow in self._flows()],
            )

    def teardown(self) -> None:
        self.all_of_it_is_committed()
        self.the_kernel_says_what_evaluate_says()
        for key in list(self.pods):
            self._remove(key)
        while self.policies:
            self.a_policy_goes(0, again=False)
        while self.nodes:
            self.a_node_goes()
        while self.namespaces:
            self.a_namespace_goes()
        self.names_are({})
        self.all_of_it_is_committed()
        assert _size(self.state) == self.empty
        assert _size(self.world) == _size(LiveWorld())
        for family in ("ip", "ip6"):
            for name in self.tables.names(family)[1]:
                assert not self.tables.elements(family, name)

    # --- helpers ----------------------------------------------------------------------------------

    def _one(self, which: int) -> PodView:
        return self.pods[sorted(self.pods)[which % len(self.pods)]]

    def _set(self, pod: PodView) -> None:
        self.pods[pod.key] = pod
        self.world.set_pod(pod)
        self.state.set_pod(pod)
        self.planned = False

    def _remove(self, key: Key) -> None:
        del self.pods[key]
        self.world.remove_pod(key)
        self.state.remove_pod(key)
        self.planned = False

    def _flows(self) -> Iterable[Flow]:
        parties = [self._party(ip) for ips in (*HERE_IPS, *AWAY_IPS, *NODE_IPS) for ip in ips]
        parties.append(self._party(OUTSIDE))
        for source in parties:
            for destination in parties:
                if is_forwarded(source, destination):
                    yield Flow(source, destination, 6, 80, hairpin=True)
                    yield Flow(source, destination, 17, 101, hairpin=True)

    def _party(self, ip: Address) -> Party:
        owner = self.world.owners.get(ip)
        if isinstance(owner, PodView):
            return Party(ip, pod=owner)
        return Party(ip, node=owner)


_RESTS = ("_cuts", "_free")


def _size(of: object, seen: set[int] | None = None) -> int:
    """How much there is in all containers of an object; numbers that rest do not count."""
    seen = set() if seen is None else seen
    if id(of) in seen or isinstance(of, str | bytes | int | Numbers):
        return 0
    seen.add(id(of))
    if isinstance(of, dict):
        return len(of) + sum(_size(each, seen) for each in [*of, *of.values()])
    if isinstance(of, list | tuple | set | deque):
        own = 0 if isinstance(of, tuple) else len(of)
        return own + sum(_size(each, seen) for each in of)
    if type(of).__module__.startswith("podwire."):
        slots = [name for kind in type(of).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [
            getattr(of, name)
            for name in [*slots, *getattr(of, "__dict__", {})]
            if name not in _RESTS
        ]
        return sum(_size(each, seen) for each in parts)
    return 0


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
