#!/bin/sh
# Trains like the MMCV toolboxes' script of this name:
#     [CUDA_VISIBLE_DEVICES=4,5] [PORT=29501] sh bin/dist_train.sh RECIPE GPUS [train.py options]
# DeepSpeed's launcher ignores CUDA_VISIBLE_DEVICES if it is given a number of GPUs;
# tiekd/distributed/visible_devices.py translates the variable, UUIDs included.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec python3 -I "$here/../tiekd/distributed/visible_devices.py" "$here/train.py" "$@"
