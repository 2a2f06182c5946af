"""The public `Lab`: a network in ten lines of Python.

Everything is synchronous for its caller; underneath, one background event loop speaks to the lab's
API server over its unix socket. The command line is built on this class too.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from podwire.client import Api, Endpoint
from podwire.errors import ApiError, LabError, NotFoundError, UsageError
from podwire.explain import live, policies, programmed, reach, staticlive
from podwire.explain.probes import wire as probes
from podwire.kernel import features
from podwire.lab import dnsaddon, kubeconfig, launch, manifests, status, waiting, wire
from podwire.lab import spec as specs
from podwire.lab.paths import LabPaths
from podwire.lab.spec import LabSpec
from podwire.objects import kinds
from podwire.objects.core import Pod
from podwire.objects.documents import Document, load, parse
from podwire.objects.meta import Key
from podwire.policy.evaluate import DEFAULT, Semantics
from podwire.runtime.containers import Image
from podwire.runtime.oci.store import ImageStore

R = TypeVar("R")
_DEFAULT_WAIT_S = 60.0
# The controllers write slices within milliseconds; where they do not, somebody else does.
_LISTED_WAIT_S = 2.0


@dataclass(frozen=True)
class ExecResult:
    """What a command in a pod printed and how it ended."""

    exit_code: int
    stdout: str
    stderr: str


class Lab:
    """One lab by name. As a context manager it is brought up, and taken down at the end.

    `Lab(name)` without entering it is a handle on a lab that runs already.
    """

    def __init__(
        self,
        name: str = specs.DEFAULT_NAME,
        *,
        nodes: int = 3,
        zones: Sequence[str] = (),
        keep: bool = False,
        **options: Any,
    ) -> None:
        """`options` are the fields of `LabSpec` (network, overlay, ip_family, ...)."""
        self.name = name
        self.paths = LabPaths.of(name)
        self._keep = keep
        self._spec = LabSpec(name=name, nodes=specs.make_nodes(nodes, tuple(zones)), **options)
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_spec(cls, spec: LabSpec) -> Lab:
        lab = cls(spec.name)
        lab._spec = spec
        return lab

    # --- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        built = False
        try:
            built = launch.up(self._spec)
            self.wait_nodes()
        except BaseException:
            # `with` does not call __exit__ for what failed to enter. A lab that was there before
            # is not ours to end.
            if built:
                self.__exit__(None, None, None)
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if not self._keep:
            self.down()
        self.close()

    def up(self, progress: Callable[[str], None] = lambda _: None) -> bool:
        """Build the lab, or reconcile it when it runs; True when it was built.

        Returns when the API server answers and every node is Ready: pods that are applied now are
        spread over all of them.
        """
        built = launch.up(self._spec, progress)
        self.wait_nodes()
        return built

    def wait_nodes(self) -> None:
        """Return when the API server answers and every node is Ready; cluster DNS is applied
        meanwhile, and `wait_ready` waits for it as for any Deployment."""
        spec = self.spec
        names = [node.name for node in spec.nodes]

        async def wait(api: Api) -> None:
            await api.wait_healthy(timeout_s=20.0)
            nodes = waiting.wait_nodes(api, names, _DEFAULT_WAIT_S)
            if spec.dns == "podwire":
                await dnsaddon.ensure_addon(api, spec, nodes)
            else:
                await nodes

        self.call(wait)

    def down(self) -> bool:
        return launch.down(self.name)

    def close(self) -> None:
        """Stop the background loop; the lab is not touched."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    @property
    def spec(self) -> LabSpec:
        """The running lab's specification."""
        found = launch.read_spec(self.paths)
        if found is None:
            raise LabError(f"lab {self.name}: is not running")
        return found

    def call(self, ask: Callable[[Api], Coroutine[Any, Any, R]], timeout_s: float = 600.0) -> R:
        """Run `ask(api)` with a client of this lab's API server and return its result."""

        async def run() -> R:
            endpoint = Endpoint(unix_socket=self.paths.api_socket)
            async with Api(endpoint, user_agent="podwire") as api:
                return await ask(api)

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(
                target=_run_loop, args=(self._loop,), name="podwire-lab", daemon=True
            ).start()
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout_s)

    # --- manifests -------------------------------------------------------------------------------

    def apply(
        self,
        *paths: str | Path,
        namespace: str = "default",
        wait_s: float | None = _DEFAULT_WAIT_S,
    ) -> list[manifests.Applied]:
        """Apply files and folders; with `wait_s`, return only when everything is Ready."""
        return self.apply_documents(load(paths), namespace=namespace, wait_s=wait_s)

    def apply_text(
        self, text: str, *, namespace: str = "default", wait_s: float | None = _DEFAULT_WAIT_S
    ) -> list[manifests.Applied]:
        documents = list(parse(text, "<text>"))
        return self.apply_documents(documents, namespace=namespace, wait_s=wait_s)

    def apply_documents(
        self,
        documents: Sequence[Document],
        *,
        namespace: str = "default",
        wait_s: float | None = _DEFAULT_WAIT_S,
    ) -> list[manifests.Applied]:
        applied = self.call(lambda api: manifests.Applier(api, namespace).apply(documents))
        if wait_s is not None:
            self.wait_ready(wait_s)
        return applied

    def delete(self, *paths: str | Path, namespace: str = "default") -> list[manifests.Applied]:
        documents = load(paths)
        return self.call(lambda api: manifests.Applier(api, namespace).delete(documents))

    def wait_ready(
        self,
        timeout_s: float = _DEFAULT_WAIT_S,
        progress: Callable[[waiting.Readiness], None] = lambda _: None,
    ) -> waiting.Readiness:
        """Return when nodes and workloads are ready, Services and policies in every kernel."""
        names = [node.name for node in self.spec.nodes]

        async def wait(api: Api) -> waiting.Readiness:
            deadline = time.monotonic() + timeout_s
            found = await waiting.wait_ready(api, names, timeout_s, progress)
            await programmed.wait_listed(api, _LISTED_WAIT_S)
            left = max(1.0, deadline - time.monotonic())
            missing = await programmed.wait_services(api, timeout_s=left, nodes=names)
            if missing:
                where, why = next(iter(missing.items()))
                raise LabError(
                    f"not ready after {timeout_s:g} s: {len(missing)} services not programmed; "
                    f"node {where}: {why}"
                )
            missing = await policies.wait_policies(
                api, timeout_s=max(1.0, deadline - time.monotonic()), nodes=names
            )
            if missing:
                where, why = next(iter(missing.items()))
                raise LabError(
                    f"not ready after {timeout_s:g} s: {len(missing)} policies not in force; "
                    f"node {where}: {why}"
                )
            return found

        return self.call(wait)

    def wait_services(self, *names: str, timeout_s: float = 30.0) -> None:
        """Return when every node has programmed these Services (`[namespace/]name`), or all."""
        keys = [Key(scope or "default", n) for scope, _, n in (x.rpartition("/") for x in names)]
        missing = self.call(lambda api: programmed.wait_services(api, keys, timeout_s))
        if missing:
            shown = "; ".join(f"node {where}: {why}" for where, why in missing.items())
            raise LabError(f"services not programmed after {timeout_s:g} s: {shown}")

    def wait_policies(self, *names: str, timeout_s: float = 30.0) -> None:
        """Return when every node has these policies in force (`namespace/name`, or `name` of the
        cluster's), or all: in the form they have now."""
        missing = self.call(lambda api: policies.wait_policies(api, names, timeout_s))
        if missing:
            shown = "; ".join(f"node {where}: {why}" for where, why in missing.items())
            raise LabError(f"policies not in force after {timeout_s:g} s: {shown}")

    # --- looking ---------------------------------------------------------------------------------

    def status(self) -> status.LabStatus:
        launch.require_running(self.name)
        try:
            nodes, _ = self.call(lambda api: api.list(kinds.NODE), timeout_s=5.0)
            ready = {node.metadata.name for node in nodes if node.ready}
        except (ApiError, OSError, TimeoutError):
            ready = set()
        return status.read_status(self.paths, ready, features.probe().missing())

    def pods(self, namespace: str = "") -> list[Pod]:
        """Of one namespace, or of all but kube-system, where the lab's own are."""
        found, _ = self.call(lambda api: api.list(kinds.POD, namespace))
        chosen = [p for p in found if namespace or p.metadata.namespace != dnsaddon.NAMESPACE]
        return sorted(chosen, key=lambda pod: pod.key)

    def pod(self, name: str, namespace: str = "default") -> LabPod:
        """A pod by its name, or a Ready one of the workload of that name."""
        candidates = [pod for pod in self.pods(namespace) if _is_called(pod, name)]
        if not candidates:
            raise NotFoundError(f'pods "{name}" not found in namespace {namespace}')
        candidates.sort(key=lambda pod: (pod.metadata.name != name, not pod.ready))
        return LabPod(self, candidates[0])

    def reach_static(
        self,
        options: reach.ReachOptions = reach.EVERYTHING,
        semantics: Semantics = DEFAULT,
        version: int = 4,
    ) -> tuple[reach.Reachability, tuple[str, ...]]:
        """The same matrix computed from the policies there are, and what could not be read."""
        return self.call(lambda api: staticlive.reach_computed(api, options, semantics, version))

    def reach(self, options: reach.ReachOptions = reach.EVERYTHING) -> reach.Reachability:
        """The live matrix of who reaches whom, by real packets."""
        return self.call(lambda api: live.reach_live(api, options))

    def kubectl(self, *arguments: str) -> ExecResult:
        """The real kubectl, pointed at this lab."""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.paths.kubeconfig), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return ExecResult(done.returncode, done.stdout, done.stderr)

    @property
    def context(self) -> str:
        return kubeconfig.context_name(self.name)

    # --- changing --------------------------------------------------------------------------------

    def add_node(self, name: str = "", zone: str = "", wait_s: float = 20.0) -> str:
        """Add a node to the running lab; returns its name once it is Ready."""
        node = specs.next_node(self.spec, name, zone)
        wire.call(self.paths.control_socket, {"op": "node-add", "node": msgspec.to_builtins(node)})
        self.wait_ready(wait_s)
        return node.name

    def link(self, a: str, b: str, *impairment: str) -> list[dict[str, object]]:
        """Impair the link between two nodes: `lab.link("node-1", "node-2", "loss", "5%")`."""
        answer = wire.call(
            self.paths.control_socket,
            {"op": "link", "a": a, "b": b, "impairment": list(impairment)},
        )
        found: list[dict[str, object]] = answer["impairments"]
        return found

    def load_image(self, archive: str | Path) -> list[str]:
        """Load a `docker save` archive or OCI layout; returns the references it held."""
        return [image.reference for image in ImageStore(self.paths.images).load(Path(archive))]

    def images(self) -> list[Image]:
        return ImageStore(self.paths.images).images()

    def publish(self, text: str) -> int:
        """Relay a loopback port of the host to a pod: `lab.publish("0:svc/web:80")`."""
        return launch.publish(launch.require_running(self.name), specs.parse_publish(text))


