"""What this kernel and machine can do, found out by trying it in a throw-away child.

The child enters namespaces of its own (a user namespace too when not root), tries each feature once
and is gone, with everything it made. Trying is the only honest probe: a feature may be a module
that loads on first use, may be compiled out, or be forbidden by the container around us.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from msgspec import Struct

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import decode, iptables, ipvs, libc, nft, userns
from podwire.kernel import encode as nl
from podwire.kernel.requests import AddLink, Bridge, Dummy, Ifb, LinkKind, Veth, Vxlan, WireGuard
from podwire.kernel.rtnl import Rtnl, loopback_up


class Features(Struct, frozen=True):
    """True where the feature works here and now."""

    userns: bool = False
    netns: bool = False
    veth: bool = False
    bridge: bool = False
    vxlan: bool = False
    dummy: bool = False
    ifb: bool = False
    wireguard: bool = False
    ipvs: bool = False
    htb: bool = False
    tbf: bool = False
    netem: bool = False
    nft: bool = False
    nft_nat: bool = False
    nft_queue: bool = False
    flowtable: bool = False
    iptables: bool = False
    iptables_recent: bool = False
    sctp: bool = False
    br_netfilter: bool = False
    overlayfs: bool = False
    cgroup2: bool = False
    cgroup2_limits: bool = False

    def missing(self) -> dict[str, str]:
        """Each absent feature with what that means: one line each, for people."""
        return {name: text for name, text in EXPLAIN.items() if not getattr(self, name)}


EXPLAIN: Final[dict[str, str]] = {
    "userns": "no user namespaces: labs need root (see kernel.unprivileged_userns_clone, AppArmor)",
    "netns": "no network namespaces of our own: run as root or allow user namespaces",
    "veth": "no veth devices: pods cannot be wired; load the module veth",
    "bridge": "no bridges: no node network in a lab; load the module bridge",
    "vxlan": "no VXLAN: --overlay vxlan is refused; load the module vxlan",
    "dummy": "no dummy devices: load the module dummy",
    "ifb": "no ifb devices: traffic towards a pod cannot be shaped; load the module ifb",
    "wireguard": "no WireGuard: no encryption between nodes; load the module wireguard",
    "ipvs": "no IPVS: --service-proxy ipvs is refused; load the module ip_vs, install ipvsadm",
    "htb": "no htb queueing: links cannot be impaired; load the module sch_htb",
    "tbf": "no tbf queueing: rates cannot be limited; load the module sch_tbf",
    "netem": "no netem queueing: `link ... delay` is refused; load the module sch_netem",
    "nft": "no nftables: neither Services nor policies work; install nftables, load nf_tables",
    "nft_nat": "no NAT in nftables: Services do not work; load nft_nat and nft_masq",
    "nft_queue": "no queues in nftables: pods have DNS answers before policies; load nft_queue",
    "flowtable": "no flowtables: forwarding has no fast path; load the module nf_flow_table",
    "iptables": "no usable iptables: --service-proxy iptables is refused; install iptables",
    "iptables_recent": "no xt_recent: with --service-proxy iptables, sessionAffinity is not kept",
    "sctp": "no SCTP sockets: stand-ins cannot serve SCTP ports; load the module sctp",
    "br_netfilter": "no br_netfilter: kubenet has no policies; load it, or --network-policy none",
    "overlayfs": "no overlayfs here: images are copied instead of layered",
    "cgroup2": "no cgroup v2 hierarchy is mounted: containers are not grouped",
    "cgroup2_limits": "cgroup v2 has no memory controller: resource limits are not enforced",
}

# Modules load on first use: seconds on a slow machine.
_TIMEOUT_S: Final = 30.0
_SCTP: Final = 132
_BRIDGE_FILTER: Final = "/proc/sys/net/bridge/bridge-nf-call-iptables"
_RTM_NEWQDISC: Final = 36
_TCA_KIND: Final = 1
_TC_H_ROOT: Final = 0xFFFFFFFF
_ENOENT: Final = 2

_NAT_TABLE: Final = """
table ip p {
  chain out { type nat hook postrouting priority 100; masquerade; }
  chain in { type nat hook prerouting priority -100; tcp dport 1 dnat to 127.0.0.1; }
}"""
_QUEUE_TABLE: Final = """
table inet p {
  chain c { type filter hook forward priority 0; udp sport 53 queue flags bypass to 1; }
}"""
_FLOW_TABLE: Final = """
table inet q {
  flowtable f { hook ingress priority 0; devices = { lo }; }
  chain c { type filter hook forward priority 0; ip protocol tcp flow add @f; }
}"""


def probe() -> Features:
    """Try everything, in 50 to 100 ms. Never raises: what could not be tried is absent."""
    return _in_child(_probe_everything) or Features(userns=_userns_allowed())


def _in_child(work: Callable[[], Features]) -> Features | None:
    """Run `work` in a forked child and return its result; None when it died or hung."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        # No exception may leave this block: the child must never run the parent's code.
        try:
            libc.set_pdeathsig(signal.SIGKILL)
            os.write(send, msgspec.json.encode(work()))
        finally:
            os._exit(0)
    os.close(send)
    try:
        data = _read_until_end(receive)
    finally:
        os.close(receive)
        # A child that answered is leaving by itself; one that did not is stuck.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return msgspec.json.decode(data, type=Features) if data else None


