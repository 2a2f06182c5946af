"""Cluster DNS in whole labs: real resolvers in pods, replicas that die, records that change."""

from __future__ import annotations

import asyncio
import bisect
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from podwire.lab import Lab
from podwire.objects import kinds
from podwire.objects.core import Pod, Service

BOUTIQUE = "samples/online-boutique/kubernetes-manifests.yaml"
CLIENT = str(Path(__file__).with_name("dns_client.py"))
CHURN_S = 600.0 if os.environ.get("PODWIRE_ALL") == "1" else 30.0
# From the API's commit to the answer of every replica, on a machine that does other things too.
LAG_S = 1.0

WORLD = """
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: nginx, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: postgres, ports: [{name: sql, containerPort: 5432}]}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: sql, port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
"""


@pytest.fixture(scope="module")
def lab(run_dir: Path) -> Iterator[Lab]:
    with Lab("names", nodes=2) as built:
        built.apply_text(WORLD)
        yield built


def replicas(lab: Lab) -> list[Pod]:
    """The DNS pods that are Ready and stay."""
    return [pod for pod in lab.pods("kube-system") if pod.ready and not pod.deleting]


def dig(tools: Any, lab: Lab, *words: str, pod: str = "client") -> list[str]:
    return sorted(tools.inside(lab, pod, "dig", "+short", "+tries=1", *words).split("\n")[:-1])


def service(lab: Lab, name: str, namespace: str = "default") -> Service:
    return lab.call(lambda api: api.get(kinds.SERVICE, name, namespace))


