#!/bin/bash
# One stage of training on several nodes under Slurm. From the checkout:
#     sbatch --nodes 4 scripts/slurm.sh llava-1.5-7b/align
#     sbatch --nodes 4 scripts/slurm.sh llava-1.5-7b/finetune --init-from runs/llava-1.5-7b+align
# Before the time limit, and when the job is preempted, the run writes a checkpoint; the job then stands in the queue again and goes on from there.
# The run root and the data must be folders that every node sees.

#SBATCH --job-name=vlm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --signal=B:USR1@180

set -euo pipefail

preset=${1:?usage: sbatch --nodes N scripts/slurm.sh PRESET [overrides]}
shift

PATH=$PWD/.venv/bin:$PATH # what `make` has installed
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((29500 + SLURM_JOB_ID % 1000)) # jobs that share a node need different ones

# torchrun kills after 30 seconds by default, and the last checkpoint may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=160
# If the nodes do not find each other: export NCCL_SOCKET_IFNAME=<interface>, and NCCL_DEBUG=INFO says which one it took.

# Slurm tells this script of the coming end (USR1), and this script the training (TERM); no process gets a signal twice.
ends=no
trap 'ends=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

# Started by srun itself, with no shell between them: the signal goes to srun's own children.
srun --wait=300 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-gpu}" \
    --rdzv-backend c10d --rdzv-endpoint "$head:$port" --rdzv-id "$SLURM_JOB_ID" \
    scripts/pretrain.py "$preset" --resume auto --checkpoint-every 500 --keep-last 2 "$@" &
step=$!

status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do # the signal ended the first wait
    status=0
    wait "$step" || status=$?
done

if [[ $ends == yes && $status -ne 0 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