def _read_until_end(fd: int) -> bytes:
    data = b""
    deadline = time.monotonic() + _TIMEOUT_S
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        block = os.read(fd, 1 << 16)
        if not block:
            return data
        data += block
    return b""


def _userns_allowed() -> bool:
    def work() -> Features:
        try:
            libc.unshare(libc.CLONE_NEWUSER)
        except KernelError:
            return Features()
        return Features(userns=True)

    found = _in_child(work)
    return found is not None and found.userns


def _probe_everything() -> Features:
    allowed = _userns_allowed()
    mounts = list(_cgroup2_mounts())
    cgroup2, limits = bool(mounts), any(map(_has_memory_controller, mounts))
    try:
        _enter_own_namespaces()
    except (KernelError, OSError):
        return Features(userns=allowed, cgroup2=cgroup2, cgroup2_limits=limits)
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
        return Features(
            userns=allowed,
            netns=True,
            veth=_link(rtnl, "v", Veth(peer="w")),
            bridge=_link(rtnl, "b", Bridge()),
            vxlan=_link(rtnl, "x", Vxlan(vni=1)),
            dummy=_link(rtnl, "d", Dummy()),
            ifb=_link(rtnl, "i", Ifb()),
            wireguard=_link(rtnl, "g", WireGuard()),
            ipvs=_ipvs(),
            htb=_qdisc("htb"),
            tbf=_qdisc("tbf"),
            netem=_qdisc("netem"),
            nft=_nft("add table inet p"),
            nft_nat=_nft(_NAT_TABLE),
            nft_queue=_nft(_QUEUE_TABLE),
            flowtable=_nft(_FLOW_TABLE),
            iptables=(flavour := iptables.working_flavour()) is not None,
            iptables_recent=flavour is not None and iptables.has_recent(flavour),
            sctp=_sctp(),
            br_netfilter=os.path.exists(_BRIDGE_FILTER),
            overlayfs=_overlayfs(),
            cgroup2=cgroup2,
            cgroup2_limits=limits,
        )


def _enter_own_namespaces() -> None:
    flags = libc.CLONE_NEWNET | libc.CLONE_NEWNS
    try:
        userns.unshare_as_root(flags)
    except UnsupportedError:
        raise
    except KernelError:
        # Root without CAP_SYS_ADMIN, as in a container, may still be root of its own namespace.
        userns.unshare_as_root(flags, force_user=True)


def _link(rtnl: Rtnl, name: str, kind: LinkKind) -> bool:
    try:
        rtnl.apply([AddLink(name=name, kind=kind)])
    except KernelError:
        return False
    return True


def _ask(protocol: int, request: bytes) -> int:
    """The errno the kernel answers one netlink request with; 0 for any other answer."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.send(request)
        for kind, flags, _seq, body in decode.messages(sock.recv(1 << 16)):
            if kind == nl.NLMSG_ERROR:
                return decode.error_of(flags, body)[0]
    return 0


def _ipvs() -> bool:
    try:
        ipvs.check()
    except KernelError:
        return False
    return True


def _qdisc(kind: str) -> bool:
    """Ask for a queueing discipline without its options: ENOENT where there is no such kind."""
    body = struct.pack("=BxxxiIII", 0, 1, 0x10000, _TC_H_ROOT, 0)
    body += nl.attr(_TCA_KIND, kind.encode() + b"\0")
    flags = nl.NLM_F_REQUEST | nl.NLM_F_ACK | nl.NLM_F_CREATE | nl.NLM_F_REPLACE
    try:
        return _ask(socket.NETLINK_ROUTE, nl.message(_RTM_NEWQDISC, flags, 1, body)) != _ENOENT
    except OSError:
        return False


def _nft(text: str) -> bool:
    try:
        nft.apply(text + "\n")
    except (KernelError, UnsupportedError):
        return False
    return True


def _sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, _SCTP).close()
    except OSError:
        return False
    return True


def _overlayfs() -> bool:
    base = "/tmp"
    try:
        libc.mount("tmpfs", base, "tmpfs")
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{base}/{name}")
        layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work,userxattr"
        libc.mount("overlay", f"{base}/merged", "overlay", data=layers)
    except (KernelError, OSError):
        return False
    return True


def _cgroup2_mounts() -> Iterator[str]:
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if after.startswith("cgroup2 "):
                yield before.split()[4]


def _has_memory_controller(mount: str) -> bool:
    try:
        with open(f"{mount}/cgroup.controllers", encoding="ascii") as file:
            return "memory" in file.read().split()
    except OSError:
        return False
