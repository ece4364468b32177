#!/usr/bin/env bash
# Several nodes on one machine, each in a network namespace of its own with an engine of its own, for tests and tries.
#   hack/testbed.sh up N [arguments for `skiff up`]   n1 is the server, the others join it
#   hack/testbed.sh cut NODE | heal NODE              take the node's cable out, put it back
#   hack/testbed.sh kill NODE | start NODE            SIGKILL the node's skiff; start it again
#   hack/testbed.sh kill-engine NODE | start-engine NODE   the same with its engine; containers go on
#   hack/testbed.sh exec NODE COMMAND...              run a command in the node's network, with its engine
#   hack/testbed.sh down                              remove everything, also what a failed `up` left
# kubectl from this machine: KUBECONFIG=$SKIFF_TESTBED_RUN/kubeconfig (default below /run/skiff-testbed).
#
# Only network namespaces are entered, never mount namespaces: an agent's mounts must be seen by its engine. The switch
# between the nodes is in a namespace too, so that this machine's own packet filter has no say in it.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
# Below /run: a socket's path may have 107 bytes.
bed=${SKIFF_TESTBED_RUN:-/run/skiff-testbed}
store=${SKIFF_TESTBED_DATA:-/var/lib/skiff-testbed}
net=10.89.0
lan=skbed-lan
uplink=skbed0
binary=${SKIFF_BIN:-$CARGO_TARGET_DIR/debug/skiff}

[ "$(id -u)" = 0 ] || fail "run this as root: namespaces and engines need it"
in_node() { local node=$1; shift; nsenter --net="/run/netns/skbed-$node" env DOCKER_HOST="unix://$bed/$node/docker.sock" "$@"; }
number() { [[ $1 =~ ^n([1-9][0-9]?)$ ]] && [ -d "$bed/$1" ] || fail "no node $1: see $bed"; printf '%s' "${BASH_REMATCH[1]}"; }
wait_for() { # seconds, what, command...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { say "timed out: $what" >&2; return 1; }; sleep 0.1; done
}
# stop PIDFILE [SECONDS]: ends a process of ours by its id.
stop() {
  [ -f "$1" ] || return 0
  local pid; pid=$(cat "$1")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq $((${2:-10} * 10))); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$1"
}

cable() { # node: its namespace, and a link to the switch
  local i; i=$(number "$1")
  ip netns add "skbed-$1"
  ip -n "skbed-$1" link set lo up
  ip link add "skbed-$1" netns $lan type veth peer name eth0 netns "skbed-$1"
  ip -n $lan link set "skbed-$1" master br0 up
  ip -n "skbed-$1" addr add "$net.$i/24" dev eth0
  ip -n "skbed-$1" link set eth0 up
  ip -n "skbed-$1" route add default via "$net.254"
}

engine() { # node: its engine, with the images of the tests
  start_engine "$1"
  docker save skiff/busybox:1 | in_node "$1" docker load
}

start_engine() { # node
  local dir=$bed/$1
  mkdir -p "$dir/exec" "$store/$1/docker"
  # No network and no rules of the engine's own: pods' networks are the agent's.
  nsenter --net="/run/netns/skbed-$1" setsid dockerd --data-root "$store/$1/docker" --exec-root "$dir/exec" \
    --pidfile "$dir/docker.pid" -H "unix://$dir/docker.sock" --bridge=none --iptables=false --live-restore \
    >>"$dir/dockerd.log" 2>&1 </dev/null &
  wait_for 90 "the engine of $1" in_node "$1" docker version || { tail -n 25 "$dir/dockerd.log" >&2; return 1; }
}

# A killed engine's containerd ends with it, a moment later. Their pid files would name whoever has the numbers next (the
# engine then refuses to start, or waits for a containerd that is not one): both are seen to be gone and the files removed.
kill_engine() { # node
  local file pid
  for file in "$bed/$1/docker.pid" "$bed/$1/exec/containerd/containerd.pid"; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    kill -9 "$pid" 2>/dev/null || true
    wait_for 10 "the end of process $pid" ended "$pid"
    rm -f "$file"
  done
}
ended() { # pid: no such process, or one that only waits to be collected
  local state; state=$(sed 's/.*) \(.\).*/\1/' "/proc/$1/stat" 2>/dev/null) || return 0
  [ "$state" = Z ]
}

agent() { # node: starts its skiff as it was started first
  local -a command
  mapfile -t command <"$bed/$1/command"
  nsenter --net="/run/netns/skbed-$1" setsid "${command[@]}" >>"$bed/$1/skiff.log" 2>&1 </dev/null &
  echo $! >"$bed/$1/skiff.pid"
}

