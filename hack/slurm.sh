#!/usr/bin/env bash
# A real Slurm on this machine for tests, from Debian's packages: a controller and three nodes that claim four GPUs
# each, as processes of their own beside whatever else runs. Everything lies in one directory; nothing is global but
# the packages and a user to submit as.
#   hack/slurm.sh up [--accounting] [--rest] [--ssh] [--cgroup]
#                       --accounting  slurmdbd with MariaDB, so that sacct answers
#                       --rest        slurmrestd with tokens (JWT)
#                       --ssh         an SSH server with a certificate, with keys (one of RSA), a certificate and an expired
#                                     certificate of a user
#                       --cgroup      jobs in control groups: memory and devices are really limited (cgroup v1, or
#                                     v2 with systemd)
#                       Run again, it starts what is missing.
#   hack/slurm.sh status
#   hack/slurm.sh env                   lines for `eval`: SLURM_CONF
#   hack/slurm.sh manifest local|ssh|rest     the HpcCluster (and Secret) to reach it by
#   hack/slurm.sh token [SECONDS]       a token for slurmrestd
#   hack/slurm.sh node-down|node-up n1|n2|n3  kills a node with its jobs, or starts it again
#   hack/slurm.sh controller-down|controller-up
#   hack/slurm.sh down                  stops and removes all of it; a half-finished one too
# SKIFF_SLURM_DIR is the directory (/var/lib/skiff-slurm), SKIFF_SLURM_PORT the first of ten ports (26810),
# SKIFF_SLURM_MIN_JOB_AGE for how many seconds ended jobs stay in the controller's memory (a day).
# Partitions: debug (all, the default), a100 (n1, n2), dgx2 (n3), low and high (all; high preempts low, which is
# requeued), short (all, one minute at most).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
dir=${SKIFF_SLURM_DIR:-/var/lib/skiff-slurm}
port=${SKIFF_SLURM_PORT:-26810}
age=${SKIFF_SLURM_MIN_JOB_AGE:-86400}
user=skiff-hpc
nodes=(n1 n2 n3)
conf=$dir/etc/slurm.conf
export SLURM_CONF=$conf
p_ctld=$port p_dbd=$((port + 1)) p_rest=$((port + 2)) p_ssh=$((port + 3)) p_sql=$((port + 4)) p_node=$((port + 5))

# until_ok SECONDS COMMAND...
until_ok() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# A daemon's process, by its recorded id and the moment it began: an id that was given to another program is not ours.
began() { { sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20; } 2>/dev/null; }
alive() { # name
  local pid at
  read -r pid at 2>/dev/null <"$dir/run/$1.pid" || return 1
  [ -n "$at" ] && [ "$(began "$pid")" = "$at" ]
}

# start NAME COMMAND...: runs it in the background and records its id.
start() {
  local name=$1
  shift
  alive "$name" && return 0
  setsid "$@" >>"$dir/log/$name.out" 2>&1 </dev/null &
  echo "$! $(began $!)" >"$dir/run/$name.pid"
}

# started NAME SECONDS COMMAND...: waits until the command succeeds; fails early when the daemon has ended.
started() {
  local name=$1 end=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    alive "$name" && [ $SECONDS -lt $end ] || { tail -n 20 "$dir/log/$name.out" >&2; fail "$name does not start"; }
    sleep 0.05
  done
}

# stop NAME [SIGNAL]
stop() {
  local pid at
  if alive "$1"; then
    read -r pid at <"$dir/run/$1.pid"
    kill "-${2:-TERM}" "$pid" 2>/dev/null || true
    until_ok 15 gone "$pid" || { kill -9 "$pid" 2>/dev/null || true; until_ok 5 gone "$pid" || true; }
  fi
  rm -f "$dir/run/$1.pid"
}
gone() { [ ! -d "/proc/$1" ]; }

