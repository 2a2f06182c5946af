"""Kubernetes' 48 end-to-end specs of NetworkPolicy under their names, with their own verdicts.

Source: k/k test/e2e/network/netpol/network_policy.go (42 by TCP, 3 by UDP, 3 by SCTP). A spec names
the pods it needs; only those are asked for. DNS rules are not there, nor is the pod to itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any, Final

from policy_cases import Action, Addresses, Apply, Case, Delete, Expect, Label, Raw, Step, table
from policy_worlds import make_network_policy

SUITE: Final = "kubernetes"
_NAME: Final = "kubernetes.io/metadata.name"


def _labels(**wanted: str) -> Raw:
    return {"matchLabels": wanted}


def _is(key: str, operator: str, *values: str) -> Raw:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": [*values]}]}


_NOT_X: Final = _is(_NAME, "NotIn", "x")
_IN_X: Final = {"matchLabels": {_NAME: "x"}}
_IN_Y: Final = {"matchLabels": {_NAME: "y"}}
_A: Final = _labels(pod="a")
_ALL: Final[Raw] = {}


def _policy(name: str, pods: Raw, namespace: str = "x", **rules: list[Raw]) -> Apply:
    """policyTypes are the directions it has rules for, as upstream's setters say."""
    types = [direction.capitalize() for direction in ("ingress", "egress") if direction in rules]
    return Apply(make_network_policy(namespace, name, podSelector=pods, policyTypes=types, **rules))


def _from(*peers: Raw, ports: list[Raw] | None = None) -> list[Raw]:
    return [{"from": [*peers]} | ({"ports": ports} if ports else {})]


def _to(*peers: Raw) -> list[Raw]:
    return [{"to": [*peers]}]


def _pods(selector: Raw, namespaces: Raw | None = None) -> Raw:
    peer = {"podSelector": selector}
    return peer if namespaces is None else {**peer, "namespaceSelector": namespaces}


def _in(namespaces: Raw) -> Raw:
    return {"namespaceSelector": namespaces}


def _port(number: int | str, protocol: str | None = None) -> Raw:
    return {"port": number} | ({"protocol": protocol} if protocol else {})


class _Spec:
    """One spec: its pods, then actions and tables in turn."""

    def __init__(self, name: str, pods: str, *parts: Action | tuple[Any, ...]) -> None:
        self.name, self._pods, self._parts = name, pods.split(), parts

    def case(self, tag: str) -> Case:
        steps: list[Step] = []
        actions: list[Action] = []
        expected: list[Expect] = []
        for part in self._parts:
            if isinstance(part, Apply | Label | Delete):
                if expected:
                    steps.append(Step(tuple(actions), tuple(expected)))
                    actions, expected = [], []
                actions.append(part)
            else:
                port, protocol, *rules = part
                expected += table(port, protocol, self._pods, *rules)
        steps.append(Step(tuple(actions), tuple(expected)))
        name = self.name if tag == "TCP" else f"{self.name} ({tag})"
        return Case(SUITE, name, "xyz", tuple(steps), frozenset({tag}))


def cases(addresses: Addresses) -> list[Case]:
    """`addresses`: where y/b and x/b are."""
    return [
        *(spec.case("TCP") for spec in _tcp()),
        *(spec.case("TCP") for spec in _cidrs(addresses)),
        *(spec.case(protocol) for protocol in ("UDP", "SCTP") for spec in _other(protocol)),
    ]


def _tcp() -> Iterator[_Spec]:
    yield from _selecting()
    yield from _ports_and_stacks()
    yield from _changes()
    yield from _egress()
    yield from _safety()


_X_A_ONLY_FROM_X_B: Final = ("* !> x/a", "x/b > x/a")
_X_A_NOT_FROM_X_OR_Z: Final = ("x/* !> x/a", "z/* !> x/a")


