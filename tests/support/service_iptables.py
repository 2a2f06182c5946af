"""Where iptables answers otherwise than the packet table says (services/README, "Back ends")."""

from __future__ import annotations

from service_rows import Case, Row

from podwire.services.evaluate import Verdict


def expected(case: Case, row: Row) -> Verdict:
    """An unlisted port of a cluster IP is not refused but dropped."""
    served = {
        (address, port.port, port.protocol)
        for service, _ in row.build()
        for address in service.spec.cluster_ips
        for port in service.spec.ports
    }
    cluster_ip = case.dst.startswith(("10.96.", "fd00:96::"))
    if case.verdict == "refuse" and cluster_ip:
        return "refuse" if (case.dst, case.port, case.protocol) in served else "drop"
    return case.verdict


def sticky(row: Row) -> bool:
    """Maglev is none of iptables' ways to choose: there it is random."""
    return any(svc.spec.get("sessionAffinity") == "ClientIP" for svc in row.services)
