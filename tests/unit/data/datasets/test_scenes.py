"""The built-in scenes.

The same bytes everywhere, depth that agrees with geometry, and a layout that is whole or not there.
"""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tiekd.data.datasets import scenes
from tiekd.data.datasets.scenes import (
    FIRST_HELD_OUT_INDEX,
    Cameras,
    ScenesOptions,
    render,
    write_kitti_layout,
)
from tiekd.data.image_io import read_image, read_levels
from tiekd.data.rendering.casting import GROUND, SKY, cast, ellipsoid, look, prism, rays
from tiekd.data.rendering.layout import random_street
from tiekd.data.rendering.objects import PLAIN, Draw, frame
from tiekd.data.rendering.texture import strip, stripes
from tiekd.errors import DataError, RecipeError

SIZE = 64, 208


def test_render_differs_by_seed_and_index():
    """Another seed or index gives another image."""
    images = [render(seed, index, *SIZE).image for seed, index in ((0, 0), (0, 1), (1, 0))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(images[one].astype(int) - images[other]).mean() > 10


def test_render_same_street_at_every_size():
    """A scene shows the same street at every size."""
    small, large = render(0, 4, 64, 208), render(0, 4, 128, 416)
    both = (small.depth > 0) & (large.depth[::2, ::2] > 0)
    close = np.abs(small.depth - large.depth[::2, ::2])[both] < 0.03 * small.depth[both]
    assert close.mean() > 0.85


def test_render_dtypes_intrinsics_and_ranges():
    """A rendered scene has the documented dtypes, intrinsics and depth range."""
    scene = render(0, 0, 375, 1242)
    assert scene.image.shape == (375, 1242, 3)
    assert scene.image.dtype == np.uint8
    assert scene.depth.dtype == scene.sparse_depth.dtype == np.float32
    assert scene.intrinsics.dtype == np.float64
    expected = [[721.5377, 0, 609.5593], [0, 721.5377, 172.854], [0, 0, 1]]
    np.testing.assert_allclose(scene.intrinsics, expected, rtol=1e-12)
    assert scene.depth.max() <= 80.0
    assert scene.depth[scene.depth > 0].min() > 1.0


def test_cast_ground_depth_is_plane():
    """The depth of the ground is that of a plane below the horizon."""
    camera = look(1.65, 0.0, 0.0, 0.0, 128, 416)
    hits = cast(camera, [])
    rows = np.arange(128)[:, None]
    expected = np.broadcast_to(1.65 * camera.focal / np.maximum(rows - camera.cy, 1e-9), (128, 416))
    ground = hits.face == GROUND
    np.testing.assert_allclose(1 / hits.inverse_depth[ground], expected[ground], rtol=1e-4)
    assert (hits.face[:59] == SKY).all()  # the horizon is at cy = 59.0
    assert ground[60:].all()


def world_points(camera, hits):
    x, y = rays(camera)
    ray = x[..., None] * camera.axes[0] + y[..., None] * camera.axes[1] + camera.axes[2]
    return (
        camera.position
        + ray / np.where(hits.inverse_depth > 0, hits.inverse_depth, np.inf)[..., None]
    )


def test_cast_points_lie_on_solids():
    """The points of a street lie on the ground and on the faces of its solids."""
    camera, street = (
        look(1.6, 0.03, 0.01, -0.005, *SIZE),
        random_street(Draw(np.random.SeedSequence(2))),
    )
    hits = cast(camera, street.solids)
    points, first = world_points(camera, hits), 1
    assert np.abs(points[hits.face == GROUND][:, 1] / camera.position[1]).max() < 1e-2
    seen = 0
    for solid in street.solids:
        for number in range(len(solid.offsets)):
            at = points[hits.face == first + number]
            if len(at) and solid.radii is None:
                distance = at @ solid.normals.T - solid.offsets
                assert np.abs(distance[:, number]).max() < 2e-3
                assert distance.max() < 2e-3
                seen += len(at)
            elif len(at):
                assert np.abs((((at - solid.centre) / solid.radii) ** 2).sum(-1) - 1).max() < 2e-2
                seen += len(at)
        first += len(solid.offsets)
    assert seen > 1000


def test_cast_rotated_box_equals_slab_test():
    """A rotated box covers the pixels, and has the depths, that the slab method gives."""
    camera = look(1.65, 0.02, -0.01, 0.01, 96, 312)
    ahead, up, right = frame(0.5)
    profile = [(-2, 0.4), (2, 0.4), (2, 1.9), (-2, 1.9)]
    box = prism(profile, (1.0, 0.0, 9.0), (ahead, up, right), 0.9, PLAIN, (1, 1, 1))
    hits = cast(camera, [box])
    x, y = rays(camera)
    ray = x[..., None] * camera.axes[0] + y[..., None] * camera.axes[1] + camera.axes[2]
    axes = np.array([ahead, up, right])
    start, way = axes @ (camera.position - [1.0, 0.0, 9.0]), ray @ axes.T
    low, high = (np.array([-2, 0.4, -0.9]) - start) / way, (np.array([2, 1.9, 0.9]) - start) / way
    enter, leave = np.minimum(low, high).max(-1), np.maximum(low, high).min(-1)
    expected = (enter < leave) & (enter > 0)
    assert expected.sum() > 500
    assert ((hits.face > GROUND) == expected).mean() > 0.999
    both = expected & (hits.face > GROUND)
    np.testing.assert_allclose(1 / hits.inverse_depth[both], enter[both], rtol=1e-4)


def test_cast_nearer_solid_hides_farther():
    """A nearer solid hides a farther one in either order."""
    camera = look(1.65, 0.0, 0.0, 0.0, *SIZE)
    near, far = (ellipsoid((0, 1.65, z), (1, 1, 1), PLAIN, (1, 1, 1)) for z in (8, 20))
    for solids in ([near, far], [far, near]):
        hits = cast(camera, solids)
        assert 1 / hits.inverse_depth.max() == pytest.approx(6.0, rel=0.2)
        assert 1 / hits.inverse_depth[round(camera.cy), round(camera.cx)] == pytest.approx(
            7.0, rel=1e-3
        )


def test_cast_solid_across_camera_plane_is_seen():
    """A solid that crosses the camera plane is seen at its true depth."""
    wall = prism([(-5, 0), (20, 0), (20, 6), (-5, 6)], (4, 0, 0), frame(0.0), 1.0, PLAIN, (1, 1, 1))
    camera = look(1.65, 0.0, 0.0, 0.0, *SIZE)
    depth = 1 / cast(camera, [wall]).inverse_depth[round(camera.cy), -1]
    assert depth == pytest.approx(3.0 * camera.focal / (SIZE[1] - 1 - camera.cx), rel=1e-3)


@pytest.mark.parametrize("size", [(64, 208), (128, 416), (352, 704)])
def test_render_sparse_depth_is_share_of_dense(size):
    """Sparse depth is 3 to 5 % of the dense depth, with equal values."""
    for index in range(4):
        scene = render(0, index, *size)
        measured = scene.sparse_depth > 0
        assert 0.03 < measured.mean() < 0.05
        assert np.array_equal(scene.sparse_depth[measured], scene.depth[measured])


def test_render_lidar_rows_leave_top_empty():
    """Sparse depth lies on scan rows and leaves the upper part of the image empty."""
    measured = render(0, 2, 375, 1242).sparse_depth > 0
    slope_of_top_beam = math.tan(math.radians(2.0))
    assert not measured[: int(172.854 - 1.3 * 721.5377 * slope_of_top_beam)].any()
    middle = measured[:, 590:630].mean(1)[
        200:370
    ]  # beams are flat here: sampled rows alternate with empty ones
    assert (middle == 0).mean() > 0.4
    assert middle.max() > 0.2


def test_render_sky_has_no_depth():
    """The sky and everything beyond 80 m have no depth; nearer surfaces have."""
    for index in range(4):
        camera_seed, street_seed = np.random.SeedSequence([0, index]).spawn(4)[:2]
        hits = cast(
            scenes.random_camera(camera_seed, *SIZE), random_street(Draw(street_seed)).solids
        )
        depth = render(0, index, *SIZE).depth
        assert (depth[hits.face == SKY] == 0).all()
        assert (depth[hits.inverse_depth > 1 / 79.9] > 0).all()
        assert (depth[hits.inverse_depth < 1 / 80.1] == 0).all()


def test_texture_finer_than_pixel_gives_mean():
    """A pattern that is finer than a pixel gives its mean."""
    at = np.linspace(0, 3, 7, dtype=np.float32)
    np.testing.assert_allclose(stripes(at, 0.01, 0.3, np.full(7, 5.0, np.float32)), 0.3, atol=2e-3)
    np.testing.assert_allclose(
        strip(at, 1.0, 0.25, np.full(7, 0.01, np.float32)), [0, 0, 1, 0, 0, 0, 0], atol=1e-5
    )
    np.testing.assert_allclose(
        strip(at, 1.0, 0.25, np.full(7, 1.0, np.float32))[:4], [0, 0.25, 0.5, 0.25], atol=1e-6
    )


@pytest.mark.parametrize(
    "arguments", [(-1, 0, 64, 208), (0, -1, 64, 208), (0, 0, 16, 208), (0, 0, 64, 31)]
)
def test_render_refuses_wrong_arguments(arguments):
    """A negative seed or index, or a size that is too small, raises a `RecipeError`."""
    with pytest.raises(RecipeError, match="must be"):
        render(*arguments)


def test_write_kitti_layout_writes_split_and_files(tmp_path):
    """`write_kitti_layout` writes split files, images and depth maps in KITTI's layout."""
    root = tmp_path / "deep" / "set"
    write_kitti_layout(root, 1, *SIZE, 3, 2, dense=["gt_dense"])
    train, test = (
        (root / f"kitti_eigen_{split}.txt").read_text().splitlines() for split in ("train", "test")
    )
    assert len(train) == 3
    assert len(test) == 2
    drive = "2000_01_01_drive_0001_sync"
    depth_path = f"{drive}/proj_depth/groundtruth/image_02/0000000001.png"
    assert train[1] == f"2000_01_01/{drive}/image_02/data/0000000001.png {depth_path} 120.8372"
    scene = render(1, FIRST_HELD_OUT_INDEX + 1, *SIZE)
    photo, depth, _ = test[1].split()
    assert np.array_equal(read_image(root / "input" / photo).permute(1, 2, 0).numpy(), scene.image)
    for folder, exact in (("gt_depth", scene.sparse_depth), ("gt_dense", scene.depth)):
        stored = read_levels(root / folder / depth)[0].numpy() / np.float32(256)
        assert np.abs(stored - exact).max() <= 0.5 / 256
        assert ((stored > 0) == (exact > 0)).all()
    assert len(list((root / "gt_dense").rglob("*.png"))) == 2
    assert [path.name for path in root.parent.iterdir()] == ["set"]


def test_build_dense_has_ground_truth_wherever_a_surface_is(tmp_path):
    """With `dense` training and validation frames have the exact depth; a sparse set is another."""
    size = dict(zip(("height", "width"), SIZE, strict=True))
    options = ScenesOptions(str(tmp_path / "set"), **size, num_train=2, num_val=1, dense=True)
    for split, index in (("train", 1), ("val", FIRST_HELD_OUT_INDEX)):
        frame = scenes.build(options, split, 80.0).frames[-1]
        stored = read_levels(Path(frame.depth))[0].numpy() / np.float32(256)
        exact = render(0, index, *SIZE).depth
        assert np.abs(stored - exact).max() <= 0.5 / 256
        assert ((stored > 0) == (exact > 0)).all()
    assert not (tmp_path / "set" / "gt_dense").exists()
    with pytest.raises(DataError, match="holds scenes made with .*'dense': True"):
        scenes.build(dataclasses.replace(options, dense=False), "train", 80.0)


def test_write_kitti_layout_keeps_existing_set(tmp_path):
    """A matching set is reused; another set or a user's folder is refused and unchanged."""
    root = tmp_path / "set"
    write_kitti_layout(root, 1, *SIZE, 1, 1)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_kitti_layout(root, 1, *SIZE, 1, 1)
    with pytest.raises(
        DataError,
        match=r"set: holds scenes made with .*'num_train': 1.*, but .*'num_train': 2.*delete it",
    ):
        write_kitti_layout(root, 1, *SIZE, 2, 1)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(DataError, match="choose another root"):
        write_kitti_layout(tmp_path / "mine", 1, *SIZE, 1, 1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_write_kitti_layout_names_a_root_that_cannot_be_made():
    """A data root where no folder can be made is refused in one line."""
    with pytest.raises(DataError, match="^data.root: /proc/tiekd/set can't be made "):
        write_kitti_layout(Path("/proc/tiekd/set"), 1, *SIZE, 1, 1)


def test_write_kitti_layout_loser_takes_winners_set(tmp_path, monkeypatch):
    """A writer that is overtaken takes the other's set and removes its own."""
    root = tmp_path / "set"
    rename = os.rename

    def lose(partial, target):
        monkeypatch.setattr(os, "rename", rename)
        write_kitti_layout(root, 1, *SIZE, 1, 1)
        rename(partial, target)

    monkeypatch.setattr(os, "rename", lose)
    write_kitti_layout(root, 1, *SIZE, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


CAMERAS = Cameras(focals=(0.7, 1.4), heights_m=(1.0, 3.0), pitches=(-0.06, 0.06))


def test_render_with_cameras_changes_focal_height_and_pitch():
    """Scenes take the focal lengths in turn; height and pitch spread over their ranges."""
    scenes_rendered = [render(1, index, *SIZE, CAMERAS) for index in range(2)]
    kitti = render(1, 0, *SIZE).intrinsics[0, 0]
    focals = [scene.intrinsics[0, 0] / kitti for scene in scenes_rendered]
    assert focals == pytest.approx([0.7, 1.4])
    seeds = [np.random.SeedSequence([1, i]).spawn(4)[0] for i in range(40)]
    cameras = [scenes.random_camera(seed, *SIZE, CAMERAS) for seed in seeds]
    heights = [camera.position[1] for camera in cameras]
    assert 1.0 <= min(heights) < 1.4
    assert 2.6 < max(heights) <= 3.0
    pitches = [math.asin(camera.axes[2, 1]) for camera in cameras]
    assert -0.06 <= min(pitches) < -0.03
    assert 0.03 < max(pitches) <= 0.06


def test_render_at_twice_the_focal_length_sees_the_middle():
    """With twice the focal length the same street is seen, twice as large, at the same depths."""
    once, twice = (render(1, 0, 128, 416, Cameras(focals=(focal,))) for focal in (1.0, 2.0))
    assert twice.intrinsics[0, 0] == 2 * once.intrinsics[0, 0]
    cx, cy = once.intrinsics[:2, 2]
    rows, columns = np.mgrid[70:120, 120:280]
    # The pixel of the other image that sees nearly the same ray, and the one at the same place.
    same_ray = once.depth[
        np.rint(cy + (rows - cy) / 2).astype(int), np.rint(cx + (columns - cx) / 2).astype(int)
    ]
    enlarged, same_place = twice.depth[rows, columns], once.depth[rows, columns]
    seen = (enlarged > 0) & (same_ray > 0) & (same_place > 0)
    assert seen.mean() > 0.5
    enlarged, same_ray, same_place = (a[seen] for a in (enlarged, same_ray, same_place))
    assert np.median(np.abs(same_ray / enlarged - 1)) < 0.02
    assert np.median(np.abs(same_place / enlarged - 1)) > 0.2


def test_scenes_split_lists_focal_length_of_each_scene(tmp_path):
    """The split file has each scene's own focal length, which the frames' intrinsics take."""
    options = ScenesOptions(str(tmp_path / "set"), *SIZE, num_train=2, num_val=1, focals=[0.7, 1.4])
    frames = scenes.build(options, "train", 80.0)
    focals = [float(frames[index].intrinsics[0, 0]) for index in range(2)]
    assert focals[1] / focals[0] == pytest.approx(2, abs=1e-4)
    with pytest.raises(DataError, match="holds scenes made with"):
        write_kitti_layout(tmp_path / "set", 0, *SIZE, 2, 1)


def test_scenes_for_validation_have_focals_of_their_own(tmp_path):
    """A student may be evaluated at focal lengths at which it wasn't trained."""
    own = {"focals": [0.7, 1.4], "val_focals": [1.0, 2.0, 1.5]}
    options = ScenesOptions(str(tmp_path / "set"), *SIZE, num_train=2, num_val=3, **own)
    splits = [scenes.build(options, split, 80.0) for split in ("train", "val")]
    focals = [
        [float(frames[index].intrinsics[0, 0]) for index in range(len(frames))] for frames in splits
    ]
    kitti = focals[0][0] / 0.7
    assert focals[0] == pytest.approx([0.7 * kitti, 1.4 * kitti], rel=1e-4)
    # Scene 1,000,000 takes number 1 of three, as each scene takes its own number modulo three.
    assert focals[1] == pytest.approx([2 * kitti, 1.5 * kitti, kitti], rel=1e-4)
    # The set of training focal lengths alone is another one, and has no entry for the others.
    with pytest.raises(DataError, match="holds scenes made with"):
        write_kitti_layout(tmp_path / "set", 0, *SIZE, 2, 3, cameras=Cameras((0.7, 1.4)))
    write_kitti_layout(tmp_path / "plain", 0, *SIZE, 1, 0, cameras=Cameras((0.7,)))
    assert "val_focals" not in (tmp_path / "plain" / "scenes.json").read_text()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("val_focals", [9.0], r"data.val_focals: got \[9.0\]"),
        ("focals", [], r"data.focals: got \[\]"),
        ("focals", [1.0, 0.0], "data.focals: got .* from 0.2 to 5"),
        ("camera_heights", [2.0, 1.0], "data.camera_heights: got .* in metres"),
        ("pitches", [0.0, 2.0], "data.pitches: got .* in radians"),
    ],
)
def test_scenes_cameras_out_of_range(tmp_path, option, value, message):
    """Focal lengths, heights or pitches out of their ranges are refused, and nothing is written."""
    options = ScenesOptions(str(tmp_path / "set"), *SIZE, 1, 1, **{option: value})
    with pytest.raises(RecipeError, match=message):
        scenes.build(options, "train", 80.0)
    assert not (tmp_path / "set").exists()
