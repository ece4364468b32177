#!/bin/bash
#SBATCH --job-name=skiff-0f6a2c1e-7d3b-4c55-9a3e-b1de5a7f1c20-1
#SBATCH --comment='{"attempt":"1","object":"default/one-gpu","skiff":"skiff-0f6a2c1e-7d3b-4c55-9a3e-b1de5a7f1c20-1"}'
#SBATCH --chdir=/lustre/home/acct/me/skiff/default/one-gpu-0f6a2c1e-7d3b
#SBATCH --output=/lustre/home/acct/me/skiff/default/one-gpu-0f6a2c1e-7d3b/%j.out
#SBATCH --error=/lustre/home/acct/me/skiff/default/one-gpu-0f6a2c1e-7d3b/%j.err
#SBATCH --open-mode=append
#SBATCH --partition=dgx2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=6
#SBATCH --gres=gpu:1
#SBATCH --dependency=singleton
#SBATCH --mail-type=end

# default/one-gpu attempt 1, made by skiff.
skiff_directory=/lustre/home/acct/me/skiff/default/one-gpu-0f6a2c1e-7d3b
skiff_own=/lustre/home/acct/me/skiff/default/one-gpu-0f6a2c1e-7d3b/.skiff
skiff_name=skiff-0f6a2c1e-7d3b-4c55-9a3e-b1de5a7f1c20-1
skiff_ended=/lustre/home/acct/me/skiff/.skiff-ended
skiff_key="${SLURM_JOB_ID:-0}"
skiff_marker="$skiff_ended/$skiff_name${SLURM_ARRAY_TASK_ID:+.$SLURM_ARRAY_TASK_ID}"
skiff_stage=start
skiff_code=1
skiff_began=$(date +%s)
skiff_note() {
  mkdir -p -- "$skiff_ended" && printf '%s\n' "$1" >"$skiff_marker.tmp" && mv -f -- "$skiff_marker.tmp" "$skiff_marker"
}
skiff_end() {
  skiff_code=$?
  trap - EXIT
  skiff_note "end $skiff_code $skiff_stage ${SLURM_JOB_ID:-0} ${SLURM_RESTART_COUNT:-0} $skiff_began $(date +%s)"
  exit "$skiff_code"
}
skiff_hand_on() {
  skiff_signalled=1
  kill -s "$1" "$skiff_child" 2>/dev/null
}
skiff_wait() {
  skiff_child=$1
  for skiff_signal in TERM INT HUP USR1 USR2 ALRM XCPU CONT; do
    trap "skiff_hand_on $skiff_signal" "$skiff_signal"
  done
  while :; do
    skiff_signalled=
    wait "$skiff_child"
    skiff_code=$?
    [ -n "$skiff_signalled" ] || break
  done
}
trap skiff_end EXIT
mkdir -p -- "$skiff_own" && cd -- "$skiff_directory" || exit 1
skiff_note "begin 0 start ${SLURM_JOB_ID:-0} ${SLURM_RESTART_COUNT:-0} $skiff_began $skiff_began"
skiff_environment() {
return 0
}
skiff_stage=run
cat >"$skiff_own/run.$skiff_key.sh" <<'SKIFF_END'
echo "$SLURM_CPUS_ON_NODE cores, GPUs $CUDA_VISIBLE_DEVICES"
SKIFF_END
( trap - TERM INT HUP USR1 USR2 ALRM XCPU CONT EXIT; skiff_environment && exec bash "$skiff_own/run.$skiff_key.sh" ) </dev/null &
skiff_wait $!
exit "$skiff_code"
