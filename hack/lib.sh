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
  # In a shell of its own: `fail` ends that one, and its words are shown below.
  if ("$@") >"$log" 2>&1; then
    printf '  \342\234\223 %-44s %6s ms\n' "$text" $((($(date +%s%N) - begun) / 1000000))
    rm -f "$log"
  else
    printf '  \342\234\227 %s\n' "$text"
    tail -n 30 "$log" >&2
    rm -f "$log"
    return 1
  fi
}

# need COMMAND PACKAGE...: installs Debian packages when the command is missing, and says so.
need() {
  local command=$1
  shift
  command -v "$command" >/dev/null 2>&1 && return 0
  [ "$(id -u)" = 0 ] || fail "$command is missing: install $*, or run this as root"
  command -v apt-get >/dev/null 2>&1 || fail "$command is missing and this is no Debian: install it by hand"
  say "  installing $* (for $command)"
  if [ -z "${apt_updated:-}" ]; then apt-get update -qq >/dev/null; apt_updated=1; fi
  DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Docker's client; in newer releases of Debian it is a package of its own.
need_docker() {
  need docker docker.io
  command -v docker >/dev/null 2>&1 || need docker docker-cli
}

# fetch URL FILE
fetch() {
  need curl curl
  need update-ca-certificates ca-certificates
  curl -fsSL --retry 3 --max-time 300 -o "$2" "$1" || fail "cannot fetch $1"
}

# Rust by rustup when there is no cargo: Debian's is too old. The compiler for C is for crates with assembly.
ensure_rust() {
  need cc gcc libc6-dev
  [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
  command -v cargo >/dev/null 2>&1 && return 0
  local from dir
  from=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init
  say "  installing Rust with rustup (to $HOME/.cargo and $HOME/.rustup)"
  dir=$(mktemp -d)
  fetch "$from" "$dir/rustup-init"
  fetch "$from.sha256" "$dir/sum"
  [ "$(cut -d' ' -f1 "$dir/sum")" = "$(sha256sum "$dir/rustup-init" | cut -d' ' -f1)" ] || fail "rustup-init: wrong checksum"
  chmod +x "$dir/rustup-init"
  "$dir/rustup-init" -y -q --no-modify-path --profile minimal -c clippy -c rustfmt >"$dir/log" 2>&1 || { cat "$dir/log" >&2; fail "rustup failed"; }
  rm -rf "$dir"
  PATH=$HOME/.cargo/bin:$PATH
}

# Go for the tests with clients in Go, where there is none: the toolchain from the module proxy.
ensure_go() {
  local version=1.26.0 sum=38461905b98c59173672814302e222ab43b652274bc0c95817b08b71ab66b705 dir=${XDG_CACHE_HOME:-$HOME/.cache}/skiff/go
  command -v go >/dev/null 2>&1 && return 0
  if [ ! -x "$dir/bin/go" ]; then
    [ "$(uname -m)" = x86_64 ] || fail "go is missing: install Go $version or newer"
    say "  installing Go $version (to $dir)"
    need unzip unzip
    rm -rf "$dir" "$dir.tmp"
    mkdir -p "$dir.tmp"
    fetch "https://proxy.golang.org/golang.org/toolchain/@v/v0.0.1-go$version.linux-amd64.zip" "$dir.tmp/go.zip"
    [ "$(sha256sum "$dir.tmp/go.zip" | cut -d' ' -f1)" = "$sum" ] || fail "Go: wrong checksum"
    unzip -q "$dir.tmp/go.zip" -d "$dir.tmp"
    mv "$dir.tmp/golang.org/toolchain@v0.0.1-go$version.linux-amd64" "$dir"
    rm -rf "$dir.tmp"
    chmod -R +x "$dir/bin" "$dir/pkg/tool"
  fi
  PATH=$dir/bin:$PATH
}

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# Starts an engine if none answers: by the system's own means if it has them, else as a process of ours.
ensure_engine() {
  engine_answers && return 0
  need dockerd docker.io
  need_docker
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
  tail -n 3 "$run/dockerd.log" >&2
  fail "the engine does not answer; see $run/dockerd.log"
}

running() { [ -f "$run/skiff.pid" ] && kill -0 "$(cat "$run/skiff.pid")" 2>/dev/null; }
