"""The ground of the system tests: rendered scenes and a teacher's weights, made once a session."""

import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from support import recipes  # noqa: E402

from tiekd.data.datasets.scenes import write_kitti_layout  # noqa: E402
from tiekd.models.build import build_network  # noqa: E402
from tiekd.workdir.weights_file import write_weights  # noqa: E402

# A test that is terminated must still end the processes that it started; by default SIGTERM ends
# Python at once.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
# Programs that a shell starts in the background ignore SIGINT, and so would those that are tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ground(tmp_path_factory) -> Path:
    """A folder with `scenes/` and `teacher.pth` (runs.TEACHER).

    The scenes are 16 training and 4 validation frames.
    """
    folder = tmp_path_factory.mktemp("ground")
    write_kitti_layout(folder / "scenes", 0, 64, 128, 16, 4)
    torch.manual_seed(1)
    network = build_network(recipes.TEACHER)
    write_weights(folder / "teacher.pth", network.state_dict(), recipes.TEACHER, 0)
    return folder
