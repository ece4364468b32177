#!/usr/bin/env bash
# Installs what is missing, builds, starts a cluster on this machine, waits until it is usable. Again: a no-op.
#   hack/up.sh [arguments for `skiff up`]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
port=${SKIFF_PORT:-6443}
context=${SKIFF_CONTEXT:-skiff}

if running; then
  say "the cluster already runs (process $(cat "$run/skiff.pid"), context $context); stop it with hack/down.sh"
  exit 0
fi
[ "$(id -u)" = 0 ] || fail "run this as root: pods need links, mounts and nftables"
say "skiff: starting a cluster on this machine"
need ip iproute2
need nft nftables
need iptables iptables
need_docker
command -v kubectl >/dev/null 2>&1 || need kubectl kubernetes-client
ensure_rust
step "container engine" ensure_engine
profile=${SKIFF_PROFILE:-release}
if [ "$profile" = release ]; then build=(cargo build --release --quiet -p skiff); else build=(cargo build --quiet -p skiff); fi
step "build ($profile)" env -C "$root" "${build[@]}"
binary=$CARGO_TARGET_DIR/$profile/skiff
step "images" "$root/hack/images.sh"
# `kubectl cfg` is this program under another name.
for plugin in cfg func trigger wf gpu; do ln -sfn "$binary" "/usr/local/bin/kubectl-$plugin"; done

mkdir -p "$run"
setsid "$binary" up --data-dir "$data" --listen "0.0.0.0:$port" --context "$context" "$@" >"$run/skiff.log" 2>&1 </dev/null &
echo $! >"$run/skiff.pid"

k() { kubectl --context "$context" "$@"; }
alive() { running || { tail -n 5 "$run/skiff.log" >&2; rm -f "$run/skiff.pid"; return 1; }; }
wait_for() { # seconds, command...
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    alive || return 1
    [ $SECONDS -lt $end ] || { say "timed out: $*" >&2; return 1; }
    sleep 0.1
  done
}
node_ready() { [ "$(k get nodes -o 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}')" = True ]; }
dns_answers() { "$root/hack/dns-answers.sh" 10.96.0.10 kubernetes.default.svc.cluster.local; }
step "API server" wait_for 30 k get --raw /readyz || exit 1
step "node Ready" wait_for 60 node_ready || exit 1
step "cluster DNS" wait_for 30 dns_answers || exit 1
short=$(k get nodes -o 'jsonpath={.items[*].status.conditions[?(@.status=="True")].message}' | grep -oE 'kubelet has (disk pressure|insufficient [a-zA-Z]+ available)' || true)
[ -z "$short" ] || say "  pods will stay Pending: $short; make room, or set --eviction-hard lower"
cat <<END
the cluster is up: context $context, log $run/skiff.log, data $data

try:
  kubectl --context $context get nodes
  kubectl --context $context apply -f docs/examples/web.yaml
  curl http://127.0.0.1:30080/
END
