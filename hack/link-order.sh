#!/usr/bin/env bash
# Puts what an idle cluster runs side by side in the released program, so that little of it must be in memory.
#   hack/link-order.sh        builds, watches a cluster start, idle and run docs/examples/web.yaml, writes hack/link-order.gz
# The next release is linked in that order (build.rs). The names in it are those of one compiler and of the packages' versions:
# after a change of these, and now and then besides, it wants to be made again. Needs root, an engine and kubectl; no other
# cluster may run. The release is built again afterwards by whoever builds it next.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || fail "run this as root: pods need links, mounts and nftables"
! running || fail "a cluster runs: stop it with hack/down.sh"
need python3 python3
need kubectl kubernetes-client
need curl curl
ensure_rust
ensure_engine
"$root/hack/images.sh"
dir=$(mktemp -d)
tracer=
stop() {
  [ -n "$tracer" ] || return 0
  kill "$tracer" 2>/dev/null || true
  wait "$tracer" || true
  tracer=
  "$CARGO_TARGET_DIR/release/skiff" down --data-dir "$dir/data" >/dev/null 2>&1 || true
}
cleanup() {
  stop
  rm -rf "$dir"
}
trap cleanup EXIT

step "build with a map" env -C "$root" SKIFF_LINK_MAP="$dir/map" cargo build --release --quiet -p skiff
"$root/hack/link-order.py" --map "$dir/map" --out "$dir/names" -- "$CARGO_TARGET_DIR/release/skiff" up \
  --no-kubeconfig --listen 127.0.0.1:0 --data-dir "$dir/data" >"$dir/log" 2>&1 &
tracer=$!
k() { kubectl --kubeconfig "$dir/data/kubeconfig/admin.yaml" "$@"; }
# Over HTTP/1.1 too, which load balancers and probes speak.
api_ready() { DISABLE_HTTP2=true k get --raw /readyz && curl -ksf --http1.1 "$(k config view -o 'jsonpath={.clusters[0].cluster.server}')/readyz"; }
node_ready() { k wait --for=condition=Ready nodes --all --timeout=5s; }
alive() { kill -0 "$tracer" 2>/dev/null || { cat "$dir/log" >&2; fail "the cluster ended"; }; }
soon() { for _ in $(seq 600); do alive; "$@" && return 0; sleep 0.1; done; return 1; }
step "API server" soon api_ready
step "node Ready" soon node_ready
# What is met from here to the end comes after what an idle cluster runs.
step "a minute of idleness" sleep 60
web() {
  k apply -f "$root/docs/examples/web.yaml"
  k rollout status deployment/web --timeout=120s
  k get pods -o wide
  k logs deployment/web --tail=5
  k delete -f "$root/docs/examples/web.yaml" --timeout=120s
}
step "docs/examples/web.yaml" web
stop
[ -s "$dir/names" ] || { cat "$dir/log" >&2; fail "no function was written down"; }
{ printf '# Made by hack/link-order.sh with %s\n' "$(rustc --version)"; cat "$dir/names"; } | gzip -9n >"$root/hack/link-order.gz"
tail -n 1 "$dir/log"
