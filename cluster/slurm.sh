#!/bin/bash
# One masksearch search on Slurm: a Ray cluster for the length of the job, and the search on it.
#
#   sbatch --nodes=16 --gpus-per-node=4 cluster/slurm.sh \
#       search /shared/my_space.py:space --corpus /shared/wikitext-2 --trials 2000 \
#       --run /shared/runs/first --storage journal:/shared/runs/first/journal
#
# Without GPUs: sbatch --nodes=16 --gpus-per-node=0 --cpus-per-task=32 cluster/slurm.sh search ...
#
# Everything behind the script's name is a masksearch command line; the script adds
# `--executor ray --address ... --slots ... --gpus ... --cpus ...`. Run folder, journal, corpus
# and space must lie where all nodes see them. Submitting the same line again goes on where the
# search stopped. Near the time limit, or where Slurm announces a preemption by SIGUSR1, the
# search is stopped cleanly and the job requeued. Any other end (scancel, requeue, preemption)
# reaches Ray and the search alike: trials that run are dropped, and begun again later.
# A search that lost its storage (exit code 75) is requeued once.
#
# Settings, as environment variables of sbatch:
#   TRIALS_PER_GPU   trials that share a GPU (default 4); memory is shared, not isolated
#   RAY_PORT         port of the head (default 6379)
#   SETUP            a file to source first, on every node: modules, `source venv/bin/activate`
#   WAIT_SECONDS     how long to wait for the nodes (default 600)
#   POLL_SECONDS     between two looks at the nodes that have come, or at the search (default 2)
#   IP_COMMAND       prints a node's address (default: hostname --ip-address)
#
# Submit from a folder that all nodes see: the job's token lies there while it runs.
#
#SBATCH --job-name=masksearch
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=masksearch-%j.out
set -euo pipefail

