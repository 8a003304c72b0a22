"""What a data set returns: samples in contract pass, and every mistake is one line."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from tiekd.data import contract
from tiekd.data.augment.augment import Augment
from tiekd.data.loading.loader import Loading, training_batches
from tiekd.data.loading.reader import BatchReader
from tiekd.data.loading.sampler import MicroBatches
from tiekd.data.sample import Sample
from tiekd.errors import DataError, RecipeError

RIGHT = Sample(
    image=torch.full((3, 24, 32), 90, dtype=torch.uint8),
    depth=torch.full((1, 24, 32), 5.0),
    inside=torch.ones(1, 24, 32, dtype=torch.bool),
    teacher_depth=None,
    intrinsics=torch.eye(3),
    name="a.png",
)
FLOATS = RIGHT.image.float()
PLANE = "it must be a torch tensor (1, 24, 32)"


class Walls(Dataset):
    """Returns the given samples."""

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def changed(**fields) -> Sample:
    return RIGHT._replace(**fields)


@pytest.mark.parametrize(
    "sample",
    [
        RIGHT,
        changed(image=FLOATS),
        changed(image=torch.zeros(3, 24, 32, dtype=torch.uint8)),
        changed(image=torch.ones(3, 24, 32, dtype=torch.uint8)),
        changed(image=torch.zeros(3, 24, 32)),
        # Resizing overshoots, and a camera's driver may leave NaN.
        changed(image=FLOATS * 3 - 10),
        changed(image=torch.full((3, 24, 32), torch.nan)),
        changed(depth=torch.ones(1, 24, 32, dtype=torch.uint16)),
        changed(teacher_depth=RIGHT.depth),
        changed(intrinsics=torch.full((3, 3), torch.nan)),
    ],
)
def test_check_sample_accepts_what_sample_allows(sample):
    """Every dtype and value that `Sample` allows passes."""
    contract.check_sample(sample, Walls(), 0)


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ((1, 2), "sample 3: is a tuple; it must be a tiekd.Sample"),
        (changed(name=7), "sample 3: name is a int; it must be a string"),
        (
            changed(image=FLOATS / 255),
            "sample 3 (a.png): image has levels 0.3529 to 0.3529; they must be 0 to 255",
        ),
        (changed(image=torch.ones(3, 24, 32)), "image has levels 1 to 1; they must be 0 to 255"),
        (changed(image=torch.linspace(-2.1, 2.6, 2304).view(3, 24, 32)), "levels -2.1 to 2.6;"),
        (changed(image=FLOATS * 100), "image has levels 9000 to 9000; they must be 0 to 255"),
        (
            changed(image=RIGHT.image.permute(1, 2, 0)),
            "image is (24, 32, 3) uint8 on cpu; it must be a torch tensor (3, H, W) uint8 or "
            "float32 on cpu",
        ),
        (changed(image=RIGHT.image[:1]), "image is (1, 24, 32) uint8 on cpu; it must be"),
        (changed(image=RIGHT.image[None]), "image is (1, 3, 24, 32) uint8 on cpu; it must be"),
        (changed(image=RIGHT.image.numpy()), "image is a numpy.ndarray; it must be a torch tensor"),
        (changed(image=RIGHT.image.double()), "image is (3, 24, 32) float64 on cpu; it must be"),
        (changed(image=RIGHT.image[:, :0]), "image is (3, 0, 32) uint8 on cpu; it must be"),
        (changed(image=RIGHT.image.to("meta")), "image is (3, 24, 32) uint8 on meta; it must be"),
        (changed(depth=RIGHT.depth[0]), f"depth is (24, 32) float32 on cpu; {PLANE}"),
        (changed(depth=RIGHT.depth[..., ::2]), f"depth is (1, 24, 16) float32 on cpu; {PLANE}"),
        (changed(depth=RIGHT.depth.double()), f"depth is (1, 24, 32) float64 on cpu; {PLANE}"),
        (changed(depth=np.ones((1, 24, 32))), f"depth is a numpy.ndarray; {PLANE} float32"),
        (changed(inside=RIGHT.depth), f"inside is (1, 24, 32) float32 on cpu; {PLANE} bool"),
        (changed(inside=None), f"inside is None; {PLANE} bool"),
        (changed(teacher_depth=RIGHT.depth.half()), "teacher_depth is (1, 24, 32) float16 on cpu"),
        (
            changed(intrinsics=None),
            "intrinsics is None; it must be a torch tensor (3, 3) float32; fill it with NaN where "
            "the camera isn't known",
        ),
        (changed(intrinsics=torch.eye(4)), "intrinsics is (4, 4) float32 on cpu; it must be"),
        (changed(intrinsics=torch.eye(3).double()), "intrinsics is (3, 3) float64 on cpu; it must"),
    ],
)
def test_check_sample_names_field_got_and_wanted(sample, told):
    """A field out of contract is named with data set, sample, what it is and what it must be."""
    with pytest.raises(DataError) as error:
        contract.check_sample(sample, Walls(), 3)
    assert str(error.value).startswith(f"data ({__name__}.Walls): sample 3")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.kind == contract.KIND


@pytest.mark.parametrize(
    ("dataset", "kind", "told"),
    [
        (iter([]), RecipeError, "build made a list_iterator without __len__ and __getitem__;"),
        (Walls(), DataError, "the dataset is empty"),
    ],
)
def test_check_dataset_refuses_what_cannot_be_read(dataset, kind, told):
    """What has no length or no samples is refused with its name in the recipe."""
    with pytest.raises(kind, match=rf"^data \(mine.walls\): {told}"):
        contract.check_dataset(dataset, "data (mine.walls)")
    contract.check_dataset(Walls(RIGHT), "data (mine.walls)")


AUGMENT = Augment(rotate_p=0, colour_p=0)


def reader_of(*samples, max_errors=None) -> BatchReader:
    return BatchReader(Walls(*samples), AUGMENT, 0, max_errors=max_errors)


@pytest.mark.parametrize("max_errors", [None, 5])
def test_reader_refuses_first_sample_out_of_contract(max_errors):
    """A first sample out of contract is the batch's error, also where errors are skipped."""
    wrong = changed(image=FLOATS / 255)
    error = reader_of(wrong, RIGHT, RIGHT, max_errors=max_errors).read([(0, 0), (0, 1)])
    assert isinstance(error, DataError)
    assert "sample 0 (a.png): image has levels" in str(error)


