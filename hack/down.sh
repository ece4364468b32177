#!/usr/bin/env bash
# Stops what hack/up.sh started and removes its containers, links, rules and mounts. Data stay unless --purge.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
context=${SKIFF_CONTEXT:-skiff}
stop() { # pid file
  [ -f "$1" ] || return 0
  local pid; pid=$(cat "$1")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 150); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$1"
}
stop "$run/skiff.pid"
binary=
for profile in "${SKIFF_PROFILE:-release}" release debug; do
  [ -x "$CARGO_TARGET_DIR/$profile/skiff" ] && { binary=$CARGO_TARGET_DIR/$profile/skiff; break; }
done
[ -n "$binary" ] || fail "no built skiff below $CARGO_TARGET_DIR: nothing to stop with"
if engine_answers || [ -d "$data" ]; then "$binary" --log warn down --data-dir "$data" --context "$context" "$@"; fi
for plugin in /usr/local/bin/kubectl-{cfg,func,trigger,wf,gpu}; do
  [ "$(readlink "$plugin" || true)" != "$binary" ] || rm -f "$plugin"
done
# The engine is stopped only if hack/up.sh had to start it.
stop "$run/dockerd.pid"