if (($# == 0)); then
    echo "usage: sbatch cluster/slurm.sh search SPACE --run FOLDER ... (a masksearch command)" >&2
    exit 2
fi
: "${SLURM_JOB_ID:?run this with sbatch}" "${SLURM_JOB_NODELIST:?run this with sbatch}"
port=${RAY_PORT:-6379}
gpus=${SLURM_GPUS_ON_NODE:-0}
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
per_gpu=${TRIALS_PER_GPU:-4}
patience=${WAIT_SECONDS:-600}
if [[ -n ${SETUP:-} ]]; then
    # shellcheck source=/dev/null
    source "$SETUP"
fi

# Between the nodes: a token of this job's own, in a file that only its owner can read. Processes
# are given the file's name, so no secret stands in an environment or a command line.
private=$(pwd)/.masksearch-$SLURM_JOB_ID
(umask 077 && mkdir -p "$private" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$private/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token
export RAY_USAGE_STATS_ENABLED=0
# Ray would wait 30 s for running trials, and Slurm kills what is left after 30 s
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

search=''                # process id of the search
why=''                   # why it is to stop
told=''                  # whether the search has been told
steps=()                 # process ids of the srun steps that hold Ray
pause=${POLL_SECONDS:-2} # between two looks at the search

# shellcheck disable=SC2329  # called by the traps
stop() {
    why=$1 pause=0.2
    echo "masksearch: $why: stopping the search" >&2
    if [[ -n $search ]]; then
        told=yes
        kill -INT "$search" 2>/dev/null || true
    fi
}
# shellcheck disable=SC2329
finish() {
    rm -rf "$private" # first: Slurm may not leave time for more
    if [[ -n $search ]]; then kill -KILL -- "-$search" 2>/dev/null || true; fi
    # SIGTERM for the steps; not `ray stop`, which would end other people's Ray on a shared node,
    # nor a signal for srun, which kills
    local until=$((SECONDS + 20))
    if ((${#steps[@]})); then
        scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null & # (tries for long where the job ends)
        while ((SECONDS < until)) && kill -0 "${steps[@]}" 2>/dev/null; do sleep 0.2; done
        kill $! "${steps[@]}" 2>/dev/null || true
        wait 2>/dev/null || true
    fi
}
again() { # STATUS: whether the job is to run again; Slurm itself does what it has terminated
    local job mark="masksearch: requeued, its storage went away" # in the comment, which stays
    if (($1 == 0)) || [[ $why == terminated ]]; then return 1; fi
    job=$(scontrol show job "$SLURM_JOB_ID")
    if (($1 == 75)) && [[ $job != *"$mark"* ]]; then
        scontrol update "JobId=$SLURM_JOB_ID" "Comment=$mark"
    elif [[ $job != *PreemptTime=[0-9]* ]]; then # an error (1, 2) would only come again
        (($1 >= 128)) && [[ $why == "time limit or preemption" ]]
    fi
}
trap 'stop "time limit or preemption"' USR1
trap 'stop "terminated"' TERM
trap finish EXIT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
on() { # NODE COMMAND...: a job step on one node; ends the (sub)shell that calls it, so that
    local node=$1 # the process id of `on ... &` is srun's own
    shift
    exec srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap --export=ALL "$@"
}
ip_of() {
    local ip
    # shellcheck disable=SC2086  # a command with its arguments
    ip=$(on "$1" ${IP_COMMAND:-hostname --ip-address} | awk '{print $1}')
    if [[ -z $ip || $ip == 127.* && ${#nodes[@]} -gt 1 ]]; then
        echo "masksearch: $1 calls itself '$ip', which other nodes cannot reach;" \
            "set IP_COMMAND, for example 'hostname -I'" >&2
        return 1
    fi
    echo "$ip"
}

head_ip=$(ip_of "${nodes[0]}")
address=$head_ip:$port
options=(--num-cpus="$cpus" --num-gpus="$gpus" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --block)
# Holds Ray on a node, and removes its files when it has ended.
# shellcheck disable=SC2016  # expanded there
hold=(bash -c '
    "$@" &
    trap "kill $! 2>/dev/null" TERM
    while kill -0 $! 2>/dev/null; do wait $!; done
    rm -rf "/tmp/ray-$SLURM_JOB_ID" || { sleep 1 && rm -rf "/tmp/ray-$SLURM_JOB_ID"; }
' ray)
on "${nodes[0]}" "${hold[@]}" ray start --head --node-ip-address="$head_ip" --port="$port" \
    --dashboard-host=127.0.0.1 "${options[@]}" &
steps+=($!)

alive() { # how many nodes the cluster counts as active
    { ray status --address="$address" 2>/dev/null || true; } |
        awk '/^Active:/ {on = 1; next} /^[A-Z]/ {on = 0} on && /^ *[0-9]+ / {n += $1} END {print n + 0}'
}
wait_for() { # COUNT
    local until=$((SECONDS + patience)) count
    while count=$(alive) && ((count < $1)); do
        if [[ -n $why ]]; then exit 143; fi
        if ((SECONDS >= until)); then
            echo "masksearch: $count of $1 nodes after $patience s; see the lines above" >&2
            exit 1
        fi
        sleep "${POLL_SECONDS:-2}"
    done
}
wait_for 1
for node in "${nodes[@]:1}"; do
    ip=$(ip_of "$node")
    on "$node" "${hold[@]}" ray start --address="$address" --node-ip-address="$ip" "${options[@]}" &
    steps+=($!)
done
wait_for "${#nodes[@]}"
echo "masksearch: ${#nodes[@]} nodes, $gpus GPUs and $cpus CPUs each, head $address" >&2

if ((gpus)); then
    cores=$((cpus / (gpus * per_gpu)))
    share=$(awk -v n="$per_gpu" 'BEGIN {print 1 / n}')
    resources=(--slots "$((${#nodes[@]} * gpus * per_gpu))" --gpus "$share"
        --cpus "$((cores > 0 ? cores : 1))")
else
    resources=(--slots "$((${#nodes[@]} * cpus))" --cpus 1)
fi

# Job control, so that the search is not started with SIGINT ignored, as `&` in a script does.
set -m
masksearch "$@" --executor ray --address "$address" "${resources[@]}" &
search=$!
set +m
if [[ -n $why && -z $told ]]; then kill -INT "$search" 2>/dev/null || true; fi

# Not `wait` alone: a signal would end it with the signal's own number, and one that comes as it
# begins would be heard only after the search. Preemption with a time of grace tells the steps
# alone. A search without its Ray can close no trial; what it has finished is on disk.
last='' # second at which it is killed
while kill -0 "$search" 2>/dev/null; do
    if [[ -z $last ]] && ! kill -0 "${steps[0]}" 2>/dev/null; then
        last=$((SECONDS + 2))
        if [[ -z $why ]]; then stop "Ray has ended"; fi
    fi
    if [[ -n $last ]] && ((SECONDS >= last)); then
        kill -KILL -- "-$search" 2>/dev/null || true
    fi
    sleep "$pause" || true # Slurm ends this one too
done
if wait "$search"; then status=0; else status=$?; fi
search=''

trap '' USR1 # it comes too late
finish
trap - EXIT
if again "$status"; then
    echo "masksearch: the job is queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
