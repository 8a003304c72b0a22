"""The data's benchmarks need torch alone."""

import subprocess
import sys

from support.programs import ROOT


def test_data_benchmarks_need_torch_only():
    """The data benchmarks import neither deepspeed nor tensorboard."""
    code = (
        "import argparse, sys; from tiekd.tools.benchmarks import eval as e, loader as l\n"
        "args = argparse.Namespace(device='cpu', rounds=1, data=None, kb_crop=(48, 96),\n"
        "    crop=(40, 50), batch_size=2, student=None, student_frames=1)\n"
        "e.run(args), l.run(args)\n"
        "late = ('deepspeed', 'tensorboard')\n"
        "print([name for name in sys.modules if name.split('.')[0] in late])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
