#!/bin/sh
# A whole recipe on two nodes of a SLURM cluster, from a checkout on a file system they share:
#
#   sbatch recipes/launch/slurm.sh RECIPE [options of bashrac run]
#
# Edit the lines below for your cluster. LAUNCH names another launch config, whose num_machines and
# num_processes are those of the nodes and GPUs asked for here. What is finished is not made again,
# so submit the same line once more after the time was up.
#SBATCH --job-name=bashrac
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
set -eu

recipe=$1
shift
# One srun a step. TERM, five minutes before the end, reaches bashrac, which has training save.
exec bashrac run "$recipe" --launch "${LAUNCH:-two_nodes}" \
    --through 'srun --ntasks-per-node 1 --kill-on-bad-exit=1 on_node.sh' "$@"
