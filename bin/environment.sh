# Installs tiekd into the active virtual environment, or into .venv in the checkout, created if it
# is missing. Sourced by bin/demo and bin/test. First argument: extras to install, such as "[test]".

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  . .venv/bin/activate
fi
export ORT_DISABLE_TELEMETRY=1  # else ONNX Runtime reports each start to its maker
check="import deepspeed, importlib.metadata as m; m.version('tiekd')"
[ -z "${1:-}" ] || check="$check; import pytest, xdist, ruff, av, onnxruntime, onnxscript, matplotlib, timm, transformers, cv2"
if ! python -c "$check" >/dev/null 2>&1; then
  echo "Installing into ${VIRTUAL_ENV:-$CONDA_PREFIX} (5.5 GB, a minute or more) ..."
  python -m pip install --disable-pip-version-check -q -e ".${1:-}"
fi
