"""A test of somebody's manifests: `pytest examples/03-test-your-manifests.py` or run this file."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from podwire import Lab

MANIFESTS = Path(__file__).parent / "02-three-tiers.yaml"


def test_every_tier_reaches_the_next(lab: "Lab") -> None:
    lab.apply(MANIFESTS)
    assert lab.pod("web", "shop").can_reach("api", port=9090)
    assert lab.pod("api", "shop").can_reach("data/db", port=5432)


def test_nobody_listens_where_nothing_is_declared(lab: "Lab") -> None:
    lab.apply(MANIFESTS)
    assert lab.pod("web", "shop").probe("data/db", port=22).verdict == "refused"


if __name__ == "__main__":
    raise SystemExit(subprocess.call([sys.executable, "-m", "pytest", "-q", __file__]))
