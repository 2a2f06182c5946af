"""Who reaches whom, as a matrix of real packets; and nobody's address is translated."""

from pathlib import Path

import podwire

MANIFEST = Path(__file__).with_suffix(".yaml")

with podwire.Lab("three-tiers", nodes=3, zones=["a", "b", "c"]) as lab:
    lab.apply(MANIFEST)
    found = lab.reach()
    for answer in found.answers:
        source, destination = found.sources[answer.source], found.destinations[answer.destination]
        print(f"{source.key} -> {destination.key} port {answer.port.number}: {answer.verdict}")
    # 4 pods, each asks the 3 others at the port they declare.
    assert len(found.answers) == 12
    assert {answer.verdict for answer in found.answers} == {"allowed"}

    # Asked by HTTP, a stand-in tells which source address it saw.
    web = lab.pod("web", "shop")
    answer = web.probe("data/db", port=5432, protocol="http")
    assert answer.client == web.ip, "pod to pod is never masqueraded"
    assert web.probe("203.0.113.10", protocol="icmp").verdict == "allowed", "the outside answers"
