"""The conformance suite of network-policy-api, ClusterNetworkPolicy, under its own names.

Source: network-policy-api conformance/tests and conformance/base/{admin,baseline}_tier,
api_integration. A Case is a ConformanceTest, a Step one of its subtests: `says` is its name. Rules
are patched as upstream does it, by swapping or inserting, and stay so for the next subtest.

    h0 > l1 tcp/80     harry-potter-0 reaches luna-lovegood-1;  !> it does not;  ~> by a Service

Houses: h gryffindor, d slytherin, c hufflepuff, l ravenclaw, f forbidden-forrest (host network).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policy_cases import (
    HOST_HOUSE,
    HOUSES,
    Action,
    Addresses,
    Apply,
    Case,
    Delete,
    Expect,
    Raw,
    Step,
    around,
    house_namespace,
)
from policy_worlds import make_cluster_policy, make_network_policy

SUITE: Final = "network-policy-api"
HOST_PORTS: Final = (36363, 36364, 34345, 34346, 34347, 9003, 9005)
"""Upstream's HostNetworkPorts are settings: TCP, TCP, UDP, UDP, UDP, SCTP, SCTP here."""
_PEOPLE: Final = {
    **{person[0]: (house, person) for house, person in HOUSES.items()},
    "f": HOST_HOUSE,
}


def pod(short: str) -> str:
    """`h0` -> `network-policy-conformance-gryffindor/harry-potter-0`."""
    house, person = _PEOPLE[short[0]]
    return f"{house_namespace(house)}/{person}-{short[1]}"


def poke(text: str) -> Expect:
    found = re.fullmatch(r"(\w\d) (>|!>|~>|!~>) (\w\d) (tcp|udp|sctp)/(\d+)", text)
    assert found is not None, text
    client, sign, server, protocol, port = found.groups()
    allowed = not sign.startswith("!")
    return Expect(
        pod(client), pod(server), protocol.upper(), int(port), allowed, hairpin="~" in sign
    )


def _step(says: str, pokes: Sequence[str], *actions: Action) -> Step:
    return Step(actions, tuple(map(poke, pokes)), says)


# --- rules --------------------------------------------------------------------------------------


