#!/bin/sh
# The toolbox habit: [CUDA_VISIBLE_DEVICES=4,5] [PORT=29501] sh bin/dist_train.sh RECIPE GPUS [bin/train.py options]
# DeepSpeed's launcher ignores CUDA_VISIBLE_DEVICES when it is told a number of GPUs; tiekd/distributed/visible_devices.py
# translates it, UUIDs too.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec python3 -I "$here/../tiekd/distributed/visible_devices.py" "$here/train.py" "$@"
