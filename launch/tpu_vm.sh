#!/usr/bin/env bash
# Cloud TPU VM, v5e or v6e, spot; TPUs after v6e are launched through Compute Engine or GKE.
#
#   export TPU=... PROJECT=... ZONE=... DISK=... CONFIG=configs/synthetic_full.py:cgan
#   launch/tpu_vm.sh [--config.KEY=VALUE ...]
#
# TPU: a name for the queued resource, the VM and the run. ACCELERATOR: v6e-8 (default) or v5litepod-8, which are one
# host, or more chips on several: v6e-16, v5litepod-64. A preempted VM is deleted with its own disk, so runs and data are
# elsewhere: one host has DISK, a disk in ZONE with an ext4 file system labelled "facedepth", see docs/launching.md;
# several have NFS, HOST:/SHARE. Needs gcloud, logged in.
#
# Stays and watches: asks for the VM, trains, asks again when it is preempted, deletes it at the end. Interrupted here,
# the VM goes on; the same command watches again. DRY_RUN=1 prints the commands.
set -euo pipefail
: "${TPU:?set TPU to a name for the VM and the run}"
: "${PROJECT:?set PROJECT to your Google Cloud project}"
: "${ZONE:?set ZONE to a zone that has the TPU}"
: "${CONFIG:?set CONFIG to a config, as configs/synthetic_full.py:cgan}"
cd "$(dirname "$0")/.."
accelerator=${ACCELERATOR:-v6e-8}
case $accelerator in
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  *)
    echo "error: ACCELERATOR is $accelerator: take v6e-8 or v5litepod-8, or more of their chips" >&2
    exit 1
    ;;
esac
if ((${accelerator##*-} > 8)); then
  where=("NFS=${NFS:?set NFS to HOST:/SHARE for the runs and data of several hosts}") disk=()
  set -- --process=auto "$@"
else
  : "${DISK:?set DISK to a disk in that zone, see docs/launching.md}"
  where=() disk=("--data-disk=source=projects/$PROJECT/zones/$ZONE/disks/$DISK,mode=read-write")
fi
place=("--project=$PROJECT" "--zone=$ZONE")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

call() {
  if [[ ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
create() {
  call gcloud compute tpus queued-resources create "$TPU" "${place[@]}" "--node-id=$TPU" --spot \
    "--accelerator-type=$accelerator" "--runtime-version=$runtime" "${disk[@]}"
}
delete() { call gcloud compute tpus queued-resources delete "$TPU" "${place[@]}" --force --quiet; }
state() {
  gcloud compute tpus queued-resources list "${place[@]}" "--filter=name~/queuedResources/$TPU\$" \
    '--format=value(state.state)'
}
train() { # 255: the VM is out of reach
  local code="$scratch/facedepth.tar.gz" words
  call git archive --format=tar.gz "--output=$code" HEAD || return 1 # what is committed
  call gcloud compute tpus tpu-vm scp "$code" "$TPU:facedepth.tar.gz" "${place[@]}" --worker=all || return 255
  words=$(printf '%q ' env "CONFIG=$CONFIG" "WORKDIR=runs/$TPU" "${where[@]}" bash launch/tpu_vm_host.sh "$@")
  words="mkdir -p facedepth && tar -xzf facedepth.tar.gz -C facedepth && cd facedepth && $words"
  call gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" --worker=all "--command=$words"
}

if [[ ${DRY_RUN:-} ]]; then
  create
  train "$@"
  delete
  exit
fi
while true; do
  if ! now=$(state); then
    echo "tpu_vm.sh: the state cannot be asked for; again in a minute." >&2
  elif [[ -z $now ]]; then
    create
  elif [[ $now == ACTIVE ]]; then
    code=0
    train "$@" || code=$?
    if ((code == 0)); then
      delete
      exit 0
    fi
    # gcloud gives codes of its own when the VM goes away under it: a run that failed leaves a VM that is there.
    if ((code != 75 && code != 255)) && [[ $(state || true) == ACTIVE ]]; then
      echo "error: the run failed with code $code. The VM $TPU is still there and costs." >&2
      exit "$code"
    fi
    echo "tpu_vm.sh: stopped or out of reach (code $code); looking again in a minute." >&2
  elif [[ $now == SUSPENDED ]]; then # preempted: it never comes back by itself
    delete
    continue
  elif [[ $now == FAILED ]]; then
    echo "error: the request for $TPU failed: gcloud compute tpus queued-resources describe $TPU ${place[*]}" >&2
    exit 1
  fi
  sleep "${PAUSE_SEC:-60}"
done
