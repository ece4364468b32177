#!/usr/bin/env bash
# Upstream's own tests against a running cluster: the conformance suite of Kubernetes, built from the Go module proxy.
#   hack/conformance.sh build            e2e.test and the programs of its images
#   hack/conformance.sh images           the images that the suite names, made from these programs and Debian's packages
#   hack/conformance.sh run [FOCUS]      the [Conformance] tests whose names match FOCUS (all without it), one after another
#   hack/conformance.sh parallel N [FOCUS]   the same but those that must be alone, N at once
#   hack/conformance.sh serial           those that must be alone, one after another
#   hack/conformance.sh server           kube-apiserver of the same release, for comparing answers
#   hack/conformance.sh registry up [ADDRESS]|down   the images' registries on this machine's loopback, for tests that always pull
# No other registry is asked: images get the names that the suite asks for. `registry up` has Debian's docker-registry answer for
# those registries with a certificate of its own (/etc/hosts, /etc/docker/certs.d); `registry down` takes all that back.
# Context: $SKIFF_CONTEXT of $KUBECONFIG. Results: JUnit, log and list of what failed in $SKIFF_RUN_DIR/conformance.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
release=v1.37.0
minor=37
staging=v0.${release#v1.}
work=${XDG_CACHE_HOME:-$HOME/.cache}/skiff/conformance/$release
out=$run/conformance

# One module that depends on Kubernetes: the release's own versions, its staging folders as the modules they are published as.
workspace() {
  ensure_go
  mkdir -p "$work/server"
  export GOFLAGS=-mod=mod
  cd "$work"
  [ -f go.mod ] || printf 'module skiff.dev/conformance\n' >go.mod
  kubernetes=$(go mod download -json "k8s.io/kubernetes@$release" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  [ -n "$kubernetes" ] || fail "k8s.io/kubernetes@$release cannot be had from the module proxy"
  if ! grep -q "^require k8s.io/kubernetes $release" go.mod; then
    sed -e 's,^module .*,module skiff.dev/conformance,' -e "s,=> ./staging/src/\(k8s.io/[a-z0-9-]*\),=> \1 $staging," "$kubernetes/go.mod" >go.mod
    echo "require k8s.io/kubernetes $release" >>go.mod
    install -m 644 "$kubernetes/go.sum" go.sum
  fi
  version=k8s.io/component-base/version
  flags="-s -w -X $version.gitVersion=$release -X $version.gitMajor=1 -X $version.gitMinor=$minor"
}

build() {
  workspace
  [ -x e2e.test ] || step "e2e.test $release" go test -c -ldflags "$flags" -o e2e.test k8s.io/kubernetes/test/e2e
  export CGO_ENABLED=0
  [ -x agnhost ] || step "agnhost" go build -ldflags "$flags" -o agnhost k8s.io/kubernetes/test/images/agnhost
  [ -x nnp ] || step "nonewprivs" go build -ldflags '-s -w' -o nnp "$kubernetes/test/images/nonewprivs/nnp.go"
  if [ ! -x sample-apiserver ]; then
    mkdir -p sample
    [ -f sample/go.mod ] || printf 'module skiff.dev/sample\n' >sample/go.mod
    step "sample-apiserver" env -C sample sh -c "go get k8s.io/sample-apiserver@$staging && go build -ldflags '-s -w' -o ../sample-apiserver k8s.io/sample-apiserver"
  fi
}

server() {
  workspace
  cat >server/main.go <<'END'
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
END
  [ -x kube-apiserver ] || step "kube-apiserver $release" go build -ldflags "$flags" -o kube-apiserver ./server
  say "$work/kube-apiserver"
}

# A root with what the suite's images have beside their programs.
base() {
  need debootstrap debootstrap
  local tree=$work/base packages
  packages=bash,bind9-dnsutils,busybox-static,curl,iperf,iproute2,net-tools,netcat-openbsd,nginx-light,perl,socat,util-linux,wget,etcd-server
  rm -rf "$tree"
  debootstrap --variant=minbase --include="$packages" bookworm "$tree"
  rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/*
  ln -sf /usr/bin/etcd "$tree/usr/local/bin/etcd"
  tar -C "$tree" -c . | docker import - skiff/conformance-base:2
  rm -rf "$tree"
}

# image NAME: with the Dockerfile on standard input, from the files in $work/context.
image() {
  local name=$1
  docker build -q -t "$name" -f - "$work/context" >/dev/null
}

images() {
  build
  ensure_engine
  docker image inspect skiff/conformance-base:2 >/dev/null 2>&1 || step "base of Debian's packages" base
  "$root/hack/images.sh" busybox
  local context=$work/context name
  rm -rf "$context"
  mkdir -p "$context"
  cp agnhost nnp sample-apiserver "$kubernetes"/test/images/agnhost/porter/localhost.{crt,key} "$context/"
  for name in nautilus kitten; do cp -r "$kubernetes/test/images/$name/html" "$context/$name"; done
  chmod -R u+w "$context"
  # The suite itself says which images it asks for.
  ./e2e.test --list-images 2>/dev/null | grep / >"$work/images"
  local agnhost
  agnhost=$(grep '/agnhost:' "$work/images" | sort -V | tail -n 1)
  while read -r name; do
    case $name in
      */agnhost:*) image "$name" <<'END' ;;
FROM skiff/conformance-base:2
RUN mkdir -p /uploads && useradd -M -u 1000 user-defined-in-image && groupadd -g 50000 group-defined-in-image && usermod -aG group-defined-in-image user-defined-in-image
COPY agnhost localhost.crt localhost.key /
RUN ln -s agnhost /agnhost-2 && sed -i 's/^PRETTY_NAME=.*/PRETTY_NAME="Debian GNU\/Linux, where upstream has Alpine Linux"/' /etc/os-release
ENTRYPOINT ["/agnhost"]
CMD ["pause"]
END
      # Debian's busybox has a shell that keeps variables of odd names from its children, which the suite looks for by way of
      # `sh`; what busybox's shell says is looked for by way of `/bin/sh`.
      */busybox:*) image "$name" <<'END' ;;
FROM skiff/conformance-base:2 AS base
FROM skiff/busybox:1
ENV PATH=/usr/local/bin:/bin
COPY --from=base /bin/bash /usr/local/bin/sh
COPY --from=base /lib64/ld-linux-x86-64.so.2 /lib64/
COPY --from=base /lib/x86_64-linux-gnu/libc.so.6 /lib/x86_64-linux-gnu/libtinfo.so.6 /lib/x86_64-linux-gnu/
END
      */pause:*) image "$name" <<'END' ;;