def _selecting() -> Iterator[_Spec]:
    yield _Spec(
        "should support a 'default-deny-ingress' policy",
        "x/a x/b y/a y/b",
        _policy("deny-ingress", _ALL, ingress=[]),
        (80, "TCP", "* !> x/*"),
    )
    yield _Spec(
        "should support a 'default-deny-all' policy",
        "x/a x/b y/a",
        _policy("deny-all", _ALL, ingress=[], egress=[]),
        (80, "TCP", "* !> x/*", "x/* !> *"),
    )
    yield _Spec(
        "should enforce policy to allow traffic from pods within server namespace based on "
        "PodSelector",
        "x/a x/b x/c y/a",
        _policy("x-a-allows-x-b", _A, ingress=_from(_pods(_labels(pod="b")))),
        (80, "TCP", *_X_A_ONLY_FROM_X_B),
    )
    yield _Spec(
        "should enforce policy to allow ingress traffic for a target",
        "x/a x/b y/a",
        _policy("deny-all", _ALL, ingress=[]),
        _policy("allow-all-to-a", _A, ingress=_from(_pods({}, {}))),
        (80, "TCP", "* > x/a", "* !> x/b"),
    )
    yield _Spec(
        "should enforce policy to allow ingress traffic from pods in all namespaces",
        "x/a x/b y/a z/a",
        _policy("allow-from-another-ns", _A, ingress=_from(_in({"matchLabels": {}}))),
        (80, "TCP"),
    )
    yield _Spec(
        "should enforce policy to allow traffic only from a different namespace, based on "
        "NamespaceSelector",
        "x/a x/b y/a z/a",
        _policy("allow-client-a-via-ns-selector", _A, ingress=_from(_in(_IN_Y))),
        (80, "TCP", *_X_A_NOT_FROM_X_OR_Z),
    )
    yield _Spec(
        "should enforce policy based on PodSelector with MatchExpressions",
        "x/a x/b y/a",
        _policy("x-a-allows-x-b", _A, ingress=_from(_pods(_is("pod", "In", "b")))),
        (80, "TCP", *_X_A_ONLY_FROM_X_B),
    )
    yield _Spec(
        "should enforce policy based on NamespaceSelector with MatchExpressions",
        "x/a x/b y/a z/a",
        _policy("allow-ns-y-match-selector", _A, ingress=_from(_in(_is(_NAME, "In", "y")))),
        (80, "TCP", *_X_A_NOT_FROM_X_OR_Z),
    )
    yield _Spec(
        "should enforce policy based on PodSelector or NamespaceSelector",
        "x/a x/b x/c y/a",
        _policy(
            "allow-ns-y-match-selector",
            _A,
            ingress=_from(_in(_NOT_X), _pods(_labels(pod="b"))),
        ),
        (80, "TCP", "x/c !> x/a"),
    )
    yield _Spec(
        "should enforce policy based on PodSelector and NamespaceSelector",
        "x/a x/b y/a y/b z/b",
        _policy(
            "allow-ns-y-podselector-and-nsselector",
            _A,
            ingress=_from(_pods(_labels(pod="b"), _NOT_X)),
        ),
        (80, "TCP", "* !> x/a", "y/b > x/a", "z/b > x/a"),
    )
    yield _Spec(
        "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
        "x/a x/b y/a y/b y/c",
        _policy(
            "allow-ns-y-z-pod-b-c", _A, ingress=_from(_pods(_is("pod", "In", "b", "c"), _NOT_X))
        ),
        (80, "TCP", "x/* !> x/a", "y/a !> x/a"),
    )
    yield _Spec(
        "should enforce policy based on any PodSelectors",
        "x/a x/b x/c",
        _policy(
            "allow-ns-x-pod-b-c",
            _A,
            ingress=_from(_pods(_labels(pod="b")), _pods(_labels(pod="c"))),
        ),
        (80, "TCP", "* !> x/a", "x/b > x/a", "x/c > x/a"),
    )
    yield _Spec(
        "should enforce policy to allow traffic only from a pod in a different namespace based "
        "on PodSelector and NamespaceSelector",
        "x/a x/b y/a y/b z/a",
        _policy("allow-ns-y-pod-a-via-namespace-pod-selector", _A, ingress=_from(_pods(_A, _IN_Y))),
        (80, "TCP", "* !> x/a", "y/a > x/a"),
    )


