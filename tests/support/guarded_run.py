"""Simulates iterations of a run with the hook `Guard`, and reads its messages from the log."""

import math
import re

import torch
from support.some_state import logged_state

from tiekd.training.hooks.guard import Guard
from tiekd.training.hooks.text_log import TextLog

MESSAGE = r"^\d{4}-.* - depth - INFO - (iteration .*|and .*|\d+ iterations in a row.*)$"


def start(work_dir, interval=4, max_in_a_row=0, **values):
    values = {"batch_size": 4, "timestamp": "now", "searches_loss_scale": False} | values
    log, state = TextLog(interval), logged_state(work_dir, **values)
    log.before_train(state)
    return Guard(log, max_in_a_row), state


def iterate(
    hook,
    state,
    loss=(0.5, 0.5),
    skipped=None,
    searches=False,
    names=(("a", "b"), ("c", "d")),
    sums=None,
):
    """Runs one iteration of two micro-batches of two samples; non-finite losses skip its step."""
    state.iteration += 1
    state.micro_losses = [
        {"loss_dpm": torch.tensor(value / 2), "loss": torch.tensor(value)} for value in loss
    ]
    state.names = [list(each) for each in names]
    state.image_sums = [
        torch.tensor(each) for each in sums or [[0.0] * len(each) for each in names]
    ]
    bad = not all(map(math.isfinite, loss))
    state.step_skipped = torch.tensor(float(bad if skipped is None else skipped))
    state.searches_loss_scale = searches
    hook.text_log.after_iteration(state)
    hook.after_iteration(state)


def told(work_dir) -> list[str]:
    return re.findall(MESSAGE, (work_dir / "now.log").read_text(), flags=re.M)
