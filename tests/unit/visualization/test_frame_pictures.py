"""An image of each frame: four parts with scales, in the data set's order.

Sparse and dense ground truth are shown alike.
"""

import numpy as np
import torch
from PIL import Image
from support.noise_frames import CPU, Frames, protocol

from tiekd.evaluation.evaluate import evaluate
from tiekd.visualization import pictures
from tiekd.visualization.frame_pictures import FramePictures, dilation_radius, frame_picture


def test_frame_pictures_writes_file_per_frame(tmp_path):
    """Each frame gets a file named by its index and name, in one common size."""
    watcher = FramePictures(tmp_path, 12, 80.0)
    evaluate(
        lambda i: i.new_full((len(i), 1, 12, 20), 20.0),
        Frames(),
        protocol(flip=False, batch_size=2),
        CPU,
        watchers=[watcher],
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"0{i}_{i}.png" for i in range(7)]
    shapes = {np.asarray(Image.open(path)).shape for path in tmp_path.iterdir()}
    assert len(shapes) == 1
    assert shapes.pop()[1] > 2 * 320  # small frames are grown


def test_growth_only_for_sparse_depth():
    """Dense depth isn't dilated, and sparse depth is."""
    dense, sparse = np.full((20, 30), 10.0), np.zeros((20, 30))
    sparse[::5, ::5] = 10
    assert dilation_radius(dense) == 0
    assert dilation_radius(sparse) == 1


def test_frame_picture_has_four_parts():
    """The figure holds the image, the ground truth, the prediction and the error map."""
    truth = np.full((100, 400), 40.0, dtype=np.float32)
    truth[:, 200:] = 0
    depth = np.full((100, 400), 45.0, dtype=np.float32)
    image = torch.zeros(3, 100, 400).numpy()
    drawn = frame_picture(image, truth, depth, 80.0, "name.png  abs_rel 0.1")
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] > 800
    assert drawn.shape[0] > 300
    left, right = drawn[100], drawn[100 + (drawn.shape[0] - 34) // 2]
    (expected,) = pictures.colourise(np.full((1, 1), 40.0), 80.0)[0]
    assert left[50].tolist() == pictures.denormalise(image)[0, 0].tolist()
    assert left[450].tolist() == expected.tolist()
    assert left[650].tolist() == list(pictures.UNKNOWN)
    assert right[50].tolist() == pictures.colourise(depth, 80.0)[0, 0].tolist()
    assert right[450].tolist() == pictures.error_map(depth, truth, 10.0)[0, 0].tolist()
    assert right[650].tolist() == list(pictures.UNKNOWN)
