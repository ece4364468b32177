#!/usr/bin/env bash
# Everything CI runs, in the order a person would. From a fresh Debian machine it installs what it needs.
#   hack/test.sh            all
#   hack/test.sh cluster    only kubectl against a real cluster (further words: names of cases)
#   hack/test.sh nodes      only several nodes on one machine (further words: names of cases)
#   hack/test.sh hpc        only jobs on a real Slurm (further words: names of cases)
#   hack/test.sh vectors    only the recorded exchanges (further words: areas or scenarios)
set -euo pipefail
cd "$(dirname "$0")/.."
# Builds are shared between checkouts: a fresh clone does not compile the world again.
if [ "${CI:-}" = true ] && [ -z "${CARGO_TARGET_DIR:-}" ]; then
  export CARGO_TARGET_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/skiff/target"
fi
export SKIFF_PROFILE=debug
# Each build is whole here: what an incremental one needs is half of the disk.
[ "${CI:-}" != true ] || export CARGO_INCREMENTAL=0
# The disk is the machine's, not the cluster's: pods are placed as long as there is room for them at all.
export SKIFF_EVICTION_HARD='memory.available<100Mi,nodefs.available<1Gi,imagefs.available<1Gi'
. hack/lib.sh
ensure_rust

prepare_cluster() {
  need ip iproute2
  need nft nftables
  need iptables iptables
  need_docker
  need mkfs.ext4 e2fsprogs
  need conntrack conntrack
  need curl curl
  need nsenter util-linux
  need jq jq
  need make make
  need g++ g++
  need prometheus prometheus
  need /usr/lib/cni/bridge containernetworking-plugins
  need etcd etcd-server
  need etcdctl etcd-client
  ensure_engine
  need python3 python3
  need pip3 python3-pip
  need node nodejs
  hack/images.sh all
  ensure_go
  # kubectl of the release that Skiff follows. Debian's is years old, and one on the PATH may be a dispatcher.
  if [ -z "${SKIFF_KUBECTL:-}" ]; then
    export SKIFF_KUBECTL="$CARGO_TARGET_DIR/kubectl"
    env -C conformance/clients/kubectl go build -mod=mod -o "$SKIFF_KUBECTL" \
      -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2' .
  fi
}
# The engine is stopped again only if this script had to start it.
trap '[ -f "$run/dockerd.pid" ] && [ "${started_engine:-}" = 1 ] && kill "$(cat "$run/dockerd.pid")" 2>/dev/null || true' EXIT

case "${1:-all}" in
  cluster) shift; prepare_cluster; cargo build -p skiff; exec cargo test -p skiff-conformance --test cluster -- "$@" ;;
  nodes) shift; prepare_cluster; cargo build -p skiff; exec cargo test -p skiff-conformance --test nodes -- "$@" ;;
  hpc) shift; prepare_cluster; cargo build -p skiff -p skiff-fake-slurm; exec cargo test -p skiff-conformance --test hpc -- "$@" ;;
  vectors) shift; exec cargo test -p skiff-conformance --test vectors -- "$@" ;;
  all) ;;
  *) fail "unknown part: $1" ;;
esac

engine_answers || started_engine=1
prepare_cluster
cargo fmt --all --check
cargo clippy --workspace --all-targets -- -D warnings
# Advisories need a database from outside; licences, banned crates and sources need nothing.
command -v cargo-deny >/dev/null 2>&1 || { say "  installing cargo-deny"; cargo install --quiet --locked cargo-deny@0.20.2 || true; }
if command -v cargo-deny >/dev/null 2>&1; then
  cargo deny check bans licenses sources
else
  say "cargo-deny could not be installed: licences are not checked in this run"
fi
cargo build -p skiff -p skiff-fake-slurm
export SKIFF_REQUIRE_ENGINE=1 SKIFF_REQUIRE_ETCD=1
# Programs of the AWS SDK are tried where it can be had.
boto3="${CARGO_TARGET_DIR:-$PWD/target}/aws-clients"
[ -x "$boto3/python" ] || pip3 install --quiet --break-system-packages --target "$boto3" boto3 awscli &&
  printf '#!/bin/sh\nPYTHONPATH=%s exec python3 "$@"\n' "$boto3" >"$boto3/python" && chmod +x "$boto3/python" &&
  export SKIFF_BOTO3_PYTHON="$boto3/python" || say "boto3 could not be installed: its programs are not run"
# Jobs on Slurm and several nodes mostly wait: these two wait at once, after all others.
SKIFF_LATER=hpc,nodes cargo test --workspace
nodes_log=$(mktemp)
failed=""
cargo test --workspace --test nodes >"$nodes_log" 2>&1 &
nodes=$!
cargo test --workspace --test hpc || failed=hpc
wait "$nodes" || failed="$failed nodes"
cat "$nodes_log"
rm -f "$nodes_log"
[ -z "$failed" ] || fail "these failed: $failed"
# The example of docs/library.md.
cargo run --quiet -p skiff-apiserver --example library
