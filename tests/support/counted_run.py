"""Simulates iterations of a run with the hook `PixelsCount`."""

from types import SimpleNamespace

import torch
from support.some_state import logged_state

from tiekd.training.hooks.counting import PixelsCount
from tiekd.training.hooks.text_log import TextLog


def start(work_dir, interval=4, **values):
    values = {"batch_size": 4, "timestamp": "now"} | values
    log, state = TextLog(interval), logged_state(work_dir, **values)
    log.before_train(state)
    return PixelsCount(log), state


def iterate(hook, state, silog=0.0, depth=0.0):
    state.iteration += 1
    state.micro_losses = [{"loss_silog": torch.tensor(silog), "loss": torch.tensor(silog)}] * 2
    state.batch = SimpleNamespace(names=["a.jpg", "b.jpg"], depth=torch.full((2, 1, 3, 4), depth))
    state.teacher_depth = state.batch.depth
    hook.text_log.after_iteration(state)
    hook.after_iteration(state)
