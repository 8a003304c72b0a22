"""`data.intrinsics` of the data sets: which camera a frame gets, and what the log says of it."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.fake_data import write_png
from support.frames import folder_frames

from tiekd.config.build import build
from tiekd.data.augment.augment import Augment
from tiekd.data.loading.reader import BatchReader
from tiekd.data.resize import Resize
from tiekd.data.sample import Sample
from tiekd.errors import DataError, RecipeError


def write_image(path, height=12, width=16, exif_orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = exif_orientation
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, exif=exif)


@pytest.fixture
def root(tmp_path):
    """Two images of 12x16 and one of 16x12."""
    write_image(tmp_path / "images/a.png")
    write_image(tmp_path / "images/b/c.png")
    write_image(tmp_path / "images/tall.png", 16, 12)
    return tmp_path


def make(root, **options):
    return folder_frames(
        images="images",
        root=str(root),
        split="train",
        max_depth=10.0,
        val_fraction=0.0,
        needs_ground_truth=False,
        **options,
    )


def camera(frames, name):
    index = [frame.name for frame in frames.frames].index(name)
    matrix = frames[index].intrinsics
    return [float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2])]


def test_list_in_a_folder(root):
    """A list gives each image its camera; others have NaN, and the log counts them."""
    (root / "i.txt").write_text("a.png 10 11 8 6 16 12\nb/c.png 20 22 15.5 11.5 32 24\n")
    frames = make(root, intrinsics="i.txt")
    assert camera(frames, "a.png") == [10, 11, 8, 6]
    assert camera(frames, "b/c.png") == [10, 11, 7.5, 5.5]
    assert np.isnan(camera(frames, "tall.png")).all()
    assert list(frames.camera_notes) == [
        f"Cameras: {root}/i.txt (a list), for 2 of 3 frames",
        "Cameras: the intrinsics of 1 of 3 frames aren't known, such as of tall.png "
        "(data.intrinsics)",
    ]


def test_four_numbers_are_of_every_image(root):
    """Four numbers are the camera of every image at its own size, as before."""
    frames = make(root, intrinsics=[10, 11, 8, 6])
    assert camera(frames, "a.png") == camera(frames, "tall.png") == [10, 11, 8, 6]
    assert list(frames.camera_notes) == ["Cameras: one camera for all, for 3 of 3 frames"]


def test_six_numbers_name_their_size(root):
    """With width and height, the camera is scaled to each image; another aspect is refused."""
    (root / "images/tall.png").unlink()
    frames = make(root, intrinsics=[20, 22, 15.5, 11.5, 32, 24])
    assert camera(frames, "a.png") == [10, 11, 7.5, 5.5]
    write_image(root / "images/tall.png", 16, 12)
    with pytest.raises(DataError, match=r"data\.intrinsics: .*tall\.png: intrinsics for 24x32"):
        make(root, intrinsics=[20, 22, 15.5, 11.5, 32, 24])


def test_intrinsics_turn_with_a_turned_image(root):
    """Intrinsics whose size fits only the pixels as stored are turned upright with them."""
    write_image(root / "images/tall.png", 12, 16, exif_orientation=6)
    frames = make(root, intrinsics=[10, 11, 3, 4, 16, 12])
    assert camera(frames, "a.png") == [10, 11, 3, 4]
    assert camera(frames, "tall.png") == [11, 10, 7, 3]


def test_distortion_is_said_to_be_ignored(root):
    """The log names the largest coefficient of the distortion that is ignored."""
    (root / "images/tall.png").unlink()
    (root / "c.json").write_text(
        '{"fx": 9, "fy": 9, "cx": 8, "cy": 6, "width": 16, "height": 12, "distortion": [-0.3, 0.1]}'
    )
    notes = make(root, intrinsics="c.json").camera_notes
    assert "distortion is ignored (its largest coefficient is 0.3)" in notes[1]


def test_exif_is_said_to_be_approximate(root):
    """With exif, a focal length from EXIF is used where there is one, and called approximate."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26
    Image.new("RGB", (40, 30)).save(root / "images/photo.jpg", exif=exif)
    frames = make(root, intrinsics="exif")
    focal = 26 / np.hypot(36, 24) * 50
    assert camera(frames, "photo.jpg") == pytest.approx([focal, focal, 19.5, 14.5])
    assert frames.camera_notes[0] == "Cameras: EXIF, approximate, for 1 of 4 frames"
    assert "3 of 4 frames aren't known" in frames.camera_notes[1]