def _house(house: str) -> Raw:
    """A namespace by its default label."""
    return {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": house_namespace(house)}}}


def _by_label(house: str) -> Raw:
    label = {"matchLabels": {"conformance-house": house}}
    return {"pods": {"namespaceSelector": label, "podSelector": label}}


def _ports(*ports: tuple[str, int]) -> list[Raw]:
    return [{protocol: {"destinationPort": {"number": port}}} for protocol, port in ports]


def _rule(direction: str, name: str, action: str, *peers: Raw, **more: list[Raw]) -> Raw:
    word = "from" if direction == "ingress" else "to"
    return {"name": name, "action": action, word: [*peers], **more}


class _Patched:
    """A policy as the subtests change it, one after the other."""

    def __init__(self, policy: Raw) -> None:
        self._policy = policy

    def apply(self) -> Apply:
        return Apply(copy.deepcopy(self._policy))

    def swap(self, one: int, other: int, *directions: str) -> Apply:
        for direction in directions:
            rules = self._policy["spec"][direction]
            rules[one], rules[other] = rules[other], rules[one]
        return self.apply()

    def change(self, direction: str, index: int, **fields: Any) -> Apply:
        self._policy["spec"][direction][index].update(fields)
        return self.apply()

    def insert(self, direction: str, rule: Raw) -> Apply:
        self._policy["spec"][direction].insert(0, rule)
        return self.apply()

    def set(self, **fields: Any) -> Apply:
        self._policy["spec"].update(fields)
        return self.apply()


def _case(name: str, *steps: Step, first: Sequence[Action] = (), tags: Sequence[str] = ()) -> Case:
    """`first`: the manifests, there before the first subtest."""
    begun = Step((*first, *steps[0].actions), steps[0].expected, steps[0].says)
    return Case(SUITE, name, "houses", (begun, *steps[1:]), frozenset(tags))


# --- one protocol, one direction ----------------------------------------------------------------


@dataclass(frozen=True)
class _Protocol:
    """`everything`: the house of the rules without ports; `some`: with one accepted port, then
    nothing. `servers`: the one of each subtest; of pokes along `direction`."""

    direction: str
    protocol: str
    priority: int
    subject: str
    everything: str
    some: str
    deny_port: int
    allow_port: int
    ports: tuple[int, int]
    servers: tuple[int, int, int, int, int, int]

    @property
    def arrow(self) -> str:
        return "to" if self.direction == "egress" else "from"

    def policy(self, tier: str) -> Raw:
        """Baseline has no rules that pass, and is always called `default`."""
        everything, slytherin, some = (
            _house(self.everything),
            _house("slytherin"),
            _house(self.some),
        )
        deny = {"protocols": _ports((self.protocol, self.deny_port))}
        allow = {"protocols": _ports((self.protocol, self.allow_port))}
        admin = tier == "Admin"
        rows = [
            (f"allow-{self.arrow}-{self.everything}-everything", "Accept", everything, {}),
            (f"deny-{self.arrow}-{self.everything}-everything", "Deny", everything, {}),
            (f"pass-{self.arrow}-{self.everything}-everything", "Pass", everything, {}),
            (f"deny-{self.arrow}-slytherin-at-port-{self.deny_port}", "Deny", slytherin, deny),
            (f"pass-{self.arrow}-slytherin-at-port-{self.deny_port}", "Pass", slytherin, deny),
            (f"allow-{self.arrow}-{self.some}-at-port-{self.allow_port}", "Accept", some, allow),
            (f"deny-{self.arrow}-{self.some}-everything-else", "Deny", some, {}),
        ]
        rules = [
            _rule(self.direction, name, action, peer, **more)
            for name, action, peer, more in rows
            if admin or action != "Pass"
        ]
        return make_cluster_policy(
            f"{self.direction}-{self.protocol}" if admin else "default",
            tier,
            self.priority if admin else 10,
            _house(self.subject),
            **{self.direction: rules},
        )

    def pokes(self, subtest: int, house: str, *rows: tuple[int, bool]) -> list[str]:
        """Client 0 by the first row, client 1 by the second, between the subject and `house`."""
        near, far = _letter(self.subject), _letter(house)
        client, server = (near, far) if self.direction == "egress" else (far, near)
        to = f"{server}{self.servers[subtest]}"
        return [
            f"{client}{i} {'>' if ok else '!>'} {to} {self.protocol}/{port}"
            for i, (port, ok) in enumerate(rows)
        ]


def _letter(house: str) -> str:
    return next(letter for letter, (name, _) in _PEOPLE.items() if name == house)


_PROTOCOLS: Final = (
    _Protocol(
        "egress",
        "tcp",
        6,
        "gryffindor",
        "ravenclaw",
        "hufflepuff",
        80,
        8080,
        (80, 8080),
        (0, 1, 1, 0, 0, 0),
    ),
    _Protocol(
        "egress",
        "udp",
        7,
        "hufflepuff",
        "ravenclaw",
        "gryffindor",
        5353,
        53,
        (53, 5353),
        (0, 1, 1, 0, 1, 0),
    ),
    _Protocol(
        "egress",
        "sctp",
        8,
        "ravenclaw",
        "gryffindor",
        "hufflepuff",
        9003,
        9003,
        (9003, 9005),
        (0, 1, 1, 0, 1, 0),
    ),
    _Protocol(
        "ingress",
        "tcp",
        3,
        "gryffindor",
        "ravenclaw",
        "hufflepuff",
        80,
        80,
        (80, 8080),
        (0, 1, 1, 0, 0, 0),
    ),
    _Protocol(
        "ingress",
        "udp",
        4,
        "hufflepuff",
        "ravenclaw",
        "gryffindor",
        5353,
        53,
        (53, 5353),
        (0, 1, 1, 0, 1, 0),
    ),
    _Protocol(
        "ingress",
        "sctp",
        5,
        "ravenclaw",
        "gryffindor",
        "hufflepuff",
        9003,
        9003,
        (9003, 9005),
        (0, 1, 1, 0, 1, 0),
    ),
)
_OTHER_WAY: Final = {
    "egress": ("ingress", ["l0 > h0 tcp/80", "d0 > h1 tcp/80"]),
    "ingress": ("egress", ["h0 > l0 tcp/80", "h1 > d0 tcp/80"]),
}


def _one_protocol(row: _Protocol, tier: str) -> Case:
    """The subtests that every protocol and direction has, in upstream's words and order."""
    way, name = row.direction, row.protocol.upper()
    patched = _Patched(row.policy(tier))
    first, second = row.ports
    other = second if row.allow_port == first else first
    spared = second if row.deny_port == first else first
    ordered = f"policy for {name} protocol; ensure rule ordering is respected"
    at_port = f"policy for {name} protocol at the specified port"
    everything, deny_at = row.everything, ((row.deny_port, False), (spared, True))
    steps = [
        _step(
            f"Should support an 'allow-{way}' {ordered}",
            row.pokes(0, everything, (first, True), (second, True)),
        ),
        _step(
            f"Should support an 'allow-{way}' {at_port}",
            row.pokes(1, row.some, (row.allow_port, True), (other, False)),
        ),
    ]
    if row.protocol == "tcp":
        unaffected, pokes = _OTHER_WAY[way]
        only = f"Should not affect {unaffected} traffic when only {way} rules are specified"
        steps.append(_step(only, pokes))
    steps += [
        _step(
            f"Should support an 'deny-{way}' {ordered}",
            row.pokes(2, everything, (first, False), (second, False)),
            patched.swap(0, 1, way),
        ),
        _step(f"Should support a 'deny-{way}' {at_port}", row.pokes(3, "slytherin", *deny_at)),
    ]
    if tier == "Admin":
        steps += [
            _step(
                f"Should support an 'pass-{way}' {ordered}",
                row.pokes(4, everything, (first, True), (second, True)),
                patched.swap(0, 2, way),
            ),
            _step(
                f"Should support a 'pass-{way}' {at_port}",
                row.pokes(5, "slytherin", (row.deny_port, True), (spared, True)),
                patched.swap(3, 4, way),
            ),
        ]
    title = f"CNP{tier}Tier{way.capitalize()}{name}"
    return _case(title, *steps, first=[Apply(row.policy(tier))], tags=(tier, name))


# --- both directions, all protocols -------------------------------------------------------------

_AT_PORTS: Final = (("tcp", 80), ("udp", 53), ("sctp", 9003))


def _gress_policy(tier: str) -> Raw:
    spec: dict[str, list[Raw]] = {}
    for way, arrow, tcp in (("egress", "to", 8080), ("ingress", "from", 80)):
        deny = {"protocols": _ports(*_AT_PORTS)}
        allow = {"protocols": _ports(("tcp", tcp), ("udp", 5353), ("sctp", 9003))}
        rows: list[tuple[str, str, str, dict[str, list[Raw]]]] = [
            (f"allow-{arrow}-ravenclaw-everything", "Accept", "ravenclaw", {}),
            (f"deny-{arrow}-ravenclaw-everything", "Deny", "ravenclaw", {}),
            (f"pass-{arrow}-ravenclaw-everything", "Pass", "ravenclaw", {}),
            (f"deny-{arrow}-slytherin-at-ports-80-53-9003", "Deny", "slytherin", deny),
            (f"pass-{arrow}-slytherin-at-port-80-53-9003", "Pass", "slytherin", deny),
            (f"allow-{arrow}-hufflepuff-at-ports-{tcp}-5353-9003", "Accept", "hufflepuff", allow),
            (f"deny-{arrow}-hufflepuff-everything-else", "Deny", "hufflepuff", {}),
        ]
        spec[way] = [
            _rule(way, name, action, _house(house), **more)
            for name, action, house, more in rows
            if tier == "Admin" or action != "Pass"
        ]
    admin = tier == "Admin"
    name, priority = ("gress-rules", 15) if admin else ("default", 10)
    return make_cluster_policy(name, tier, priority, _house("gryffindor"), **spec)


def _both_ways(sign: str, harry: int, luna: int) -> list[str]:
    return [
        f"h0 {sign} l{luna} tcp/80",
        f"h1 {sign} l{luna} udp/53",
        f"h0 {sign} l{luna} sctp/9003",
        f"l0 {sign} h{harry} tcp/80",
        f"l1 {sign} h{harry} udp/53",
        f"l1 {sign} h{harry} sctp/9003",
    ]


def _slytherin(sign: str) -> list[str]:
    found = []
    for client, server in (("h", "d0"), ("d", "h0")):
        for port, spared in (
            ("tcp/80", "tcp/8080"),
            ("udp/53", "udp/5353"),
            ("sctp/9003", "sctp/9005"),
        ):
            found += [f"{client}0 {sign} {server} {port}", f"{client}1 > {server} {spared}"]
    return found


def _gress(tier: str) -> Case:
    patched = _Patched(_gress_policy(tier))
    ways = ("egress", "ingress")
    steps = [
        _step(
            "Should support an 'allow-gress' policy across different protocols",
            _both_ways(">", 0, 0),
        ),
        _step(
            "Should support an 'allow-gress' policy across different protocols at the specified "
            "ports",
            [
                *("h0 > c1 tcp/8080", "h1 !> c1 tcp/80", "h0 > c1 udp/5353", "h1 !> c1 udp/53"),
                *("h0 > c1 sctp/9003", "h1 !> c1 sctp/9005"),
                *("c0 > h1 tcp/80", "c1 !> h1 tcp/8080", "c0 > h1 udp/5353", "c1 !> h1 udp/53"),
                *("c0 > h1 sctp/9003", "c1 !> h1 sctp/9005"),
            ],
        ),
        _step(
            "Should support an 'deny-gress' policy across different protocols",
            _both_ways("!>", 1, 1),
            patched.swap(0, 1, *ways),
        ),
        _step(
            "Should support a 'deny-gress' policy across different protocols at the specified "
            "ports",
            _slytherin("!>"),
        ),
    ]
    if tier == "Admin":
        passed = ["h0 > l0 tcp/80", "h0 > l0 udp/5353", "h0 > l0 sctp/9003"]
        steps += [
            _step(
                "Should support an 'pass-gress' policy across different protocols",
                [*passed, *_both_ways(">", 0, 0)[3:]],
                patched.swap(0, 2, *ways),
            ),
            _step(
                "Should support a 'pass-gress' policy across different protocols at the "
                "specified ports",
                _slytherin(">"),
                patched.swap(3, 4, *ways),
            ),
        ]
    return _case(f"CNP{tier}TierGress", *steps, first=[Apply(_gress_policy(tier))], tags=(tier,))


# --- the others ---------------------------------------------------------------------------------


def _isolation(tier: str) -> Iterator[Case]:
    label, priority = tier.lower(), 20 if tier == "Admin" else 10

    def policy(way: str, arrow: str) -> Apply:
        rules = [_rule(way, f"deny-{arrow}-slytherin", "Deny", _house("slytherin"))]
        return Apply(
            make_cluster_policy(
                f"{label}-{way}-isolation", tier, priority, _house("gryffindor"), **{way: rules}
            )
        )

    still = "Should not affect {}: {}"
    yield _case(
        f"CNP{tier}TierIngressRulesEgressUnaffected",
        _step(
            "Should enforce the ingress rule: deny ingress from slytherin to gryffindor",
            ["d0 !> h0 tcp/80"],
        ),
        _step(
            still.format("egress", "gryffindor can still egress to ravenclaw"), ["h0 > l0 tcp/80"]
        ),
        _step(
            still.format("egress", "gryffindor can still egress to hufflepuff"), ["h0 > c0 tcp/80"]
        ),
        first=[policy("ingress", "from")],
        tags=(tier,),
    )
    yield _case(
        f"CNP{tier}TierEgressRulesIngressUnaffected",
        _step(
            "Should enforce the egress rule: deny egress from gryffindor to slytherin",
            ["h0 !> d0 tcp/80"],
        ),
        _step(still.format("ingress", "ravenclaw can still reach gryffindor"), ["l0 > h0 tcp/80"]),
        _step(still.format("ingress", "hufflepuff can still reach gryffindor"), ["c0 > h0 tcp/80"]),
        first=[policy("egress", "to")],
        tags=(tier,),
    )


def _all_three(sign: str, *servers: str) -> list[str]:
    return [
        f"h1 {sign} {server} {port}"
        for server in servers
        for port in ("tcp/80", "udp/53", "sctp/9003")
    ]


def _cidrs(tier: str, addresses: Addresses) -> Case:
    admin = tier == "Admin"
    policy = make_cluster_policy(
        "inline-cidr-as-peers-example" if admin else "default",
        tier,
        85 if admin else 10,
        _by_label("gryffindor") if admin else _house("gryffindor"),
        egress=[
            _rule("egress", "allow-egress-to-slytherin", "Accept", _by_label("slytherin")),
            _rule("egress", "deny-egress-to-internet", "Deny", {"networks": ["0.0.0.0/0", "::/0"]}),
        ],
    )
    networks = {"networks": [around(addresses[pod(name)], 0) for name in ("l0", "c0")]}
    new = _rule("egress", "allow-egress-to-specific-podIPs", "Accept", networks)
    return _case(
        f"CNP{tier}TierEgressInlineCIDRPeers",
        _step(
            "Should support a 'deny-egress' rule policy for egress-cidr-peer",
            [*_all_three("!>", "l0", "c0"), *_all_three(">", "d0")],
        ),
        _step(
            "Should support an 'allow-egress' rule policy for egress-cidr-peer",
            [*_all_three(">", "l0", "c0"), *_all_three("!>", "l1", "c1")],
            _Patched(copy.deepcopy(policy)).insert("egress", new),
        ),
        first=[Apply(policy)],
        tags=(tier,),
    )


def _pod_selectors(tier: str) -> Case:
    def alone(**match_labels: str) -> Raw:
        return {"pods": {"podSelector": {"matchLabels": match_labels}}}

    cedric = {
        "pods": {
            "namespaceSelector": {"matchLabels": {"conformance-house": "hufflepuff"}},
            "podSelector": {
                "matchLabels": {"statefulset.kubernetes.io/pod-name": "cedric-diggory-0"}
            },
        }
    }
    luna = {
        "pods": {
            "namespaceSelector": {"matchLabels": {"conformance-house": "ravenclaw"}},
            "podSelector": {
                "matchLabels": {"statefulset.kubernetes.io/pod-name": "luna-lovegood-0"}
            },
        }
    }
    by_house = "conformance-house"
    rules = make_cluster_policy(
        "pod-selector-rules",
        tier,
        20 if tier == "Admin" else 10,
        alone(**{by_house: "gryffindor"}),
        egress=[
            _rule("egress", "deny-to-ravenclaw-pods", "Deny", alone(**{by_house: "ravenclaw"})),
            _rule("egress", "deny-to-cedric-diggory-0", "Deny", cedric),
        ],
        ingress=[
            _rule("ingress", "deny-from-slytherin-pods", "Deny", alone(**{by_house: "slytherin"})),
            _rule("ingress", "deny-from-cedric-diggory-0", "Deny", cedric),
        ],
    )
    subject = make_cluster_policy(
        "pod-name-subject-rules",
        tier,
        21 if tier == "Admin" else 10,
        luna,
        egress=[_rule("egress", "deny-to-slytherin", "Deny", _house("slytherin"))],
    )
    return _case(
        f"CNP{tier}TierPodSelector",
        _step(
            "Should support pod selectors in egress peers",
            ["h0 !> l0 tcp/80", "h0 !> c0 tcp/80", "h0 > c1 tcp/80"],
        ),
        _step(
            "Should support pod selectors in ingress peers",
            ["d0 !> h0 tcp/80", "c0 !> h0 tcp/80", "c1 > h0 tcp/80"],
        ),
        _step(
            "Should support pod selectors in the subject",
            ["d0 > c0 tcp/80", "l0 !> d0 tcp/80", "l1 > d0 tcp/80"],
        ),
        first=[Apply(rules), Apply(subject)],
        tags=(tier,),
    )


def _port_ranges(tier: str) -> Case:
    ranges = (
        ("ravenclaw", "tcp", 80, 8080),
        ("hufflepuff", "udp", 53, 5353),
        ("slytherin", "sctp", 9003, 9005),
    )
    everybody = {
        "namespaces": {"matchExpressions": [{"key": "conformance-house", "operator": "Exists"}]}
    }
    spec = {}
    for way, arrow in (("egress", "to"), ("ingress", "from")):
        spec[way] = [
            *(
                _rule(
                    way,
                    f"allow-{arrow}-{house}-{protocol}-port-range",
                    "Accept",
                    _house(house),
                    protocols=[
                        {protocol: {"destinationPort": {"range": {"start": start, "end": end}}}}
                    ],
                )
                for house, protocol, start, end in ranges
            ),
            _rule(way, f"deny-all-{way}", "Deny", everybody),
        ]
    policy = make_cluster_policy(
        "port-range-rules", tier, 9 if tier == "Admin" else 10, _house("gryffindor"), **spec
    )
    return _case(
        f"CNP{tier}TierPortRange",
        _step(
            "Should support egress port range rules across different protocols",
            [
                *("h0 > l0 tcp/80", "h0 > l0 tcp/8080", "h1 !> l0 udp/53"),
                *("h0 > c0 udp/53", "h0 > c0 udp/5353", "h1 !> c0 tcp/80"),
                *("h0 > d0 sctp/9003", "h0 > d0 sctp/9005", "h1 !> d0 tcp/80"),
            ],
        ),
        _step(
            "Should support ingress port range rules across different protocols",
            [
                *("l0 > h0 tcp/80", "l0 > h0 tcp/8080", "l1 !> h0 udp/53"),
                *("c0 > h0 udp/53", "c0 > h0 udp/5353", "c1 !> h0 tcp/80"),
                *("d0 > h0 sctp/9003", "d0 > h0 sctp/9005", "d1 !> h0 tcp/80"),
            ],
        ),
        first=[Apply(policy)],
        tags=(tier,),
    )


_FROM_SLYTHERIN: Final = ("d0 {} h0 tcp/80", "d1 {} h0 tcp/8080")
_TO_SLYTHERIN: Final = ("h0 {} d0 tcp/80", "h1 {} d0 tcp/8080")


def _signed(sign: str, *pokes: str) -> list[str]:
    return [text.format(sign) for text in pokes]


def _both(name: str, tier: str, priority: int, action: str) -> Raw:
    word = {"Deny": "deny", "Pass": "pass", "Accept": "allow"}[action]
    rules = {
        way: [_rule(way, f"{word}-all-{way}-{arrow}-slytherin", action, _by_label("slytherin"))]
        for way, arrow in (("ingress", "from"), ("egress", "to"))
    }
    return make_cluster_policy(name, tier, priority, _by_label("gryffindor"), **rules)


def _priority() -> Case:
    old = _both("old-priority-60-new-priority-40-example", "Admin", 60, "Pass")
    return _case(
        "CNPAdminTierPriorityField",
        _step(
            "Should Deny traffic from slytherin to gryffindor respecting admin CNP",
            _signed("!>", *_FROM_SLYTHERIN),
        ),
        _step(
            "Should Deny traffic to slytherin from gryffindor respecting admin CNP",
            _signed("!>", *_TO_SLYTHERIN),
        ),
        _step(
            "Should respect admin CNP priority field; thus passing both ingress and egress "
            "traffic over to baseline CNP",
            _signed(">", *_FROM_SLYTHERIN, *_TO_SLYTHERIN),
            _Patched(copy.deepcopy(old)).set(priority=40),
        ),
        first=[
            Apply(_both("priority-50-example", "Admin", 50, "Deny")),
            Apply(old),
            Apply(_both("default", "Baseline", 10, "Accept")),
        ],
        tags=("Admin", "Baseline"),
    )


def _same_priority(tier: str) -> Case:
    admin = tier == "Admin"
    prefix = "" if admin else "baseline-"

    def policy(subject: str, peer: str, port: int) -> Apply:
        rules = {
            way: [
                _rule(
                    way,
                    f"deny-{arrow}-{peer}-at-port-{port}",
                    "Deny",
                    _house(peer),
                    protocols=_ports(("tcp", port)),
                )
            ]
            for way, arrow in (("ingress", "from"), ("egress", "to"))
        }
        name = f"{prefix}same-priority-{subject}-{peer}"
        priority = 15 if admin else 10
        return Apply(make_cluster_policy(name, tier, priority, _house(subject), **rules))

    h, d, c, luna = ("h0", "d0", "c0", "l0") if admin else ("h1", "d1", "c1", "l1")
    return _case(
        f"CNP{tier}TierSamePriority",
        _step(
            "Should deny traffic in both directions for each same-priority policy",
            [
                *(f"d0 !> {h} tcp/80", f"h0 !> {d} tcp/80", f"c0 !> {h} tcp/80"),
                *(f"h1 !> {c} tcp/80", f"d1 !> {c} tcp/8080", f"c1 !> {d} tcp/8080"),
            ],
        ),
        _step(
            "Should not apply one same-priority policy's rules to another policy's subject",
            [
                *(f"d0 > {h} tcp/8080", f"h0 > {d} tcp/8080"),
                *(f"d1 > {c} tcp/80", f"c0 > {d} tcp/80"),
            ],
        ),
        _step(
            "Should not affect traffic matching no same-priority policy",
            [f"l0 > {h} tcp/80", f"h{1 if admin else 0} > {luna} tcp/80"],
        ),
        first=[
            policy("gryffindor", "slytherin", 80),
            policy("gryffindor", "hufflepuff", 80),
            policy("hufflepuff", "slytherin", 8080),
        ],
        tags=(tier,),
    )


def _integration() -> Case:
    def rules(name: str, tier: str) -> Raw:
        label = {"namespaces": {"matchLabels": {"conformance-house": "slytherin"}}}
        subject = {"namespaces": {"matchLabels": {"conformance-house": "gryffindor"}}}
        return make_cluster_policy(
            name,
            tier,
            10,
            subject,
            ingress=[_rule("ingress", "deny-all-ingress-from-slytherin", "Deny", label)],
            egress=[_rule("egress", "deny-all-egress-to-slytherin", "Deny", label)],
        )

    namespace = house_namespace("gryffindor")
    name = "allow-gress-from-to-slytherin-to-gryffindor"
    peer = {"namespaceSelector": {"matchLabels": {"conformance-house": "slytherin"}}}
    ordinary = make_network_policy(
        namespace,
        name,
        podSelector=None,
        policyTypes=["Ingress", "Egress"],
        ingress=[{"from": [peer]}],
        egress=[{"to": [peer]}],
    )
    patched = _Patched(rules("pass-example", "Admin"))
    respect = "policy for admin CNP and respect the match for"
    return _case(
        "CNPAdminTierIntegration",
        _step(
            "Should Deny traffic from slytherin to gryffindor respecting admin CNP",
            _signed("!>", *_FROM_SLYTHERIN),
        ),
        _step(
            "Should Deny traffic to slytherin from gryffindor respecting admin CNP",
            _signed("!>", *_TO_SLYTHERIN),
        ),
        _step(
            f"Should support a 'pass-ingress' {respect} network policy",
            _signed(">", *_FROM_SLYTHERIN),
            patched.change("ingress", 0, action="Pass"),
        ),
        _step(
            f"Should support a 'pass-egress' {respect} network policy",
            _signed(">", *_TO_SLYTHERIN),
            patched.change("egress", 0, action="Pass"),
        ),
        _step(
            f"Should support a 'pass-ingress' {respect} baseline cluster network policy",
            _signed("!>", *_FROM_SLYTHERIN),
            Delete("NetworkPolicy", namespace, name),
        ),
        _step(
            f"Should support a 'pass-egress' {respect} baseline cluster network policy",
            _signed("!>", *_TO_SLYTHERIN),
        ),
        first=[
            Apply(rules("pass-example", "Admin")),
            Apply(ordinary),
            Apply(rules("default", "Baseline")),
        ],
        tags=("Admin", "Baseline", "NetworkPolicy"),
    )


# --- experimental: named ports, nodes, hairpins --------------------------------------------------


def _named_port(tier: str, way: str, protocol: str, index: int, port: str, *pokes: str) -> Case:
    row = next(r for r in _PROTOCOLS if (r.direction, r.protocol) == (way, protocol))
    patched = _Patched(row.policy(tier))
    return _case(
        f"CNP{tier}Tier{way.capitalize()}NamedPort",
        _step(
            f"Should support an 'allow-{way}' policy for named port",
            pokes,
            patched.change(way, index, protocols=[{"destinationNamedPort": port}]),
        ),
        first=[Apply(row.policy(tier))],
        tags=(tier, "named-ports"),
    )


_NODES: Final[Raw] = {"nodes": {"matchLabels": {"kubernetes.io/os": "linux"}}}
_INTERNET: Final[Raw] = {"networks": ["0.0.0.0/0", "::/0"]}


def _nodes() -> Iterator[Case]:
    zero, one, two, three, four, _, six = HOST_PORTS
    yield _case(
        "CNPAdminTierEgressNodePeers",
        _step(
            "Should support an 'allow-egress' rule policy for egress-node-peer",
            [f"h1 > f1 tcp/{zero}"],
        ),
        _step(
            "Should support a 'pass-egress' rule policy for egress-node-peer",
            [f"h1 > f1 udp/{two}"],
        ),
        _step(
            "Should support a 'deny-egress' rule policy for egress-node-peer",
            [f"h1 !> f1 tcp/{one}", f"h1 !> f1 udp/{four}", f"h1 !> f1 sctp/{six}"],
        ),
        first=[
            Apply(
                make_cluster_policy(
                    "node-and-cidr-as-peers-example",
                    "Admin",
                    75,
                    _by_label("gryffindor"),
                    egress=[
                        _rule(
                            "egress",
                            f"allow-egress-to-{zero}-on-nodes",
                            "Accept",
                            _NODES,
                            protocols=_ports(("tcp", zero)),
                        ),
                        _rule(
                            "egress",
                            f"pass-egress-to-{two}-on-nodes",
                            "Pass",
                            _NODES,
                            protocols=_ports(("udp", two)),
                        ),
                        _rule(
                            "egress",
                            "deny-egress-to-slytherin-and-nodes-and-internet",
                            "Deny",
                            _by_label("slytherin"),
                            _NODES,
                            _INTERNET,
                        ),
                    ],
                )
            )
        ],
        tags=("Admin", "nodes"),
    )
    span = {"start": zero, "end": one}
    yield _case(
        "CNPBaselineTierEgressNodePeers",
        _step(
            "Should support an 'allow-egress' rule policy for egress-node-peer",
            [f"h0 > f1 tcp/{zero}", f"h1 > f1 tcp/{one}"],
        ),
        _step(
            "Should support a 'deny-egress' rule policy for egress-node-peer",
            [f"h1 !> f1 udp/{three}", f"h1 !> f1 sctp/{HOST_PORTS[5]}"],
        ),
        first=[
            Apply(
                make_cluster_policy(
                    "default",
                    "Baseline",
                    10,
                    _house("gryffindor"),
                    egress=[
                        _rule(
                            "egress",
                            f"allow-egress-to-{zero}-on-nodes",
                            "Accept",
                            _NODES,
                            protocols=[{"tcp": {"destinationPort": {"range": span}}}],
                        ),
                        _rule(
                            "egress",
                            "deny-egress-to-nodes-and-internet",
                            "Deny",
                            _NODES,
                            _INTERNET,
                        ),
                    ],
                )
            )
        ],
        tags=("Baseline", "nodes"),
    )


def _hairpin() -> Case:
    """Upstream asks the Service's address; that harry-potter-0 meets either of its pods."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "namespace": house_namespace("gryffindor"),
            "name": "harry-potter-hairpin-service",
        },
        "spec": {
            "selector": {"conformance-house": "gryffindor"},
            "ports": [{"name": "web", "port": 80, "targetPort": 80, "protocol": "TCP"}],
        },
    }
    policy = make_cluster_policy(
        "hairpin-ingress-deny",
        "Admin",
        15,
        _house("gryffindor"),
        ingress=[_rule("ingress", "deny-gryffindor-ingress", "Deny", _house("gryffindor"))],
    )
    return _case(
        "CNPAdminTierHairpin",
        _step(
            "Should enforce CNP ingress deny policy on hairpin service traffic",
            ["h0 !~> h0 tcp/80", "h0 !> h1 tcp/80"],
        ),
        first=[Apply(service), Apply(policy)],
        tags=("Admin", "hairpin"),
    )


def cases(addresses: Addresses) -> list[Case]:
    """`addresses`: where luna-lovegood-0 and cedric-diggory-0 are."""
    return [
        *(_one_protocol(row, tier) for tier in ("Admin", "Baseline") for row in _PROTOCOLS),
        *(_gress(tier) for tier in ("Admin", "Baseline")),
        *(case for tier in ("Admin", "Baseline") for case in _isolation(tier)),
        *(_cidrs(tier, addresses) for tier in ("Admin", "Baseline")),
        *(_pod_selectors(tier) for tier in ("Admin", "Baseline")),
        *(_port_ranges(tier) for tier in ("Admin", "Baseline")),
        *(_same_priority(tier) for tier in ("Admin", "Baseline")),
        _priority(),
        _integration(),
        _named_port("Admin", "egress", "tcp", 5, "web", "h0 > c1 tcp/80", "h1 !> c1 tcp/8080"),
        _named_port("Admin", "ingress", "udp", 5, "dns", "h0 > c1 udp/53", "h1 !> c1 udp/5353"),
        _named_port("Baseline", "egress", "udp", 3, "dns", "c0 > h1 udp/53", "c1 !> h1 udp/5353"),
        _named_port("Baseline", "ingress", "tcp", 3, "web", "c0 > h1 tcp/80", "c1 !> h1 tcp/8080"),
        *_nodes(),
        _hairpin(),
    ]