_FROM_Y_ONLY: Final = ("x/* !> x/a", "y/* > x/a", "z/* !> x/a")


def _ports_and_stacks() -> Iterator[_Spec]:
    def allow(name: str, number: int) -> Apply:
        return _policy(name, _A, ingress=_from(_in(_IN_Y), ports=[_port(number, "TCP")]))

    yield _Spec(
        "should enforce policy based on Ports",
        "x/a x/b y/a y/b z/a",
        allow("allow-client-a-via-ns-selector", 81),
        (81, "TCP", *_FROM_Y_ONLY),
    )
    yield _Spec(
        "should enforce multiple, stacked policies with overlapping podSelectors",
        "x/a x/b y/a y/b z/a",
        allow("allow-client-a-via-ns-selector", 81),
        (81, "TCP", *_FROM_Y_ONLY),
        (80, "TCP", "* !> x/a"),
        allow("allow-client-a-via-ns-selector-80", 80),
        (80, "TCP", *_FROM_Y_ONLY),
    )
    yield _Spec(
        "should support allow-all policy",
        "x/a x/b y/a",
        _policy("allow-all", _labels(), ingress=[{}]),
        (80, "TCP"),
        (81, "TCP"),
    )
    yield _Spec(
        "should allow ingress access on one named port",
        "x/a x/b y/a",
        _policy("allow-all", _labels(), ingress=[{"ports": [_port("serve-81-tcp")]}]),
        (81, "TCP"),
        (80, "TCP", "* !> x/*"),
    )
    yield _Spec(
        "should allow ingress access from namespace on one named port",
        "x/a x/b y/a z/a",
        _policy(
            "allow-client-a-via-ns-selector-80",
            _A,
            ingress=_from(_in(_IN_Y), ports=[_port("serve-80-tcp", "TCP")]),
        ),
        (80, "TCP", *_X_A_NOT_FROM_X_OR_Z),
        (81, "TCP", "* !> x/a"),
    )
    yield _Spec(
        "should allow egress access on one named port",
        "x/a y/a",
        _policy("allow-egress", _labels(), egress=[{"ports": [_port("serve-80-tcp")]}]),
        (80, "TCP"),
        (81, "TCP", "x/* !> *"),
    )


def _changes() -> Iterator[_Spec]:
    yield _Spec(
        "should enforce updated policy",
        "x/a y/a",
        _policy("allow-all-mutate-to-deny-all", _labels(), ingress=[{}]),
        (81, "TCP"),
        _policy("allow-all-mutate-to-deny-all", _labels(), ingress=[]),
        (81, "TCP", "* !> x/*"),
    )
    yield _Spec(
        "should allow ingress access from updated namespace",
        "x/a y/a",
        _policy("allow-client-a-via-ns-selector", _A, ingress=_from(_in(_labels(ns2="updated")))),
        (80, "TCP", "* !> x/a"),
        Label("Namespace", "", "y", {"ns": "y", "ns2": "updated"}),
        (80, "TCP", "* !> x/a", "y/* > *"),
    )
    yield _Spec(
        "should allow ingress access from updated pod",
        "x/a x/b",
        _policy(
            "allow-client-a-via-pod-selector",
            _A,
            ingress=_from(_pods(_labels(pod="b", pod2="updated"))),
        ),
        (80, "TCP", "* !> x/a"),
        Label("Pod", "x", "b", {"pod": "b", "pod2": "updated"}),
        (80, "TCP", *_X_A_ONLY_FROM_X_B),
    )
    yield _Spec(
        "should deny ingress from pods on other namespaces",
        "x/a x/b y/a z/a",
        _policy("deny-empty-policy", _ALL, ingress=_from(_pods(_labels()))),
        (80, "TCP", "y/* !> x/*", "z/* !> x/*"),
    )
    yield _Spec(
        "should deny ingress access to updated pod",
        "x/a y/a",
        _policy("deny-ingress-via-label-selector", _labels(target="isolated"), ingress=[]),
        (80, "TCP"),
        Label("Pod", "x", "a", {"pod": "a", "target": "isolated"}),
        (80, "TCP", "* !> x/a"),
    )
    yield _Spec(
        "should stop enforcing policies after they are deleted",
        "x/a y/a",
        _policy("deny-all", _ALL, ingress=[], egress=[]),
        (80, "TCP", "x/* !> *", "* !> x/*"),
        Delete("NetworkPolicy", "x", "deny-all"),
        (80, "TCP"),
    )