@contextmanager
def running(lab: Lab, flag: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program of `dns_client` in the pod `client`, until the block ends."""
    flag.touch()
    command = [sys.executable, "-m", "podwire", "exec", "--lab", lab.name, "client", "--"]
    command += [sys.executable, CLIENT, words[0], str(flag), *words[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        flag.unlink(missing_ok=True)


def outcome(process: subprocess.Popen[str]) -> Any:
    """What `lookups` printed in the end."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(output)


# --- what every pod sees ---------------------------------------------------------------------


@pytest.mark.rootless
def test_two_replicas_on_two_nodes_at_the_tenth_address(lab: Lab) -> None:
    pods = replicas(lab)
    assert len({pod.spec.node_name for pod in pods}) == len(pods) == 2
    assert {pod.metadata.labels["k8s-app"] for pod in pods} == {"kube-dns"}
    assert service(lab, "kube-dns", "kube-system").spec.cluster_ip == "10.96.0.10"


@pytest.mark.rootless
def test_dig_has_every_form_of_record(lab: Lab, tools: Any) -> None:
    web = service(lab, "web").spec.cluster_ip
    sql = {pod.metadata.name: pod.status.pod_ip for pod in lab.pods() if "db-" in str(pod.key)}
    full = "default.svc.cluster.local"
    assert dig(tools, lab, f"web.{full}") == [web]
    assert dig(tools, lab, "+search", "web") == [web]
    assert dig(tools, lab, "+tcp", f"web.{full}") == [web]
    assert dig(tools, lab, f"_http._tcp.web.{full}", "SRV") == [f"0 100 80 web.{full}."]
    assert dig(tools, lab, "-x", web) == [f"web.{full}."]
    assert dig(tools, lab, f"db.{full}") == sorted(sql.values())
    assert dig(tools, lab, f"db-1.db.{full}") == [sql["db-1"]]
    assert dig(tools, lab, "-x", sql["db-0"]) == [f"db-0.db.{full}."]
    assert dig(tools, lab, f"_sql._tcp.db.{full}", "SRV") == [
        f"0 50 5432 db-{n}.db.{full}." for n in (0, 1)
    ]
    assert dig(tools, lab, f"shop.{full}") == ["203.0.113.10", "example.com.", "www.example.com."]
    assert dig(tools, lab, f"alias.{full}") == sorted([web, f"web.{full}."])
    assert dig(tools, lab, "10-244-0-9.default.pod.cluster.local") == ["10.244.0.9"]
    assert dig(tools, lab, "dns-version.cluster.local", "TXT") == ['"1.1.0"']
    assert dig(tools, lab, "www.example.com") == ["203.0.113.10", "example.com."]
    assert dig(tools, lab, "nothing.example.com") == []


@pytest.mark.rootless
@pytest.mark.parametrize("name", ["web", "web.default", "web.default.svc",
                                  "web.default.svc.cluster.local"])  # fmt: skip
def test_glibc_and_python_resolve_every_length(lab: Lab, tools: Any, name: str) -> None:
    web = service(lab, "web").spec.cluster_ip
    assert tools.inside(lab, "client", "getent", "ahostsv4", name).split()[0] == web
    script = f"import socket; print(socket.gethostbyname({name!r}))"
    assert tools.inside(lab, "client", sys.executable, "-c", script).strip() == web


def test_a_real_container_resolves_by_its_own_resolver(
    lab: Lab, tools: Any, tmp_path: Path, busybox_image: Path
) -> None:
    lab.load_image(busybox_image)
    lab.apply_text("""
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: box, command: [sleep, "1000"]}]
""")
    shown = tools.inside(lab, "box", "busybox", "nslookup", "web.default.svc.cluster.local")
    assert f"Address: {service(lab, 'web').spec.cluster_ip}" in shown
    assert "10.96.0.10:53" in shown
    assert "options ndots:5" in tools.inside(lab, "box", "busybox", "cat", "/etc/resolv.conf")


def test_every_service_of_the_boutique(tools: Any, shared: Path) -> None:
    """Accepted when: by short, middle and full name, SRV and PTR, from a pod of it."""
    with Lab("ob-names", nodes=2) as lab:
        lab.apply(shared / BOUTIQUE)
        found, _ = lab.call(lambda api: api.list(kinds.SERVICE, "default"))
        assert len(found) >= 11
        for each in found:
            name, address = each.metadata.name, each.spec.cluster_ip
            full = f"{name}.default.svc.cluster.local."
            words: list[str] = ["+search", name, "+search", f"{name}.default", full]
            asked = tools.inside(lab, "frontend", "dig", "+short", *words).split()
            assert asked == [address] * 3, name
            assert dig(tools, lab, "-x", address, pod="frontend") == [full]
            for port in each.spec.ports:
                srv = f"_{port.name}._{port.protocol.lower()}.{full}"
                wanted = [f"0 100 {port.port} {full}"] if port.name else []
                assert not port.name or dig(tools, lab, srv, "SRV", pod="frontend") == wanted


# --- right at once ---------------------------------------------------------------------------


@pytest.mark.rootless
def test_a_name_that_was_denied_is_there_at_once_on_every_replica(lab: Lab, tools: Any) -> None:
    name = "late.default.svc.cluster.local"
    addresses = [pod.status.pod_ip for pod in replicas(lab)]
    for address in addresses:
        assert dig(tools, lab, f"@{address}", name) == []
        assert dig(tools, lab, f"@{address}", name) == []
    lab.apply_text(
        "{apiVersion: v1, kind: Service, metadata: {name: late}, spec: {ports: [{port: 80}]}}",
        wait_s=None,
    )
    late = service(lab, "late").spec.cluster_ip
    for address in addresses:
        # The negative answer could be kept for 5 s, and by CoreDNS would be.
        tools.wait(lambda a=address: dig(tools, lab, f"@{a}", name) == [late], timeout_s=LAG_S)


class Oracle:
    """Replays what was written: which addresses a name had at any moment."""

    def __init__(self) -> None:
        self._begins: list[float] = []
        self._states: list[tuple[str, ...]] = []

    def written(self, at: float, addresses: Sequence[str]) -> None:
        self._begins.append(at)
        self._states.append(tuple(sorted(addresses)))

    def allows(self, sent: float, got: float, found: Sequence[str]) -> bool:
        """A state in force at some moment between `LAG_S` before the query and its answer."""
        first = max(bisect.bisect_left(self._begins, sent - LAG_S) - 1, 0)
        last = bisect.bisect_right(self._begins, got)
        return tuple(found) in self._states[first:last]


def churn(lab: Lab, oracle: Oracle, until: float) -> int:
    """Change the endpoints of `moving`, 100 times a second at most; the number of changes."""
    rng = random.Random(7)
    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/moving"

    async def work(api: Any) -> int:
        changes = 0
        while time.monotonic() < until:
            addresses = [str(IPv4Address("10.99.0.0") + n) for n in rng.sample(range(250), 8)]
            endpoints = [
                {"addresses": [a], "conditions": {"ready": i < 5}} for i, a in enumerate(addresses)
            ]
            before = time.monotonic()
            # It may be seen before the writer has its answer.
            oracle.written(before, addresses[:5])
            await api.request(
                "PATCH",
                path,
                body={"endpoints": endpoints},
                content_type="application/merge-patch+json",
            )
            changes += 1
            pause = before + 0.01 - time.monotonic()
            await asyncio.sleep(max(pause, 0.0))
        return changes

    return lab.call(work, timeout_s=CHURN_S + 60)


def test_no_wrong_answer_while_endpoints_churn(lab: Lab, tmp_path: Path) -> None:
    lab.apply_text(
        """
apiVersion: v1
kind: Service
metadata: {name: moving}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: moving, labels: {kubernetes.io/service-name: moving}}
addressType: IPv4
endpoints: [{addresses: [10.99.0.1], conditions: {ready: true}}]
ports: [{port: 80}]
""",
        wait_s=None,
    )
    oracle = Oracle()
    oracle.written(time.monotonic(), ["10.99.0.1"])
    servers = [pod.status.pod_ip for pod in replicas(lab)]
    name = "moving.default.svc.cluster.local"
    lines: list[str] = []
    with running(lab, tmp_path / "flag", "queries", name, *servers) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reader.start()
        changes = churn(lab, oracle, time.monotonic() + CHURN_S)
    reader.join(timeout=30)
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    answers = [json.loads(line) for line in lines]
    assert {answer["by"] for answer in answers} == set(servers)
    assert changes > CHURN_S
    assert len(answers) > CHURN_S * 10
    wrong = [a for a in answers if not oracle.allows(a["sent"], a["got"], a["found"])]
    assert wrong == []


# --- replicas that die -----------------------------------------------------------------------


@pytest.mark.rootless
def test_one_of_two_replicas_is_killed_and_no_lookup_fails(
    lab: Lab, tools: Any, tmp_path: Path
) -> None:
    names = ["web", "web.default", "db", "db-0.db", "www.example.com"]
    victim = replicas(lab)[0]
    before = {s.name: s.restart_count for s in victim.status.container_statuses}
    with running(lab, tmp_path / "flag", "lookups", *names) as process:
        for _ in range(2):
            pid = program_of(tools, lab, victim)
            tools.inside(lab, f"kube-system/{victim.metadata.name}", "kill", "-9", str(pid))
            tools.wait(lambda old=pid: program_of(tools, lab, victim) not in (0, old))
    found = outcome(process)
    assert found["failed"] == []
    assert found["asked"] > 100
    after = next(p for p in lab.pods("kube-system") if p.metadata.uid == victim.metadata.uid)
    assert after.status.container_statuses[0].restart_count > before["coredns"]


def program_of(tools: Any, lab: Lab, pod: Pod) -> int:
    """The pid, in the lab, of the program in a DNS pod: who has port 53, and is no agent."""
    where = f"kube-system/{pod.metadata.name}"
    shown = tools.inside(lab, where, "ss", "-Hulpn", "sport = :53")
    users = [word.split(",") for word in shown.replace("((", "(").split("(")[1:]]
    pids = [
        int(fields[1].removeprefix("pid="))
        for fields in users
        if len(fields) > 1 and "podwire-agent" not in fields[0] and "holder" not in fields[0]
    ]
    return pids[0] if pids else 0


def test_a_rollout_loses_no_lookup(lab: Lab, tools: Any, tmp_path: Path) -> None:
    old = {pod.metadata.uid for pod in replicas(lab)}
    names = ["web", "db-1.db", "www.example.com"]
    with running(lab, tmp_path / "flag", "lookups", *names) as process:
        tools.kubectl(lab, "rollout", "restart", "deployment/coredns", "-n", "kube-system")
        tools.kubectl(
            lab, "rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=60s"
        )
        tools.wait(lambda: not old & {p.metadata.uid for p in lab.pods("kube-system")})
    found = outcome(process)
    assert found["failed"] == []
    assert found["asked"] > 100


# --- configuration ---------------------------------------------------------------------------

ZONE = """\
$ORIGIN corp.
@ SOA ns hostmaster 1 2 3 4 5
wiki A 192.0.2.7
$ORIGIN example.com.
@ SOA ns hostmaster 1 2 3 4 5
@ A 192.0.2.8
"""


def test_a_stub_domain_and_a_zone_of_ones_own(tools: Any, tmp_path: Path) -> None:
    zone = tmp_path / "zone"
    zone.write_text(ZONE)
    with Lab("stub", nodes=1, outside_zone=str(zone)) as lab:
        lab.apply_text("{apiVersion: v1, kind: Pod, metadata: {name: client}, "
                       "spec: {containers: [{name: c, image: busybox}]}}")  # fmt: skip
        assert dig(tools, lab, "example.com") == ["192.0.2.8"]
        assert dig(tools, lab, "wiki.corp") == ["192.0.2.7"]
        config = lab.call(lambda api: api.get(kinds.CONFIG_MAP, "coredns", "kube-system"))
        corefile = config.data["Corefile"].replace(
            "ready\n", "ready\n    rewrite name intra.corp wiki.corp\n"
        )
        stub = "dead.corp:53 {\n    errors\n    forward . 203.0.113.99\n}\n"
        patch = json.dumps({"data": {"Corefile": corefile + stub}})
        tools.kubectl(
            lab, "patch", "configmap/coredns", "-n", "kube-system", "--type=merge", "-p", patch
        )
        addresses = [pod.status.pod_ip for pod in replicas(lab)]
        for address in addresses:
            tools.wait(lambda a=address: dig(tools, lab, f"@{a}", "intra.corp") == ["192.0.2.7"])
        bad = json.dumps({"data": {"Corefile": "nonsense {\n"}})
        tools.kubectl(
            lab, "patch", "configmap/coredns", "-n", "kube-system", "--type=merge", "-p", bad
        )
        tools.wait(lambda: "reload failed" in logs(tools, lab))
        assert dig(tools, lab, "intra.corp") == ["192.0.2.7"]


def logs(tools: Any, lab: Lab) -> str:
    selector = ("-l", "k8s-app=kube-dns", "--tail=-1")
    return str(tools.kubectl(lab, "logs", "-n", "kube-system", *selector))


def test_a_cache_on_every_node(tools: Any, tmp_path: Path) -> None:
    with Lab("nodelocal", nodes=2, node_local_dns=True) as lab:
        lab.apply_text(WORLD)
        web = service(lab, "web").spec.cluster_ip
        assert "nameserver 169.254.20.10\n" in tools.inside(
            lab, "client", "cat", "/etc/resolv.conf"
        )
        assert dig(tools, lab, "+search", "web") == [web]
        assert dig(tools, lab, "+tcp", "+search", "web") == [web]
        assert dig(tools, lab, "-x", web) == ["web.default.svc.cluster.local."]
        assert dig(tools, lab, "www.example.com") == ["203.0.113.10", "example.com."]
        node = next(pod.spec.node_name for pod in lab.pods() if pod.metadata.name == "client")
        with running(lab, tmp_path / "flag", "lookups", "web", "www.example.com") as process:
            pid = tools.pids(lab)[f"dns-{node}"]
            os.kill(pid, signal.SIGKILL)
            tools.wait(lambda: tools.pids(lab)[f"dns-{node}"] not in (0, pid))
        found = outcome(process)
        assert found["failed"] == []
        assert found["asked"] > 10
        page = tools.inside(lab, "client", "curl", "-s", "http://169.254.20.10:9253/metrics")
        assert "coredns_cache_hits_total" in page


def test_a_lab_without_dns(tools: Any) -> None:
    with Lab("nodns", nodes=1, dns="none") as lab:
        lab.wait_ready()
        assert lab.pods("kube-system") == []


# --- the pod's own side ----------------------------------------------------------------------

SIDES = """
apiVersion: v1
kind: Pod
metadata: {name: named}
spec:
  hostname: box
  subdomain: db
  setHostnameAsFQDN: true
  hostAliases: [{ip: 10.1.2.3, hostnames: [old.example, older.example]}]
  dnsConfig:
    searches: [corp.example, .]
    options: [{name: ndots, value: "2"}]
  containers: [{name: c, image: busybox}]
---
apiVersion: v1
kind: Pod
metadata: {name: over}
spec:
  hostnameOverride: www.example.com
  containers: [{name: c, image: busybox}]
---
apiVersion: v1
kind: Pod
metadata: {name: hosted}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers: [{name: c, image: busybox}]
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  hostNetwork: true
  containers: [{name: c, image: busybox}]
---
apiVersion: v1
kind: Pod
metadata: {name: alone}
spec:
  dnsPolicy: None
  dnsConfig: {nameservers: [203.0.113.10]}
  containers: [{name: c, image: busybox}]
"""


@pytest.mark.rootless
def test_host_names_and_resolv_conf_inside(lab: Lab, tools: Any) -> None:
    lab.apply_text(SIDES)
    fqdn = "box.db.default.svc.cluster.local"
    assert tools.inside(lab, "named", "hostname").strip() == fqdn
    assert tools.inside(lab, "named", "hostname", "-f").strip() == fqdn
    assert tools.inside(lab, "over", "hostname", "-f").strip() == "www.example.com"
    assert tools.inside(lab, "named", "getent", "hosts", "older.example").split()[0] == "10.1.2.3"
    assert tools.inside(lab, "named", "cat", "/etc/resolv.conf") == (
        "search default.svc.cluster.local svc.cluster.local cluster.local corp.example .\n"
        "nameserver 10.96.0.10\noptions ndots:2\n"
    )
    web = service(lab, "web").spec.cluster_ip
    assert dig(tools, lab, "+search", "web", pod="hosted") == [web]
    assert dig(tools, lab, "+search", "web", pod="plain") == []
    for pod in ("plain", "alone"):
        assert dig(tools, lab, "outside.example", pod=pod) == ["203.0.113.10"]


def test_a_name_too_long_for_the_kernel_waits_with_an_event(lab: Lab, tools: Any) -> None:
    lab.apply_text(
        "{apiVersion: v1, kind: Pod, metadata: {name: long}, spec: {hostname: "
        f"{'h' * 60}, subdomain: db, setHostnameAsFQDN: true, "
        "containers: [{name: c, image: busybox}]}}",
        wait_s=None,
    )
    text = "failed to construct FQDN from pod hostname and cluster domain"
    tools.wait(lambda: text in tools.kubectl(lab, "describe", "pod", "long"))
    tools.kubectl(lab, "delete", "pod", "long", "--now")


# --- explaining ------------------------------------------------------------------------------


@pytest.mark.rootless
def test_explain_sends_every_query_of_the_search(lab: Lab, tools: Any) -> None:
    done = tools.podwire(
        "dns", "explain", "client", "www.example.com", "-t", "A", "--lab", lab.name, "-o", "json"
    )
    found = json.loads(done.stdout)
    assert [step["rcode"] for step in found["steps"]] == ["NXDOMAIN"] * 3 + ["NOERROR"]
    assert found["wasted"] == 3
    assert found["ndots"] == 5
    assert ip_address(found["nameservers"][0]) == IPv4Address("10.96.0.10")
    assert not any(step.get("contradicts") for step in found["steps"])


def test_explain_says_why_not(lab: Lab, tools: Any) -> None:
    done = tools.podwire("dns", "explain", "client", "kube-dns.", "--lab", lab.name, check=False)
    assert done.returncode == 1
    wrong = tools.podwire("dns", "explain", "client", "kube-dns", "--lab", lab.name, check=False)
    assert "namespace default has no Service kube-dns (namespace kube-system has)" in wrong.stdout


def test_stats_tell_the_golden_signals(lab: Lab, tools: Any) -> None:
    dig(tools, lab, "web.default.svc.cluster.local")
    found = json.loads(tools.podwire("dns", "stats", "--lab", lab.name, "-o", "json").stdout)
    assert len(found) == 2
    assert all(0 < each["p50Milliseconds"] <= each["p99Milliseconds"] for each in found)
    assert sum(each["queries"] for each in found) > 0
    assert not any(each.get("error") for each in found)