# Packages, without starting their services: what this script needs it runs itself.
packages() {
  local guard=
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    guard=1
  fi
  (
    need munged munge
    need slurmctld slurmctld
    need slurmd slurmd
    need squeue slurm-client
    need setpriv util-linux
    need useradd passwd
    [ -z "$rest" ] || need slurmrestd slurmrestd
    [ -z "$rest" ] || need curl curl
    [ -z "$rest" ] || [ -e "$(plugins)/auth_jwt.so" ] || need skiff-no-such-command slurm-wlm-jwt-plugin
    [ -z "$ssh" ] || need sshd openssh-server
    [ -z "$ssh" ] || need ssh-keygen openssh-client
    [ -z "$accounting" ] || need slurmdbd slurmdbd
    [ -z "$accounting" ] || [ -e "$(plugins)/accounting_storage_mysql.so" ] || need skiff-no-such-command slurm-wlm-mysql-plugin
    [ -z "$accounting" ] || need mariadbd mariadb-server
  ) || { [ -z "$guard" ] || rm -f /usr/sbin/policy-rc.d; return 1; }
  [ -z "$guard" ] || rm -f /usr/sbin/policy-rc.d
}
plugins() { dirname "$(find /usr/lib -name auth_munge.so -path '*slurm*' 2>/dev/null | head -n 1)"; }

directories() {
  mkdir -p "$dir"/{etc,run,log,state,spool,munge,ssh,dev,db,work}
  chmod 755 "$dir" "$dir"/{etc,run,log,dev,ssh}
  chmod 700 "$dir"/{munge,db}
  chmod 1777 "$dir/work"
  if ! id "$user" >/dev/null 2>&1; then
    useradd --system --no-create-home --home-dir "$dir/home" --shell /bin/bash --comment 'submits jobs in tests of Skiff' "$user"
    touch "$dir/created-user"
  fi
  mkdir -p "$dir/home"
  chown "$user" "$dir/home"
}

# Character devices for the nodes' GPUs, with a major number that no driver has: a clone of /dev/null would be
# closed to every job as soon as devices are constrained.
devices() {
  local major n i
  [ ! -e "$dir/dev/n1-gpu0" ] || return 0
  for major in $(seq 250 -1 200); do awk -v m="$major" '/^Block/ {exit} $1 == m {found = 1} END {exit !found}' /proc/devices || break; done
  for n in "${!nodes[@]}"; do
    for i in 0 1 2 3; do mknod -m 666 "$dir/dev/${nodes[$n]}-gpu$i" c "$major" $((n * 4 + i)); done
  done
}

