#!/bin/sh
# Runs an accelerate command on one node of a SLURM step: tells it which node this is and where the
# first one is. The launch config says how many processes there are on all nodes together.
#
#   bashrac run RECIPE --launch two_nodes \
#       --through 'srun --nodes 2 --ntasks-per-node 1 --kill-on-bad-exit=1 on_node.sh'
set -eu

first=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
# So that two jobs on one node do not meet, nor two steps of a job (bashrac run --jobs 2).
port=$((20000 + (SLURM_JOB_ID + 37 * ${SLURM_STEP_ID:-0}) % 10000))

for word in "$@"; do
    shift
    if [ "$word" = --config_file ]; then
        set -- "$@" --num_machines "$SLURM_STEP_NUM_NODES" --machine_rank "$SLURM_NODEID" \
            --main_process_ip "$first" --main_process_port "$port"
    fi
    set -- "$@" "$word"
done
exec "$@"
