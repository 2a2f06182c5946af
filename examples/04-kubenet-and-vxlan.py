"""The same pods on other wires: kubenet's bridge, and VXLAN between the nodes."""

from pathlib import Path

import podwire

MANIFEST = Path(__file__).parent / "01-two-pods.yaml"
# mode, overlay, MTU of pods: VXLAN over IPv4 costs 50 bytes.
NETWORKS = (
    ("routed", "none", 1500),
    ("routed", "vxlan", 1450),
    ("kubenet", "none", 1500),
    ("kubenet", "vxlan", 1450),
)

for network, overlay, mtu in NETWORKS:
    with podwire.Lab(f"{network}-{overlay}", nodes=2, network=network, overlay=overlay) as lab:
        lab.apply(MANIFEST)
        client, server = lab.pod("client"), lab.pod("server")
        answer = client.probe(server, port=8080, protocol="http")
        assert answer.verdict == "allowed"
        assert answer.client == client.ip
        assert f"mtu {mtu} " in client.exec("ip", "link", "show", "eth0").stdout
        print(f"{network} {overlay}: {client.ip} -> {server.ip} in {answer.latency_us} us")
