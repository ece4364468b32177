#!/usr/bin/env bash
# Runs a command on a bare Debian, to see what a newcomer sees: a root file system of its own (debootstrap, minimal), its
# own network behind this machine's address, its own processes; no Docker, kubectl or Rust.
#   hack/fresh-machine.sh COMMAND...      e.g.  hack/fresh-machine.sh ./hack/up.sh
# The committed state of this repository is cloned to /root/skiff there, where the command runs. Environment:
#   FRESH_ROOT     where the machine is kept between runs (/var/tmp/skiff-fresh)
#   FRESH_TARGET   folder of build results to share with it, so that it need not build everything again
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || fail "run this as root"
[ $# -gt 0 ] || fail "say what to run, e.g. ./hack/up.sh"
machine=${FRESH_ROOT:-/var/tmp/skiff-fresh}
net=skiff-fresh
need debootstrap debootstrap
need nft nftables
need ip iproute2
if [ ! -e "$machine/.ready" ]; then
  step "Debian in $machine" debootstrap --variant=minbase "${FRESH_SUITE:-bookworm}" "$machine" http://deb.debian.org/debian
  touch "$machine/.ready"
fi
rm -rf "$machine/root/skiff" "$machine/root/.kube"
git clone -q "$root" "$machine/root/skiff"
# Authorities this machine's owner trusts beside the public ones: the way out may lead through a proxy that needs them.
mkdir -p "$machine/usr/local/share/ca-certificates"
cp -n /usr/local/share/ca-certificates/*.crt "$machine/usr/local/share/ca-certificates/" 2>/dev/null || true
cp -L /etc/resolv.conf "$machine/etc/resolv.conf"

tidy() {
  # With its first process all of the machine's processes end.
  [ -z "${pid:-}" ] || kill -9 "$pid" 2>/dev/null || true
  ip netns del $net 2>/dev/null || true
  ip link del $net 2>/dev/null || true
  nft delete table ip $net 2>/dev/null || true
  iptables -D DOCKER-USER -j ACCEPT -m comment --comment $net 2>/dev/null || true
}
tidy
trap tidy EXIT
trap 'exit 143' TERM INT
ip netns add $net
ip link add $net type veth peer name eth0 netns $net
ip addr add 198.18.77.1/30 dev $net
ip link set $net up
ip -n $net addr add 198.18.77.2/30 dev eth0
ip -n $net link set eth0 up
ip -n $net link set lo up
ip -n $net route add default via 198.18.77.1
sysctl -qw net.ipv4.ip_forward=1
nft -f - <<END
table ip $net { chain out { type nat hook postrouting priority 100; ip saddr 198.18.77.0/30 oifname != "$net" masquerade; }; }
END
# An engine on this machine drops what it does not know.
iptables -I DOCKER-USER -j ACCEPT -m comment --comment $net 2>/dev/null || true

# A root file system of its own needs pivot_root: container engines do not work below a chroot.
export machine FRESH_TARGET
# shellcheck disable=SC2016
# `ip netns exec` would hide the cgroups.
nsenter --net=/run/netns/$net unshare --mount --pid --fork --kill-child bash -ec '
  mount --make-rprivate /
  mount --bind "$machine" "$machine"
  mount -t proc proc "$machine/proc"
  mount -t sysfs sysfs "$machine/sys"
  mount --rbind /sys/fs/cgroup "$machine/sys/fs/cgroup"
  mount --rbind /dev "$machine/dev"
  mount -t tmpfs tmpfs "$machine/run"
  if [ -n "${FRESH_TARGET:-}" ]; then
    mkdir -p "$machine/target"
    mount --bind "$FRESH_TARGET" "$machine/target"
  fi
  mkdir -p "$machine/.old"
  cd "$machine"
  pivot_root . .old
  umount -l /.old
  cd /root/skiff
  env=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb)
  [ ! -d /target ] || [ -z "${FRESH_TARGET:-}" ] || env+=(CARGO_TARGET_DIR=/target)
  exec env -i "${env[@]}" "$@"' fresh "$@" &
pid=$!
wait "$pid"
