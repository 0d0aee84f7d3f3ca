#!/usr/bin/env bash
# One machine, all its GPUs; and what every other file here starts. main divides each batch among the devices that JAX
# sees (CUDA_VISIBLE_DEVICES chooses), so train.batch_size must be a multiple of their number.
#
#   CONFIG=configs/synthetic_full.py:cgan WORKDIR=runs/full launch/run.sh [--config.KEY=VALUE ...]
#
# Exit code 0: finished. 75: stopped by a signal and to be started again. Any other: main's own, it failed.
# After a reboot the same line goes on; `@reboot` in a crontab does it. DRY_RUN=1 prints the command.
set -euo pipefail
: "${CONFIG:?set CONFIG to a config, as configs/synthetic_full.py:cgan}"
: "${WORKDIR:?set WORKDIR to the directory of the run}"
cd "$(dirname "$0")/.." # the config names its data relative to the repository

command=("${PYTHON:-python}" -m facedepth_jax.main "--config=$CONFIG" "--workdir=$WORKDIR" "$@")
if [[ ${DRY_RUN:-} ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi

# main exits with 0 when it has finished and when it was stopped between two steps. Only a run that comes to its end writes results.json,
# under another name and then renamed: another file than before is the mark. The file itself is none, for a finished run
# that is given more steps has it from the start. Of several processes the first writes it, before any of them exits.
results_stamp() {
  ls "$WORKDIR" >/dev/null 2>&1 || true # so that NFS looks again for what another host wrote
  [[ ! -e $WORKDIR/results.json ]] || stat --format='%i %y' "$WORKDIR/results.json"
}
before=$(results_stamp)

# Some schedulers signal every process, some only this one. While it trains, main saves at the first SIGTERM or SIGINT
# and ends at once at the second of a kind; so SIGTERM is passed on as SIGINT, and main may get both.
signals=0 child=
trap 'signals=$((signals + 1)); [[ -z $child ]] || kill -INT "$child" 2>/dev/null || true' TERM INT HUP

for ((left = ${RESTARTS:-3}; ; left--)); do
  set -m # its own process group: Ctrl-C comes through here, once
  "${command[@]}" &
  child=$!
  set +m
  ((signals == 0)) || kill -INT "$child" 2>/dev/null || true # it came before there was a child
  seen=-1
  while ((seen != signals)); do # a signal ends `wait` early
    seen=$signals code=0
    wait "$child" || code=$?
  done
  # 128 and more: it was killed (memory, a driver, the end of another of several processes) and goes on from the last
  # checkpoint. What main refuses once, it will refuse again.
  ((code >= 128 && signals == 0 && left > 0)) || break
  echo "run.sh: killed with code $code, starting again, $((left - 1)) more times." >&2
  sleep "${PAUSE_SEC:-10}"
done

if ((code == 0)) && [[ $(results_stamp) != "$before" ]]; then exit 0; fi
if ((code == 0 || signals > 0)); then exit 75; fi
exit "$code"
