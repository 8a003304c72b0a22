"""The built-in dataset: small deterministic driving scenes with exact depth, in KITTI's layout.

It is for users without KITTI. Every scene is a pure function of (seed, index, height, width): a
random street on flat ground is generated, ray-cast and shaded (tiekd/data/rendering/), and its
depth is sampled like that of a 64-beam LiDAR. A scene takes about 0.05 s at 128x416 and 0.4 s at
375x1242 on one core, and needs NumPy only. Scenes are independent images: no video, no stereo.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiekd import paths
from tiekd.data.datasets import kitti
from tiekd.data.frames import Frames
from tiekd.data.image_io import write_depth_png, write_image
from tiekd.data.rendering.casting import Camera, cast, look
from tiekd.data.rendering.layout import random_street
from tiekd.data.rendering.objects import Draw
from tiekd.data.rendering.shading import shade
from tiekd.distributed import comm
from tiekd.errors import DataError, RecipeError
from tiekd.files import check_readable

MAX_DEPTH_M = 80.0
# Index from which scenes are validation scenes, whatever the number of training scenes.
FIRST_HELD_OUT_INDEX = 1_000_000
_RENDERER = 1  # the renderer's version, to be increased when the same parameters give other images
_MANIFEST = "scenes.json"
_DATE = "2000_01_01"
_TRAIN_DRIVE = f"{_DATE}_drive_0001_sync"
_HELD_OUT_DRIVE = f"{_DATE}_drive_0002_sync"
# Number of LiDAR samples per pixel of the image, before samples without a surface and some random
# ones are dropped; about 0.04 remain.
_RETURNS_SHARE = 0.046


@dataclass(frozen=True)
class Cameras:
    """The cameras of a set of scenes. The defaults are KITTI's camera in a moving car.

    Attributes:
        focals: Focal lengths, each a multiple of KITTI's at the image's width. Scenes take them in
            turn: scene number i has the focal length `focals[i % len(focals)]`.
        heights_m: The lowest and the highest camera above the ground, in metres.
        pitches: The range of the pitch in radians; above 0 the camera looks up.
        val_focals: Focal lengths of the validation scenes; None for those of the training scenes.
    """

    focals: Sequence[float] = (1.0,)
    heights_m: tuple[float, float] = (1.55, 1.75)
    pitches: tuple[float, float] = (-0.012, 0.012)
    val_focals: Sequence[float] | None = None

    def __post_init__(self):
        given = {"focals": self.focals}
        if self.val_focals is not None:
            given["val_focals"] = self.val_focals
        for name, focals in given.items():
            if not focals or not all(0.2 <= focal <= 5 for focal in focals):
                raise RecipeError(
                    f"data.{name}: got {list(focals)}; give multiples of KITTI's focal length, "
                    "each from 0.2 to 5"
                )
        for name, (low, high), least, most, unit in (
            ("camera_heights", self.heights_m, 0.3, 5, "metres"),
            ("pitches", self.pitches, -0.5, 0.5, "radians"),
        ):
            if not least <= low <= high <= most:
                raise RecipeError(
                    f"data.{name}: got {[low, high]}; it must be [lowest, highest] in {unit}, from "
                    f"{least} to {most}"
                )

    def focal_of(self, index: int) -> float:
        """Returns the focal length of a scene, as a multiple of KITTI's at the image's width.

        Args:
            index: The scene's number; from FIRST_HELD_OUT_INDEX on it is a validation scene.
        """
        is_held_out = index >= FIRST_HELD_OUT_INDEX and self.val_focals is not None
        focals = self.val_focals if is_held_out else self.focals
        return focals[index % len(focals)]


class Scene(NamedTuple):
    """One rendered street scene.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 z-depth in metres, exact wherever a surface is within 80 m, else 0.
        sparse_depth: (H, W) float32, `depth` at the pixels that the LiDAR samples, 3..5 % of all; 0
            elsewhere.
        intrinsics: (3, 3) float64 camera matrix in pixels.
    """

    image: np.ndarray
    depth: np.ndarray
    sparse_depth: np.ndarray
    intrinsics: np.ndarray


def render(seed: int, index: int, height: int, width: int, cameras: Cameras = Cameras()) -> Scene:
    """Renders scene `index` of the set of random scenes that `seed` defines.

    The same arguments give the same bytes on every machine. The street depends on seed and index
    only, not on the image's size or camera.

    Args:
        seed: Seed of a set of scenes, 0 or more.
        index: Number of the scene in the set, 0 or more.
        height: Height of the image in pixels, at least 32.
        width: Width of the image in pixels, at least 32.
        cameras: The ranges of the cameras' parameters.

    Returns:
        The image, its dense and its sparse depth, and the camera's intrinsics.

    Raises:
        RecipeError: A number is out of its range.
    """
    # Check the ranges of the arguments.
    if seed < 0 or index < 0:
        raise RecipeError(f"scene seed (={seed}) and index (={index}) must be 0 or more")
    if height < 32 or width < 32:
        raise RecipeError(
            f"scene size (height={height}, width={width}) must be 32 pixels or more each way"
        )
    # Use independent random streams, so that other camera parameters don't change the street.
    camera_seed, street_seed, lidar_seed, noise_seed = np.random.SeedSequence([seed, index]).spawn(
        4
    )
    camera = random_camera(camera_seed, height, width, cameras, cameras.focal_of(index))
    street = random_street(Draw(street_seed))
    # Cast rays, and set the depth to 0 where there is no surface within MAX_DEPTH_M.
    hits = cast(camera, street.solids)
    near = hits.inverse_depth >= 1 / MAX_DEPTH_M
    depth = np.where(near, 1 / np.where(near, hits.inverse_depth, 1), np.float32(0))
    # Shade the surfaces and add sensor noise of up to 3 grey levels.
    grain = np.random.Generator(np.random.PCG64(noise_seed)).random(
        (height, width, 3), dtype=np.float32
    )
    levels = (
        shade(camera, street, hits) * np.float32(255)
        + (grain - np.float32(0.5)) * 6
        + np.float32(0.5)
    )
    image = np.minimum(np.maximum(levels, 0), 255).astype(np.uint8)
    # Keep the exact depth at the pixels that the LiDAR samples.
    sparse = np.where(_lidar_pixels(camera, lidar_seed), depth, np.float32(0))
    intrinsics = np.array([[camera.focal, 0, camera.cx], [0, camera.focal, camera.cy], [0, 0, 1]])
    return Scene(image, depth, sparse, intrinsics)


def random_camera(
    seed: np.random.SeedSequence,
    height: int,
    width: int,
    cameras: Cameras = Cameras(),
    focal: float = 1.0,
) -> Camera:
    """Returns a camera of random height and rotation, as in a moving car.

    Args:
        seed: Seed of the camera's random height above the ground and its random rotation.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        cameras: The ranges of height and pitch.
        focal: Focal length as a multiple of KITTI's at this width.
    """
    draw = Draw(seed)
    return look(
        draw.span(*cameras.heights_m),
        draw.span(-0.05, 0.05),
        draw.span(*cameras.pitches),
        draw.span(-0.008, 0.008),
        height,
        width,
        focal,
    )


def _lidar_pixels(camera: Camera, seed: np.random.SeedSequence) -> np.ndarray:
    """Returns the (H, W) bool mask of pixels that a LiDAR at the camera samples.

    The LiDAR's rays form a grid of beams (elevations) and azimuth steps, as those of a 64-beam
    sensor: beams are from 2 degrees above to 8.3 degrees below the horizon in steps of 1/3 degree,
    then to 24.3 degrees below it in steps of 1/2 degree; azimuth steps are 0.17 degrees. The grid
    is made coarser or finer, so that the share of sampled pixels is KITTI's at any image size. 6 %
    of the rays are dropped at random.

    Args:
        camera: The camera, at whose position the LiDAR is.
        seed: Seed of the grid's offset and of the dropped rays.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    # Count the pixels that KITTI's LiDAR would sample at this image size, and scale the density of
    # the samples so that the fraction of sampled pixels is that of KITTI's images.
    full = _beam_pixels(camera, 1.0, 0.5)
    density = math.sqrt(_RETURNS_SHARE * camera.height * camera.width / len(full[0]))
    rows, columns = _beam_pixels(camera, density, float(rng.random()))
    kept = rng.random(len(rows)) > 0.06
    mask = np.zeros((camera.height, camera.width), bool)
    mask[rows[kept], columns[kept]] = True
    return mask


