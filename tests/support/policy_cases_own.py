"""What no suite of the field tests, with verdicts written by hand.

The union of live policies whose ipBlocks have holes, ties of priority, a pod isolated in one
direction under Baseline rules of both, Pass to nowhere, one name for several numbers, and changes
that must leave others' rules alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any, Final

from policy_cases import (
    Action,
    Addresses,
    Apply,
    Case,
    Delete,
    Expect,
    Label,
    Raw,
    Step,
    table,
    xyz_pod,
)
from policy_worlds import make_cluster_policy, make_network_policy

SUITE: Final = "podwire"
_PODS: Final = [f"{namespace}/{name}" for namespace in "xyz" for name in "abc"]
_A: Final = {"matchLabels": {"pod": "a"}}
_X: Final = {"namespaces": {"matchLabels": {"ns": "x"}}}
_Y: Final = {"namespaces": {"matchLabels": {"ns": "y"}}}
_ALL: Final = {"namespaces": {}}


def _np(name: str, pods: Raw, *types: str, namespace: str = "x", **rules: Any) -> Apply:
    return Apply(
        make_network_policy(namespace, name, podSelector=pods, policyTypes=[*types], **rules)
    )


def _cnp(name: str, tier: str, priority: int, subject: Raw, **rules: list[Raw]) -> Apply:
    return Apply(make_cluster_policy(name, tier, priority, subject, **rules))


def _from(action: str, *peers: Raw, **more: Any) -> Raw:
    return {"action": action, "from": [*peers], **more}


def _to(action: str, *peers: Raw, **more: Any) -> Raw:
    return {"action": action, "to": [*peers], **more}


def _case(name: str, *parts: tuple[list[Action], tuple[Expect, ...]], tag: str = "") -> Case:
    steps = tuple(Step(tuple(actions), expected) for actions, expected in parts)
    return Case(SUITE, name, "xyz", steps, frozenset({tag} if tag else ()))


def _all(*rules: str, port: int = 80, protocol: str = "TCP") -> tuple[Expect, ...]:
    return table(port, protocol, _PODS, *rules)


def cases(addresses: Addresses) -> list[Case]:
    return [*_holes(addresses), *_tiers(), *_ports(), *_sctp(), *_changes()]


def _holes(addresses: Addresses) -> Iterator[Case]:
    """The /4 of a pod holds all others, too."""
    wide = str(ip_network(f"{addresses['x/b']}/4", strict=False))
    host = {name: str(ip_network(addresses[name])) for name in _PODS}

    def block(*holes: str, cidr: str = wide) -> Raw:
        return {"ipBlock": {"cidr": cidr, "except": [host[name] for name in holes]}}

    def only(name: str) -> Raw:
        return {"ipBlock": {"cidr": host[name]}}

    yield _case(
        "egress: two policies, the one's hole is the other's block",
        ([_np("one", _A, "Egress", egress=[{"to": [block("x/b")]}])], _all("x/a !> x/b")),
        ([_np("two", _A, "Egress", egress=[{"to": [only("x/b")]}])], _all()),
        ([Delete("NetworkPolicy", "x", "one")], _all("x/a !> *", "x/a > x/b")),
        ([Delete("NetworkPolicy", "x", "two")], _all()),
        tag="except",
    )
    yield _case(
        "ingress: two policies, each with the other's hole",
        ([_np("one", _A, "Ingress", ingress=[{"from": [block("y/a")]}])], _all("y/a !> x/a")),
        ([_np("two", _A, "Ingress", ingress=[{"from": [block("y/b")]}])], _all()),
        tag="except",
    )
    yield _case(
        "one rule, two blocks: a hole is of its own block",
        (
            [_np("np", _A, "Ingress", ingress=[{"from": [block("y/a", "y/b"), only("y/b")]}])],
            _all("y/a !> x/a"),
        ),
        tag="except",
    )
    yield _case(
        "a hole takes nothing from a selector",
        (
            [
                _np(
                    "np",
                    _A,
                    "Ingress",
                    ingress=[
                        {
                            "from": [
                                block("y/a", "z/a"),
                                {"namespaceSelector": {"matchLabels": {"ns": "y"}}},
                            ]
                        }
                    ],
                )
            ],
            _all("z/a !> x/a"),
        ),
        tag="except",
    )
    yield _case(
        "holes at ports of their own",
        (
            [
                _np(
                    "np",
                    _A,
                    "Ingress",
                    ingress=[
                        {"from": [block("y/a")], "ports": [{"port": 80}]},
                        {"from": [block("y/b")], "ports": [{"port": 81}]},
                    ],
                )
            ],
            (
                *_all("y/a !> x/a"),
                *_all("y/b !> x/a", port=81),
                *_all("* !> x/a", protocol="UDP"),
            ),
        ),
        tag="except",
    )
    yield _case(
        "networks that Deny have no holes of NetworkPolicies",
        (
            [
                _np("np", _A, "Egress", egress=[{"to": [block("y/a")]}, {"to": [only("y/a")]}]),
                _cnp("deny", "Admin", 1, _X, egress=[_to("Deny", {"networks": [host["y/a"]]})]),
            ],
            _all("x/* !> y/a"),
        ),
        tag="except",
    )


def _tiers() -> Iterator[Case]:
    deny, accept = [_from("Deny", _Y)], [_from("Accept", _Y)]
    y_to_x = _all("y/* !> x/*")
    yield _case(
        "Admin: equal priorities go by name",
        ([_cnp("b", "Admin", 5, _X, ingress=deny)], y_to_x),
        ([_cnp("a", "Admin", 5, _X, ingress=accept)], _all()),
        (
            [Delete("ClusterNetworkPolicy", "", "a"), _cnp("c", "Admin", 5, _X, ingress=accept)],
            y_to_x,
        ),
        ([_cnp("c", "Admin", 4, _X, ingress=accept)], _all()),
        tag="ties",
    )
    yield _case(
        "Baseline: equal priorities go by name",
        (
            [
                _cnp("b", "Baseline", 0, _X, ingress=accept),
                _cnp("a", "Baseline", 0, _X, ingress=deny),
            ],
            y_to_x,
        ),
        ([_cnp("a", "Baseline", 1, _X, ingress=deny)], _all()),
        tag="ties",
    )
    yield _case(
        "the first and the last priority",
        (
            [
                _cnp("a", "Admin", 1000, _X, ingress=deny),
                _cnp("z", "Admin", 0, _X, ingress=[_from("Accept", _Y)]),
            ],
            _all(),
        ),
        tag="ties",
    )
    baseline = _cnp(
        "base", "Baseline", 10, _X, ingress=[_from("Deny", _Y)], egress=[_to("Deny", _Y)]
    )
    yield _case(
        "isolated for egress only: Baseline is asked for ingress",
        ([baseline], _all("y/* !> x/*", "x/* !> y/*")),
        ([_np("out", _A, "Egress", egress=[{}])], _all("y/* !> x/*", "x/* !> y/*", "x/a > y/*")),
        (
            [_np("out", _A, "Egress", egress=[])],
            _all("y/* !> x/*", "x/* !> y/*", "x/a !> *"),
        ),
        tag="per direction",
    )
    yield _case(
        "isolated for ingress only: Baseline is asked for egress",
        (
            [baseline, _np("in", _A, "Ingress", ingress=[{}])],
            _all("y/* !> x/*", "y/* > x/a", "x/* !> y/*"),
        ),
        tag="per direction",
    )
    yield _case(
        "Pass to nowhere is allowed, and NetworkPolicies come after it",
        (
            [
                _cnp("pass", "Admin", 1, _X, ingress=[_from("Pass", _Y)]),
                _cnp("deny", "Admin", 2, _X, ingress=[_from("Deny", _ALL)]),
            ],
            _all("x/* !> x/*", "z/* !> x/*"),
        ),
        (
            [_np("np", _A, "Ingress")],
            _all("x/* !> x/*", "z/* !> x/*", "* !> x/a"),
        ),
        tag="pass",
    )
    yield _case(
        "Pass in Baseline ends it",
        (
            [_cnp("base", "Baseline", 1, _X, ingress=[_from("Pass", _Y), _from("Deny", _ALL)])],
            _all("x/* !> x/*", "z/* !> x/*"),
        ),
        tag="pass",
    )
    yield _case(
        "Admin Accept beats NetworkPolicies of one side only",
        (
            [
                _np("in", {}, "Ingress"),
                _np("in", {}, "Ingress", namespace="y"),
                _cnp("accept", "Admin", 1, _X, ingress=[_from("Accept", _Y)]),
            ],
            _all("* !> x/*", "* !> y/*", "y/* > x/*"),
        ),
        (
            [_cnp("accept", "Admin", 1, _X, egress=[_to("Accept", _Y)])],
            _all("* !> x/*", "* !> y/*"),
        ),
        tag="accept",
    )


def _ports() -> Iterator[Case]:
    other = xyz_pod("y", "d")
    other["spec"]["containers"][0]["ports"] = [
        {"name": "serve-80-tcp", "containerPort": 81, "protocol": "TCP"},
        {"name": "serve-81-tcp", "containerPort": 80, "protocol": "TCP"},
    ]
    named = {"ports": [{"port": "serve-80-tcp"}]}
    pods = ["x/a", "x/b", "y/a", "y/d"]
    yield _case(
        "egress by name: another number on another pod",
        (
            [Apply(other), _np("np", _A, "Egress", egress=[named])],
            (
                *table(80, "TCP", pods, "x/a !> y/d"),
                *table(81, "TCP", pods, "x/a !> *", "x/a > y/d"),
            ),
        ),
        (
            [_cnp("deny", "Admin", 1, _X, egress=[_to("Deny", _Y, protocols=[_NAMED])])],
            (
                *table(80, "TCP", pods, "x/a !> y/d", "x/* !> y/a"),
                *table(81, "TCP", pods, "x/a !> *", "x/* !> y/d"),
            ),
        ),
        tag="named ports",
    )
    yield _case(
        "egress by name to an ipBlock: pods only",
        (
            [
                _np(
                    "np",
                    _A,
                    "Egress",
                    egress=[
                        {
                            "to": [{"ipBlock": {"cidr": all_}} for all_ in ("0.0.0.0/0", "::/0")],
                            **named,
                        }
                    ],
                )
            ],
            (*_all(), *_all("x/a !> *", port=81)),
        ),
        tag="named ports",
    )
    every = {"destinationPort": {"range": {"start": 1, "end": 65535}}}
    some = {"destinationPort": {"range": {"start": 81, "end": 90}}}
    protocols = [{"udp": every}, {"sctp": some}]
    yield _case(
        "one protocol whole, a range of another",
        (
            [_cnp("deny", "Admin", 1, _X, ingress=[_from("Deny", _Y, protocols=protocols)])],
            (
                *_all(),
                *_all("y/* !> x/*", protocol="UDP"),
                *_all(protocol="SCTP"),
                *_all("y/* !> x/*", port=81, protocol="SCTP"),
            ),
        ),
        tag="protocols",
    )


def _sctp() -> Iterator[Case]:
    """Every form of a rule in one world: number, range, name, another protocol's, none at all."""
    from_y = {"namespaceSelector": {"matchLabels": {"ns": "y"}}}
    number = {"protocol": "SCTP", "port": 80}
    range_ = {"protocol": "SCTP", "port": 81, "endPort": 90}
    name = {"protocol": "SCTP", "port": "serve-80-sctp"}
    others = [{"protocol": "TCP", "port": 80}, {"protocol": "UDP", "port": 81}]
    own: list[Action] = [
        _np("number", _pod("a"), "Ingress", ingress=[{"ports": [number]}]),
        _np("range", _pod("b"), "Ingress", ingress=[{"from": [from_y], "ports": [range_]}]),
        _np("others", _pod("c"), "Ingress", ingress=[{"ports": others}]),
        _np("name", _pod("a"), "Egress", namespace="y", egress=[{"ports": [name]}]),
        _np("nothing", _pod("b"), "Egress", namespace="y"),
    ]
    at_80 = ["* !> x/b", "* !> x/c"]
    at_81 = ["* !> x/*", "y/* > x/b", "y/a !> *"]
    both = {"sctp": {"destinationPort": {"range": {"start": 80, "end": 81}}}}
    one = {"sctp": {"destinationPort": {"number": 80}}}
    z = {"namespaces": {"matchLabels": {"ns": "z"}}}
    tier = [_from("Accept", _Y, protocols=[one]), _from("Deny", z, protocols=[both])]
    yield _case(
        "SCTP by rules of every form, then by those of a tier above",
        (own, (*_by_sctp(80, *at_80, "y/b !> *"), *_by_sctp(81, *at_81, "y/b !> *"))),
        (
            [_cnp("tier", "Admin", 1, _X, ingress=tier)],
            (
                *_by_sctp(80, *at_80, "y/* > x/*", "z/* !> x/*", "y/b !> *"),
                *_by_sctp(81, *at_81, "z/* !> x/*", "y/b !> *"),
            ),
        ),
        (
            [Delete("NetworkPolicy", "x", "others"), Delete("NetworkPolicy", "y", "nothing")],
            (
                *_by_sctp(80, "* !> x/b", "y/* > x/*", "z/* !> x/*"),
                *_by_sctp(81, *at_81[:2], "x/* > x/c", "y/* > x/c", "z/* !> x/*", "y/a !> *"),
            ),
        ),
        tag="sctp",
    )


