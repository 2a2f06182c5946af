"""domainNames in a whole lab: what cluster DNS answers to a pod may be reached, nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.kernel.features import probe
from podwire.lab import Lab

PODWIRE = (sys.executable, "-m", "podwire")
SERVER = ("python3", "-m", "http.server", "8000")
ZONE = """
$ORIGIN .
$TTL 5
@ SOA ns.example. admin.example. 1 3600 600 86400 5
www.example.com. A 203.0.113.10
alias.example.com. CNAME www.example.com.
api.example.org. A 203.0.113.10
"""
FRESH = [f"203.0.113.{100 + i}" for i in range(8)]
ZONE += "".join(f"h{i}.example.com. A {address}\n" for i, address in enumerate(FRESH))
MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: node-2
  containers: [{name: c, image: busybox}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: names}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}}
  egress:
  - action: Accept
    to: [{domainNames: ["*.example.com"]}]
    protocols: [{tcp: {destinationPort: {number: 8000}}}]
  - action: Deny
    to: [{networks: [203.0.113.0/24]}]
"""
OTHER = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: other}
spec: {podSelector: {matchLabels: {app: nobody}}}
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 1.5).close()
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


ASK_AND_CONNECT = """
import socket, time
for i in range(8):
    address = socket.gethostbyname(f"h{i}.example.com.")
    began = time.monotonic()
    socket.create_connection((address, 8000), 5).close()
    print(time.monotonic() - began)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tools: Any) -> Iterator[Lab]:
    zone = tmp_path_factory.mktemp("zone") / "outside.zone"
    zone.write_text(ZONE)
    with Lab("np-names", nodes=2, outside_zone=str(zone)) as lab:
        lab.apply_text(MANIFEST)
        lab.wait_ready(30)
        server = subprocess.Popen(
            [*PODWIRE, "exec", "--lab", lab.name, "outside", "--", *SERVER],
            cwd=Path("/"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            tools.wait(lambda: _connects(lab, "outside", "127.0.0.1"))
            yield lab
        finally:
            server.kill()
            server.wait()


def _connects(lab: Lab, where: str, host: str, port: int = 8000) -> bool:
    words = ["exec", "--lab", lab.name, where, "--", "python3", "-c", CONNECT, host, str(port)]
    done = subprocess.run([*PODWIRE, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "connected"


def test_only_names_the_policy_speaks_of(lab: Lab) -> None:
    assert not _connects(lab, "client", "203.0.113.10"), "nobody asked for a name yet"
    assert not _connects(lab, "client", "api.example.org")
    assert _connects(lab, "client", "alias.example.com")
    assert _connects(lab, "client", "203.0.113.10"), "the name's address is the name"
    assert not _connects(lab, "client", "www.example.com", 8001)


def test_whoever_was_told_an_address_reaches_it(lab: Lab) -> None:
    """At once where the kernel lets answers wait, else when TCP tries again."""
    add = "; ".join(f"ip addr add {address}/32 dev lo" for address in FRESH)
    words = ["exec", "--lab", lab.name, "outside", "--", "sh", "-c", add]
    subprocess.run([*PODWIRE, *words], check=True)
    words = ["exec", "--lab", lab.name, "client", "--", "python3", "-c", ASK_AND_CONNECT]
    done = subprocess.run([*PODWIRE, *words], capture_output=True, text=True, check=False)
    took = [float(line) for line in done.stdout.split()]
    assert len(took) == len(FRESH), done.stderr
    assert max(took) < (0.9 if probe().nft_queue else 3.5), took


HOLD = """
import os, pathlib, socket, sys, time
folder = pathlib.Path(sys.argv[1])
sock = socket.create_connection(("www.example.com", 8000), 5)
if os.fork():
    os._exit(0)
os.setsid()
os.closerange(0, 3)
until = time.monotonic() + 60
while not (folder / "go").exists() and time.monotonic() < until:
    time.sleep(0.05)
sock.settimeout(10)
try:
    sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    said = sock.recv(100).split()[1].decode()
except OSError as error:
    said = repr(error)
(folder / "said.new").write_text(said)
(folder / "said.new").rename(folder / "said")
"""


def _kill_agent(lab: Lab, tools: Any) -> None:
    pid = tools.pids(lab)["agent-node-2"]
    subprocess.run(["kill", "-9", str(pid)], check=True)


def test_connections_outlive_an_agent_that_was_killed(lab: Lab, tools: Any, tmp_path: Path) -> None:
    """What it had learned is known to the next one, which cuts what is denied."""
    tools.inside(lab, "client", "python3", "-c", HOLD, str(tmp_path))
    _kill_agent(lab, tools)
    lab.wait_ready(30)
    # Another policy has it look for connections that are denied now.
    lab.apply_text(OTHER)
    lab.wait_policies()
    assert not _connects(lab, "client", "203.0.113.10", 8001)
    (tmp_path / "go").touch()
    tools.wait((tmp_path / "said").exists)
    assert (tmp_path / "said").read_text() == "200"


def test_an_agent_that_was_killed_knows_what_it_had_learned(lab: Lab, tools: Any) -> None:
    assert _connects(lab, "client", "www.example.com")
    _kill_agent(lab, tools)
    tools.wait(lambda: _connects(lab, "client", "www.example.com"))
