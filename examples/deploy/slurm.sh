#!/bin/bash
#SBATCH --job-name=crossover
#SBATCH --time=24:00:00
#SBATCH --gpus=1
# Submit the cells of an experiment as jobs, and time all arms in this one, which therefore has a GPU like theirs:
#   sbatch examples/deploy/slurm.sh EXPERIMENT.yaml [FLAGS]
set -euo pipefail
: "${1:?name an experiment file}"
# What each cell's own job asks for.
export SBATCH_GPUS="${CELL_GPUS:-1}" SBATCH_TIMELIMIT="${CELL_TIMELIMIT:-04:00:00}"
cd "${SLURM_SUBMIT_DIR:-.}"
exec crossover run "$@" --backend slurm
