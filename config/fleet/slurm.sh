#!/usr/bin/env bash
# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# The shards of a replay as a Slurm array; docs/fleet.md explains it. Not run by us: we have no
# Slurm. All paths lie on a file system that every node has.
#
#   export CHECKOUT=/shared/minicpmo_ros MODEL=/shared/model QUESTIONS=/shared/fleet/questions.json OUT=/shared/runs/fleet
#   job=$(sbatch --parsable config/fleet/slurm.sh)
#   sbatch --dependency=afterok:$job config/fleet/slurm_merge.sh
#
# A task that fails is run again alone, with the same result as if it had not failed:
#   sbatch --array=17 config/fleet/slurm.sh
#
#SBATCH --job-name=replay
#SBATCH --array=0-63%16
#SBATCH --cpus-per-task=4
#SBATCH --mem=12G
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=replay-%A-%a.log
set -euo pipefail

SHARDS=64 # as many as the array has; the same for every task, also for one that is run again
source "$CHECKOUT/environment/env.sh"
minicpmo replay "$MODEL" "$QUESTIONS" --out "$OUT" --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" --threads "$SLURM_CPUS_PER_TASK" --device gpu