configure() {
  local host n
  host=$(hostname -s)
  [ -s "$dir/munge/key" ] || (umask 077; head -c 128 /dev/urandom >"$dir/munge/key")
  [ -s "$dir/etc/jwt.key" ] || (umask 077; head -c 32 /dev/urandom >"$dir/etc/jwt.key")
  {
    cat <<CONF
ClusterName=skiff
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$p_ctld
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.own
SlurmdPidFile=$dir/run/slurmd-%n.own
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,default_queue_depth=2000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobcomp.log
EpilogSlurmctld=$dir/etc/epilog
Prolog=$dir/etc/prolog
MinJobAge=$age
MaxJobCount=50000
KillWait=2
SlurmctldTimeout=30
SlurmdTimeout=5
MessageTimeout=20
InactiveLimit=0
GresTypes=gpu
CONF
    if [ -n "$cgroup" ]; then
      printf 'ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\n'
      printf 'JobAcctGatherType=jobacct_gather/cgroup\nJobAcctGatherFrequency=task=5\n'
    else
      printf 'ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n'
      printf 'JobAcctGatherType=jobacct_gather/linux\nJobAcctGatherFrequency=task=2\nJobAcctGatherParams=OverMemoryKill\n'
    fi
    [ -z "$rest" ] || printf 'AuthAltTypes=auth/jwt\nAuthAltParameters=jwt_key=%s\n' "$dir/etc/jwt.key"
    if [ -n "$accounting" ]; then
      printf 'AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\nAccountingStoragePort=%s\nAccountingStoragePass=%s\n' "$p_dbd" "$dir/run/munge.sock"
      printf 'AccountingStorageTRES=gres/gpu,gres/gpu:a100,gres/gpu:v100\n'
    fi
    for n in 0 1; do
      printf 'NodeName=%s NodeHostname=%s NodeAddr=127.0.0.1 Port=%s CPUs=64 RealMemory=512000 Gres=gpu:a100:4 Feature=a100,ib State=UNKNOWN\n' \
        "${nodes[$n]}" "$host" $((p_node + n))
    done
    printf 'NodeName=n3 NodeHostname=%s NodeAddr=127.0.0.1 Port=%s CPUs=96 RealMemory=1450000 Gres=gpu:v100:4 Feature=v100 State=UNKNOWN\n' \
      "$host" $((p_node + 2))
    cat <<CONF
PartitionName=debug Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=01:00:00 DefMemPerCPU=1000 PriorityTier=5
PartitionName=a100 Nodes=n1,n2 MaxTime=7-00:00:00 DefaultTime=01:00:00 DefMemPerCPU=8000 PriorityTier=5
PartitionName=dgx2 Nodes=n3 MaxTime=7-00:00:00 DefaultTime=01:00:00 DefMemPerCPU=15000 PriorityTier=5
PartitionName=low Nodes=ALL MaxTime=1-00:00:00 DefaultTime=01:00:00 DefMemPerCPU=1000 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=1-00:00:00 DefaultTime=01:00:00 DefMemPerCPU=1000 PriorityTier=10
PartitionName=short Nodes=ALL MaxTime=00:01:00 DefaultTime=00:01:00 DefMemPerCPU=1000 PriorityTier=5
CONF
  } >"$conf.new"
  # A changed configuration is for daemons that start now; those that run keep theirs until they are stopped.
  mv "$conf.new" "$conf"
  for n in "${nodes[@]}"; do
    printf 'NodeName=%s Name=gpu Type=%s File=%s/dev/%s-gpu[0-3]\n' "$n" "$([ "$n" = n3 ] && echo v100 || echo a100)" "$dir" "$n"
  done >"$dir/etc/gres.conf"
  if [ -n "$cgroup" ]; then
    printf 'CgroupAutomount=no\nConstrainRAMSpace=yes\nConstrainDevices=yes\nConstrainCores=no\nConstrainSwapSpace=no\n' >"$dir/etc/cgroup.conf"
  else
    rm -f "$dir/etc/cgroup.conf"
  fi
  # What a site installs so that ends are pushed: etc/push holds an address and a token, a line each.
  cat >"$dir/etc/epilog" <<'HOOK'
#!/bin/bash
push=$(dirname "$0")/push
[ -r "$push" ] || exit 0
{ read -r url; read -r token; } <"$push"
curl -ksS --max-time 5 -X POST -H "Authorization: Bearer $token" -H 'Content-Type: application/json' \
  -d "{\"jobId\":\"$SLURM_JOB_ID\",\"name\":\"$SLURM_JOB_NAME\",\"exitCode\":\"$SLURM_JOB_EXIT_CODE2\",\"derived\":\"$SLURM_JOB_DERIVED_EC\"}" \
  "$url" >>"$(dirname "$0")/../log/epilog.log" 2>&1
exit 0
HOOK
  # While etc/no-launch is there no node starts a job: its prolog fails, the node is drained, the job queued again and held.
  printf '#!/bin/bash\n[ ! -e %q/etc/no-launch ]\n' "$dir" >"$dir/etc/prolog"
  chmod 755 "$dir/etc/epilog" "$dir/etc/prolog"
  touch "$dir/log/jobcomp.log"
  chmod 644 "$conf" "$dir/etc/gres.conf" "$dir/log/jobcomp.log"
}

start_munge() {
  start munged munged --foreground --socket="$dir/run/munge.sock" --key-file="$dir/munge/key" --log-file="$dir/munge/log" \
    --pid-file="$dir/munge/pid" --seed-file="$dir/munge/seed" --num-threads=2
  started munged 10 munge --socket="$dir/run/munge.sock" --no-input
}

