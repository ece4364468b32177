#!/bin/sh
# Writes the generated part of skiff-core: the table of API structures. Needs go, python3 with pip, and network access to
# the Go module proxy and the Python package index. The same inputs give the same bytes; run it after a change of the
# versions below or of hack/generate/go.mod.
set -eu

definitions_package=kubernetes-validate==1.37.0
definitions_path=kubernetes_validate/kubernetes-json-schema/v1.37.0-local/_definitions.json

here=$(cd "$(dirname "$0")" && pwd)
out=$here/../apiserver/core/src/schema/generated
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pip download --quiet --no-deps --dest "$work" "$definitions_package"
python3 -m zipfile -e "$work"/kubernetes_validate-*.whl "$work/package"

cd "$here/generate"
rm -rf "$work/generated"
go run . -definitions "$work/package/$definitions_path" \
    -client-go "$(go list -m -f '{{.Dir}}' k8s.io/client-go)" -out "$work/generated"
rm -rf "$out"
mv "$work/generated" "$out"
