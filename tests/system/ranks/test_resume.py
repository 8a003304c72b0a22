"""Every rank resumes with its own hooks, random states and log."""

import json
import os
import random

import numpy as np
import torch
from support import two_ranks

from tiekd.distributed import process_group
from tiekd.engine import checkpoint
from tiekd.training import resume
from tiekd.training.hook import Hook
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.state import TrainState
from tiekd.workdir import checkpoints

RECIPE = {"network": {"min_depth": 1.0}}


class Counter(Hook):
    def __init__(self, value: int):
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict) -> None:
        self.value = state_dict["value"]


def make_engine():
    from tiekd.engine.build import build_engine
    from tiekd.engine.config import resolve

    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, fused=True)
    return build_engine(network, optimizer, resolve({}, batch_size=2, clip_norm=1.0, world_size=2))


def make_state(work_dir, timestamp: str, values: list[int]) -> tuple[TrainState, TextLog]:
    log = TextLog(1)
    state = TrainState(
        make_engine(), RECIPE, work_dir, timestamp, 2, 1, 9, 9, True, [log, *map(Counter, values)]
    )
    log.open(work_dir, timestamp)
    return state, log


def draw() -> list[float]:
    return [*torch.rand(2).tolist(), *np.random.rand(2).tolist(), random.random()]


def stop_and_go_on(rank: int, work_dir) -> dict:
    """Two hooks of one class; a row of the log at iteration 3, where it is saved, and one after."""
    import deepspeed

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    state, log = make_state(work_dir, "20240101_120000", [10 + rank, 20 + rank])
    process_group.seed_everything(rank, deterministic=False)
    log.write_json({"mode": "train", "iter": 3})
    names = ("TextLog", "Counter", "Counter_2")
    hook_states = {key: hook.state_dict() for key, hook in zip(names, state.hooks, strict=True)}
    path = checkpoint.save(state.engine, work_dir / checkpoints.FOLDER, 3, hook_states, RECIPE)
    drawn = draw()
    log.write_json({"mode": "train", "iter": 4})
    log.after_train(state)

    state, log = make_state(work_dir, "20240101_130000", [0, 0])
    process_group.seed_everything(99, deterministic=False)
    resume.restore(state, path, log)
    log.after_train(state)
    return {
        "iteration": state.iteration,
        "counters": [hook.value for hook in state.hooks[1:]],
        "drawn": drawn,
        "drawn again": draw(),
    }


def test_restore_gives_each_rank_its_state(tmp_path):
    """Each rank restores its hook states and random numbers, and later log rows are dropped."""
    ranks = two_ranks.run(stop_and_go_on, tmp_path, tmp_path)
    assert [rank["iteration"] for rank in ranks] == [3, 3]
    assert [rank["counters"] for rank in ranks] == [[10, 20], [11, 21]]
    assert ranks[0]["drawn"] != ranks[1]["drawn"]
    for rank in ranks:
        assert rank["drawn again"] == rank["drawn"]
    rows = [
        json.loads(line)
        for line in (tmp_path / "20240101_120000.log.json").read_text().splitlines()
    ]
    assert [row["iter"] for row in rows] == [3]
