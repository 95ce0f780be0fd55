#!/bin/bash
# Runs a recipe on this machine: one process per GPU, or N processes on the CPU. A run that was
# interrupted is continued by calling this again. Exit code 75: stopped by a signal, checkpointed.
# usage: launch/run_local.sh RECIPE [-n N] [arguments of sala-train...]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/launch/env.sh"

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
recipe=$1
shift
ranks=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true)
if [ "${1:-}" = -n ]; then
  ranks=${2:?-n needs the number of processes}
  shift 2
elif [ "$ranks" -eq 0 ]; then
  ranks=1
fi

program=${SALA_BUILD:-$root/build}/bin/sala-train
[ -x "$program" ] || { echo "run_local: $program is not built; call make first" >&2; exit 1; }

# The cores are shared out: with all of them in every rank, the ranks would wait for each other.
threads=$(($(nproc) / ranks))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

# mpirun answers SIGTERM and Ctrl-C by killing the ranks a second later. SIGUSR1 it passes on: the ranks
# checkpoint and exit with 75.
set -m
mpirun -np "$ranks" "$program" "$recipe" "$@" &
job=$!
signalled=no
trap 'signalled=yes; kill -USR1 $job 2> /dev/null || true' TERM INT USR1
while :; do
  code=0
  wait $job || code=$?
  [ $signalled = yes ] || break
  signalled=no
done
exit $code