start_agent() { # node, command...: remembers the command
  local node=$1
  shift
  printf '%s\n' "$@" >"$bed/$node/command"
  agent "$node"
}

k() { KUBECONFIG=$bed/kubeconfig kubectl "$@"; }
ready() { [ "$(k get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }

up() {
  local n=$1 i join
  shift
  [[ $n =~ ^[1-9][0-9]?$ ]] || fail "how many nodes? hack/testbed.sh up N"
  [ ! -e "$bed" ] || fail "$bed exists: remove what is there with hack/testbed.sh down"
  [ -x "$binary" ] || fail "$binary is missing: run cargo build -p skiff"
  need nsenter util-linux
  need ip iproute2
  need nft nftables
  ensure_engine
  "$root/hack/images.sh"
  trap undo EXIT
  mkdir -p "$bed" "$store"
  ip netns add $lan
  ip -n $lan link set lo up
  ip -n $lan link add br0 type bridge
  ip -n $lan link set br0 up
  ip link add $uplink type veth peer name up0 netns $lan
  ip -n $lan link set up0 master br0 up
  ip addr add "$net.254/24" dev $uplink
  ip link set $uplink up
  local -a nodes=()
  for i in $(seq "$n"); do nodes+=("n$i"); mkdir -p "$bed/n$i"; done
  for i in "${nodes[@]}"; do cable "$i"; done
  for i in "${nodes[@]}"; do step "engine of $i" engine "$i"; done
  start_agent n1 "$binary" up --node-name n1 --data-dir "$store/n1/skiff" --engine "$bed/n1/docker.sock" \
    --advertise-address "$net.1" --no-kubeconfig "$@"
  wait_for 30 "the server's keys" test -f "$store/n1/skiff/kubeconfig/admin.yaml"
  sed "s#https://127.0.0.1:#https://$net.1:#" "$store/n1/skiff/kubeconfig/admin.yaml" >"$bed/kubeconfig"
  chmod 600 "$bed/kubeconfig"
  step "server" wait_for 60 "n1" ready n1
  for i in "${nodes[@]:1}"; do
    read -ra join < <(in_node n1 "$binary" token create --data-dir "$store/n1/skiff" --print-join-command)
    start_agent "$i" "$binary" "${join[@]:1}" --node-name "$i" --data-dir "$store/$i/skiff" --engine "$bed/$i/docker.sock"
  done
  for i in "${nodes[@]:1}"; do step "$i joins" wait_for 90 "$i" ready "$i"; done
  trap - EXIT
  say "up: export KUBECONFIG=$bed/kubeconfig"
}

undo() { # an `up` that did not come to its end leaves nothing
  trap - EXIT
  say "up failed; the ends of the logs:" >&2
  for log in "$bed"/*/*.log; do [ ! -s "$log" ] || { say "-- $log"; tail -n 10 "$log"; } >&2; done
  down
  exit 1
}

down() {
  local dir node pids
  for dir in "$bed"/n*/; do
    [ -d "$dir" ] || continue
    node=$(basename "$dir")
    stop "$dir/skiff.pid"
    # Containers go through their engine: what holds them is not in the node's namespace.
    if [ -S "$dir/docker.sock" ] && in_node "$node" timeout 10 docker version >/dev/null 2>&1; then
      in_node "$node" docker ps -aq | in_node "$node" xargs -r docker rm -f >/dev/null || true
    fi
    stop "$dir/docker.pid" 20
    if [ -e "/run/netns/skbed-$node" ]; then
      pids=$(ip netns pids "skbed-$node" 2>/dev/null || true)
      # Helpers of the engine.
      [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
      ip netns del "skbed-$node" || true
    fi
  done
  [ ! -e /run/netns/$lan ] || ip netns del $lan
  ip link del $uplink 2>/dev/null || true
  # Deepest first.
  awk -v a="$bed/" -v b="$store/" 'index($5, a) == 1 || index($5, b) == 1 {print $5}' /proc/self/mountinfo | sort -r |
    while read -r path; do umount -l "$path" || true; done
  rm -rf "$bed" "$store"
}

case "${1:-}" in
  up) shift; up "${@:?how many nodes}" ;;
  down) down ;;
  cut) number "$2" >/dev/null; ip -n $lan link set "skbed-$2" down ;;
  heal) number "$2" >/dev/null; ip -n $lan link set "skbed-$2" up ;;
  kill) number "$2" >/dev/null; kill -9 "$(cat "$bed/$2/skiff.pid")" ;;
  start) number "$2" >/dev/null; agent "$2" ;;
  kill-engine) number "$2" >/dev/null; kill_engine "$2" ;;
  start-engine) number "$2" >/dev/null; start_engine "$2" ;;
  exec) number "$2" >/dev/null; shift; in_node "$@" ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 1 ;;
esac
