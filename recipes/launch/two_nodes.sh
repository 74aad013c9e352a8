#!/bin/sh
# A recipe on two machines without a scheduler. On each, in one folder of a file system they share:
#
#   recipes/launch/two_nodes.sh RANK ADDRESS RECIPE [options of bashrac run]
#
# RANK is 0 on the first machine and 1 on the second; ADDRESS is the first one's, as the second sees
# it. LAUNCH is another launch config's file, MASTER_PORT another port. Stop both to stop.
set -eu

rank=$1
address=$2
recipe=$3
shift 3
here=$(dirname "$0")
exec accelerate launch --config_file "${LAUNCH:-$here/../../accelerate_configs/two_nodes.yaml}" \
    --machine_rank "$rank" --main_process_ip "$address" --main_process_port "${MASTER_PORT:-29500}" \
    -m pipeline run "$recipe" "$@"
