# Sourced by ./podwire and ./test: system packages (apt, as root), a virtual environment, the package.
# Everything is skipped when a stamp says it was done for this very pyproject.toml.

venv=${PODWIRE_VENV:-$root/.venv}

say() { printf '%s\n' "podwire: $*" >&2; }

find_python() {
    local candidate
    for candidate in "${PODWIRE_PYTHON:-}" /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    say "needs Python 3.11 or newer; none found"
    return 1
}

# install_missing COMMAND=PACKAGE...: what is not there comes from apt when we are root.
install_missing() {
    local pair missing=()
    for pair in "$@"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null 2>&1 || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        say "not installed: ${missing[*]}; ask root to run: apt-get install ${missing[*]}"
        return 0
    fi
    say "installing system packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null 2>&1 || say "apt-get update failed; trying with the old lists"
    local package
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
        for package in "${missing[@]}"; do
            apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 ||
                say "could not install $package; what needs it will say so"
        done
}

ensure_venv() {
    local python
    [ -x "$venv/bin/python" ] && return 0
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_missing "no-such-command=python3-venv"
    say "making a virtual environment in $venv"
    "$python" -m venv "$venv"
}

# install_package STAMP EXTRAS: pip install of the checkout, once per pyproject.toml.
install_package() {
    local stamp="$venv/.podwire-$1" wanted
    wanted=$(sha256sum "$root/pyproject.toml" | cut -d' ' -f1)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return 0
    ensure_venv
    say "installing Python packages (about 20 s, once)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
        -e "$root$2" 2> >(grep -v -e '^WARNING' >&2)
    printf '%s\n' "$wanted" >"$stamp"
}

bootstrap_runtime() {
    [ -f "$venv/.podwire-dev" ] && [ "$venv/.podwire-dev" -nt "$root/pyproject.toml" ] && return 0
    [ -f "$venv/.podwire-run" ] && [ "$venv/.podwire-run" -nt "$root/pyproject.toml" ] && return 0
    install_missing nft=nftables ip=iproute2 nsenter=util-linux crun=crun kubectl=kubernetes-client \
        curl=curl ping=iputils-ping
    install_package run ""
    touch "$venv/.podwire-run"
}

bootstrap_tests() {
    install_missing nft=nftables ip=iproute2 nsenter=util-linux crun=crun kubectl=kubernetes-client \
        curl=curl ping=iputils-ping busybox=busybox-static iptables-restore=iptables \
        bird=bird2 dig=bind9-dnsutils cc=gcc musl-gcc=musl-tools
    fetch_debian_kubectl
    install_package dev "[dev]"
    touch "$venv/.podwire-dev"
}

# bootstrap_vm: what tools/vm.py boots another kernel with, and what its tests need there.
bootstrap_vm() {
    install_missing qemu-system-x86_64=qemu-system-x86 busybox=busybox-static ipvsadm=ipvsadm
}

# bootstrap_benchmarks: the load generator and comparators of benchmarks/dns_server.py.
bootstrap_benchmarks() {
    install_missing dnsperf=dnsperf unbound=unbound dnsmasq=dnsmasq-base knotd=knot
}

# fetch_debian_kubectl: Debian's own client beside whatever kubectl is installed, for the tests. It is
# unpacked, never installed.
fetch_debian_kubectl() {
    local folder="$root/.cache/kubectl-debian"
    [ -x "$folder/usr/bin/kubectl" ] && return 0
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 0
    mkdir -p "$folder"
    (
        cd "$folder"
        apt-get download -q kubernetes-client >/dev/null 2>&1 ||
            { apt-get update -qq >/dev/null 2>&1 && apt-get download -q kubernetes-client >/dev/null 2>&1; } ||
            exit 0
        dpkg-deb -x kubernetes-client_*.deb . && rm -f kubernetes-client_*.deb
    ) || say "Debian's kubectl could not be fetched; its tests are left out"
}