FROM scratch
COPY agnhost /pause
ENTRYPOINT ["/pause", "pause"]
END
      */nginx:*) image "$name" <<'END' ;;
FROM skiff/conformance-base:2
CMD ["nginx", "-g", "daemon off;"]
END
      */glibc-dns-testing:*|*/perl:*) image "$name" <<<'FROM skiff/conformance-base:2' ;;
      */nonroot:*) image "$name" <<'END' ;;
FROM skiff/busybox:1
USER 1234
END
      */nonewprivs:*) image "$name" <<'END' ;;
FROM skiff/conformance-base:2
COPY nnp /usr/local/bin/nnp
RUN chmod 4755 /usr/local/bin/nnp
CMD ["nnp"]
END
      */etcd:*) image "$name" <<<'FROM skiff/conformance-base:2' ;;
      */sample-apiserver:*) image "$name" <<'END' ;;
FROM scratch
COPY sample-apiserver /sample-apiserver
ENTRYPOINT ["/sample-apiserver"]
END
    esac
  done <"$work/images"
  # These two are the web server with a picture and a name, on top of it.
  while read -r name; do
    case $name in
      */nautilus:*|*/kitten:*) image "$name" <<END ;;
FROM $agnhost
COPY $(basename "${name%:*}")/ /
CMD ["test-webserver"]
END
    esac
  done <"$work/images"
}

registries() { cut -d/ -f1 "$work/images" | grep -v '^invalid' | sort -u; }
mark='# skiff-conformance'

