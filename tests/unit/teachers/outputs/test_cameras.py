"""Focal lengths of the images that a network sees."""

import torch

from tiekd.teachers.outputs.cameras import by_camera, focal_of
from tiekd.teachers.outputs.teacher import Output


def test_focal_of_resized_images():
    """(fx + fy) / 2 of the resized image: fx follows the width, fy the height."""
    intrinsics = torch.full((3, 3, 3), torch.nan)
    intrinsics[0, 0, 0], intrinsics[0, 1, 1] = 100.0, 200.0
    intrinsics[1] = 0
    focal = focal_of(intrinsics, (0.25, 0.5))
    assert focal[0] == (100 * 0.5 + 200 * 0.25) / 2
    assert focal[1:].isnan().all(), "0 is no focal length"
    assert focal_of(intrinsics)[0] == 150


def test_by_camera_keeps_the_order_of_images():
    """Images with and without a camera come back in their places, with or without masks."""
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    intrinsics = torch.eye(3).expand(3, 3, 3).clone()
    intrinsics[1] = torch.nan

    def run(images, cameras):
        values = images[:, :1].float() + (0 if cameras is None else 10)
        return Output(values, values > 10 if masked else None)

    for masked in (False, True):
        output = by_camera(images, intrinsics, run)
        assert output.values[:, 0, 0, 0].tolist() == [10, 1, 12]
        assert (output.valid is None) is not masked
        if masked:
            assert output.valid[:, 0, 0, 0].tolist() == [False, False, True]
