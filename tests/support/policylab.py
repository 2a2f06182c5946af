"""The cases of policies in a lab: the same actions on its API, the same verdicts by packets.

    Case -> LiveCluster.do(action) -> wait until every node has it -> LiveCluster.probe(all pairs)

Nothing sleeps: nodes say up to which version of policies, pods and namespaces their kernels are.
SCTP is proven by what the destination says of it (ICMP "protocol unreachable"), which is not to be
limited: the pods' rate limits are lifted.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec
from labtools import PATIENCE
from naive_policy import NaiveWorld
from policy_cases import NODES, Action, Apply, Delete, Expect, Label, Raw, kind_of
from policy_worlds import PolicyWorld
from policy_worlds import Probe as Asked

from podwire.client import Api, PatchType
from podwire.errors import AlreadyExistsError, ConflictError, NotFoundError
from podwire.explain.policies import KINDS as POLICY_KINDS
from podwire.explain.policies import wait_policies
from podwire.explain.probes import wire
from podwire.lab import Lab
from podwire.objects import kinds
from podwire.objects.meta import Kind

TIMEOUT_S = 0.2 * PATIENCE
"""What a denied probe costs; all are in flight together."""
_DELIVERED = frozenset({"allowed", "refused"})
_KINDS: dict[str, Kind[Any]] = {
    kind.kind: kind for kind in (kinds.POD, kinds.NAMESPACE, kinds.SERVICE, *POLICY_KINDS)
}


class LiveCluster:
    """One world of the cases in a lab. `reset` undoes what a case did."""

    def __init__(self, lab: Lab, world: Sequence[Raw]) -> None:
        self.lab = lab
        self._world = world
        self._touched: set[tuple[str, str, str]] = set()
        self._nodes = self._list(kinds.NODE)
        self._unlimited: set[str] = set()
        for raw in self._world:
            self._apply(self._placed(raw))
        self._wait_pods()

    # --- objects --------------------------------------------------------------------------------

    def do(self, actions: Iterable[Action]) -> None:
        """Return when every node's kernel has them."""
        pods = False
        for action in actions:
            match action:
                case Apply(raw):
                    raw = self._placed(raw)
                    self._touched.add(_identity(raw))
                    pods = pods or kind_of(raw) in ("Pod", "Namespace")
                    self._apply(raw)
                case Label(kind, namespace, name, labels):
                    self._touched.add((kind, namespace, name))
                    self._label(kind, namespace, name, labels)
                case Delete(kind, namespace, name):
                    self._touched.add((kind, namespace, name))
                    pods = pods or kind == "Namespace"
                    self._delete(kind, namespace, name)
        if pods:
            self._wait_pods()
        missing = self.lab.call(
            lambda api: wait_policies(api, timeout_s=20 * PATIENCE, nodes=NODES)
        )
        assert not missing, missing

    def reset(self) -> None:
        """As it was when the world was made."""
        originals = {_identity(raw): raw for raw in self._world}
        for kind in POLICY_KINDS:
            for raw in self._list(kind):
                meta = raw["metadata"]
                self._delete(kind.kind, meta.get("namespace", ""), meta["name"])
        touched, self._touched = self._touched, set()
        gone = {name for kind, _, name in touched if kind == "Namespace"}
        for identity in sorted(touched):
            if identity not in originals and identity[0] in ("Pod", "Namespace", "Service"):
                self._delete(*identity)
        for identity, raw in originals.items():
            if identity[1] in gone or identity in touched:
                self._apply(self._placed(raw))
                self._label(*identity, raw["metadata"].get("labels", {}))
        self._wait_pods()

    def _placed(self, raw: Raw) -> Raw:
        """Nodes take turns, in the order of names; nothing of a status is sent."""
        raw = copy.deepcopy(raw)
        kind = kind_of(raw)
        raw |= {"kind": kind, "apiVersion": _KINDS[kind].api_version}
        raw.pop("status", None)
        if kind == "Pod":
            meta = raw["metadata"]
            order = sorted((r["metadata"]["namespace"], r["metadata"]["name"]) for r in self._pods)
            here = (meta["namespace"], meta["name"])
            index = order.index(here) if here in order else len(order)
            raw["spec"]["nodeName"] = NODES[index % len(NODES)]
            raw["spec"]["terminationGracePeriodSeconds"] = 0
            for container in raw["spec"]["containers"]:
                container["image"] = "stand-in"
        return raw

    @property
    def _pods(self) -> list[Raw]:
        return [raw for raw in self._world if kind_of(raw) == "Pod"]

    def _apply(self, raw: Raw) -> None:
        kind = _KINDS[raw["kind"]]
        namespace, name = raw["metadata"].get("namespace", ""), raw["metadata"]["name"]

        async def apply(api: Api) -> None:
            try:
                await api.create(kind, raw, namespace)
            except AlreadyExistsError:
                if raw["kind"] not in ("Pod", "Namespace"):
                    await replace(api)

        async def replace(api: Api) -> None:
            for _ in range(5):
                old = await api.get(kind, name, namespace)
                version = {"resourceVersion": old.metadata.resource_version}
                # Controllers write its status meanwhile.
                with contextlib.suppress(ConflictError):
                    await api.replace(kind, {**raw, "metadata": {**raw["metadata"], **version}})
                    return
            raise AssertionError(f"{name}: five conflicts")

        self.lab.call(apply)

    def _label(self, kind: str, namespace: str, name: str, labels: dict[str, str]) -> None:
        """These and no others; what the API server itself sets stays."""
        found = next(
            raw
            for raw in self._list(_KINDS[kind])
            if (raw["metadata"].get("namespace", ""), raw["metadata"]["name"]) == (namespace, name)
        )
        old = found["metadata"].get("labels", {})
        change = {key: None for key in old if not key.startswith("kubernetes.io/")} | labels
        patch = {"metadata": {"labels": change}}
        self.lab.call(
            lambda api: api.patch(_KINDS[kind], name, patch, namespace, patch_type=PatchType.MERGE)
        )

    def _delete(self, kind: str, namespace: str, name: str) -> None:
        """Return when it is gone."""

        async def delete(api: Api) -> None:
            try:
                await api.delete(_KINDS[kind], name, namespace)
                while True:
                    await api.get(_KINDS[kind], name, namespace)
                    await asyncio.sleep(0.02)
            except NotFoundError:
                pass

        self.lab.call(delete)

    def _list(self, kind: Kind[Any]) -> list[Raw]:
        async def read(api: Api) -> list[Raw]:
            body = await api.request("GET", kind.path())
            items: list[Raw] = msgspec.json.decode(body)["items"]
            return [{"kind": kind.kind, "apiVersion": kind.api_version, **item} for item in items]

        return self.lab.call(read)

    def _wait_pods(self) -> None:
        self.lab.wait_ready(30 * PATIENCE)
        holder = self.lab.status()
        pid = next(c.pid for c in holder.components if c.name == "holder")
        self._lift_limits(pid)

    def _lift_limits(self, holder: int) -> None:
        """Each pod says of every SCTP packet that it knows no SCTP."""
        inside = ["nsenter", f"--mount=/proc/{holder}/ns/mnt"]
        pins = self.lab.paths.pod_pins
        listed = subprocess.run([*inside, "ls", pins], capture_output=True, text=True, check=True)
        limits = {
            "net/ipv4/icmp_ratelimit": 0,
            "net/ipv4/icmp_msgs_per_sec": 1_000_000,
            "net/ipv4/icmp_msgs_burst": 10_000,
            "net/ipv6/icmp/ratelimit": 0,
        }
        script = "; ".join(f"echo {value} > /proc/sys/{name}" for name, value in limits.items())
        for name in set(listed.stdout.split()) - self._unlimited:
            words = [*inside, "nsenter", f"--net={pins}/{name}", "sh", "-c", script]
            # Some of them are the machine's, not a namespace's, on some kernels.
            subprocess.run(words, check=False, stderr=subprocess.DEVNULL)
            self._unlimited.add(name)

    # --- verdicts -------------------------------------------------------------------------------

    @property
    def world(self) -> PolicyWorld:
        """What the API has now, for the evaluator."""
        inside = {raw["metadata"]["name"] for raw in self._list(kinds.NAMESPACE)}
        inside -= {"default", "kube-system", "kube-public", "kube-node-lease"}
        pods = [p for p in self._list(kinds.POD) if p["metadata"]["namespace"] in inside]
        namespaces = [n for n in self._list(kinds.NAMESPACE) if n["metadata"]["name"] in inside]
        policies = [raw for kind in POLICY_KINDS for raw in self._list(kind)]
        return PolicyWorld(NaiveWorld(namespaces, pods, self._nodes, policies))

    def addresses(self, version: int = 4) -> dict[str, str]:
        """Every pod's address of that family."""
        return {
            str(pod.key): entry.ip
            for pod in self.lab.pods()
            for entry in pod.status.pod_ips
            if ip_address(entry.ip).version == version
        }

    def probe(self, asked: Sequence[Asked]) -> list[bool]:
        """Whether a packet got there, for each, all at once."""
        pods = {
            entry.ip: pod
            for pod in self.lab.pods()
            if not pod.spec.host_network
            for entry in pod.status.pod_ips
        }
        by_node: dict[str, list[int]] = {}
        addresses = {
            row["address"]: node["metadata"]["name"]
            for node in self._nodes
            for row in node["status"]["addresses"]
        }
        probes: list[wire.Probe] = []
        for i, each in enumerate(asked):
            pod = pods.get(each.source)
            node = pod.spec.node_name if pod else addresses[each.source]
            by_node.setdefault(node, []).append(i)
            probes.append(
                wire.Probe(
                    source=str(pod.key) if pod else "",
                    address=each.destination,
                    port=each.port,
                    protocol=each.protocol.lower(),
                    timeout_s=TIMEOUT_S,
                )
            )
        verdicts: list[bool] = [False] * len(asked)

        async def ask(api: Api) -> None:
            await asyncio.gather(
                *(self._ask(api, node, some, probes, verdicts) for node, some in by_node.items())
            )

        self.lab.call(ask)
        return verdicts

    def probe_as_said(self, asked: Sequence[Asked], says: Sequence[bool]) -> list[bool]:
        """Like `probe`; where packets say something else, datagrams are asked again, one by one.

        One that should have got through: a busy machine may let a process answer a UDP probe after
        its time, and two pods that send each other an SCTP INIT at once take each other's for an
        answer. One that should not: its port may be that of a flow of half a minute ago, which is
        cut a moment after the commit.
        """
        packets = self.probe(asked)
        for i, (said, packet) in enumerate(zip(says, packets, strict=True)):
            if said != packet and asked[i].protocol != "TCP":
                again = [self.probe([asked[i]])[0] for _ in range(3)]
                packets[i] = any(again) if said else all(again)
        return packets

    @staticmethod
    async def _ask(
        api: Api,
        node: str,
        some: list[int],
        probes: Sequence[wire.Probe],
        verdicts: list[bool],
    ) -> None:
        request = wire.encode(wire.ProbeRequest(probes=tuple(probes[i] for i in some)))
        answer = await api.request("POST", f"/api/v1/nodes/{node}/proxy/probe", body=request)
        for i, result in zip(some, wire.parse_response(answer).results, strict=True):
            assert result.verdict != "error", (probes[i], result)
            verdicts[i] = result.verdict in _DELIVERED

    def asked(self, expect: Expect, addresses: dict[str, str]) -> Asked:
        return Asked(
            addresses[expect.source],
            addresses[expect.destination],
            expect.protocol,
            expect.port,
            expect.hairpin,
        )


def _identity(raw: Raw) -> tuple[str, str, str]:
    meta = raw["metadata"]
    return kind_of(raw), meta.get("namespace", ""), meta["name"]


def every_probe(
    addresses: dict[str, str], ports: Iterable[int], protocols: Iterable[str]
) -> Iterator[Asked]:
    """All pairs; but for a pod and itself by SCTP: it would answer its own raw socket."""
    for source, destination in itertools.product(addresses.values(), repeat=2):
        for port, protocol in itertools.product(ports, protocols):
            if source != destination or protocol != "SCTP":
                yield Asked(source, destination, protocol, port)
