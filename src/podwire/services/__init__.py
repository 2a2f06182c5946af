"""Services: what their addresses mean on one node, and how the kernel is told.

Service + EndpointSlices -> model.compile_service -> Frontends      the meaning, per node
Frontends -> evaluate                                                what happens to a packet
Frontends -> nftables | iptables | ipvs                              the same, as kernel state
kernel state -> plan                                                 ordered transactions
"""
