"""Writes cached maps of two teachers with known errors, for an experiment on mixing teachers.

    python -m tiekd.tools.experiment.planted_teachers RECIPE [--set KEY=VALUE ...]

RECIPE reads the rendered scenes. Beside them, in `data.root`, it writes three folders of maps:

- maps_near, a teacher that is good up to some 10 m and bad beyond;
- maps_far, one that is good from some 30 m on and bad before;
- maps_oracle, in each pixel the depth of that of the two whose error is smaller.

A teacher's depth is the exact depth times 1 + r(depth) |g|. g is a smooth random field of unit
variance, another one for each image and teacher, which changes over about 64 pixels. So errors have
one sign, are of different size, and don't average out over an image's neighbourhoods. The two
teachers also have maps of sigma: depth times r(depth), the root mean square of their errors. The
maps are a pure function of the scenes and a seed. Costs 0.1 s an image. Left out: errors at edges.
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

CELL = 64  # pixels over which an error changes
SEED = 7
_NAMES = ("near", "far")
# Of each teacher the relative errors (root mean square) up to NEAR_M and from FAR_M on.
_ERRORS = {"near": (0.03, 0.35), "far": (0.25, 0.04)}
NEAR_M, FAR_M = 8.0, 30.0


def relative_error(name: str, depth: np.ndarray) -> np.ndarray:
    """Returns the root mean square of a teacher's relative error at each depth.

    Args:
        name: "near" or "far".
        depth: depths in metres.
    """
    near, far = _ERRORS[name]
    share = np.clip((depth - NEAR_M) / (FAR_M - NEAR_M), 0, 1)
    return near + (far - near) * share


def field(name: str, index: int, height: int, width: int) -> np.ndarray:
    """Returns a smooth Gaussian field of unit variance, (height, width) float64.

    Args:
        name: "near" or "far".
        index: number of the scene.
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
    """Returns the weights of linear interpolation from cells to pixels, (size, cells)."""
    place = np.arange(size) / CELL
    cells = np.arange(size // CELL + 2)
    return np.maximum(0, 1 - np.abs(place[:, None] - cells))


def planted(index: int, depth: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Returns the depth and the sigma of the two teachers and of the oracle for one scene.

    Args:
        index: number of the scene.
        depth: (H, W) exact depth in metres, 0 where there is none.

    Returns:
        "near", "far" and "oracle" -> depth and sigma in metres, 0 where the exact depth is 0. The
        oracle has no sigma.
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
    """Writes the maps of all training scenes of a recipe, and returns their folders.

    Args:
        recipe: the recipe.

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
    # Errors beyond the student's range must not be clipped in the maps.
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
    """Creates a folder of maps with its manifest, and returns it.

    Args:
        folder: the folder.
        manifest: the manifest.

    Raises:
        DataError: the folder holds other maps.
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
    """Writes the maps of the recipe of the command line; returns the exit code."""
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
