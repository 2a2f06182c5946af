#!/usr/bin/env bash
# The rootless tier: user `nobody`, a world-readable copy of the checkout, a venv of the system's Python.
# rootless_tests.sh [TESTS...]: of these files only.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
copy=$(mktemp -d /tmp/podwire-rootless.XXXXXX)
trap 'rm -rf "$copy"' EXIT
chmod 755 "$copy"
git -C "$root" ls-files -z --cached --others --exclude-standard |
    (cd "$root" && xargs -0 -I{} sh -c '[ -e "$1" ] && cp --parents -P "$1" "$2"' _ {} "$copy")
/usr/bin/python3 -c 'import ensurepip' 2>/dev/null ||
    apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
/usr/bin/python3 -m venv "$copy/.venv"
"$copy/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$copy[dev]" \
    2> >(grep -v -e '^WARNING' >&2)
chown -R nobody "$copy"
[ -d "$root/../shared" ] && export PODWIRE_SHARED="$(cd "$root/../shared" && pwd)"
cd "$copy"
runuser -u nobody -- env HOME="$copy" TMPDIR="$copy" PODWIRE_RUN_DIR="$copy/run" \
    PODWIRE_SHARED="${PODWIRE_SHARED:-}" PATH="$copy/.venv/bin:$PATH" \
    "$copy/.venv/bin/python" -m pytest -q -p no:cacheprovider -m "rootless" "${@:-tests}"