@dataclass(frozen=True)
class LabPod:
    """One pod of a lab, as it was when asked for."""

    lab: Lab
    object: Pod

    @property
    def name(self) -> str:
        return self.object.metadata.name

    @property
    def namespace(self) -> str:
        return self.object.metadata.namespace

    @property
    def ip(self) -> str:
        return self.object.status.pod_ip

    def can_reach(
        self,
        destination: str | LabPod,
        port: int | None = None,
        protocol: probes.Protocol = "tcp",
        namespace: str | None = None,
    ) -> bool:
        """Whether a real packet gets an answer; `destination` is a pod, workload or address."""
        return self.probe(destination, port, protocol, namespace).verdict == "allowed"

    def probe(
        self,
        destination: str | LabPod,
        port: int | None = None,
        protocol: probes.Protocol = "tcp",
        namespace: str | None = None,
    ) -> probes.ProbeResult:
        """One live probe from this pod, with its verdict and what the peer saw."""
        address = self._address(destination, namespace or self.namespace)
        if port is None and protocol != "icmp":
            raise UsageError("a port is needed, except for icmp")
        question = probes.Probe(
            source=str(self.object.key), address=address, port=port or 0, protocol=protocol
        )
        path = f"/api/v1/nodes/{self.object.spec.node_name}/proxy/probe"
        body = probes.encode(probes.ProbeRequest(probes=(question,)))
        answer = self.lab.call(lambda api: api.request("POST", path, body=body))
        return probes.parse_response(answer).results[0]

    def _address(self, destination: str | LabPod, namespace: str) -> str:
        if isinstance(destination, LabPod):
            return destination.ip
        if _is_address(destination):
            return destination
        scope, _, name = destination.rpartition("/")
        return self.lab.pod(name, scope or namespace).ip

    def exec(self, *command: str, container: str = "") -> ExecResult:
        """Run a command in the pod and wait for its end."""
        arguments = ["-n", self.namespace, "exec", self.name]
        if container:
            arguments += ["-c", container]
        return self.lab.kubectl(*arguments, "--", *command)

    def logs(self, container: str = "") -> str:
        path = kinds.POD.path(self.namespace, self.name, "log")
        query = {"container": container} if container else {}
        return self.lab.call(lambda api: api.request("GET", path, query=query)).decode()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _is_address(text: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_called(pod: Pod, name: str) -> bool:
    if pod.metadata.name == name:
        return True
    owner = pod.metadata.controller
    template_hash = pod.metadata.labels.get("pod-template-hash", "")
    return owner is not None and owner.name.removesuffix(f"-{template_hash}") == name
