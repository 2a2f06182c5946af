"""A Service: its cluster IP inside, its node port outside, and the kernel's rules in between."""

import subprocess
from pathlib import Path

import podwire


def curl(place: str, url: str) -> str:
    command = ["podwire", "exec", "--lab", "services", place, "--", "curl", "-s", "-m5", url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


with podwire.Lab("services", nodes=3) as lab:
    lab.apply(Path(__file__).with_name("09-services.yaml"))
    pods = {pod.metadata.name for pod in lab.pods("default")}

    answers = {curl("web", "http://10.96.0.80/hostname") for _ in range(40)}
    print("the cluster IP leads to", sorted(answers))
    assert answers == pods

    client = curl("outside", "http://172.30.0.2:30080/clientip")
    print("through a node port a pod sees", client)
    assert client.startswith("172.30.0."), "a node hides the client: traffic policy Cluster"

    service = lab.kubectl("get", "endpointslices", "-o", "wide").stdout
    print(service)
    assert all(ip in service for ip in (pod.status.pod_ip for pod in lab.pods("default")))
