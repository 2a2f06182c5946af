"""The generated matrix of Cyclonus: 230 cases over nine pods, two ports and three protocols.

Groups, order, policies and steps are those of mattfenwick/cyclonus pkg/generator (target, rules,
peers, port/protocol, example, action, conflict, namespace, upstream e2e); names are its
descriptions, or say what the case varies where it has none. Verdicts are the naive reading's, as
Cyclonus takes them from its simulator. Its ingress conflicts are about the source pod, a slip of
upstream kept here. The twelve endPort cases are a choice of our own of its kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

from policy_cases import Addresses, Apply, Case, Delete, Label, Raw, Step, around, xyz_pod
from policy_worlds import make_namespace, make_network_policy

SUITE: Final = "cyclonus"
GROUPS: Final = {
    "target": 6,
    "rules": 4,
    "peers": 112,
    "port-protocol": 70,
    "example": 1,
    "action": 6,
    "conflict": 16,
    "namespace": 2,
    "upstream-e2e": 13,
}
"""Group -> how many cases upstream's own test counts; each case has its group for a tag."""
DIRECTIONS: Final = ("egress", "ingress")
_DNS: Final = {"ports": [{"protocol": "UDP", "port": 53}]}


def labels(**wanted: str) -> Raw:
    return {"matchLabels": wanted}


def one_of(key: str, *values: str, operator: str = "In") -> Raw:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": [*values]}]}


def port(number: int | str | None = None, protocol: str | None = None, end: int = 0) -> Raw:
    row: Raw = {} if number is None else {"port": number}
    if protocol is not None:
        row["protocol"] = protocol
    return row | ({"endPort": end} if end else {})


def base(
    *,
    namespace: str = "x",
    pods: Raw | None = None,
    **changes: tuple[str, Any],
) -> Raw:
    """The policy every case varies: x/a, from b and c of x and y, to a and b of y and z, TCP 80.

    `ingress=("ports", [...])` changes one thing of that direction's first rule; "rules" all.
    """
    ingress: Raw = {
        "ports": [port(80, "TCP")],
        "from": [
            {
                "podSelector": one_of("pod", "b", "c"),
                "namespaceSelector": one_of("ns", "x", "y"),
            }
        ],
    }
    egress: Raw = {
        "ports": [port(80, "TCP")],
        "to": [
            {
                "podSelector": one_of("pod", "a", "b"),
                "namespaceSelector": one_of("ns", "y", "z"),
            }
        ],
    }
    rules: dict[str, list[Raw]] = {"ingress": [ingress], "egress": [egress, _DNS]}
    for direction, (what, value) in changes.items():
        if what == "rules":
            rules[direction] = value
        elif what == "peers":
            rules[direction][0]["from" if direction == "ingress" else "to"] = value
        else:
            rules[direction][0][what] = value
    return make_network_policy(
        namespace,
        "base",
        podSelector=labels(pod="a") if pods is None else pods,
        policyTypes=["Ingress", "Egress"],
        **rules,
    )


def _case(group: str, name: str, *steps: Step | Raw, tags: tuple[str, ...] = ()) -> Case:
    made = tuple(step if isinstance(step, Step) else Step((Apply(step),)) for step in steps)
    return Case(SUITE, name, "xyz", made, frozenset({group, *tags}))


def cases(addresses: Addresses) -> list[Case]:
    """`addresses`: where z/c is; the ipBlock cases are about its neighbourhood."""
    return [
        *_target(),
        *_rules(),
        *_peers(addresses["z/c"]),
        *_port_protocol(),
        *_example(),
        *_action(),
        *_conflict(),
        *_namespace(),
        *_upstream(),
    ]


def _target() -> Iterator[Case]:
    for namespace in "xyz":
        yield _case("target", f"set namespace to {namespace}", base(namespace=namespace))
    for name, pods in (
        ("all pods", {}),
        ("pod=a", labels(pod="a")),
        ("pod in (a,b)", one_of("pod", "a", "b")),
    ):
        yield _case("target", f"set pod selector to {name}", base(pods=pods))


def _rules() -> Iterator[Case]:
    for direction in DIRECTIONS:
        yield _case("rules", f"{direction}: deny all", base(**{direction: ("rules", [])}))
        yield _case("rules", f"{direction}: allow all", base(**{direction: ("rules", [{}])}))


