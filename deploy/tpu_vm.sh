#!/usr/bin/env bash
# Runs an experiment on all hosts of a TPU VM slice, in containers.
#
#   deploy/tpu_vm.sh start NAME ZONE IMAGE --config CONFIG --workdir FOLDER
#   deploy/tpu_vm.sh logs NAME ZONE
#   deploy/tpu_vm.sh stop NAME ZONE
#
# `start` takes arguments of `rapo run`. IMAGE is one of deploy/Dockerfile with
# ACCELERATOR=tpu, in a registry that the hosts may read. SHARED is the folder on
# every host where the shared file system is mounted (/mnt/shared), and the work
# folder has to be in it. `stop` lets the run save first; `start` goes on.
set -euo pipefail

readonly CONTAINER=rapo
shared=${SHARED:-/mnt/shared}

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

# on WORKERS COMMAND...: runs a command on hosts of the slice.
on() {
  local workers=$1
  shift
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$workers" \
    --command="$(printf '%q ' "$@")"
}

start() {
  local image=$1
  shift
  # Hosts wait for each other for 90 s, and an image may take longer.
  on all sudo docker pull "$image"
  # What an earlier run has left; one that still runs stays, and is an error.
  on all sudo sh -c "docker rm $CONTAINER >/dev/null 2>&1 || true"
  on all sudo docker run --detach --name "$CONTAINER" --init \
    --privileged --net host --ipc host --ulimit memlock=-1 \
    --volume "$shared:$shared" --workdir "$shared" --user root \
    "$image" run --distributed "$@"
}

[[ $# -ge 3 ]] || usage
command=$1 name=$2 zone=$3
shift 3
case "$command" in
  start)
    [[ $# -ge 1 ]] || usage
    start "$@"
    ;;
  logs) on 0 sudo docker logs --follow "$CONTAINER" ;;
  stop) on all sudo docker stop --time 600 "$CONTAINER" ;;
  *) usage ;;
esac
