"""Cut the wire between two nodes: pods across it lose each other, all others do not."""

import podwire

PODS = "".join(
    f"""
apiVersion: v1
kind: Pod
metadata: {{ name: pod-{n} }}
spec:
  nodeName: node-{n}
  containers: [{{ name: app, image: example/app:1, ports: [{{ containerPort: 8080 }}] }}]
---"""
    for n in (1, 2, 3)
)

with podwire.Lab("cut", nodes=3) as lab:
    lab.apply_text(PODS)
    first = lab.pod("pod-1")
    assert first.can_reach("pod-2", port=8080)

    lab.link("node-1", "node-2", "down")
    assert first.probe("pod-2", port=8080).verdict == "dropped"
    assert first.can_reach("pod-3", port=8080)
    assert lab.pod("pod-3").can_reach("pod-2", port=8080)

    lab.link("node-1", "node-2", "up")
    assert first.can_reach("pod-2", port=8080)
