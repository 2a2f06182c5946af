#!/usr/bin/env bash
# Plan a cluster's addresses, see which limit comes first, and build what was planned.
set -euo pipefail
podwire=${PODWIRE:-$(dirname "$0")/../podwire}
folder=$(mktemp -d)
trap '"$podwire" down planned >/dev/null; rm -rf "$folder"' EXIT

# 110 pods do not fit on an m5.large: the exit code says so, and the plan says why.
if "$podwire" plan --cloud eks --instance m5.large --nodes 10 >"$folder/eks"; then
    echo "expected the plan to be refused" && exit 1
fi
grep -q 'IPv4 addresses per node: needs 110 of 29, EXCEEDED' "$folder/eks"

# Networks that exist already (a VPN, a VPC) are kept clear of.
"$podwire" plan --nodes 2 --avoid 10.96.0.0/11 -o yaml >"$folder/plan.yaml"
if grep -q '10\.96\.0\.0/16' "$folder/plan.yaml"; then
    echo "the plan overlaps what it was to avoid" && exit 1
fi

"$podwire" up planned --plan "$folder/plan.yaml" --no-kubeconfig
"$podwire" status planned -o json | grep -q '"name": "node-2"'
echo "planned and built"