registry_up() { # address
  local address=$1
  [ -s "$work/images" ] || fail "no images yet: hack/conformance.sh images"
  [ ! -f "$run/registry.pid" ] || fail "it runs already, or did: hack/conformance.sh registry down"
  need docker-registry docker-registry
  need openssl openssl
  need curl curl
  ensure_engine
  local dir=$work/registry names host name
  mkdir -p "$dir" "$run"
  names=$(registries | sed 's/^/DNS:/' | paste -sd,)
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=skiff-conformance \
    -addext "subjectAltName=$names" -keyout "$dir/key.pem" -out "$dir/ca.crt" 2>/dev/null
  cat >"$dir/config.yml" <<END
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $dir/data}}
http: {addr: "$address:443", tls: {certificate: $dir/ca.crt, key: $dir/key.pem}}
END
  for host in $(registries); do
    mkdir -p "/etc/docker/certs.d/$host"
    cp "$dir/ca.crt" "/etc/docker/certs.d/$host/ca.crt"
    echo "$address $host $mark" >>/etc/hosts
  done
  setsid docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 </dev/null &
  echo $! >"$run/registry.pid"
  host=$(registries | head -n 1)
  for _ in $(seq 100); do curl -sf --cacert "$dir/ca.crt" "https://$host/v2/" >/dev/null && break; sleep 0.1; done
  grep -v '^invalid' "$work/images" | while read -r name; do
    ! docker image inspect "$name" >/dev/null 2>&1 || step "$name" docker push -q "$name" </dev/null
  done
}

registry_down() {
  [ ! -f "$run/registry.pid" ] || kill "$(cat "$run/registry.pid")" 2>/dev/null || true
  local host
  for host in $(registries); do rm -f "/etc/docker/certs.d/$host/ca.crt"; rmdir "/etc/docker/certs.d/$host" 2>/dev/null || true; done
  # In place: /etc/hosts may be a mount.
  local rest
  rest=$(grep -v "$mark\$" /etc/hosts)
  printf '%s\n' "$rest" >/etc/hosts
  rm -rf "$run/registry.pid" "$work/registry"
}

# suite NODES FOCUS SKIP
suite() {
  local nodes=$1 focus=$2 skip=$3 code=0 kubeconfig
  build
  need ip iproute2
  mkdir -p "$out"
  kubeconfig=$(mktemp)
  kubectl config view --raw --minify --context "${SKIFF_CONTEXT:-skiff}" >"$kubeconfig"
  local flags=(--provider=skeleton --kubeconfig="$kubeconfig" --report-dir="$out" --dump-logs-on-failure=false --num-nodes="${SKIFF_NODES:-1}"
    --allowed-not-ready-nodes=0 --non-blocking-taints= --node-schedulable-timeout=2m --system-pods-startup-timeout=2m)
  local ginkgo=(--ginkgo.focus="$focus" --ginkgo.no-color --ginkgo.timeout=24h --ginkgo.silence-skips)
  [ -z "$skip" ] || ginkgo+=(--ginkgo.skip="$skip")
  if [ "$nodes" = 1 ]; then
    ./e2e.test "${ginkgo[@]}" "${flags[@]}" >"$out/log" 2>&1 || code=$?
  else
    [ -x ginkgo ] || go build -o ginkgo github.com/onsi/ginkgo/v2/ginkgo
    ./ginkgo --nodes="$nodes" --no-color ./e2e.test -- "${ginkgo[@]}" "${flags[@]}" >"$out/log" 2>&1 || code=$?
  fi
  rm -f "$kubeconfig"
  grep -E '^(Ran|SUCCESS!|FAIL!)|\[FAIL\] .*\[Conformance\]' "$out/log" | sed 's/^ *//' | sort -u
  say "log: $out/log"
  return $code
}

alone='\[Serial\]|\[Disruptive\]'
case ${1:-} in
  build) build ;;
  images) images ;;
  server) server ;;
  registry)
    case ${2:-} in
      up) registry_up "${3:-127.0.0.1}" ;;
      down) registry_down ;;
      *) fail "hack/conformance.sh registry up [ADDRESS]|down" ;;
    esac ;;
  run) suite 1 "${2:+${2}.*}\\[Conformance\\]" "" ;;
  parallel) suite "${2:?how many at once}" "${3:+${3}.*}\\[Conformance\\]" "$alone" ;;
  serial) suite 1 "\\[Conformance\\].*($alone)|($alone).*\\[Conformance\\]" "" ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
