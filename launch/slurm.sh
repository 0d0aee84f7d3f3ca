#!/usr/bin/env bash
#SBATCH --job-name=facedepth
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
# Slurm nodes, as many GPUs of each as are asked for. From the repository, on a file system that all nodes share:
#
#   export CONFIG=configs/synthetic_full.py:cgan WORKDIR=runs/full
#   sbatch [--nodes=2] --gpus-per-node=4 launch/slurm.sh [--config.KEY=VALUE ...]
#
# An array over lambda, a run in WORKDIR/lam_VALUE each (prepare the data first, or every task prepares them):
#
#   LAMBDAS="100.0 1000.0 3000.0" CONFIG=... WORKDIR=runs/lambda sbatch --array=0-2 launch/slurm.sh
#
# --signal without B: reaches the job step, three minutes before the time is up (Slurm may be a minute early); the run
# saves, run.sh gives 75, and the job queues itself again. When Slurm preempts it or loses the node, --requeue does.
set -euo pipefail
if [[ ! -f launch/run.sh ]]; then
  echo "error: submit it from the repository: sbatch launch/slurm.sh" >&2
  exit 1
fi

job=${SLURM_JOB_ID:?is not set: start it with sbatch}
if [[ ${SLURM_ARRAY_TASK_ID:-} ]]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # the bare id of the first task stands for the whole array
  read -ra lambdas <<<"${LAMBDAS:?set LAMBDAS to the values of the array}"
  lam=${lambdas[$SLURM_ARRAY_TASK_ID]:?LAMBDAS has fewer values than the array tasks}
  export WORKDIR=${WORKDIR:?set WORKDIR to the directory of the runs}/lam_$lam
  set -- "--config.loss.lam=$lam" "$@"
fi

if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then # one process a node, with all GPUs there; the first node has process 0
  first=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?}" | head -n 1)
  export FIRST=$first:$((20000 + SLURM_JOB_ID % 20000))
fi
code=0
# shellcheck disable=SC2016 # each task has its own SLURM_PROCID
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c \
  'exec bash launch/run.sh ${FIRST:+"--process=$SLURM_PROCID/$SLURM_NTASKS@$FIRST"} "$@"' run.sh "$@" || code=$?

# Not after scancel, which stops a run just so, and not where Slurm queues the job again by itself.
if ((code == 75)) && [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]; then
  scontrol requeue "$job"
fi
exit "$code"
