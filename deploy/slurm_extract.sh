#!/bin/bash
# Compute the descriptors of many photos on a Slurm cluster: an array job, one GPU per task.
#
#   sbatch --array=0-15 deploy/slurm_extract.sh DATASET MODEL STORE [option of `cosplace extract` ...]
#   cosplace extract --to STORE --status
#
# Tasks may start and end at any time, and may be killed: a shard is stored whole or not at all, and another task computes
# it.  If shards are missing at the end, submit the same command again.  DATASET, MODEL and STORE must have the same paths
# on all machines; STORE may be object storage.  Without GPUs: sbatch --gres=none ...
#SBATCH --job-name=cosplace-extract
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

if (($# < 3)); then
  echo "usage: sbatch --array=0-15 $0 DATASET MODEL STORE [option ...]" >&2
  exit 2
fi
dataset=$1 model=$2 store=$3
shift 3

exec cosplace extract "$dataset" --model "$model" --to "$store" --num_workers "${SLURM_CPUS_PER_TASK:-8}" "$@"
