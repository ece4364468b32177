#!/usr/bin/env bash
# Builds a release and measures it: what docs/SPECIFICATION.md promises, beside etcd and the disk in the same run.
#   hack/bench.sh                        everything that needs no engine
#   hack/bench.sh creates gets           only these sections (idle up creates gets mixed watch lists select pods apply services)
#   BENCH_SECONDS=5 BENCH_SCALE=10 hack/bench.sh mixed     shorter, with a tenth of the objects
#   BENCH_DIR=/mnt/disk hack/bench.sh    on another disk
#   BENCH_HTTP2=1 hack/bench.sh mixed    HTTP/2 where a section does not measure both
# `up` and `apply` start a whole cluster and need root and an engine; `services` needs root and nft. All data is in a
# directory that is deleted at the end, also of a failed run. A run is bounded in time.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
command -v cargo >/dev/null 2>&1 || fail "cargo is missing: install Rust (https://rustup.rs), then run this again"
need cc gcc
sections=()
services=0
for s in "$@"; do
  case $s in
    idle | creates | gets | mixed | watch | lists | select | pods) ;;
    up | apply) ensure_engine; "$root/hack/images.sh" ;;
    services) services=1; continue ;;
    *) fail "unknown section: $s" ;;
  esac
  sections+=("$s")
done
case " ${sections[*]:-creates} " in
  *" creates "*) [ "$(id -u)" != 0 ] || need etcd etcd-server || say "  etcd is not installed: no peer to compare with" ;;
esac

profile=${SKIFF_PROFILE:-release}
step "build ($profile)" env -C "$root" nice cargo build --profile "$profile" --quiet -p skiff -p skiff-bench
dir=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/skiff-bench.XXXXXX")
cleanup() {
  # A whole cluster leaves containers and links behind, which only `down` takes away.
  if [ -d "$dir/up" ] || [ -d "$dir/apply" ]; then
    for d in up apply; do
      [ ! -d "$dir/$d" ] || "$CARGO_TARGET_DIR/$profile/skiff" down --purge --data-dir "$dir/$d" --kubeconfig "$dir/kubeconfig" >/dev/null 2>&1 || true
    done
  fi
  rm -rf "$dir"
}
trap cleanup EXIT
ulimit -n "$(ulimit -Hn)"

if [ $# = 0 ] || [ ${#sections[@]} -gt 0 ]; then
  timeout --kill-after=30 "${BENCH_LIMIT:-1800}" "$CARGO_TARGET_DIR/$profile/skiff-bench" \
    --skiff "$CARGO_TARGET_DIR/$profile/skiff" --dir "$dir" \
    --seconds "${BENCH_SECONDS:-10}" --scale "${BENCH_SCALE:-100}" ${BENCH_HTTP2:+--http2} "${sections[@]}"
fi
if [ $services = 1 ]; then
  need nft nftables
  env -C "$root" nice cargo run --profile "$profile" --quiet -p skiff-proxy --example bench_services
fi
