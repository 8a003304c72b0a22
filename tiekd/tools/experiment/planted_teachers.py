"""Writes cached maps of two teachers with known errors, for an experiment on mixing teachers.

    python -m tiekd.tools.experiment.planted_teachers RECIPE [--set KEY=VALUE ...]

RECIPE must have the data set `scenes`, i.e. rendered images. Three folders of maps are written to
the recipe's `data.root`:

- maps_near, of a teacher with small errors up to 8 m and large ones beyond;
- maps_far, of a teacher with large errors near the camera and small ones from 30 m on;
- maps_oracle, which has in each pixel the depth of that teacher whose error is smaller.

A teacher's depth is the exact depth times 1 + r(depth) |g|. r is the root mean square of its
relative error. g is a smooth random field of unit variance, another one for each image and teacher,
which changes over about 64 pixels. So a teacher's errors all have one sign, and don't average out
over neighbouring pixels. The two teachers also have maps of sigma: depth times r(depth), the root
mean square of their errors in metres. The maps are a pure function of the scenes and a seed. Takes
0.1 s per image. Not covered: errors at depth edges.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from tiekd.config.build import settings
from tiekd.config.recipe import load_recipe
from tiekd.data import image_io, teacher_maps
from tiekd.data.build import build_dataset
from tiekd.data.datasets import scenes
from tiekd.data.datasets.scenes import ScenesOptions
from tiekd.distributed import entrypoint
from tiekd.errors import DataError, RecipeError
from tiekd.files import replace_bytes
from tiekd.tools import arguments
from tiekd.training.settings import Recipe

CELL = 64  # spacing in pixels of the grid points between which errors are interpolated
SEED = 7
_NAMES = ("near", "far")
# Root mean square of each teacher's relative error: (up to NEAR_M, from FAR_M on).
_ERRORS = {"near": (0.03, 0.35), "far": (0.25, 0.04)}
NEAR_M, FAR_M = 8.0, 30.0


def relative_error(name: str, depth: np.ndarray) -> np.ndarray:
    """Returns the root mean square of a teacher's relative error at each depth.

    Args:
        name: "near" or "far", the teacher.
        depth: depths in metres, of any shape.

    Returns:
        An array of the same shape, as fractions of the depth.
    """
    near, far = _ERRORS[name]
    share = np.clip((depth - NEAR_M) / (FAR_M - NEAR_M), 0, 1)
    return near + (far - near) * share


def field(name: str, index: int, height: int, width: int) -> np.ndarray:
    """Returns a smooth Gaussian random field of unit variance, (height, width) float64.

    Args:
        name: "near" or "far", the teacher.
        index: number of the scene; name and number seed the random generator.
        height: rows of the image.
        width: columns of the image.
    """
    random = np.random.Generator(np.random.PCG64([SEED, _NAMES.index(name), index]))
    coarse = random.standard_normal((height // CELL + 2, width // CELL + 2))
    # Interpolate bilinearly, and divide by the norm of the weights, which keeps the variance.
    rows, columns = (_weights(size) for size in (height, width))
    return (rows @ coarse @ columns.T) / np.outer(
        *(np.sqrt((w**2).sum(1)) for w in (rows, columns))
    )


def _weights(size: int) -> np.ndarray:
    """Returns the weights of linear interpolation from a grid of spacing CELL to pixels.

    Args:
        size: number of pixels along one side of the image.

    Returns:
        (size, size // CELL + 2) float64; column k has the weights of grid point k.
    """
    place = np.arange(size) / CELL
    cells = np.arange(size // CELL + 2)
    return np.maximum(0, 1 - np.abs(place[:, None] - cells))


def planted(index: int, depth: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Returns depth and sigma of the two teachers and of the oracle for one scene.

    The oracle has in each pixel the depth of that teacher whose error is smaller.

    Args:
        index: number of the scene.
        depth: (H, W) exact depth in metres, 0 where there is none.

    Returns:
        "near", "far" and "oracle" -> (depth, sigma), each (H, W) in metres, 0 where the exact depth
        is 0. The oracle's sigma is None.
    """
    found = {}
    for name in _NAMES:
        error = relative_error(name, depth)
        found[name] = (
            depth * (1 + error * np.abs(field(name, index, *depth.shape))),
            depth * error,
        )
    near, far = (found[name][0] for name in _NAMES)
    is_near = np.abs(near - depth) <= np.abs(far - depth)
    return found | {"oracle": (np.where(is_near, near, far), None)}


def write(recipe: Recipe) -> list[Path]:
    """Writes the maps of all training scenes of a recipe.

    Args:
        recipe: the recipe.

    Returns:
        The three folders of maps: those of "near", "far" and the oracle.

    Raises:
        RecipeError: the recipe doesn't read the rendered scenes.
        DataError: a folder holds other maps.
    """
    data = recipe.without_teacher().dataset
    if data.part.get("name") != "scenes":
        raise RecipeError(f"data.name: got {data.part.get('name')!r}; errors are planted in scenes")
    given = {key: value for key, value in data.part.items() if key != "name"}
    options = settings({"data": given}, "data", ScenesOptions)
    frames = build_dataset(data, "train", as_evaluated=True)
    # Let maps hold twice the student's largest depth, so that depths with large errors aren't
    # clipped.
    full_scale_m = recipe.max_depth_m * 2
    folders = {}
    for name in (*_NAMES, "oracle"):
        described = {"name": f"planted_{name}", "seed": SEED, "scenes": options.seed}
        manifest = teacher_maps.make_manifest(
            recipe.max_depth_m, None, described, None, False, None, full_scale_m
        )
        if name in _NAMES:
            manifest[teacher_maps.SIGMA_SCALE] = recipe.max_depth_m
        folders[name] = _folder(data.root / f"maps_{name}", manifest)
    for place, frame in enumerate(frames.frames):
        index = int(Path(frame.name).stem)
        exact = scenes.render(
            options.seed, index, options.height, options.width, options.cameras
        ).depth.astype(np.float64)
        for name, (depth, sigma) in planted(index, exact).items():
            file = frames.map_name(place)
            png = image_io.encode_teacher_map(depth, full_scale_m)
            replace_bytes(folders[name] / file, png, durable=False)
            if sigma is not None:
                png = image_io.encode_teacher_map(sigma, recipe.max_depth_m)
                replace_bytes(folders[name] / teacher_maps.SIGMA / file, png, durable=False)
    return list(folders.values())


def _folder(folder: Path, manifest: dict) -> Path:
    """Creates a folder of maps with its manifest, and returns the folder's path.

    Args:
        folder: the folder.
        manifest: the content of the manifest, which records how the maps are made.

    Raises:
        DataError: the folder holds maps with another manifest.
    """
    found = teacher_maps.read_manifest(folder)
    if found is not None and found != manifest:
        raise DataError(f"{folder}: holds other maps; delete it, or give another data.root")
    (folder / teacher_maps.SIGMA if teacher_maps.SIGMA_SCALE in manifest else folder).mkdir(
        parents=True, exist_ok=True
    )
    teacher_maps.write_manifest(folder, manifest)
    return folder


def main() -> int:
    """Writes the maps for the recipe that the command line names; returns the exit code, 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_recipe(parser)
    arguments.add_overrides(parser)
    args = parser.parse_args()
    for folder in write(Recipe(load_recipe(args.recipe, args.overrides))):
        print(f"Written: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(entrypoint.program(main))
