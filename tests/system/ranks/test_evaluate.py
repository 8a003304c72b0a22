"""Evaluation on several ranks: the figures of one, on every rank, with the weights of rank 0."""

import io
from functools import partial

import pytest
import torch
from support import two_ranks
from support.noise_frames import CPU, Frames, Slanted, protocol
from torch import nn

from tiekd.data.loading.loader import Loading
from tiekd.evaluation.evaluate import EvaluationSettings, evaluate
from tiekd.models.flip import predict
from tiekd.training.evaluation_hook import Evaluation


def figures(flip=True, **options):
    predictor = partial(predict, Slanted(), flip=flip)
    return evaluate(predictor, Frames(), protocol(flip=flip, **options), CPU)


def figures_on_a_rank(_rank):
    return [figures(batch_size=size) for size in (1, 2, 3, 7)]


def test_evaluate_two_ranks_equal_one(tmp_path):
    """Two ranks return the metrics of one rank, bit for bit."""
    alone = figures_on_a_rank(0)
    assert two_ranks.run(figures_on_a_rank, tmp_path) == [alone, alone]
    assert alone[1] == pytest.approx(alone[0], rel=1e-9)


def test_evaluate_rank_without_batches(tmp_path):
    """With fewer batches than ranks, every rank returns the same metrics."""
    first, second, third = two_ranks.run(figures_of_one_batch, tmp_path, world_size=3)
    assert first == second == third == figures(batch_size=7)


def figures_of_one_batch(_rank):
    return figures(batch_size=7)


def filled_replica(rank):
    """Returns the weights that a rank evaluates with; only rank 0 has those of training."""
    torch.manual_seed(0)
    student, replica = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
    student(torch.randn(2, 3, 5, 5))
    hook = Evaluation(EvaluationSettings(), Frames(), replica, CPU, Loading(), print)
    hook._fill_replica(student.state_dict() if rank == 0 else {})
    return student.state_dict(), replica.state_dict()


def test_fill_replica_uses_weights_of_rank_0(tmp_path):
    """Each rank's replica gets the weights and BatchNorm statistics of rank 0."""
    for student, replica in two_ranks.run(filled_replica, tmp_path):
        assert student["1.running_mean"].any()
        assert all(torch.equal(replica[name], tensor) for name, tensor in student.items())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown_on_a_rank(_rank):
    out = Terminal()
    evaluate(lambda image: image[:, :1], Frames(), protocol(batch_size=2), CPU, out=out)
    return out.getvalue()


def test_evaluate_progress_on_rank_0_counts_all(tmp_path):
    """Only rank 0 shows progress, and it counts the frames of all ranks."""
    first, second = two_ranks.run(shown_on_a_rank, tmp_path)
    assert "] 7/7, " in first.split("\r")[-1]
    assert second == ""
