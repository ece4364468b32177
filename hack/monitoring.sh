#!/usr/bin/env bash
# Prometheus (Debian's package) for the cluster of the current kubeconfig context, as a process on this machine.
#   hack/monitoring.sh up      installs and starts it: http://127.0.0.1:9090 (SKIFF_PROMETHEUS_PORT)
#   hack/monitoring.sh check   every target is up, and every query of docs/dashboards returns data
#   hack/monitoring.sh down    stops it and removes its account from the cluster; its data go too
# What is scraped, and how pods ask for it: hack/monitoring/prometheus.yaml.
# SKIFF_CONTEXT names the context, SKIFF_KUBECTL the kubectl, SKIFF_SCRAPE_INTERVAL how often (15s).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
port=${SKIFF_PROMETHEUS_PORT:-9090}
interval=${SKIFF_SCRAPE_INTERVAL:-15s}
dir=$run/monitoring
url=http://127.0.0.1:$port
deadline=${SKIFF_CHECK_SECONDS:-90}

k() { "${SKIFF_KUBECTL:-kubectl}" ${SKIFF_CONTEXT:+--context "$SKIFF_CONTEXT"} "$@"; }
alive() { [ -f "$dir/pid" ] && [ "$(cat "/proc/$(cat "$dir/pid")/comm" 2>/dev/null)" = prometheus ]; }

# until_ok SECONDS COMMAND...
until_ok() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.2
  done
}

tools() {
  need curl curl
  need jq jq
  [ -n "${SKIFF_KUBECTL:-}" ] || need kubectl kubernetes-client
}

# The account's token and the cluster's CA, for Prometheus alone to read.
credentials() {
  k apply -f "$root/hack/monitoring/account.yaml"
  until_ok 30 token
  k config view --raw --minify --flatten -o 'jsonpath={.clusters[0].cluster.certificate-authority-data}' | base64 -d >"$dir/ca.crt"
  [ -s "$dir/ca.crt" ] || fail "the kubeconfig names no CA for the cluster"
}
token() {
  (umask 077; k -n skiff-monitoring get secret prometheus -o 'jsonpath={.data.token}' | base64 -d >"$dir/token")
  [ -s "$dir/token" ]
}

start() {
  local server
  server=$(k config view --minify -o 'jsonpath={.clusters[0].cluster.server}')
  {
    printf 'apiVersion: v1\nkind: Config\ncurrent-context: it\ncontexts: [{name: it, context: {cluster: it, user: it}}]\n'
    printf 'clusters: [{name: it, cluster: {server: "%s", certificate-authority: "%s"}}]\n' "$server" "$dir/ca.crt"
    printf 'users: [{name: it, user: {tokenFile: "%s"}}]\n' "$dir/token"
  } >"$dir/kubeconfig"
  by_itself='kubernetes_sd_configs: [{role: \1, kubeconfig_file: @DIR@/kubeconfig}]'
  by_files='file_sd_configs: [{files: [@DIR@/targets/\1.json]}]'
  configure "$by_itself"
  if ! promtool check config "$dir/prometheus.yaml" >/dev/null 2>&1; then
    configure "$by_files"
    promtool check config "$dir/prometheus.yaml"
    targets
    SKIFF_RUN_DIR=$run SKIFF_SCRAPE_INTERVAL=$interval setsid "$0" follow >>"$dir/log" 2>&1 </dev/null &
  fi
  setsid prometheus --config.file="$dir/prometheus.yaml" --storage.tsdb.path="$dir/data" --storage.tsdb.retention.size=1GB \
    --web.listen-address="127.0.0.1:$port" --log.level=warn >>"$dir/log" 2>&1 </dev/null &
  echo $! >"$dir/pid"
  until_ok 30 ready || { tail -n 5 "$dir/log" >&2; return 1; }
}

# Writes the configuration with this way of finding targets.
configure() {
  sed -e "s|@SD:\([a-z]*\)@|$1|" -e "s|@DIR@|$dir|g" -e "s|@INTERVAL@|$interval|" "$root/hack/monitoring/prometheus.yaml" >"$dir/prometheus.yaml"
}

