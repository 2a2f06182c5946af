"""IPVS on a kernel that has it: Debian's, in QEMU. Only with `./test --all`.

tests/kernel/services/test_kernel_ipvs.py is what runs there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHIN = "tests/kernel/services/test_kernel_ipvs.py"
# An idle machine needs 3 minutes; this is for a busy one.
TIMEOUT_S = 900
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


@pytest.mark.vm
def test_services_by_ipvs() -> None:
    if os.environ.get("PODWIRE_ALL") != "1":
        pytest.skip("emulates a machine for minutes: runs with ./test --all")
    for program in ("qemu-system-x86_64", "ipvsadm", "busybox", "apt-get"):
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "tools/vm.py", "--timeout", str(TIMEOUT_S), "--"),
            *("env", "PODWIRE_TEST_TIMEOUT_S=300"),
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", WITHIN),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout
