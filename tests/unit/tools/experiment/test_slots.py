"""The share of a machine of each of several runs at the same time."""

import os

import pytest
import torch

from tiekd.errors import LaunchError
from tiekd.tools.experiment.slots import variables_of_slots


def test_one_slot_has_the_whole_machine():
    """Without --jobs no variable is changed."""
    assert variables_of_slots(1, ["--num_gpus=2"], {"CUDA_VISIBLE_DEVICES": "0,1"}) == [{}]


def test_slots_have_gpus_of_their_own():
    """Each slot has as many of the listed GPUs as a run has ranks, and none twice."""
    found = variables_of_slots(2, ["--num_gpus=2"], {"CUDA_VISIBLE_DEVICES": "5,3,1,0,7"})
    assert found == [{"CUDA_VISIBLE_DEVICES": "5,3"}, {"CUDA_VISIBLE_DEVICES": "1,0"}]


def test_slots_share_the_threads_of_a_cpu(monkeypatch):
    """Without a GPU the threads are shared, unless the user has set their number."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert variables_of_slots(2, [], {}) == [{"OMP_NUM_THREADS": "2"}] * 2
    assert variables_of_slots(9, [], {})[0] == {"OMP_NUM_THREADS": "1"}
    assert variables_of_slots(2, [], {"OMP_NUM_THREADS": "4"}) == [{"OMP_NUM_THREADS": "4"}] * 2
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert variables_of_slots(2, [], hidden) == [{"OMP_NUM_THREADS": "2"}] * 2


@pytest.mark.parametrize(
    ("launcher", "environment", "line"),
    [
        (["--num_gpus=2"], {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "needs 4 GPUs, 2 for each run"),
        (["--num_gpus=1"], {}, "all runs would take the same GPU"),
        (["--hostfile=hosts"], {"CUDA_VISIBLE_DEVICES": "0,1"}, "several machines"),
    ],
)
def test_slots_without_enough_gpus_are_refused(launcher, environment, line, monkeypatch):
    """Too few GPUs, unlisted ones and several machines are refused in one line."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LaunchError, match=f"^--jobs 2: .*{line}"):
        variables_of_slots(2, launcher, environment)