# Writes what Prometheus would find itself, with its labels, as its account: roles endpointslice, node and pod.
targets() {
  mkdir -p "$dir/targets"
  found endpointslice endpointslices.discovery.k8s.io -A '' '.items[] | . as $slice | .ports[] as $port | .endpoints[].addresses[] |
    {targets: ["\(.):\($port.port)"], labels: {__meta_kubernetes_namespace: $slice.metadata.namespace,
     __meta_kubernetes_service_name: $slice.metadata.labels["kubernetes.io/service-name"], __meta_kubernetes_endpointslice_port_name: $port.name}}'
  found node nodes '' '' '.items[] | (.status.addresses[] | select(.type == "InternalIP") | .address) as $ip |
    {targets: ["\($ip):\(.status.daemonEndpoints.kubeletEndpoint.Port // 10250)"],
     labels: {__meta_kubernetes_node_name: .metadata.name, instance: .metadata.name}}'
  found pod pods -A '' 'def clean: gsub("[^a-zA-Z0-9_]"; "_");
    .items[] | select(.status.podIP) |
    ([.metadata.annotations // {} | to_entries[] | select(.key | startswith("prometheus.io/")) | {key: "__meta_kubernetes_pod_annotation_\(.key | clean)", value}]
     + [.metadata.labels // {} | to_entries[] | {key: "__meta_kubernetes_pod_label_\(.key | clean)", value}] | from_entries) as $own |
    {targets: [.status.podIP], labels: ($own + {__meta_kubernetes_namespace: .metadata.namespace, __meta_kubernetes_pod_name: .metadata.name,
     __meta_kubernetes_pod_ip: .status.podIP, __meta_kubernetes_pod_phase: .status.phase, __meta_kubernetes_pod_node_name: .spec.nodeName})}'
}

# found ROLE RESOURCE FLAG VALUE PROGRAM: the file of a role, replaced only when it changed: Prometheus reads it then.
found() {
  "${SKIFF_KUBECTL:-kubectl}" --kubeconfig "$dir/kubeconfig" get "$2" ${3:+"$3"} ${4:+"$4"} -o json | jq "[$5]" >"$dir/targets/$1.new"
  cmp -s "$dir/targets/$1.new" "$dir/targets/$1.json" || mv "$dir/targets/$1.new" "$dir/targets/$1.json"
}

# Keeps the files current for as long as Prometheus runs.
follow() {
  until_ok 30 alive || return 0
  while alive; do
    targets || say "the cluster does not answer; targets stay as they are"
    sleep "$interval"
  done
}
ready() { alive || return 1; curl -fsS --max-time 2 "$url/-/ready" >/dev/null 2>&1; }

up() {
  tools
  need prometheus prometheus
  if alive; then say "Prometheus already runs: $url"; return; fi
  mkdir -p "$dir"
  step "account in the cluster" credentials
  step "Prometheus" start
  say "Prometheus is at $url; import docs/dashboards/*.json into Grafana with it as data source"
}

down() {
  if alive; then
    local pid
    pid=$(cat "$dir/pid")
    kill "$pid"
    until_ok 20 gone "$pid" || kill -9 "$pid"
  fi
  # Who follows the cluster's targets sees that Prometheus is gone, and ends.
  rm -rf "$dir"
  k delete --ignore-not-found -f "$root/hack/monitoring/account.yaml" >/dev/null
}
gone() { [ ! -d "/proc/$1" ]; }

# Answers of Prometheus' API; an answer that is an error has no result.
ask() { curl -sS --max-time 10 -G "$url/api/v1/$1" "${@:2}"; }

# Targets that are not up, with their reason. None at all is wrong too.
bad_targets() {
  ask targets --data-urlencode state=active |
    jq -r '.data.activeTargets | if length == 0 then "no target yet" else .[] | select(.health != "up") | "\(.labels.job) \(.scrapeUrl): \(.health) \(.lastError)" end'
}
targets_up() { [ -z "$(bad_targets)" ]; }

# The queries of a dashboard, with Grafana's variables filled in: anything for those of the page, and as the rate's
# window four scrapes, as Grafana does.
queries() {
  local seconds=${interval%s}
  jq -r '.panels[] | .title as $title | .targets[]? | "\($title)\t\(.expr)"' "$1" |
    sed -e "s/\\\$__rate_interval/$((seconds * 4))s/g" -e 's/\$__range/5m/g' -e 's/\$[a-z]\{1,\}/.*/g'
}

# Queries that return no number, one a line.
empty_queries() {
  local file title query n
  for file in "$root"/docs/dashboards/*.json; do
    while IFS=$'\t' read -r title query; do
      n=$(ask query --data-urlencode "query=$query" | jq -r 'if .status == "success" then ([.data.result[] | select(.value[1] != "NaN")] | length) else "\(.error)" end')
      [ "$n" -gt 0 ] 2>/dev/null || say "$(basename "$file"), \"$title\": ${n/#0/no data}: $query"
    done < <(queries "$file")
  done
}
all_answer() { [ -z "$(empty_queries)" ]; }

check() {
  tools
  alive || fail "Prometheus does not run: hack/monitoring.sh up"
  local n
  if ! until_ok "$deadline" targets_up; then bad_targets >&2; fail "not every target is up"; fi
  if ! until_ok "$deadline" all_answer; then empty_queries >&2; fail "queries of the dashboards return nothing"; fi
  n=$(for f in "$root"/docs/dashboards/*.json; do queries "$f"; done | wc -l)
  say "every target is up; all $n queries of the dashboards return data"
}

case "${1:-}" in
  up | check | down | follow) "$1" ;;
  *) fail "usage: hack/monitoring.sh up|check|down" ;;
esac
