"""The lab's router as a BGP speaker: BIRD in the router's namespace, for `--load-balancer bgp`.

    node's ExaBGP (AS 64512) -> 172.30.0.254 (AS 64513) -> kernel routes, one next hop per node

Any node of the segment may speak to it; what it learns must be a single address of the external
pools. Several nodes that announce one address become one multipath route, spread by connection.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from podwire.agents.bgp import find_exabgp
from podwire.agents.config import BgpConfig
from podwire.errors import UsageError
from podwire.kernel import sysctl
from podwire.lab.spec import LabSpec
from podwire.lab.supervised import Context


def find_bird() -> str:
    """The program; `UsageError` where there is none."""
    found = shutil.which("bird", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise UsageError("--load-balancer bgp: the lab's router is BIRD; apt-get install bird2")
    return found


def check_programs(spec: LabSpec) -> None:
    """Before anything is built: what a lab with BGP needs from the machine."""
    if spec.load_balancer == "bgp":
        find_bird()
        find_exabgp()


def render_bird(spec: LabSpec, config: BgpConfig) -> str:
    """BIRD's configuration: one dynamic neighbour per family and node."""
    identity = next((str(a) for a in config.peers if a.version == 4), "0.0.0.254")
    lines = ["log stderr all;", f"router id {identity};", "protocol device { }"]
    for version, network in spec.node_networks().items():
        address = next(a for a in config.peers if a.version == version)
        ranges = [r for r in spec.pools().external if r.version == version]
        prefixes = ", ".join(
            f"{net}{{{net.max_prefixlen},{net.max_prefixlen}}}"
            for r in ranges
            for net in r.networks()
        )
        accepted = f"import where net ~ [ {prefixes} ]" if prefixes else "import none"
        lines += [
            f"protocol kernel kernel{version} {{",
            f"\tipv{version} {{ import none; export all; }};",
            "\tmerge paths on;",
            "}",
            f"protocol bgp nodes{version} {{",
            f"\tlocal {address} as {config.peer_as};",
            f"\tneighbor range {network} as {config.local_as};",
            f'\tdynamic name "node{version}_";',
            f"\thold time {config.hold_time_s};",
            # After an error BIRD would not listen to that node for a minute, then for five.
            "\terror wait time 1, 1;",
            f"\tipv{version} {{ {accepted}; export none; }};",
            "}",
        ]
    return "\n".join(lines) + "\n"


def main(context: Context) -> None:
    """Become BIRD; the routes of one that died are gone when it is back."""
    spec = context.spec
    config = spec.bgp_config()
    # Connections, not hosts, are spread over the nodes.
    for version in spec.families:
        sysctl.write({f"net.ipv{version}.fib_multipath_hash_policy": 1})
    file = Path(context.paths.root / "bird.conf")
    file.write_text(render_bird(spec, config))
    control = context.paths.root / "bird.ctl"
    control.unlink(missing_ok=True)
    os.execv(find_bird(), ["bird", "-f", "-c", str(file), "-s", str(control)])
