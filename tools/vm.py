#!/usr/bin/env python3
"""Run a command as root on another kernel: Debian's own, in QEMU, over this machine's files.

    tools/vm.py [--timeout S] [--memory MIB] [--own-time] [--hold MODULE]... -- COMMAND...

    apt-get download linux-image -> .cache/vm (unpacked, never installed)
    QEMU: kernel + small initramfs (busybox) -> / of this machine by 9p, read-only, a tmpfs over it
          -> COMMAND in this folder -> its output here, its exit status ours

What this machine's kernel lacks (ip_vs, dummy, wireguard, sctp) is a module there, loaded when it
is asked for; with `--hold` only by `/vm/modprobe MODULE`, so that both can be seen, without and
with it. The machine has no network device and keeps nothing: every write goes to its memory.

Its processor is emulated unless `--accel kvm` says otherwise. With `--own-time` its clock counts
instructions, one a nanosecond: a second there is as much work as on a real machine and some seconds
here, however busy we are, and timeouts mean what they mean. Statuses of our own: 124 when the time
is over (as timeout(1)), 125 when it did not boot.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "vm"
TIMED_OUT, NO_BOOT = 124, 125
_BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_KEPT_ENVIRONMENT = ("PODWIRE_ALL", "PYTHONDONTWRITEBYTECODE")

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in {modules}; do insmod /modules/$module || echo "init: $module: not loaded"; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro root /lower || poweroff -f
mount -t tmpfs -o size=60% tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /whole
mkdir -p /whole/lib/modules
mount -o bind /lower{cache}/lib/modules /whole/lib/modules
# Not in the place of the machine's own modprobe: it may have one, or none.
mkdir /whole/vm
cp /bin/busybox /whole/vm/busybox
printf '#!/vm/busybox sh\\nexec /vm/busybox modprobe "$@"\\n' >/whole/vm/modprobe
chmod 755 /whole/vm/modprobe
echo /vm/modprobe >/proc/sys/kernel/modprobe
mkdir -p /whole/etc/modprobe.d
for module in {held}; do echo "blacklist $module" >>/whole/etc/modprobe.d/held.conf; done
cp /command /whole/vm/command
for folder in proc sys dev; do mount -o move /$folder /whole/$folder; done
mount -t tmpfs tmpfs /whole/run
mkdir -p /whole/dev/pts /whole/dev/shm
mount -t devpts devpts /whole/dev/pts
mount -t tmpfs tmpfs /whole/dev/shm
mount -t cgroup2 cgroup2 /whole/sys/fs/cgroup
exec switch_root /whole /vm/busybox sh /vm/command
"""

# The command's output is the second serial port, its status the third; the first is the kernel's.
COMMAND = """
umask 022
export PATH=/vm:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
{environment}
b=/vm/busybox
for port in 1 2; do $b stty -F /dev/ttyS$port raw -echo; done
$b ip link set lo up
cd {folder}
$b setsid {command} </dev/null >/dev/ttyS1 2>&1
echo $? >/dev/ttyS2
$b poweroff -f
"""


@dataclass(frozen=True)
class Kernel:
    image: Path
    modules: Path


@dataclass(frozen=True)
class Machine:
    """`own_time`: the clock counts instructions. `held`: modules the kernel may not ask for."""

    memory_mib: int = 1536
    accel: str = "tcg"
    own_time: bool = False
    held: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """`console` is what the kernel said."""

    status: int
    output: str
    console: str
    seconds: float


