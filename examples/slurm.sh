#!/usr/bin/env bash
# A training or a measurement on several machines of a SLURM cluster. Everything after the script is the command:
#
#   sbatch --nodes 8 examples/slurm.sh rlaf MODEL --prompts rtp --part train --reward starter --out /shared/runs/RL
#
# --out and the model's files must lie where all machines see them. A job that is stopped goes on when it is submitted
# again; with --requeue SLURM does that by itself.
#SBATCH --job-name=rewardlm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

# Here: module load, source .venv/bin/activate, export HF_HOME=/shared/huggingface …

if [ $# -eq 0 ]; then
    echo "usage: sbatch $0 COMMAND [ARGUMENT …], such as: rlaf MODEL --prompts rtp --out /shared/runs/RL" >&2
    exit 2
fi

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts%%$'\n'*}
each=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((${SLURM_CPUS_PER_TASK:-8} / each))}

# One task a machine: accelerate starts the machine's processes. The job's number keeps two jobs' ports apart.
# shellcheck disable=SC2016  # SLURM_NODEID is each machine's own.
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --multi_gpu --mixed_precision no --dynamo_backend no \
        --num_machines "$SLURM_NNODES" --num_processes "$1" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$2" --main_process_port "$3" -m rewardlm "${@:4}"
' bash "$((SLURM_NNODES * each))" "$first" "$((20000 + SLURM_JOB_ID % 20000))" "$@"
