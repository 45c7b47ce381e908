#!/usr/bin/env bash
# Runs an experiment in a container with all GPUs of this machine.
#
#   deploy/gpu_box.sh --config quickstart --workdir runs/quickstart
#
# What follows are arguments of `rapo run`; paths are of the folder in which this
# starts, which the container sees. IMAGE names another image. It is built if it
# is not there. Needs Docker and the NVIDIA Container Toolkit.
set -euo pipefail

image=${IMAGE:-rapo_jax:cuda}
clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if ! docker image inspect "$image" >/dev/null 2>&1; then
  docker build --file "$clone/deploy/Dockerfile" --tag "$image" \
    --build-arg ACCELERATOR=cuda "$clone"
fi

# The python tool keeps programs in by namespaces of their own, which Docker's
# profiles forbid. Ctrl+C and `docker stop` save: give them time.
exec docker run --rm --init --gpus all --ipc host --stop-timeout 600 \
  --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
  --security-opt systempaths=unconfined \
  --user "$(id -u):$(id -g)" --env HOME=/runs \
  --volume "$PWD:/runs" \
  "$image" run "$@"