def fetch_kernel(cache: Path = CACHE) -> Kernel:
    """Debian's kernel image and its modules, downloaded and unpacked once."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "complete").exists():
            _unpack_kernel(cache)
            (cache / "complete").touch()
    (image,) = (cache / "boot").glob("vmlinuz-*")
    (modules,) = (cache / "lib" / "modules").iterdir()
    return Kernel(image, modules)


def _unpack_kernel(cache: Path) -> None:
    wanted = subprocess.run(
        ["apt-cache", "depends", "linux-image-amd64"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    package = wanted.split("Depends: ")[1].split()[0]
    for folder in ("boot", "lib"):
        shutil.rmtree(cache / folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        subprocess.run(
            ["apt-get", "download", "-qq", package],
            cwd=scratch, check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        (archive,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, cache], check=True)
    version = package.removeprefix("linux-image-")
    subprocess.run(["busybox", "depmod", "-b", cache, version], check=True)


def dependencies(kernel: Kernel, names: Iterable[str]) -> list[str]:
    """Paths of the modules and all they need below `kernel.modules`, in order of loading."""
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        by_name[Path(path).name.split(".")[0].replace("-", "_")] = path
    ordered: dict[str, None] = {}

    def visit(path: str) -> None:
        for other in needs[path]:
            visit(other)
        ordered[path] = None

    for name in names:
        visit(by_name[name])
    return list(ordered)


def make_initramfs(
    kernel: Kernel, command: Sequence[str], folder: Path, target: Path, held: Sequence[str] = ()
) -> None:
    """The first files of the machine; what they do is in `INIT`."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ("bin", "proc", "sys", "dev", "lower", "upper", "whole", "modules"):
            (root / name).mkdir()
        busybox = shutil.which("busybox")
        if busybox is None:
            raise SystemExit("vm: busybox is missing; install the package busybox-static")
        shutil.copy(busybox, root / "bin" / "busybox")
        paths = dependencies(kernel, _BOOT_MODULES)
        for path in paths:
            shutil.copy(kernel.modules / path, root / "modules")
        modules = " ".join(Path(path).name for path in paths)
        cache = kernel.modules.parent.parent.parent
        (root / "init").write_text(INIT.format(modules=modules, cache=cache, held=shlex.join(held)))
        (root / "init").chmod(0o755)
        kept = {k: os.environ[k] for k in _KEPT_ENVIRONMENT if k in os.environ}
        environment = "\n".join(f"export {k}={shlex.quote(v)}" for k, v in kept.items())
        text = COMMAND.format(
            environment=environment, folder=shlex.quote(str(folder)), command=shlex.join(command)
        )
        (root / "command").write_text(text)
        names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
        with target.open("wb") as archive:
            subprocess.run(
                ["busybox", "cpio", "-o", "-H", "newc"],
                cwd=root, input=names.encode(), stdout=archive, stderr=subprocess.DEVNULL,
                check=True,
            )  # fmt: skip


def qemu_command(kernel: Kernel, work: Path, machine: Machine) -> list[str]:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise SystemExit("vm: qemu is missing; install the package qemu-system-x86")
    return [
        "nice", "-n", "10", program,
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", f"pc,accel={machine.accel}",
        "-cpu", "max" if machine.accel == "tcg" else "host",
        *(("-icount", "shift=0") if machine.own_time else ()),
        "-m", str(machine.memory_mib), "-smp", "1", "-nic", "none",
        "-kernel", str(kernel.image), "-initrd", str(work / "initramfs"),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on",
        "-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        "-serial", f"file:{work / 'console'}",
        "-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output",
        "-serial", f"file:{work / 'status'}",
    ]  # fmt: skip


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[bytes], timeout_s: float) -> Iterator[threading.Event]:
    over = threading.Event()

    def end() -> None:
        over.set()
        process.kill()

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()


def run(
    command: Sequence[str],
    machine: Machine,
    *,
    folder: Path = ROOT,
    timeout_s: float = 300.0,
    echo: bool = False,
) -> Result:
    """Boot, run `command` in `folder`, and tell how it ended; `echo` prints while it runs."""
    kernel = fetch_kernel()
    with tempfile.TemporaryDirectory(prefix="podwire-vm-") as scratch:
        work = Path(scratch)
        make_initramfs(kernel, command, folder, work / "initramfs", machine.held)
        began = time.monotonic()
        lines: list[str] = []
        with subprocess.Popen(
            qemu_command(kernel, work, machine),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process, _killed_after(process, timeout_s) as over:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.decode(errors="replace"))
                if echo:
                    print(lines[-1], end="", flush=True)
        seconds = time.monotonic() - began
        status = (work / "status").read_text().strip() if (work / "status").exists() else ""
        console = (work / "console").read_text(errors="replace")
    code = int(status) if status.isdigit() else (TIMED_OUT if over.is_set() else NO_BOOT)
    return Result(code, "".join(lines), console, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S")
    parser.add_argument("--memory", type=int, default=1536, metavar="MIB")
    parser.add_argument("--accel", choices=("tcg", "kvm"), default="tcg")
    parser.add_argument("--own-time", action="store_true")
    parser.add_argument("--hold", action="append", default=[], metavar="MODULE")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    result = run(
        arguments.command,
        Machine(arguments.memory, arguments.accel, arguments.own_time, tuple(arguments.hold)),
        folder=Path.cwd(),
        timeout_s=arguments.timeout,
        echo=True,
    )
    if result.status in (TIMED_OUT, NO_BOOT):
        print(result.console[-4000:], file=sys.stderr)
    print(f"vm: status {result.status} after {result.seconds:.1f} s", file=sys.stderr)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