def _egress() -> Iterator[_Spec]:
    yield _Spec(
        "should deny egress from pods based on PodSelector",
        "x/a x/b y/a",
        _policy("deny-egress-pod-a", _A, egress=[]),
        (80, "TCP", "x/a !> *"),
    )
    yield _Spec(
        "should deny egress from all pods in a namespace",
        "x/a x/b y/a",
        _policy("deny-egress-ns-x", _ALL, egress=[]),
        (80, "TCP", "x/* !> *"),
    )
    yield _Spec(
        "should work with Ingress, Egress specified together",
        "x/a x/b x/c y/a",
        _policy(
            "allow-client-a-via-pod-selector",
            _A,
            ingress=_from(_pods(_labels(pod="b"))),
            egress=[{"ports": [_port(80)]}],
        ),
        (80, "TCP", *_X_A_ONLY_FROM_X_B),
        (81, "TCP", "* !> x/a", "x/a !> *", "x/b > x/a"),
    )
    yield _Spec(
        "should support denying of egress traffic on the client side (even if the server "
        "explicitly allows this traffic)",
        "x/a y/a y/b",
        _policy("allow-to-ns-y-pod-a", _A, egress=_to(_pods(_A, _IN_Y))),
        _policy("allow-from-xa-on-ya-match-selector", _A, "y", ingress=_from(_pods(_A, _IN_X))),
        _policy(
            "allow-from-xa-on-yb-match-selector",
            _labels(pod="b"),
            "y",
            ingress=_from(_pods(_A, _IN_X)),
        ),
        (80, "TCP", "x/a !> *", "* !> y/a", "x/a > y/a", "* !> y/b"),
    )
    yield _Spec(
        "should enforce egress policy allowing traffic to a server in a different namespace "
        "based on PodSelector and NamespaceSelector",
        "x/a y/a y/b",
        _policy("allow-to-ns-y-pod-a", _A, egress=_to(_pods(_A, _IN_Y))),
        (80, "TCP", "x/a !> *", "x/a > y/a"),
    )
    yield _Spec(
        "should enforce ingress policy allowing any port traffic to a server on a specific "
        "protocol",
        "x/a y/a",
        _policy("allow-ingress-by-proto", _A, ingress=[{"ports": [{"protocol": "TCP"}]}]),
        (80, "TCP"),
        (80, "UDP", "* !> x/a"),
    )
    yield _Spec(
        "should enforce multiple ingress policies with ingress allow-all policy taking precedence",
        "x/a y/a",
        _policy("allow-ingress-port-80", _labels(), ingress=[{"ports": [_port(80)]}]),
        (81, "TCP", "* !> x/*"),
        _policy("allow-ingress", _labels(), ingress=[{}]),
        (81, "TCP"),
    )
    yield _Spec(
        "should enforce multiple egress policies with egress allow-all policy taking precedence",
        "x/a y/a",
        _policy("allow-egress-port-80", _labels(), egress=[{"ports": [_port(80)]}]),
        (81, "TCP", "x/* !> *"),
        _policy("allow-egress", _labels(), egress=[{}]),
        (81, "TCP"),
    )
    yield _Spec(
        "should enforce policies to check ingress and egress policies can be controlled "
        "independently based on PodSelector",
        "x/a x/b y/a",
        _policy("allow-egress-for-target", _A, egress=[{}]),
        (80, "TCP"),
        _policy("deny-ingress-via-label-selector", _A, ingress=[]),
        (80, "TCP", "* !> x/a"),
    )
    yield _Spec(
        "should enforce policy based on NamespaceSelector with MatchExpressions using default "
        "ns label",
        "x/a x/b y/a z/a",
        _policy(
            "allow-ns-y-match-selector-for-immutable-ns-label",
            _A,
            egress=_to(_in(_is(_NAME, "NotIn", "y"))),
        ),
        (80, "TCP", "x/a !> y/*"),
    )


