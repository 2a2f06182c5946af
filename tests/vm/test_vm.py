"""What this machine's kernel may lack, on one that has it: Debian's, in QEMU. Only with
`./test --all`.

    IPVS             ip_vs     every row of Services, and the upstream cases in a whole lab
    SCTP             sctp      associations through policies and a Service, and lone INITs before
    DNS that waits   nft_queue domainNames: whoever was told an address reaches it at once
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
PROGRAMS = ("qemu-system-x86_64", "ipvsadm", "busybox", "apt-get")


@dataclass(frozen=True)
class Run:
    """`timeout_s` is for a busy machine; an idle one needs a third of it."""

    tests: tuple[str, ...]
    timeout_s: int
    machine: tuple[str, ...] = ()


LAB = ("--memory", "3000", "--own-time")
RUNS = {
    "ipvs": Run(("tests/kernel/services/test_kernel_ipvs.py",), 900),
    "ipvs-lab": Run(("tests/conformance/services", "-k", "ipvs"), 2700, LAB),
    "sctp": Run(("tests/e2e/test_sctp.py",), 1800, (*LAB, "--hold", "sctp")),
    "names": Run(("tests/e2e/test_policy_names.py",), 900, LAB),
}


@pytest.mark.vm
@pytest.mark.parametrize("name", RUNS)
def test_on_debians_kernel(name: str) -> None:
    if os.environ.get("PODWIRE_ALL") != "1":
        pytest.skip("emulates a machine for minutes: runs with ./test --all")
    for program in PROGRAMS:
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not installed")
    run = RUNS[name]
    done = subprocess.run(
        [
            *(sys.executable, "tools/vm.py", "--timeout", str(run.timeout_s), *run.machine, "--"),
            *("env", "PODWIRE_TEST_TIMEOUT_S=300", "PODWIRE_TEST_PATIENCE=3"),
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *run.tests),
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