def _peers(address: str) -> Iterator[Case]:
    wide, narrow = around(address, 8), around(address, 4)
    by_pod, by_namespace = labels(pod="c"), labels(ns="x")
    peers: dict[str, Raw] = {
        "empty pods + nil ns": {"podSelector": {}, "namespaceSelector": None},
        "pods by label + nil ns": {"podSelector": by_pod, "namespaceSelector": None},
        "nil pods + empty ns": {"podSelector": None, "namespaceSelector": {}},
        "empty pods + empty ns": {"podSelector": {}, "namespaceSelector": {}},
        "pods by label + empty ns": {"podSelector": by_pod, "namespaceSelector": {}},
        "nil pods + ns by label": {"podSelector": None, "namespaceSelector": by_namespace},
        "empty pods + ns by label": {"podSelector": {}, "namespaceSelector": by_namespace},
        "pods by label + ns by label": {
            "podSelector": by_pod,
            "namespaceSelector": by_namespace,
        },
        "simple ipblock": {"ipBlock": {"cidr": wide}},
        "ipblock with except": {"ipBlock": {"cidr": wide, "except": [narrow]}},
    }
    for direction in ("ingress", "egress"):
        yield _case("peers", f"{direction}: empty peers", base(**{direction: ("peers", [])}))
        for name, peer in peers.items():
            yield _case("peers", f"{direction}: {name}", base(**{direction: ("peers", [peer])}))
        for (one, first), (other, second) in itertools.combinations(peers.items(), 2):
            yield _case(
                "peers",
                f"{direction}, 2-peer: {one}, {other}",
                base(**{direction: ("peers", [first, second])}),
                tags=("multi-peer",),
            )


def _port_protocol() -> Iterator[Case]:
    rows = [
        port(number, protocol)
        for protocol in (None, "TCP", "UDP", "SCTP")
        for number in (None, 80, 81)
    ]
    rows += [
        port(f"serve-{number}-{protocol.lower()}", protocol)
        for protocol in ("TCP", "UDP", "SCTP")
        for number in (80, 81)
    ]
    pathological = {
        "open a named port that doesn't match its protocol": port("serve-81-udp", "TCP"),
        "open a named port that isn't served": port("serve-7981-udp", "TCP"),
        "open a numbered port that isn't served": port(7981, "TCP"),
    }
    pairs = [
        [port(), port(80)],
        [port(), port("serve-80-tcp")],
        [port(), port(protocol="UDP")],
        [port(80), port(81)],
        [port(80), port("serve-81-tcp")],
        [port(80), port("serve-81-udp", "UDP")],
        [port(80, "UDP"), port("serve-81-udp", "UDP")],
    ]
    ranges = [
        port(first, protocol, end)
        for protocol in ("TCP", "UDP", "SCTP")
        for first, end in ((79, 80), (80, 81))
    ]
    for direction in DIRECTIONS:
        named = [
            ("empty port/protocol", [], ()),
            *((_says(row), [row], ()) for row in rows),
            *((name, [row], ("pathological",)) for name, row in pathological.items()),
            *((" and ".join(map(_says, pair)), pair, ("multi-port/protocol",)) for pair in pairs),
            *((_says(row), [row], ("end-port",)) for row in ranges),
        ]
        for name, ports, tags in named:
            yield _case(
                "port-protocol",
                f"{direction}: {name}",
                base(**{direction: ("ports", ports)}),
                tags=tags,
            )


def _says(row: Raw) -> str:
    number = str(row.get("port", "any port"))
    if "endPort" in row:
        number += f"-{row['endPort']}"
    return f"{number}, {row.get('protocol', 'no protocol').lower()}"


def _named_port_policy() -> Raw:
    return make_network_policy(
        "x",
        "allow-all",
        podSelector={"matchLabels": {}},
        ingress=[{"ports": [port("serve-81-tcp")]}],
        policyTypes=["Ingress"],
    )


def _example() -> Iterator[Case]:
    yield _case(
        "example",
        "should allow ingress access on one named port (example)",
        _named_port_policy(),
        Step((Apply(make_namespace("w", {"ns": "w"})), Apply(xyz_pod("w", "a")))),
        Step((Delete("Pod", "w", "a"),)),
        Step((Delete("Namespace", "", "w"),)),
        Step(),
    )


def _action() -> Iterator[Case]:
    new_namespace = {"namespaceSelector": labels(**{"new-ns": "qrs"})}
    new_label = {
        "podSelector": labels(**{"new-label": "abc"}),
        "namespaceSelector": one_of("ns", "y", "z"),
    }
    yield _case(
        "action",
        "Create/delete policy",
        base(),
        Step((Delete("NetworkPolicy", "x", "base"),)),
    )
    yield _case(
        "action",
        "Create/update policy",
        base(),
        base(ingress=("ports", [port("serve-81-udp", "UDP")])),
    )
    yield _case(
        "action",
        "Create/delete namespace",
        base(),
        Step(
            (
                Apply(make_namespace("y-2", {"ns": "y"})),
                Apply(xyz_pod("y-2", "a")),
                Apply(xyz_pod("y-2", "b")),
            )
        ),
        Step((Delete("Namespace", "", "y-2"),)),
    )
    yield _case(
        "action",
        "Update namespace so that policy applies, then again so it no longer applies",
        base(ingress=("peers", [new_namespace])),
        Step((Label("Namespace", "", "y", {"ns": "y", "new-ns": "qrs"}),)),
        Step((Label("Namespace", "", "y", {"ns": "y"}),)),
    )
    yield _case(
        "action",
        "Create/delete pod",
        base(),
        Step((Apply(xyz_pod("x", "d")),)),
        Step((Delete("Pod", "x", "d"),)),
    )
    yield _case(
        "action",
        "Update pod so that policy applies, then again so it no longer applies",
        base(ingress=("peers", [new_label])),
        Step((Label("Pod", "y", "b", {"pod": "b", "new-label": "abc"}),)),
        Step((Label("Pod", "y", "b", {"pod": "b"}),)),
    )


_RULES: Final[dict[str, list[Raw]]] = {
    "allow-all": [{}],
    "deny-all": [],
    "allow-all-by-pod": [{"PEERS": [{"namespaceSelector": {}}]}],
    "allow-all-by-ip": [{"PEERS": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}],
    "deny-all-by-ip": [{"PEERS": [{"ipBlock": {"cidr": "0.0.0.0/31"}}]}],
    "deny-all-by-pod": [
        {"PEERS": [{"namespaceSelector": labels(**{"this-will-never-happen": "qrs123"})}]}
    ],
}
_CONFLICTS: Final = (
    # Each is (direction, whose, rules) twice or once; "y/c" is the destination.
    (("egress", "x/b", "deny-all"), ("ingress", "y/c", "allow-all")),
    (("egress", "x/b", "allow-all"), ("ingress", "y/c", "deny-all")),
    (("egress", "x/b", "deny-all"), ("egress", "x/b", "allow-all")),
    (("ingress", "y/c", "deny-all"), ("ingress", "y/c", "allow-all")),
    (("egress", "x/b", "deny-all"), ("egress", "x/b", "allow-all-by-pod")),
    (("egress", "x/b", "deny-all"), ("egress", "x/b", "allow-all-by-ip")),
    (("egress", "x/b", "deny-all-by-ip"), ("egress", "x/b", "allow-all-by-pod")),
    (("egress", "x/b", "deny-all-by-pod"), ("egress", "x/b", "allow-all-by-ip")),
    (("ingress", "x/b", "deny-all"), ("ingress", "x/b", "allow-all-by-pod")),
    (("ingress", "x/b", "deny-all"), ("ingress", "x/b", "allow-all-by-ip")),
    (("ingress", "x/b", "deny-all-by-ip"), ("ingress", "x/b", "allow-all-by-pod")),
    (("ingress", "x/b", "deny-all-by-pod"), ("ingress", "x/b", "allow-all-by-ip")),
    (("egress", "x/b", "deny-all-by-ip"),),
    (("egress", "x/b", "deny-all-by-pod"),),
    (("ingress", "x/b", "deny-all-by-ip"),),
    (("ingress", "x/b", "deny-all-by-pod"),),
)


def _conflict() -> Iterator[Case]:
    dns = make_network_policy(
        "x", "allow-dns", podSelector=labels(pod="b"), policyTypes=["Egress"], egress=[_DNS]
    )
    for index, parts in enumerate(_CONFLICTS):
        actions = [Apply(_conflicting(*part)) for part in parts]
        if any(direction == "egress" for direction, _, _ in parts):
            actions.append(Apply(dns))
        yield _case("conflict", f"allow/deny conflict {index + 1}", Step(tuple(actions)))


def _conflicting(direction: str, whose: str, rules: str) -> Raw:
    namespace, _, name = whose.partition("/")
    word = "from" if direction == "ingress" else "to"
    made = [{word: rule["PEERS"]} if "PEERS" in rule else rule for rule in _RULES[rules]]
    start, _, end = rules.partition("-all")
    return make_network_policy(
        namespace,
        f"{start}-all-{direction}{end}",
        podSelector=labels(pod=name),
        policyTypes=[direction.capitalize()],
        **{direction: made},
    )


def _namespace() -> Iterator[Case]:
    peers = [{"namespaceSelector": labels(**{"kubernetes.io/metadata.name": "z"})}]
    for direction in ("ingress", "egress"):
        yield _case(
            "namespace",
            f"{direction}: select namespace by default label",
            base(**{direction: ("peers", peers)}),
        )


def _upstream() -> Iterator[Case]:
    """The thirteen of upstream's end-to-end tests that Cyclonus carries, in its own form."""
    group = "upstream-e2e"
    for name, *steps in _UPSTREAM:
        yield _case(group, name, *steps)