start_database() {
  local password
  [ -s "$dir/db/password" ] || (umask 077; head -c 18 /dev/urandom | base64 | tr -d '/+=' >"$dir/db/password")
  password=$(cat "$dir/db/password")
  [ -d "$dir/db/data/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$dir/db/data" --skip-test-db --auth-root-authentication-method=normal
  start mariadbd mariadbd --no-defaults --user=root --datadir="$dir/db/data" --socket="$dir/db/sock" --bind-address=127.0.0.1 --port="$p_sql" \
    --pid-file="$dir/db/pid" --innodb-buffer-pool-size=32M --innodb-lock-wait-timeout=900 --performance-schema=off
  started mariadbd 60 mariadb --no-defaults -S "$dir/db/sock" -u root -e 'select 1'
  mariadb --no-defaults -S "$dir/db/sock" -u root -e "create database if not exists slurm; create user if not exists slurm@'127.0.0.1' identified by '$password'; grant all on slurm.* to slurm@'127.0.0.1';"
  cat >"$dir/etc/slurmdbd.conf" <<CONF
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=$p_dbd
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock
PidFile=$dir/run/slurmdbd.own
LogFile=$dir/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$p_sql
StorageUser=slurm
StoragePass=$password
StorageLoc=slurm
CONF
  # slurmrestd hands its clients' tokens on.
  [ -z "$rest" ] || printf 'AuthAltTypes=auth/jwt\nAuthAltParameters=jwt_key=%s\n' "$dir/etc/jwt.key" >>"$dir/etc/slurmdbd.conf"
  chmod 600 "$dir/etc/slurmdbd.conf"
  # slurmdbd looks for its file beside slurm.conf.
  start slurmdbd slurmdbd -D
  started slurmdbd 30 sacctmgr -n list cluster
  sacctmgr -i add cluster skiff >/dev/null 2>&1 || true
  sacctmgr -i add account test Cluster=skiff >/dev/null 2>&1 || true
  for name in root "$user"; do sacctmgr -i add user "$name" Account=test Cluster=skiff >/dev/null 2>&1 || true; done
}

start_controller() {
  start slurmctld slurmctld -D -f "$conf"
  started slurmctld 30 timeout 2 scontrol ping
  until_ok 30 pings
}
pings() { timeout 5 scontrol ping 2>/dev/null | grep -q 'is UP'; }

start_node() { start "slurmd-$1" slurmd -D -N "$1" -f "$conf"; }
start_nodes() {
  local n
  for n in "${nodes[@]}"; do mkdir -p "$dir/spool/$n"; start_node "$n"; done
  until_ok 30 all_idle || { sinfo -N -l >&2; tail -n 5 "$dir"/log/slurmd-*.log >&2; fail "the nodes do not register"; }
}
all_idle() { [ "$(timeout 5 sinfo -h -N -p debug -o '%T' 2>/dev/null | grep -cxE 'idle|mixed|allocated|completing')" = ${#nodes[@]} ]; }

start_rest() {
  # It refuses to run as root. A token that is none makes it ask every client for one.
  # Without slurmdbd the halves of its interface that are about accounting cannot be loaded.
  local with=v0.0.36,v0.0.37,v0.0.38
  [ -z "$accounting" ] || with=$with,dbv0.0.36,dbv0.0.37,dbv0.0.38
  start slurmrestd setpriv --reuid "$user" --regid nogroup --clear-groups env SLURM_JWT=none slurmrestd -s "$with" -a rest_auth/jwt "127.0.0.1:$p_rest"
  started slurmrestd 10 rest_answers
}
rest_answers() { curl -fsS --max-time 5 -H "X-SLURM-USER-NAME: $user" -H "X-SLURM-USER-TOKEN: $(token 60)" "http://127.0.0.1:$p_rest/slurm/v0.0.38/ping"; }
token() { scontrol token username="$user" lifespan="${1:-3600}" | sed 's/^SLURM_JWT=//'; }

start_ssh() {
  local s=$dir/ssh name
  for name in host ca user stranger; do
    [ -e "$s/$name" ] || ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$s/$name"
  done
  [ -e "$s/password" ] || (umask 077; head -c 18 /dev/urandom | base64 | tr -d '/+=' >"$s/password")
  printf '%s:%s\n' "$user" "$(cat "$s/password")" | chpasswd
  [ -e "$s/rsa" ] || ssh-keygen -q -t rsa -b 3072 -N '' -C rsa -f "$s/rsa"
  cat "$s/user.pub" "$s/rsa.pub" >"$s/authorized_keys"
  # What the host shows to clients that trust the authority.
  [ -e "$s/host-cert.pub" ] || ssh-keygen -q -s "$s/ca" -I host -h -n 127.0.0.1 -V -1h:+7d "$s/host.pub"
  # Keys that only a certificate lets in: one that is valid, and one that was.
  [ -e "$s/certified" ] || {
    ssh-keygen -q -t ed25519 -N '' -C certified -f "$s/certified"
    ssh-keygen -q -s "$s/ca" -I skiff -n "$user" -V -1h:+7d "$s/certified.pub"
  }
  [ -e "$s/expired" ] || {
    ssh-keygen -q -t ed25519 -N '' -C expired -f "$s/expired"
    ssh-keygen -q -s "$s/ca" -I skiff -n "$user" -V -2d:-1d "$s/expired.pub"
  }
  printf '[127.0.0.1]:%s %s\n' "$p_ssh" "$(cut -d' ' -f1,2 "$s/host.pub")" >"$s/known_hosts"
  cat >"$s/sshd_config" <<CONF
ListenAddress 127.0.0.1:$p_ssh
HostKey $s/host
HostCertificate $s/host-cert.pub
PidFile none
UsePAM no
StrictModes no
AllowUsers $user
AuthorizedKeysFile $s/authorized_keys
TrustedUserCAKeys $s/ca.pub
PasswordAuthentication yes
PrintMotd no
MaxSessions 10
MaxStartups 100
SetEnv SLURM_CONF=$conf
Subsystem sftp internal-sftp
CONF
  mkdir -p /run/sshd
  start sshd "$(command -v sshd)" -D -e -f "$s/sshd_config"
  started sshd 10 ssh-keyscan -p "$p_ssh" -T 2 127.0.0.1
}

up() {
  [ "$(id -u)" = 0 ] || fail "run this as root: nodes start jobs as the users that submit them"
  accounting= rest= ssh= cgroup=
  # What an earlier call asked for stays.
  [ ! -e "$dir/parts" ] || . "$dir/parts"
  while [ $# -gt 0 ]; do
    case $1 in
      --accounting) accounting=1 ;; --rest) rest=1 ;; --ssh) ssh=1 ;; --cgroup) cgroup=1 ;;
      *) fail "unknown option: $1" ;;
    esac
    shift
  done
  packages
  step "directories and a user" directories
  printf 'accounting=%s rest=%s ssh=%s cgroup=%s\n' "$accounting" "$rest" "$ssh" "$cgroup" >"$dir/parts.new"
  # Parts that the controller must know make it start again with the new configuration; jobs live through that.
  if [ -e "$dir/parts" ] && ! cmp -s "$dir/parts" "$dir/parts.new"; then stop slurmctld; for n in "${nodes[@]}"; do stop "slurmd-$n"; done; fi
  mv "$dir/parts.new" "$dir/parts"
  step "devices" devices
  step "configuration" configure
  step "munge" start_munge
  [ -z "$accounting" ] || step "MariaDB and slurmdbd" start_database
  step "slurmctld" start_controller
  step "slurmd, ${#nodes[@]} nodes" start_nodes
  [ -z "$rest" ] || step "slurmrestd" start_rest
  [ -z "$ssh" ] || step "sshd" start_ssh
  say "Slurm runs: eval \"\$($0 env)\"; sinfo. Manifests: $0 manifest local|ssh|rest"
}

