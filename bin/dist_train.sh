#!/bin/sh
# The toolbox habit: [CUDA_VISIBLE_DEVICES=4,5] [PORT=29501] sh bin/dist_train.sh RECIPE GPUS [bin/train.py options]
# DeepSpeed's launcher ignores CUDA_VISIBLE_DEVICES when it is told a number of GPUs, so the list becomes --include.
set -eu
if [ $# -lt 2 ]; then
  echo "LaunchError: bin/dist_train.sh needs RECIPE and GPUS, for example: sh bin/dist_train.sh RECIPE 2" >&2
  exit 2
fi
recipe=$1
gpus=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  listed=$(echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c .)
  if [ "$listed" -ne "$gpus" ]; then
    echo "LaunchError: GPUS is $gpus, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES lists $listed; make them agree" >&2
    exit 2
  fi
  devices="--include localhost:$CUDA_VISIBLE_DEVICES"
  unset CUDA_VISIBLE_DEVICES
else
  devices="--num_gpus $gpus"
fi
# $devices is two words on purpose.
exec deepspeed $devices --master_port "${PORT:-29500}" "$here/train.py" "$recipe" "$@"
