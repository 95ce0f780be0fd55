#!/bin/bash
# Runs a recipe on this machine: one process per GPU, or N processes on the CPU. A run that was
# interrupted is continued by calling this again. Exit code 75: stopped by a signal, checkpointed.
# usage: launch/run_local.sh RECIPE [-n N] [arguments of sala-train...]
# The first Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 lets the run checkpoint and end; a second one ends it
# at once.
set -euo pipefail
requests=0 job= folder=
ask_to_stop() {
  requests=$((requests + 1))
  if [ $requests -eq 1 ]; then
    say "stopping after a checkpoint; once more ends the run at once"
    [ -n "$folder" ] || return 0
    # Without the folder (somebody cleaned TMPDIR) mpirun has to pass a signal on.
    mv "$folder/running" "$folder/stop" 2> /dev/null || kill -USR1 $job 2> /dev/null || true
  elif [ -n "$job" ]; then
    say "ending the run"
    kill -TERM $job 2> /dev/null || true
    { sleep 10; kill -KILL -- -$job; } > /dev/null 2>&1 &  # ranks die with their mpirun
  fi
}
trap ask_to_stop TERM INT HUP QUIT USR1  # first of all: whatever has begun ends well
say() { echo "run_local: $*" >&2 || true; }  # a terminal that is gone is no reason to stop
refuse() { say "$*"; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/launch/env.sh"

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
  sed -n '2,6s/^# //p' "$0" >&2
  exit 2
fi
recipe=$1
shift
# nvidia-smi lists those GPUs too that CUDA_VISIBLE_DEVICES hides. CUDA stops at an entry such as
# -1; entries beyond the GPUs that there are count for nothing, but parts of one (MIG) do.
visible_gpus() {
  local there named
  there=$(nvidia-smi -L 2> /dev/null | grep -cE '^GPU|^ *MIG')
  [ -n "${CUDA_VISIBLE_DEVICES+set}" ] || { nvidia-smi -L 2> /dev/null | grep -c '^GPU'; return; }
  named=$(tr , '\n' <<< "$CUDA_VISIBLE_DEVICES" | sed '/^-/,$d' | grep -c .)
  echo $((named < there ? named : there))
}
ranks=$(visible_gpus || true)
if [ "${1:-}" = -n ]; then
  [[ ${2:-} =~ ^[0-9]{1,5}$ ]] && ranks=$((10#$2)) || ranks=0
  [ "$ranks" -ge 1 ] || refuse "-n: expected the number of processes, 1 or more, got \"${2:-}\""
  shift 2
elif [ "$ranks" -eq 0 ]; then
  ranks=1
fi

program=$SALA_BUILD/bin/sala-train
[ -x "$program" ] || refuse "$program is not built; call make first"
command -v mpirun > /dev/null || refuse "mpirun is not installed (Debian: openmpi-bin)"

# mpirun keeps its sockets and shared memory in TMPDIR, and hangs when it cannot.
temporary=${TMPDIR:-/tmp}
folder=$(mktemp -d "$temporary/sala-run.XXXXXX" 2> /dev/null) ||
  refuse "$temporary: cannot make a folder there; set TMPDIR to one with space"
trap 'rm -rf "$folder"' EXIT
# As much as mpirun and the ranks write there, for a start.
(trap '' XFSZ; head -c $((4194304 + ranks * 4194304)) /dev/zero) 2> /dev/null > "$folder/space" ||
  refuse "$temporary is full: mpirun needs $((4 + ranks * 4)) MB there; free some or set TMPDIR"
rm "$folder/space"

# The cores are shared out: with all of them in every rank, the ranks would wait for each other.
threads=$(($(nproc) / ranks))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

# How the ranks are asked to stop and tell their exit code: trainer/ranks/launch_folder.h.
export SALA_LAUNCH_FOLDER=$folder
touch "$folder/running"
[ $requests -eq 0 ] || exit 75  # asked before anything had begun

# mpirun dies of output that nobody reads any more. A reader that goes on stands between, but for
# files and terminals (the progress line wants one), whose end is only an error of the write.
readers=
drain() { trap '' TERM INT HUP QUIT USR1 PIPE; cat 2> /dev/null || true; cat > /dev/null; }
# A process group of its own: Ctrl-C reaches this script and not mpirun, which would kill.
set -m
if [ -t 1 ] || [ -f /dev/stdout ]; then exec 3>&1; else exec 3> >(drain); readers=$!; fi
if [ -t 2 ] || [ -f /dev/stderr ]; then exec 4>&2; else exec 4> >(drain >&2); readers+=" $!"; fi
mpirun -np "$ranks" "$program" "$recipe" "$@" >&3 2>&4 3>&- 4>&- &
job=$!
exec 3>&- 4>&-
code=127
while :; do
  before=$requests now=0
  wait $job || now=$?
  [ $now -eq 127 ] || code=$now       # 127: the last `wait` had the code already
  [ $requests -ne $before ] || break  # a trap ends `wait` too, with a code that is not the job's
done
[ -z "$readers" ] || wait $readers || true
# Of a failure only mpirun's code tells, but a request that came while the ranks were leaving makes
# mpirun fail after the run has ended as its own code says.
{ [ $code -ne 0 ] && [ $requests -eq 0 ]; } || [ ! -s "$folder/code" ] ||
  code=$(cat "$folder/code")
exit $code
