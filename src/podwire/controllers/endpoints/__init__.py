"""From Services and Pods to endpoints: EndpointSlices, core/v1 Endpoints, and mirrored slices.

    pod, node, Service ─▶ membership (who selects whom) ─▶ queue, one pass per Service at a time
      Service with a selector:    members ─▶ plan_slices ─▶ EndpointSlices, then plan_endpoints
      Service without a selector: Endpoints written by hand ─▶ plan_mirror ─▶ EndpointSlices

What upstream does in three controllers that race (endpointslice, endpoints, endpointslicemirroring)
is one pass here, so that a Service that gains or loses its selector never stands without slices.
Every plan is pure; only `controller` and `legacycontroller` write.
"""
