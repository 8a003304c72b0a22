"""Which iterations of a run bin/show_batch.py shows, and what it says of their samples."""

import pytest
import torch

from tiekd.data.augment.augment import Augment
from tiekd.data.loading.loader import Loading
from tiekd.data.sample import Sample
from tiekd.errors import LaunchError
from tiekd.tools import show_batch
from tiekd.training.settings import Recipe, TrainSettings


@pytest.mark.parametrize("length", [{"epochs": 2}, {"iterations": 6}])
def test_check_iteration_outside_the_run_refused(length):
    """Iterations from 1 to the run's last are shown; any other is refused with both ends named."""
    recipe = Recipe({"train": {"batch_size": 3, **length}, "data": {}})
    dataset = range(9)
    for iteration in (1, 6):
        show_batch.check_iteration(iteration, dataset, recipe)
    for iteration in (-1, 0, 7, 999999):
        with pytest.raises(LaunchError) as error:
            show_batch.check_iteration(iteration, dataset, recipe)
        told = f"--iteration {iteration}: the run has iterations 1 to 6"
        assert str(error.value) == told


def test_describe_names_the_zoom():
    """The zoom that is shown is the one by which the sample's focal length has changed."""
    matrix = torch.tensor([[200.0, 0, 79.5], [0, 200.0, 47.5], [0, 0, 1]])
    image = torch.zeros(3, 96, 160, dtype=torch.uint8)
    inside = torch.ones(1, 96, 160, dtype=torch.bool)
    frames = [Sample(image, torch.ones(1, 96, 160), inside, None, matrix, "a")] * 3
    train = TrainSettings(iterations=6, batch_size=2)
    for zoom in ((0.7, 1.4), None):
        augment = Augment(zoom=zoom, rotate_deg=0.0)
        # The third iteration repeats the frames, so its numbering is beyond theirs.
        parts = list(show_batch.global_batch(frames, augment, Loading(), train, 1, 1, 3))
        told = [show_batch.describe(part, i, None) for part in parts for i in range(2)]
        assert all(("zoomed by" in text) == (zoom is not None) for text in told)
        if zoom is not None:
            focals = [float(m[0, 0]) for part in parts for m in part.batch.intrinsics]
            shown = [float(text.split("zoomed by ")[1].split(",")[0]) for text in told]
            assert shown == pytest.approx([focal / 200 for focal in focals], abs=0.01)
            assert abs(shown[0] - shown[1]) > 0.05
