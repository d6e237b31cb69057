#!/usr/bin/env bash
# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# Join what slurm.sh has answered. Not run by us: we have no Slurm.
#
#SBATCH --job-name=replay-merge
#SBATCH --cpus-per-task=1
#SBATCH --mem=1G
#SBATCH --time=01:00:00
#SBATCH --output=replay-merge-%j.log
set -euo pipefail

source "$CHECKOUT/environment/env.sh"
minicpmo merge "$OUT"
