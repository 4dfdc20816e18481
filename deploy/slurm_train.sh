#!/bin/bash
# Train on several machines of a Slurm cluster, with one process per GPU.
#
#   sbatch --nodes=4 deploy/slurm_train.sh --dataset_folder DATASET [option of `cosplace train` ...]
#
# The batch size is that of all processes together, so results do not depend on their number.  If a process or a machine
# fails, torchrun starts all processes again, and they continue from the last checkpoint; so does a job that Slurm starts
# again.  The folder where the job is submitted must be shared by all machines: logs/ is in it.
#
# Processes per machine: PROCESSES=2 sbatch ..., by default one per GPU.  Without GPUs: sbatch --gres=none ...
#SBATCH --job-name=cosplace-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if (($# < 1)); then
  echo "usage: sbatch --nodes=4 $0 --dataset_folder DATASET [option ...]" >&2
  exit 2
fi

# Processes find each other on the first machine.  The port depends on the job, as several may share that machine.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# The id of the job is its name for torchrun and for the folder of the run, also after Slurm has started it again.
# Since version 22.05, srun does not take --cpus-per-task from the job.
exec srun --kill-on-bad-exit=1 --cpus-per-task "$SLURM_CPUS_PER_TASK" torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc_per_node "${PROCESSES:-gpu}" \
  --max-restarts 3 \
  --rdzv-backend c10d \
  --rdzv-endpoint "$head:$port" \
  --rdzv-id "cosplace-$SLURM_JOB_ID" \
  -m cosplace train "$@"