def test_reader_error_passes_from_worker():
    """A worker's error about the first sample arrives as its one line."""
    with pytest.raises(DataError, match=r"sample \d \(a.png\): image has levels"):
        next(
            training_batches(
                Walls(*[changed(image=FLOATS / 255)] * 4),
                MicroBatches(4, 2, range(1), seed=0),
                AUGMENT,
                torch.device("cpu"),
                loading=Loading(workers=1),
            )
        )


def test_reader_checks_first_sample_alone(monkeypatch):
    """One sample of a reader is checked, however many it reads."""
    checked = []
    monkeypatch.setattr(contract, "check_sample", lambda _, __, index: checked.append(index))
    reader = reader_of(*[RIGHT] * 4)
    for first in (2, 0, 2):
        reader.read([(0, first), (0, first + 1)])
    assert checked == [2]


@pytest.mark.parametrize(
    "wrong", [changed(image=RIGHT.image[:1]), changed(intrinsics=None), changed(depth=None)]
)
def test_reader_names_later_sample_that_batch_fails_on(wrong):
    """A later sample that can't be collated is named, not the error that it led to."""
    error = reader_of(RIGHT, RIGHT, RIGHT, wrong).read([(0, 2), (0, 3)])
    assert isinstance(error, DataError)
    assert f"data ({__name__}.Walls): sample 3 (a.png): " in str(error)


def test_reader_leaves_dataset_its_own_error():
    """An exception of the data set's own code stays as it is."""

    class Broken(Walls):
        def __getitem__(self, index):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        BatchReader(Broken(RIGHT), AUGMENT, 0).read([(0, 0)])