def _policy(name: str, pods: Raw, *types: str, namespace: str = "x", **rules: Any) -> Raw:
    return make_network_policy(namespace, name, podSelector=pods, policyTypes=[*types], **rules)


def _from_y(number: int) -> Raw:
    return _policy(
        f"allow-client-a-via-ns-selector-{number}",
        labels(pod="a"),
        "Ingress",
        ingress=[{"from": [{"namespaceSelector": labels(ns="y")}], "ports": [port(number, "TCP")]}],
    )


def _from_x_a(name: str, pod: str) -> Raw:
    peer = {"namespaceSelector": labels(ns="x"), "podSelector": labels(pod="a")}
    return _policy(name, labels(pod=pod), "Ingress", namespace="y", ingress=[{"from": [peer]}])


_UPSTREAM: Final[list[tuple[Any, ...]]] = [
    (
        "should support a 'default-deny-ingress' policy",
        _policy("deny-ingress", {}, "Ingress", ingress=[]),
    ),
    (
        "should support a 'default-deny-all' policy",
        _policy("deny-all-allow-dns", {}, "Egress", "Ingress", ingress=[], egress=[_DNS]),
    ),
    (
        "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
        _policy(
            "allow-ns-y-z-pod-b-c",
            labels(pod="a"),
            "Ingress",
            ingress=[
                {
                    "from": [
                        {
                            "namespaceSelector": one_of("ns", "x", operator="NotIn"),
                            "podSelector": one_of("pod", "b", "c"),
                        }
                    ]
                }
            ],
        ),
    ),
    (
        (
            "should enforce multiple, stacked policies with overlapping podSelectors "
            "[Feature:NetworkPolicy]"
        ),
        _from_y(81),
        Step(),
        _from_y(80),
    ),
    (
        "should support allow-all policy",
        _policy("allow-all", {"matchLabels": {}}, "Ingress", ingress=[{}]),
        Step(),
    ),
    ("should allow ingress access on one named port", _named_port_policy(), Step()),
    (
        "should enforce updated policy",
        _policy("allow-all-mutate-to-deny-all", {"matchLabels": {}}, "Ingress", ingress=[{}]),
        _policy("allow-all-mutate-to-deny-all", {"matchLabels": {}}, "Ingress", ingress=[]),
    ),
    (
        "should allow ingress access from updated namespace",
        _policy(
            "allow-client-a-via-ns-selector",
            labels(pod="a"),
            "Ingress",
            ingress=[{"from": [{"namespaceSelector": labels(ns2="updated")}]}],
        ),
        Step((Label("Namespace", "", "y", {"ns": "y", "ns2": "updated"}),)),
    ),
    (
        "should allow ingress access from updated pod",
        _policy(
            "allow-client-a-via-pod-selector",
            labels(pod="a"),
            "Ingress",
            ingress=[{"from": [{"podSelector": labels(pod="b", pod2="updated")}]}],
        ),
        Step((Label("Pod", "x", "b", {"pod": "b", "pod2": "updated"}),)),
    ),
    (
        "should deny ingress access to updated pod",
        _policy(
            "deny-ingress-via-label-selector", labels(target="isolated"), "Ingress", ingress=[]
        ),
        Step((Label("Pod", "x", "a", {"target": "isolated"}),)),
    ),
    (
        "should work with Ingress, Egress specified together",
        _policy(
            "allow-client-a-via-pod-selector",
            labels(pod="a"),
            "Ingress",
            "Egress",
            ingress=[{"from": [{"podSelector": labels(pod="b")}]}],
            egress=[{"ports": [port(80), port(53, "UDP")]}],
        ),
        Step(),
    ),
    (
        (
            "should support denying of egress traffic on the client side (even if the server "
            "explicitly allows this traffic)"
        ),
        Step(
            (
                Apply(
                    _policy(
                        "allow-to-ns-y-pod-a",
                        labels(pod="a"),
                        "Egress",
                        egress=[
                            {
                                "to": [
                                    {
                                        "namespaceSelector": labels(ns="y"),
                                        "podSelector": labels(pod="a"),
                                    }
                                ]
                            },
                            _DNS,
                        ],
                    )
                ),
                Apply(_from_x_a("allow-from-xa-on-ya-match-selector", "a")),
                Apply(_from_x_a("allow-from-xa-on-yb-match-selector", "b")),
            )
        ),
    ),
    (
        "should stop enforcing policies after they are deleted",
        _policy("deny-all", {}, "Ingress", "Egress", ingress=[], egress=[]),
        Step((Delete("NetworkPolicy", "x", "deny-all"),)),
    ),
]
