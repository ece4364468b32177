# Shared by the scripts in this folder: settings, installing, starting an engine.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=${SKIFF_DATA_DIR:-/var/lib/skiff}
run=${SKIFF_RUN_DIR:-/run/skiff}
: "${CARGO_TARGET_DIR:=$root/target}"
export CARGO_TARGET_DIR

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# step TEXT COMMAND...: runs the command and prints a tick with its time; shows its output only if it fails.
step() {
  local text=$1 begun log
  shift
  begun=$(date +%s%N)
  log=$(mktemp)
  if "$@" >"$log" 2>&1; then
    printf '  \342\234\223 %-44s %6s ms\n' "$text" $((($(date +%s%N) - begun) / 1000000))
    rm -f "$log"
  else
    printf '  \342\234\227 %s\n' "$text"
    tail -n 30 "$log" >&2
    rm -f "$log"
    return 1
  fi
}

# need COMMAND PACKAGE: installs a Debian package when the command is missing, and says so.
need() {
  command -v "$1" >/dev/null 2>&1 && return 0
  [ "$(id -u)" = 0 ] || fail "$1 is missing: install the package $2, or run this as root"
  command -v apt-get >/dev/null 2>&1 || fail "$1 is missing and this is no Debian: install it by hand"
  say "  installing $2 (for $1)"
  if [ -z "${apt_updated:-}" ]; then apt-get update -qq >/dev/null; apt_updated=1; fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# Starts an engine if none answers: by the system's own means if it has them, else as a process of ours.
ensure_engine() {
  engine_answers && return 0
  need dockerd docker.io
  need iptables iptables
  mkdir -p "$run"
  if command -v systemctl >/dev/null 2>&1 && systemctl is-system-running >/dev/null 2>&1; then
    systemctl start docker
  else
    # Containers outlive a restart of the engine, as pods expect.
    setsid dockerd --live-restore >"$run/dockerd.log" 2>&1 </dev/null &
    echo $! >"$run/dockerd.pid"
  fi
  for _ in $(seq 300); do engine_answers && return 0; sleep 0.1; done
  fail "the engine does not answer; see $run/dockerd.log"
}

running() { [ -f "$run/skiff.pid" ] && kill -0 "$(cat "$run/skiff.pid")" 2>/dev/null; }
