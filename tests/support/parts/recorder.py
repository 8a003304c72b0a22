"""A hook that writes every iteration's unrounded losses to `<work_dir>/recorded.jsonl`.

The rows also have the number of parameters that ZeRO-3 has sharded.
"""

import json
import time
from pathlib import Path

from tiekd.distributed.comm import is_main, mean_over_ranks
from tiekd.training.hook import Hook


class Recorder(Hook):
    """Writes one row per iteration.

    In a row, `skipped` is the number of optimizer steps skipped so far, and `empty` the number of
    parameters without elements on this rank between steps.

    Args:
        wait_for: path of a file; from iteration `after` on, the run waits until the file exists, so
            that a test can act in the meantime. None to never wait.
        after: the first iteration at which the run waits.
    """

    def __init__(self, wait_for: str | None = None, after: int = 1):
        self.wait_for, self.after = wait_for, after

    def after_iteration(self, state) -> None:
        row = {"iteration": state.iteration, "lr": state.lr, **mean_over_ranks(state.losses)}
        row["skipped"] = state.skipped_steps
        row["empty"] = sum(parameter.numel() == 0 for parameter in state.engine.module.parameters())
        if is_main():
            with (state.work_dir / "recorded.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        while self.wait_for and state.iteration >= self.after and not Path(self.wait_for).exists():
            time.sleep(0.05)


build = Recorder