def _pod(name: str) -> Raw:
    return {"matchLabels": {"pod": name}}


def _by_sctp(port: int, *rules: str) -> tuple[Expect, ...]:
    return _all(*rules, port=port, protocol="SCTP")


_NAMED: Final[Raw] = {"destinationNamedPort": "serve-80-tcp"}


def _changes() -> Iterator[Case]:
    by_role = {"matchLabels": {"role": "server"}}
    yield _case(
        "a pod moves from one policy to another by its labels",
        (
            [
                _np("servers", by_role, "Ingress", ingress=[{"ports": [{"port": 81}]}]),
                _np("a", _A, "Ingress", ingress=[{"ports": [{"port": 80}]}]),
            ],
            (*_all(), *_all("* !> x/a", port=81)),
        ),
        (
            [Label("Pod", "x", "a", {"role": "server"})],
            (*_all("* !> x/a"), *_all(port=81)),
        ),
        (
            [Label("Pod", "x", "a", {"pod": "a", "role": "server"})],
            (*_all(), *_all(port=81)),
        ),
        tag="changes",
    )
    yield _case(
        "a namespace joins and leaves a peer while another stays",
        (
            [
                _np(
                    "np",
                    {},
                    "Ingress",
                    ingress=[
                        {
                            "from": [
                                {"namespaceSelector": {"matchLabels": {"ns": "z"}}},
                                {"namespaceSelector": {"matchLabels": {"friend": "yes"}}},
                            ]
                        }
                    ],
                )
            ],
            _all("* !> x/*", "z/* > x/*"),
        ),
        (
            [Label("Namespace", "", "y", {"ns": "y", "friend": "yes"})],
            _all("x/* !> x/*"),
        ),
        ([Label("Namespace", "", "y", {"ns": "y"})], _all("* !> x/*", "z/* > x/*")),
        tag="changes",
    )
    yield _case(
        "a policy of the other direction comes and goes",
        ([_np("in", {}, "Ingress")], _all("* !> x/*")),
        ([_np("out", {}, "Egress")], _all("* !> x/*", "x/* !> *")),
        ([Delete("NetworkPolicy", "x", "in")], _all("x/* !> *")),
        ([Delete("NetworkPolicy", "x", "out")], _all()),
        tag="changes",
    )
