#!/usr/bin/env bash
# What launch/tpu_vm.sh starts on the TPU VM, in the code that it has copied there: the disk, Python, the run.
set -euo pipefail
cd "$(dirname "$0")/.."
disk=${DISK_PATH:-/mnt/facedepth}

sudo mkdir -p "$disk"
if [[ ${NFS:-} ]]; then
  command -v mount.nfs >/dev/null || sudo apt-get install --yes nfs-common
  mountpoint --quiet "$disk" || sudo mount -t nfs "$NFS" "$disk"
elif ! mountpoint --quiet "$disk"; then
  # By label, for the device's name depends on the kind of disk.
  if ! sudo mount LABEL=facedepth "$disk"; then
    echo "error: no disk with an ext4 file system labelled facedepth: see docs/launching.md" >&2
    exit 1
  fi
fi
sudo chown -R "$(id -u)" "$disk" # another VM may give the same user another number
mkdir -p "$disk/runs" "$disk/data"
ln -sfn "$disk/runs" runs
ln -sfn "$disk/data" data

if [[ ! -e .venv/ready ]]; then # the VM's own Python is too old
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --clear --python 3.12 --seed .venv
  .venv/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
  .venv/bin/python -m pip install --quiet --editable '.[tpu]'
  touch .venv/ready
fi

# To a file, so that a connection that breaks ends nothing: the run goes on, and who connects next waits for the lock.
log=$disk/$(basename "${WORKDIR:?}")${NFS:+-$HOSTNAME}.log
echo "The log is $log"
PYTHON=.venv/bin/python exec flock .venv/lock bash launch/run.sh "$@" >>"$log" 2>&1
