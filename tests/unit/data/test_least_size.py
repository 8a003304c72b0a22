"""The smallest working size that a network can take."""

import pytest
import torch
from torch import nn

from tiekd.data import least_size
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.sample import Sample
from tiekd.errors import DataError, RecipeError


def sample_of(height: int, width: int, name: str) -> Sample:
    depth = torch.ones(1, height, width)
    return Sample(
        torch.zeros(3, height, width, dtype=torch.uint8), depth, depth > 0, None, torch.eye(3), name
    )


class Frames(torch.utils.data.Dataset):
    """Frames of these sizes; None for one that can't be read."""

    def __init__(self, *sizes: tuple[int, int] | None):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if self.sizes[index] is None:
            raise DataError(f"{index}.png: torn")
        return sample_of(*self.sizes[index], f"{index}.png")


def test_least_side_is_the_encoders_largest_stride():
    """The least side is the largest stride, and 1 for a network that doesn't state its strides."""
    network = nn.Module()
    assert least_size.least_side(network) == 1
    network.encoder = nn.Module()
    network.encoder.strides = (2, 4, 16, 8)
    assert least_size.least_side(network) == 16


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([(64, 100)], "0.png: 64x100 would be 6x10"),
        ([(160, 160), (64, 100), (160, 160)], "1.png: 64x100"),
        ([(160, 160), (160, 160), (160, 79)], "2.png: 160x79 would be 16x8"),
        ([None, (64, 100)], "1.png: 64x100"),
    ],
)
def test_check_frames_names_key_size_and_least(sizes, told):
    """A frame that is too small is refused with the key, both sizes and the least side."""
    with pytest.raises(RecipeError) as error:
        least_size.check_frames(Frames(*sizes), Resize(scale=0.1), 16, "data.resize of a")
    message = str(error.value)
    assert message.startswith(f"data.resize of a: {told}")
    assert message.endswith("this network needs at least 16 pixels a side; set a larger size")


@pytest.mark.parametrize(
    "resize", [OWN_SIZE, Resize(at_most=(4, 4)), Resize(scale=0.25), Resize(16, 16, "contain")]
)
def test_check_frames_allows_least_side_and_own_size(resize):
    """Frames of exactly the least side pass, and so do those that aren't resized by a key."""
    least_size.check_frames(Frames((64, 100), None), resize, 16)
