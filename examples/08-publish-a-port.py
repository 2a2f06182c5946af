"""A port of 127.0.0.1 leads to a Service's pods: curl, a browser or a test can use it."""

import json
import subprocess

import podwire

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec:
  containers:
    - { name: web, image: nginx:1.29, ports: [{ name: http, containerPort: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  selector: { app: web }
  ports: [{ port: 8080, targetPort: http }]
"""

with podwire.Lab("published", nodes=1) as lab:
    lab.apply_text(MANIFEST)
    port = lab.publish("0:svc/web:8080")  # port 0: one that is free
    # The relay closes connections until it has heard of a ready pod.
    get = ["curl", "-s", "--retry", "5", "--retry-all-errors", f"http://127.0.0.1:{port}/"]
    seen = json.loads(subprocess.run(get, capture_output=True, check=True).stdout)
    print(seen)
    assert seen["pod"] == "web"
    assert seen["client"] == "172.30.0.2", "the pod sees its node, as with a hostPort"
