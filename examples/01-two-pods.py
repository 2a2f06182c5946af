"""Two pods on two nodes reach each other."""

from pathlib import Path

import podwire

with podwire.Lab("two-pods", nodes=2) as lab:
    lab.apply(Path(__file__).with_suffix(".yaml"))
    assert lab.pod("client").can_reach("server", port=8080)
    assert not lab.pod("client").can_reach("server", port=9999)
