#!/usr/bin/env bash
# Who reaches whom, from manifests alone: no lab, no root. Then what a change would change.
set -euo pipefail
podwire=${PODWIRE:-$(dirname "$0")/../podwire}
manifests=$(dirname "$0")/10-policies.yaml
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$podwire" reach --static -f "$manifests" -o connlist >"$folder/before"
grep -qx 'shop/web\[Deployment\] => shop/api\[Deployment\] : TCP 8080' "$folder/before"
test "$(wc -l <"$folder/before")" = 2

# Why not? The policies that isolate, and the rule that almost let it through.
if "$podwire" why shop/web shop/db:5432 -f "$manifests" >"$folder/why"; then
    echo "expected web not to reach db" && exit 1
fi
grep -q 'wants app=api, is app=web' "$folder/why"
"$podwire" why shop/web svc/shop/api -f "$manifests" >/dev/null

# Somebody writes the Service's port where policies want the pod's own: lint sees it, diff shows it.
sed 's/port: 8080}/port: 80}/' "$manifests" >"$folder/new.yaml"
"$podwire" policy lint -f "$folder/new.yaml" >"$folder/lint"
grep -q 'service-port' "$folder/lint"
"$podwire" policy diff "$manifests" "$folder/new.yaml" >"$folder/diff"
grep -q '^removed   shop/web' "$folder/diff"
"$podwire" policy coverage -f "$manifests" >"$folder/coverage"
grep -q '3 (100%)' "$folder/coverage"
echo "checked without a cluster"
