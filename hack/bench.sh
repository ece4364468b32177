#!/usr/bin/env bash
# Builds a release and measures it: what docs/SPECIFICATION.md promises, beside etcd and the disk in the same run.
#   hack/bench.sh                        everything that needs no engine
#   hack/bench.sh creates gets           only these sections (idle up creates gets mixed watch flood lists select pods custom apply functions kills runs
#                                        services waiting nodes scheduler rollout engine ingress vxlan)
#   BENCH_SECONDS=5 BENCH_SCALE=10 hack/bench.sh mixed     shorter, with a tenth of the objects
#   BENCH_DIR=/mnt/disk hack/bench.sh    on another disk
#   BENCH_HTTP2=1 hack/bench.sh mixed    HTTP/2 where a section does not measure both
# `up`, `apply`, `functions`, `kills` and `runs` start a whole cluster and need root and an engine; `services` needs root and nft, `vxlan` root and ip,
# `ingress` nginx and wrk. `nodes`, `scheduler` and `rollout` need no engine: containers are only pretended. All data is in a
# directory that is deleted at the end, also of a failed run. A run is bounded in time.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
command -v cargo >/dev/null 2>&1 || fail "cargo is missing: install Rust (https://rustup.rs), then run this again"
need cc gcc
sections=()
services=0 engine=0 ingress=0 vxlan=0
for s in "$@"; do
  case $s in
    idle | creates | gets | mixed | watch | flood | lists | select | pods | custom | waiting | nodes | scheduler | rollout) ;;
    up | apply | runs) ensure_engine; "$root/hack/images.sh" ;;
    functions | kills) ensure_engine; need python3 python3; "$root/hack/images.sh" all ;;
    services) services=1; continue ;;
    engine) engine=1; continue ;;
    ingress) ingress=1; continue ;;
    vxlan) vxlan=1; continue ;;
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
children=()
cleanup() {
  [ ${#children[@]} = 0 ] || kill "${children[@]}" 2>/dev/null || true
  # A whole cluster leaves containers and links behind, which only `down` takes away.
  for d in up apply functions kills runs; do
    [ ! -d "$dir/$d" ] || "$CARGO_TARGET_DIR/$profile/skiff" down --purge --data-dir "$dir/$d" --kubeconfig "$dir/kubeconfig" >/dev/null 2>&1 || true
  done
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
if [ $engine = 1 ]; then
  env -C "$root" nice cargo run --profile "$profile" --quiet -p skiff-controllers --example bench_scheduler
fi
if [ $vxlan = 1 ]; then
  need ip iproute2
  env -C "$root" nice cargo build --profile "$profile" --quiet -p skiff-proxy --example bench_vxlan
  timeout --kill-after=10 300 "$CARGO_TARGET_DIR/$profile/examples/bench_vxlan"
fi

# The gateway and nginx, as proxies to one nginx that answers 1 KiB, by the same load one after the other.
if [ $ingress = 1 ]; then
  need nginx nginx-light
  need wrk wrk
  env -C "$root" nice cargo build --profile "$profile" --quiet -p skiff-proxy --example bench_ingress
  mkdir "$dir/nginx"
  cat >"$dir/nginx/nginx.conf" <<END
daemon off; worker_processes 2; pid $dir/nginx/pid; error_log $dir/nginx/error.log;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 100000000;
  client_body_temp_path $dir/nginx/body; proxy_temp_path $dir/nginx/proxy; fastcgi_temp_path $dir/nginx/fastcgi;
  uwsgi_temp_path $dir/nginx/uwsgi; scgi_temp_path $dir/nginx/scgi;
  upstream endpoint { server 127.0.0.1:18081; keepalive 128; keepalive_requests 100000000; }
  server { listen 127.0.0.1:18081; location / { default_type text/plain; return 200 "$(printf 'x%.0s' {1..1024})"; } }
  server {
    listen 127.0.0.1:18082; server_name bench.example;
    location / { proxy_pass http://endpoint; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host \$host; }
  }
}
END
  nginx -e "$dir/nginx/error.log" -p "$dir/nginx" -c "$dir/nginx/nginx.conf" & children+=($!)
  "$CARGO_TARGET_DIR/$profile/examples/bench_ingress" 127.0.0.1:18080 127.0.0.1:18081 & children+=($!)
  for port in 18080 18081 18082; do
    for _ in $(seq 100); do
      (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
      sleep 0.1
    done
  done
  say "  goal: 15,000 requests/s through the gateway, load, proxy and endpoint on the same cores"
  for name in "endpoint alone:18081" "nginx:18082" "gateway:18080"; do
    for _ in 1 2; do
      took=$(wrk -t1 -c64 -d"${BENCH_SECONDS:-10}s" --latency -H "Host: bench.example" "http://127.0.0.1:${name#*:}/")
      case $took in *Non-2xx*) fail "${name%:*} refuses: $took" ;; esac
    done
    say "  ${name%:*}: $(awk '/Requests\/sec/ {r=$2} $1=="50%" {a=$2} $1=="99%" {b=$2} END {print r " requests/s, p50 " a ", p99 " b}' <<<"$took")"
  done
fi
