"""Starting one container: which of the three ways, and everything it needs beforehand.

image `podwire.dev/NAME` -> Spawner     image loaded -> ContainerRuntime     else -> stand-in
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from podwire.client import Api
from podwire.cni import PodNetwork
from podwire.errors import ContainerError, KernelError
from podwire.objects.core import Pod
from podwire.runtime.activation import ActivatedSockets
from podwire.runtime.admission import Admission
from podwire.runtime.builtin import BuiltinContainer
from podwire.runtime.config import KubeletConfig
from podwire.runtime.containers import (
    ContainerRuntime,
    ExitStatus,
    RunningContainer,
    Spawner,
)
from podwire.runtime.env import expand
from podwire.runtime.events import PodEvents
from podwire.runtime.hostfiles import hostname as pod_hostname
from podwire.runtime.hostfiles import (
    kernel_hostname,
    render_host_network_hosts,
    render_hosts,
)
from podwire.runtime.nsexec import PodShell
from podwire.runtime.poddns import NO_RESOLVER, ResolvConf, compile_pod_dns
from podwire.runtime.podspec import SpecBuilder
from podwire.runtime.probes import Wheel
from podwire.runtime.references import References
from podwire.runtime.sandbox import Sandbox
from podwire.runtime.standin.protocol import Serve
from podwire.runtime.standins import (
    StandinClient,
    allowed,
    close_namespace,
    ended_container,
    exits_at_once,
    new_id,
    open_namespace,
    open_sockets,
    options_from,
)
from podwire.runtime.state import Slot

BUILTIN_PREFIX = "podwire.dev/"
PolicyReady = Callable[[Pod, Sequence[str]], Awaitable[None]]


async def no_policy(_pod: Pod, _ips: Sequence[str]) -> None:
    """Policy is always committed where nobody enforces any."""


@dataclass
class Host:
    """What all pod workers of a node share. `builtins` maps NAME to "module:function"."""

    config: KubeletConfig
    api: Api
    network: PodNetwork
    network_thread: Executor
    standins: StandinClient
    events: PodEvents
    specs: SpecBuilder
    references: References
    admission: Admission
    starving: dict[Callable[[], None], None] = field(default_factory=dict)
    """Who could not get a network, in order: one is called when another pod has given one back."""
    wheel: Wheel = field(default_factory=Wheel)
    activated: ActivatedSockets = field(default_factory=ActivatedSockets)
    runtime: ContainerRuntime | None = None
    spawner: Spawner | None = None
    builtins: Mapping[str, str] = field(default_factory=dict)
    policy_ready: PolicyReady = no_policy
    node_dns: ResolvConf = NO_RESOLVER

    def pod_dir(self, uid: str) -> Path:
        return self.config.pods_dir / uid

    def log_path(self, pod: Pod, name: str, attempt: int) -> Path:
        return self.pod_dir(pod.metadata.uid) / "logs" / f"{name}.{attempt}.log"

    def shell(self, pod: Pod, sandbox: Sandbox) -> PodShell:
        directory = self.pod_dir(sandbox.uid)
        return PodShell(
            sandbox.pin(self.config.pins_dir),
            directory / "hosts",
            directory / "resolv.conf",
            kernel_hostname(pod, self.config.cluster_domain, self.config.node_name),
        )


def write_host_files(host: Host, pod: Pod, sandbox: Sandbox) -> None:
    """`hosts` and `resolv.conf` of a pod; they are mounted, so they are written in place."""
    directory = host.pod_dir(sandbox.uid)
    domain = host.config.cluster_domain
    aliases = pod.spec.host_aliases
    if sandbox.host_network:
        try:
            node_hosts = Path("/etc/hosts").read_text()
        except OSError:
            node_hosts = ""
        hosts = render_host_network_hosts(node_hosts, aliases)
    else:
        name, suffix = pod_hostname(pod, domain)
        hosts = render_hosts(sandbox.ips, name, suffix, aliases)
    dns = compile_pod_dns(pod, host.config.cluster_dns, domain, host.node_dns)
    for reason, text in dns.problems:
        host.events.emit(pod, reason, text, warning=True)
    for name, text in (("hosts", hosts), ("resolv.conf", dns.conf.render())):
        with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
            file.write(text)


@dataclass(frozen=True)
class Launched:
    """A started container and whether it is a stand-in (then its probes' delays are not waited)."""

    container: RunningContainer
    standin: bool
    ready_after_s: float = 0.0


async def launch(host: Host, pod: Pod, slot: Slot, sandbox: Sandbox) -> Launched:
    """Start the slot's container. Raises `ContainerError` with the reason to show as waiting."""
    image = slot.spec.image
    if image.startswith(BUILTIN_PREFIX):
        return Launched(await _builtin(host, pod, slot, sandbox), standin=False)
    if host.runtime is not None:
        found = await host.runtime.find_image(image)
        if found is not None:
            spec = await host.specs.build(pod, slot, sandbox)
            container = await host.runtime.create_and_start(spec)
            return Launched(container, standin=False)
    if not allowed(pod):
        never = slot.spec.image_pull_policy == "Never"
        raise ContainerError(
            f'Container image "{image}" is not present; load it with `podwire image load FILE`',
            reason="ErrImageNeverPull" if never else "ErrImagePull",
        )
    return await _standin(host, pod, slot, sandbox)


async def _builtin(host: Host, pod: Pod, slot: Slot, sandbox: Sandbox) -> RunningContainer:
    name = slot.spec.image.removeprefix(BUILTIN_PREFIX).partition(":")[0]
    entry = host.builtins.get(name)
    if entry is None or host.spawner is None:
        known = ", ".join(sorted(host.builtins)) or "none"
        raise ContainerError(
            f"pod {pod.key}: no built-in image {slot.spec.image!r} (built-in images: {known})",
            reason="ErrImagePull",
        )
    env = await host.specs.environment(pod, slot.spec, sandbox)
    mounts = await host.specs.volumes.prepare(pod, slot.spec, env, host.specs.facts(sandbox))
    directory = host.pod_dir(sandbox.uid)
    key = f"{pod.metadata.uid}/{slot.name}/{slot.attempt}"
    log_path = host.log_path(pod, slot.name, slot.attempt)
    kwargs = {
        "args": [expand(word, env) for word in (*slot.spec.command, *slot.spec.args)],
        # The program sees the machine's files: where its pod's own are, it is told.
        "files": {
            "/etc/hosts": str(directory / "hosts"),
            "/etc/resolv.conf": str(directory / "resolv.conf"),
            **{m.destination: str(m.source) for m in mounts},
        },
    }
    pin = sandbox.pin(host.config.pins_dir)
    families = sorted({6 if ":" in ip else 4 for ip in sandbox.ips})
    try:
        sockets = host.activated.of(sandbox.uid, slot.name, pin, slot.spec.ports, families)
    except (KernelError, OSError) as error:
        raise ContainerError(str(error), reason="CreateContainerError") from error
    process = await host.spawner.spawn(
        key, entry, kwargs, netns=pin, env=dict(env), log_path=log_path, sockets=sockets
    )
    shell = host.shell(pod, sandbox)
    return BuiltinContainer(process, key, log_path, shell, env)


async def _standin(host: Host, pod: Pod, slot: Slot, sandbox: Sandbox) -> Launched:
    options = options_from(pod, slot.spec)
    log_path = host.log_path(pod, slot.name, slot.attempt)
    shell = host.shell(pod, sandbox)
    if exits_at_once(pod, options, init=slot.role == "init"):
        status = ExitStatus(options.exit_code)
        ended = ended_container(slot.name, slot.attempt, status, log_path, shell)
        return Launched(ended, standin=True)
    if not host.standins.connected.is_set():
        async with asyncio.timeout(10):
            await host.standins.connected.wait()
    pin = sandbox.pin(host.config.pins_dir)
    family = 6 if any(":" in ip for ip in sandbox.ips) else 4
    try:
        ns = open_namespace(pin)
        try:
            sockets, ports = open_sockets(ns, slot.spec.ports, family)
        finally:
            close_namespace(ns)
    except KernelError as error:
        raise ContainerError(str(error), reason="CreateContainerError") from error
    except OSError as error:
        # As a real server would end: it starts, cannot bind, and exits.
        busy = error.errno == errno.EADDRINUSE
        text = "bind: address already in use" if busy else f"bind: {error}"
        status = ExitStatus(1, 0, text, "Error")
        _log_line(log_path, "stderr", text)
        ended = ended_container(slot.name, slot.attempt, status, log_path, shell)
        return Launched(ended, standin=True)
    directory = host.pod_dir(sandbox.uid)
    serve = Serve(
        id=new_id(),
        namespace=pod.metadata.namespace,
        pod=pod.metadata.name,
        pod_uid=sandbox.uid,
        container=slot.name,
        attempt=slot.attempt,
        node=host.config.node_name,
        address=sandbox.ips[0],
        ports=ports,
        log_path=str(log_path),
        netns=str(pin) if pin is not None else "",
        resolv_conf=str(directory / "resolv.conf"),
        hosts=str(directory / "hosts"),
        options=options,
    )
    env = partial(
        host.specs.environment, pod, slot.spec, sandbox, started_at=time.time(), lenient=True
    )
    container = host.standins.serve(serve, sockets, shell, env)
    return Launched(container, standin=True, ready_after_s=options.ready_after_s)


def _log_line(path: Path, stream: str, text: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    with path.open("a") as file:
        file.write(f"{stamp}.000000000Z {stream} F {text}\n")