status() {
  local n any=
  [ -d "$dir" ] || { say "no Slurm in $dir"; return 1; }
  for n in munged mariadbd slurmdbd slurmctld "${nodes[@]/#/slurmd-}" slurmrestd sshd; do
    if alive "$n"; then say "$n: runs ($(cut -d" " -f1 "$dir/run/$n.pid"))"; elif [ -e "$dir/run/$n.pid" ]; then say "$n: ended"; any=1; fi
  done
  alive slurmctld && timeout 10 sinfo
  [ -z "$any" ]
}

# The processes of jobs on these nodes: the steps' daemons, known by the node's log that they write, and all below them.
steps() { # node...
  local n p
  for n in "$@"; do
    for p in $(pgrep -x slurmstepd || true); do
      [ -z "$(find "/proc/$p/fd" -lname "$dir/log/slurmd-$n.log" 2>/dev/null)" ] || below "$p"
    done
  done
  return 0
}
below() {
  local child
  printf '%s\n' "$1"
  for child in $(pgrep -P "$1" || true); do below "$child"; done
}

down() {
  local n pid
  [ -d "$dir" ] || { say "no Slurm in $dir"; return 0; }
  if alive slurmctld; then
    # Waiting ones first, so that none starts in place of one that ends.
    for n in PENDING SUSPENDED RUNNING; do
      timeout 20 squeue -h -t "$n" -o %A 2>/dev/null | sort -u | xargs -r -n 200 timeout 20 scancel -f --signal=KILL 2>/dev/null || true
      [ "$n" = RUNNING ] || timeout 20 squeue -h -t "$n" -o %A 2>/dev/null | sort -u | xargs -r -n 200 timeout 20 scancel 2>/dev/null || true
    done
    until_ok 5 no_jobs || true
  fi
  # Nothing of them is kept: they need no time to say goodbye to each other.
  for n in sshd slurmrestd slurmctld "${nodes[@]/#/slurmd-}" slurmdbd mariadbd munged; do stop "$n" KILL; done
  for pid in $(steps "${nodes[@]}"); do kill -9 "$pid" 2>/dev/null || true; done
  for n in "${nodes[@]}"; do
    find /sys/fs/cgroup -maxdepth 3 -type d \( -name "slurm_$n" -o -name "${n}_slurmstepd.scope" \) 2>/dev/null | while read -r group; do
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
  done
  if [ -e "$dir/created-user" ] && id "$user" >/dev/null 2>&1; then
    # Sessions over SSH and what was started in them.
    for pid in $(ps -u "$user" -o pid=); do kill -9 "$pid" 2>/dev/null || true; done
    until_ok 5 no_processes || true
    userdel "$user" 2>/dev/null || say "the user $user stays: it still has processes"
  fi
  rm -rf --one-file-system "$dir"
}
no_jobs() { [ -z "$(timeout 5 squeue -h -t R,CG 2>/dev/null)" ]; }
no_processes() { ! ps -u "$user" -o pid= >/dev/null 2>&1; }

