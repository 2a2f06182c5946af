"""A configuration's own parts: what `autopath` knows of the pod that asks."""

from __future__ import annotations

from pathlib import Path

from dns_worlds import pod

from podwire.dns.corefile import parse_corefile
from podwire.dns.instance import Instance, Surroundings
from podwire.dns.listening import Listening
from podwire.dns.main import searched_beside
from podwire.dns.podfiles import PodFiles

COREFILE = """
. {
    autopath @kubernetes
    kubernetes cluster.local {
        pods verified
    }
}
"""


def test_the_search_list_is_that_of_the_pods_namespace_and_its_nodes(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("search Corp.example . lab..bad b.example.\nnameserver 192.0.2.1\n")
    searched = searched_beside(PodFiles({"/etc/resolv.conf": str(conf)}))
    assert searched == ("corp.example.", "b.example.")
    around = Surroundings(None, Listening(), searched=searched)
    instance = Instance(parse_corefile(COREFILE), around)
    instance.answers.zone.index.set_pod(pod("shop", "web", "10.1.0.1").key, None,
                                        pod("shop", "web", "10.1.0.1"))  # fmt: skip
    assert instance.search_of("10.1.0.1") == [
        "shop.svc.cluster.local.",
        "svc.cluster.local.",
        "cluster.local.",
        "corp.example.",
        "b.example.",
        "",
    ]
    assert instance.search_of("10.1.0.2") is None


def test_a_pod_without_a_resolv_conf_searches_nothing_beside(tmp_path: Path) -> None:
    assert searched_beside(PodFiles({"/etc/resolv.conf": str(tmp_path / "nil")})) == ()
