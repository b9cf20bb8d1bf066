#!/usr/bin/env bash
# What every task of cloud/ runs on the rented machine. SkyPilot sets the SKYPILOT_ variables, `caspi launch` the CASPI_ ones.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

# The manifest must be the audited one to the bit, else the gate stays shut. Own corpora come by file_mounts instead.
[ -f data/manifest.jsonl ] || caspi prepare

# Several machines: torchrun's variables; the output folder must be shared between them.
num_nodes=${SKYPILOT_NUM_NODES:-1}
num_gpus=$((num_nodes * ${SKYPILOT_NUM_GPUS_PER_NODE:-1}))
if [ "$num_nodes" -gt 1 ]; then
    export PET_NNODES=$num_nodes PET_NODE_RANK=$SKYPILOT_NODE_RANK PET_MASTER_PORT=${CASPI_MASTER_PORT:-29500}
    PET_MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
    export PET_MASTER_ADDR
fi

# The effective batch is 64 on any number of cards that divides 32, so that a job may recover on another kind of machine.
if [ $((32 % num_gpus)) -ne 0 ]; then
    echo "$num_gpus GPUs do not divide 32: the effective batch would not be 64" >&2
    exit 2
fi
flags=(--yes --batch-size 2 --gradient-accumulation-steps $((32 / num_gpus)))
[ -z "${CASPI_OUTPUT_DIR:-}" ] || flags+=(--output-dir "$CASPI_OUTPUT_DIR")
[ -z "${CASPI_MIRROR:-}" ] || flags+=(--mirror "$CASPI_MIRROR")
[ -z "${CASPI_USD_PER_HOUR:-}" ] || flags+=(--price "$CASPI_USD_PER_HOUR")
[ -z "${CASPI_MAX_BUDGET_USD:-}" ] || flags+=(--max-budget "$CASPI_MAX_BUDGET_USD")
exec caspi train "${flags[@]}" "$@"
