#!/usr/bin/env bash
# GKE: prints a JobSet of a pod on each host with all its chips, of a TPU slice or of GPU nodes.
#
#   export IMAGE=... CLAIM=... CONFIG=configs/synthetic_full.py:cgan
#   launch/gke.sh tpu [--config.KEY=VALUE ...] | kubectl apply -f -
#
# IMAGE: made with launch/Dockerfile. CLAIM: a PersistentVolumeClaim, read-write, that a pod on another node can mount
# again; runs/ and data/ lie on it. A file system, no bucket: checkpoints are renamed when complete.
# NAME (facedepth) is the JobSet's and the run's. SPOT=1 takes spot nodes. CHIPS (8) and ACCELERATOR, the node's label:
# tpu: tpu-v6e-slice (default) or tpu-v5-lite-podslice, TOPOLOGY=2x4; gpu: nvidia-h100-80gb (default), nvidia-l4, ...
# HOSTS (1): several need a CLAIM that all mount at once; TPUs of 16 chips are TOPOLOGY=4x4 HOSTS=4 CHIPS=4.
# The cluster needs the JobSet controller and Kubernetes 1.31 or newer.
set -euo pipefail
kind=${1:-}
: "${IMAGE:?set IMAGE to an image made with launch/Dockerfile}"
: "${CLAIM:?set CLAIM to a PersistentVolumeClaim for runs and data}"
: "${CONFIG:?set CONFIG to a config, as configs/synthetic_full.py:cgan}"
name=${NAME:-facedepth} chips=${CHIPS:-8} hosts=${HOSTS:-1}

yaml() { printf "'%s'" "${1//\'/\'\'}"; } # a YAML string, whatever is in it

case $kind in
  tpu)
    process=auto
    resource=google.com/tpu
    selector="cloud.google.com/gke-tpu-accelerator: $(yaml "${ACCELERATOR:-tpu-v6e-slice}")
                cloud.google.com/gke-tpu-topology: $(yaml "${TOPOLOGY:-2x4}")"
    ;;
  gpu)
    # Kubernetes puts the pod's index there; the name is the one that a JobSet gives its first pod.
    process="\$(JOB_COMPLETION_INDEX)/$hosts@$name-train-0-0.$name:1234"
    resource=nvidia.com/gpu
    selector="cloud.google.com/gke-accelerator: $(yaml "${ACCELERATOR:-nvidia-h100-80gb}")"
    ;;
  *)
    echo "error: say tpu or gpu: launch/gke.sh tpu" >&2
    exit 1
    ;;
esac
shift
if ((hosts > 1)); then set -- "--process=$process" "$@"; fi
if [[ ${SPOT:-} ]]; then
  selector+="
                cloud.google.com/gke-spot: 'true'"
fi
arguments=
for argument in "$@"; do
  arguments+="
                    - $(yaml "$argument")"
done

cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "$name")
spec:
  replicatedJobs:
    - name: train
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          parallelism: $hosts
          completions: $hosts
          backoffLimit: $((3 * hosts))
          # Stopped and saved, or the node was taken away: again, as often as it happens. What main refuses: never.
          podFailurePolicy:
            rules:
              - action: Ignore
                onExitCodes: {containerName: main, operator: In, values: [75]}
              - action: Ignore
                onPodConditions: [{type: DisruptionTarget, status: 'True'}]
              - action: FailJob
                onExitCodes: {containerName: main, operator: In, values: [1, 2, 3]}
          template:
            spec:
              restartPolicy: Never
              # A spot node may give less (15 s by default); then the last regular checkpoint counts.
              terminationGracePeriodSeconds: 60
              nodeSelector:
                $selector
              containers:
                - name: main
                  image: $(yaml "$IMAGE")
                  command: [launch/run.sh]
                  args:$([[ $arguments ]] && echo "$arguments" || echo ' []')
                  env:
                    - {name: CONFIG, value: $(yaml "$CONFIG")}
                    - {name: WORKDIR, value: $(yaml "runs/$name")}
                  resources:
                    limits:
                      $resource: $(yaml "$chips")
                  volumeMounts:
                    - {name: disk, mountPath: /facedepth/runs, subPath: runs}
                    - {name: disk, mountPath: /facedepth/data, subPath: data}
                    - {name: memory, mountPath: /dev/shm} # 64 MB otherwise, too little for several GPUs
              volumes:
                - name: disk
                  persistentVolumeClaim: {claimName: $(yaml "$CLAIM")}
                - name: memory
                  emptyDir: {medium: Memory}
YAML