# manifest DRIVER: what this cluster is reached by, in the namespace of SKIFF_NAMESPACE (default), with the name of the driver.
manifest() {
  local space=${SKIFF_NAMESPACE:-default}
  case $1 in
    local | ssh | rest) ;;
    *) fail "no such driver: $1; there are local, ssh, rest" ;;
  esac
  . "$dir/parts"
  [ "$1" != ssh ] || [ -n "$ssh" ] || fail "this cluster has no SSH server: $0 up --ssh"
  [ "$1" != rest ] || [ -n "$rest" ] || fail "this cluster has no slurmrestd: $0 up --rest"
  if [ "$1" = ssh ]; then
    printf 'apiVersion: v1\nkind: Secret\nmetadata: {name: slurm-ssh, namespace: %s}\ntype: Opaque\nstringData:\n  ssh-privatekey: |\n' "$space"
    sed 's/^/    /' "$dir/ssh/certified"
    printf '  ssh-certificate: %s\n---\n' "$(cat "$dir/ssh/certified-cert.pub")"
  fi
  if [ "$1" = rest ]; then
    printf 'apiVersion: v1\nkind: Secret\nmetadata: {name: slurm-rest, namespace: %s}\ntype: Opaque\nstringData: {token: %s}\n---\n' "$space" "$(token 86400)"
  fi
  printf 'apiVersion: skiff.dev/v1\nkind: HpcCluster\nmetadata: {name: %s}\nspec:\n' "$1"
  case $1 in
    local) printf '  local: {conf: %s, user: %s}\n' "$conf" "$user" ;;
    ssh)
      printf '  ssh:\n    host: 127.0.0.1\n    port: %s\n    user: %s\n    conf: %s\n' "$p_ssh" "$user" "$conf"
      printf '    secret: {namespace: %s, name: slurm-ssh}\n    hostKeys: ["%s"]\n' "$space" "$(cat "$dir/ssh/known_hosts")"
      ;;
    rest)
      printf '  rest:\n    url: http://127.0.0.1:%s\n    user: %s\n    secret: {namespace: %s, name: slurm-rest}\n' "$p_rest" "$user" "$space"
      printf '  files: {local: {conf: %s, user: %s}}\n' "$conf" "$user"
      ;;
  esac
  printf '  workDirectory: %s/work\n  completionLog: %s/log/jobcomp.log\n  defaults: {partition: debug}\n' "$dir" "$dir"
  printf '  partitions:\n  - {name: a100, cpusPerGpu: 16, minGpus: 1, gpus: 8}\n  - {name: dgx2, cpusPerGpu: 6, minGpus: 1, gpus: 4}\n'
}

# A lost machine: the daemon and all that ran there end at once, with nobody told: those that would tell end first.
node_down() {
  local pids
  stop "slurmd-$1" KILL
  pids=$(steps "$1")
  # shellcheck disable=SC2086
  [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
}
node() {
  case " ${nodes[*]} " in *" ${1:-} "*) ;; *) fail "no such node: ${1:-}; there are ${nodes[*]}" ;; esac
}

case "${1:-}" in
  up | down | status) "$@" ;;
  env) printf 'export SLURM_CONF=%q\n' "$conf" ;;
  token) token "${2:-3600}" ;;
  manifest) manifest "${2:-local}" ;;
  node-down) node "${2:-}"; node_down "$2" ;;
  node-up) node "${2:-}"; start_node "$2" ;;
  controller-down) stop slurmctld KILL ;;
  controller-up) start_controller ;;
  *) fail "usage: hack/slurm.sh up [--accounting] [--rest] [--ssh] [--cgroup] | down | status | env | manifest local|ssh|rest | token [SECONDS] | node-down|node-up NODE | controller-down|controller-up" ;;
esac