def _safety() -> Iterator[_Spec]:
    yield _Spec(
        "should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin "
        "doesn't support SCTP",
        "x/a y/a",
        _policy("deny-ingress", _ALL, ingress=[]),
        _policy("allow-only-sctp-ingress-on-port-81", _A, ingress=[{"ports": [_port(81, "SCTP")]}]),
        (81, "TCP", "* !> x/*"),
    )
    yield _Spec(
        "should properly isolate pods that are selected by a policy allowing SCTP, even if the "
        "plugin doesn't support SCTP",
        "x/a y/a",
        _policy("allow-only-sctp-ingress-on-port-80", _A, ingress=[{"ports": [_port(80, "SCTP")]}]),
        (81, "TCP", "* !> x/a"),
    )
    yield _Spec(
        "should not allow access by TCP when a policy specifies only UDP",
        "x/a y/a",
        _policy("allow-only-udp-ingress-on-port-81", _A, ingress=[{"ports": [_port(81, "UDP")]}]),
        (81, "TCP", "* !> x/a"),
    )
    yield _Spec(
        "should enforce policy to allow traffic based on NamespaceSelector with MatchLabels "
        "using default ns label",
        "x/a x/b y/a z/a",
        _policy(
            "allow-client-a-via-ns-selector-for-immutable-ns-label",
            _A,
            ingress=_from(_in(_IN_Y)),
        ),
        (80, "TCP", *_X_A_NOT_FROM_X_OR_Z),
    )


def _cidrs(addresses: Addresses) -> Iterator[_Spec]:
    name = "allow-client-a-via-cidr-egress-rule"

    def allow(cidr: str, *holes: str) -> Apply:
        block = {"cidr": cidr} | ({"except": [*holes]} if holes else {})
        return _policy(name, _A, egress=_to({"ipBlock": block}))

    y_b = str(ip_network(addresses["y/b"]))
    x_b = str(ip_network(addresses["x/b"]))
    large = str(ip_network(f"{addresses['x/b']}/4", strict=False))
    yield _Spec(
        "should allow egress access to server in CIDR block",
        "x/a y/a y/b",
        allow(y_b),
        (80, "TCP", "x/a !> *", "x/a > y/b"),
    )
    yield _Spec(
        "should enforce except clause while egress access to server in CIDR block",
        "x/a x/b x/c",
        allow(large, x_b),
        (80, "TCP", "x/a !> x/b"),
    )
    yield _Spec(
        "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed",
        "x/a x/b x/c",
        allow(large, x_b),
        (80, "TCP", "x/a !> x/b"),
        allow(x_b),
        (80, "TCP", "x/a !> *", "x/a > x/b"),
    )


def _other(protocol: str) -> Iterator[_Spec]:
    yield _Spec(
        "should support a 'default-deny-ingress' policy",
        "x/a x/b y/a y/b",
        _policy("deny-all", _ALL, ingress=[]),
        (80, protocol, "* !> x/*"),
    )
    yield _Spec(
        "should enforce policy based on Ports",
        "x/a x/b y/a z/a",
        _policy(
            "allow-ingress-on-port-81-ns-x",
            _A,
            ingress=_from(_in(_IN_Y), ports=[_port(81, protocol)]),
        ),
        (81, protocol, *_X_A_NOT_FROM_X_OR_Z),
    )
    yield _Spec(
        "should enforce policy to allow traffic only from a pod in a different namespace based "
        "on PodSelector and NamespaceSelector",
        "x/a x/b y/a",
        _policy("allow-ns-y-pod-a-via-namespace-pod-selector", _A, ingress=_from(_pods(_A, _IN_Y))),
        (80, protocol, "* !> x/a", "y/a > x/a"),
    )