def test_no_intrinsics_are_said_to_be_unknown(root):
    """Without the setting, a folder's cameras aren't known, which the log says."""
    frames = make(root)
    assert "3 of 3 frames aren't known" in frames.camera_notes[0]


@pytest.mark.parametrize("name", ["kitti", "nyu"])
def test_list_overrides_the_split_file(tmp_path, name):
    """KITTI's and NYU's frames take the list's camera, else the split file's focal length."""
    folder = tmp_path / "input" if name == "kitti" else tmp_path
    write_image(folder / "a.png")
    write_image(folder / "b.png")
    for image in ("a", "b"):
        write_png(tmp_path / f"gt_depth/{image}.png", np.ones((12, 16), np.uint16))
        write_png(tmp_path / f"{image}_depth.png", np.ones((12, 16), np.uint16))
    depth = "{}.png" if name == "kitti" else "{}_depth.png"
    lines = [f"{image}.png {depth.format(image)} 70\n" for image in ("a", "b")]
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "i.txt").write_text("/a.png 20 22 15.5 11.5 32 24\n")
    node = {"name": name, "root": str(tmp_path), "train_split": "train.txt", "intrinsics": "i.txt"}
    context = {"split": "train", "max_depth": 10.0, "maps": None, "needs_ground_truth": True}
    frames = build(node, "tiekd.data.datasets", "data", **context)
    assert camera(frames, "a.png") == [10, 11, 7.5, 5.5]
    assert camera(frames, "b.png") == [70, 70, 7.5, 5.5]
    assert "for 1 of 2 frames" in frames.camera_notes[0]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ([1, 2], "data.intrinsics: got .*it must be"),
        ([0, 10, 8, 6], "data.intrinsics: got .*focal lengths above 0"),
        ([10, 10, 8, 6, 16, 0], "data.intrinsics: got"),
        ([10, 10, 8, float("nan")], "data.intrinsics: got"),
    ],
)
def test_wrong_numbers_are_one_line(root, value, line):
    """Numbers that are no camera are refused in one line."""
    with pytest.raises(RecipeError, match=line):
        make(root, intrinsics=value)


def test_missing_file_is_one_line(root):
    """A file that isn't there is refused by the setting's name."""
    with pytest.raises(RecipeError, match=r"data\.intrinsics: got 'none\.txt', but there is no"):
        make(root, intrinsics="none.txt")


class Marked(torch.utils.data.Dataset):
    """One image with two bright points: the principal point, and one 20 pixels to its right."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        image = torch.zeros(3, 96, 160, dtype=torch.uint8)
        image[0, 40:45, 60:65] = 255
        image[1, 40:45, 80:85] = 255
        intrinsics = torch.tensor([[200.0, 0, 62], [0, 200.0, 42], [0, 0, 1]])
        depth = torch.ones(1, 96, 160)
        return Sample(image, depth, torch.ones(1, 96, 160, dtype=torch.bool), None, intrinsics, "a")


def centroid(plane):
    weights = plane - plane.min()
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in plane.shape)
    total = weights.sum()
    return (weights.sum(0) * columns).sum() / total, (weights.sum(1) * rows).sum() / total


@pytest.mark.parametrize(
    ("resize", "crop"),
    [
        (Resize(), None),
        (Resize(), [80, 140]),
        (Resize(height=60, width=80, mode="contain"), None),
        (Resize(height=60, width=90, mode="cover"), None),
        (Resize(short_side=48), [40, 70]),
        (Resize(scale=1.5), None),
        (Resize(height=72, width=128, mode="stretch"), None),
    ],
)
def test_every_transform_moves_the_camera_with_the_pixels(resize, crop):
    """After resizing, padding, rotation, flip and crop the principal point is on its own pixel.

    And the distance of two points has changed by the factor of the focal length.
    """
    augment = Augment(rotate_p=0.5, rotate_deg=4.0, flip_p=0.5, crop=crop, colour_p=0.0)
    reader = BatchReader(Marked(), augment, 0, resize=resize)
    for epoch in range(12):
        batch = reader.read([(epoch, 0)]).to(torch.device("cpu"))
        camera = batch.intrinsics[0]
        x, y = centroid(batch.image[0, 0])
        assert float(x) == pytest.approx(float(camera[0, 2]), abs=0.4)
        assert float(y) == pytest.approx(float(camera[1, 2]), abs=0.4)
        other = centroid(batch.image[0, 1])
        distance = float(torch.dist(torch.stack(other), torch.stack([x, y])))
        assert distance == pytest.approx(20 * float(camera[0, 0]) / 200, abs=0.5)
