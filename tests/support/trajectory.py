"""Generates the six batches of the published trajectories; a hook records losses of iterations."""

import torch
from support import golden
from support import published_networks as published

from tiekd.data.batch import Batch
from tiekd.training.hook import Hook

SHAPE = (2, 3, 64, 96)


class Recorder(Hook):
    def __init__(self):
        self.rows = []

    def after_iteration(self, state):
        row = {
            "iteration": state.iteration,
            "loss": float(state.losses["loss"]),
            "grad_norm": float(state.grad_norm),
        }
        self.rows.append(row | {"lr": state.lr})


def batches(name: str):
    for i in range(6):
        image = golden.image(f"traj:{name}:{i}:img", SHAPE)
        teacher_depth = golden.depth(
            f"traj:{name}:{i}:kd_gt", (2, 1, 64, 96), 1e-3, published.max_depth_m(name)
        )
        nothing = torch.zeros_like(teacher_depth)
        yield Batch(
            image, nothing, nothing == 0, teacher_depth, torch.eye(3).expand(2, 3, 3), ["", ""]
        )
