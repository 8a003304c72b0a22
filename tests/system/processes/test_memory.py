"""A CPU rank's memory, in a fresh process: the freed heap of other tests would serve the tensor."""

import json
import subprocess
import sys

from support.programs import ROOT

MB = 1_000_000
PROGRAM = """
import json
import torch
from tiekd.distributed import memory
cpu = torch.device("cpu")
before = memory.peak_bytes(cpu)
block = torch.ones(100_000_000 // 4)
grown, held = memory.peak_bytes(cpu), memory.held_bytes(cpu)
del block
memory.restart_peak(cpu)
print(json.dumps([before, grown, held, memory.peak_bytes(cpu), memory.free_bytes(cpu)]))
"""


def test_restart_peak_resets_memory_peak():
    """A tensor raises the peak, and once it is freed a restarted peak is without it."""
    words = [sys.executable, "-c", PROGRAM]
    told = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    before, grown, held, restarted, free = json.loads(told)
    assert grown >= before
    assert held >= 100 * MB
    assert restarted < grown - 50 * MB
    assert free > 0