def _beam_pixels(camera: Camera, density: float, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of the image that the LiDAR's rays hit, as (rows, columns).

    Both are (N,) int64, with one entry per ray; several rays may hit one pixel.

    Args:
        camera: The camera, at whose position the LiDAR is.
        density: Factor by which the numbers of beams and of azimuth steps are multiplied.
        phase: Offset of the beams and of the azimuth steps, in steps, from 0 to below 1.
    """
    beams = [(k + phase) / density for k in range(math.ceil(64 * density))]
    # Compute the slopes, positive downwards, of the LiDAR's beams: from 2 degrees above the horizon
    # in steps of 1/3 degree, and from 8.3 degrees below it in steps of 1/2 degree.
    slopes = [
        math.tan(math.radians((b - 6) / 3 if b < 31 else 25 / 3 + (b - 31) / 2)) for b in beams
    ]
    reach = math.atan(max(camera.cx, camera.width - camera.cx) / camera.focal)
    step = math.radians(0.1728) / density
    steps = math.ceil(reach / step)
    tangents = [
        math.tan((k + phase) * step)
        for k in range(-steps, steps)
        if abs((k + phase) * step) < math.pi / 2
    ]
    x = np.array(tangents)[None]
    down = np.array(slopes)[:, None]
    # Project each ray to the nearest pixel, and keep those inside the image.
    columns = np.floor(camera.cx + camera.focal * x + 0.5)
    rows = np.floor(camera.cy + camera.focal * down * np.sqrt(1 + x * x) + 0.5)
    columns = np.broadcast_to(columns, rows.shape)
    seen = (rows >= 0) & (rows < camera.height) & (columns >= 0) & (columns < camera.width)
    return rows[seen].astype(np.int64), columns[seen].astype(np.int64)


def write_kitti_layout(
    root: Path,
    seed: int,
    height: int,
    width: int,
    num_train: int,
    num_val: int,
    dense: Collection[str] = (),
    cameras: Cameras = Cameras(),
) -> None:
    """Writes scenes below `root` in KITTI's layout.

    Creates input/, gt_depth/, kitti_eigen_train.txt and kitti_eigen_test.txt. Depth is uint16 PNG,
    metres * 256, at the LiDAR's pixels. Validation scenes are never training scenes of the same
    seed, whatever `num_train` is.

    `root` is created once everything is written: a killed run leaves only
    `<root>.partial-<pid>-...` beside it, which may be deleted. Several processes may call this
    function concurrently: the first to finish creates `root`, and the others discard their files.
    An existing complete set with the same parameters is kept.

    Args:
        root: The folder to create.
        seed: Seed of the scenes, 0 or more.
        height: Height of the images in pixels, at least 32.
        width: Width of the images in pixels, at least 32.
        num_train: Number of training scenes.
        num_val: Number of validation scenes.
        dense: Folders with the exact depth of every pixel: "gt_depth" for that in place of the
            LiDAR's, "gt_dense" for a further folder of the validation scenes, under the same names.
        cameras: The cameras of the scenes.

    Raises:
        RecipeError: A number is out of its range.
        DataError: `root` holds scenes with other parameters, or anything else.
    """
    root = Path(os.path.realpath(root))
    wanted = {"renderer": _RENDERER, "seed": seed, "height": height, "width": width}
    wanted |= {"num_train": num_train, "num_val": num_val, "dense_val": "gt_dense" in dense}
    # Leave out `dense` unless all depth is dense, because sets of scenes that were rendered before
    # this option existed have no such entry.
    if "gt_depth" in dense:
        wanted["dense"] = True
    # Leave the default cameras out of the manifest, because sets of scenes that were rendered
    # before cameras could be chosen have no such entry.
    if cameras != Cameras():
        wanted["cameras"] = json.loads(json.dumps(asdict(cameras)))
        # Leave out `val_focals` if it isn't set, because sets of scenes that were rendered before
        # this option existed have no such entry.
        if cameras.val_focals is None:
            del wanted["cameras"]["val_focals"]
    if num_train < 0 or num_val < 0:
        raise RecipeError(f"num_train (={num_train}) and num_val (={num_val}) must be 0 or more")
    if _holds(root, wanted):
        return
    # Write to a temporary folder beside `root`, and rename the folder once it is complete.
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f"{root.name}.partial-{os.getpid()}-", dir=root.parent)
    except OSError as error:
        raise DataError(
            f"data.root: {root} can't be made ({error.strerror}); give another folder"
        ) from None
    partial = Path(made)
    try:
        partial.chmod(0o755)
        _write(partial, wanted, cameras)
        try:
            os.rename(partial, root)
        except OSError:
            # Renaming fails if another process has written `root` meanwhile. Use its scenes if they
            # are the same, else raise the error.
            if not _holds(root, wanted):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, wanted: dict, cameras: Cameras) -> None:
    # Write KITTI's folders and split files. The scenes of a split are in one folder, which has the
    # form of the folder of a KITTI recording (a "drive").
    splits = (
        ("train", _TRAIN_DRIVE, 0, wanted["num_train"]),
        ("test", _HELD_OUT_DRIVE, FIRST_HELD_OUT_INDEX, wanted["num_val"]),
    )
    for split, drive, first, count in splits:
        image_folder = f"{_DATE}/{drive}/image_02/data"
        depth_folder = f"{drive}/proj_depth/groundtruth/image_02"
        dense = split == "test" and wanted["dense_val"]
        for place in (
            f"input/{image_folder}",
            f"gt_depth/{depth_folder}",
            *([f"gt_dense/{depth_folder}"] if dense else []),
        ):
            (folder / place).mkdir(parents=True)
        lines = []
        for index in range(first, first + count):
            scene = render(wanted["seed"], index, wanted["height"], wanted["width"], cameras)
            name = f"{index:010d}.png"
            write_image(folder / "input" / image_folder / name, scene.image)
            measured = scene.depth if "dense" in wanted else scene.sparse_depth
            write_depth_png(folder / "gt_depth" / depth_folder / name, measured)
            if dense:
                write_depth_png(folder / "gt_dense" / depth_folder / name, scene.depth)
            lines.append(
                f"{image_folder}/{name} {depth_folder}/{name} {scene.intrinsics[0, 0]:.4f}\n"
            )
        (folder / f"kitti_eigen_{split}.txt").write_text("".join(lines))
    (folder / _MANIFEST).write_text(json.dumps(wanted, indent=1) + "\n")


@dataclass(frozen=True)
class ScenesOptions:
    """The options of a recipe's `data` section for the dataset of rendered scenes.

    Attributes:
        root: Folder of the rendered files, which are written on first use.
        height: Height of the images in pixels, at least 32.
        width: Width of the images in pixels, at least 32.
        num_train: Number of training scenes.
        num_val: Number of validation scenes.
        seed: Seed of the scenes, 0 or more.
        focals: Focal lengths, which the scenes take in turn; each is a multiple of KITTI's at the
            image's width.
        val_focals: Focal lengths of the validation scenes; None for those of the training scenes.
        camera_heights: [lowest, highest] camera above the ground, in metres.
        pitches: [lowest, highest] pitch in radians; above 0 the camera looks up.
        dense: True for ground truth at every pixel with a surface within 80 m; False for that of
            the pixels that a LiDAR samples.
    """

    root: str
    height: int = 96
    width: int = 320
    num_train: int = 120
    num_val: int = 32
    seed: int = 0
    focals: Sequence[float] = Cameras.focals
    val_focals: Sequence[float] | None = None
    camera_heights: tuple[float, float] = Cameras.heights_m
    pitches: tuple[float, float] = Cameras.pitches
    dense: bool = False

    @property
    def cameras(self) -> Cameras:
        """The ranges of the cameras' parameters. Raises RecipeError if one isn't valid."""
        held_out = None if self.val_focals is None else tuple(self.val_focals)
        ranges = (tuple(self.camera_heights), tuple(self.pitches))
        return Cameras(tuple(self.focals), *ranges, held_out)


def build(
    options: ScenesOptions,
    split: str,
    max_depth: float,
    needs_ground_truth: bool = True,
    maps: str | None = None,
) -> Frames:
    """Builds the dataset of rendered scenes; writes them below `options.root` on first use.

    Collective: all ranks must call it, because the others wait until rank 0 has written the scenes.

    Args:
        options: The size, seed and folder of the scenes.
        split: "train" or "val".
        max_depth: The largest depth that the network predicts, in metres.
        needs_ground_truth: True to leave out frames without ground truth; without effect here,
            since all scenes have ground truth.
        maps: Folder of cached teacher maps, read for training frames only; None to read no maps.

    Returns:
        The dataset of the split's scenes, in KITTI's layout.

    Raises:
        RecipeError: An option is out of its range.
        DataError: The root holds scenes with other parameters, or anything else.
    """
    paths.refuse_unfilled(options.root, "data.root")
    size = (options.height, options.width, options.num_train, options.num_val)
    given = {"dense": ("gt_depth",) if options.dense else (), "cameras": options.cameras}
    if comm.is_main():
        write_kitti_layout(Path(options.root), options.seed, *size, **given)
    comm.barrier()
    # The other ranks find the scenes that rank 0 wrote, or write them if they don't share its disk.
    write_kitti_layout(Path(options.root), options.seed, *size, **given)
    in_kitti_layout = kitti.KittiOptions(options.root)
    return kitti.build(in_kitti_layout, split, max_depth, needs_ground_truth, maps=maps)


def _holds(root: Path, wanted: dict) -> bool:
    """Returns True if a folder holds all scenes with the given parameters, False if it is empty.

    An absent folder counts as empty.

    Args:
        root: The folder.
        wanted: The scenes' parameters (seed, size, numbers of scenes), as in the folder's manifest.

    Raises:
        DataError: The folder holds scenes with other parameters, or other files.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    check_readable(root / _MANIFEST, "manifest of built-in scenes", DataError)
    try:
        found = json.loads((root / _MANIFEST).read_text())
    except (OSError, ValueError):
        raise DataError(
            f"{root}: holds files that are not a set of built-in scenes; choose another root"
        ) from None
    if found != wanted:
        raise DataError(
            f"{root}: holds scenes made with {found}, but {wanted} is wanted; choose another root "
            "or delete it"
        )
    return True
