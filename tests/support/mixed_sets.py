"""Two small data sets and a recipe of both: one has ground truth, the other cached maps."""

from pathlib import Path

import numpy as np
from support.fake_data import write_png

from tiekd.data import learned_from, teacher_maps

NETWORK = {
    "encoder": {"name": "mobilenet_v2", "width": 0.25, "strides": [1, 2, 2, 2, 1, 2, 1]},
    "decoder": {"name": "densedepth", "widths": [8, 8], "extra_ups": 1, "extra_width": 8},
    "head": {"name": "sigmoid"},
    "min_depth": 0.001,
    "max_depth": 10.0,
}
NETWORK["encoder"] |= {"dilations": [1] * 7, "taps": [1, 3]}
CROP = {"crop": [32, 32], "flip_p": 0.0, "rotate_p": 0.0, "colour_p": 0.0}


def make(folder: Path) -> Path:
    """Makes two folders: `own` has 6 images with depth maps of 2 m, `maps` has 9 with maps of 4 m.

    Returns `folder`.
    """
    random = np.random.default_rng(0)
    for name, count in (("own", 6), ("maps", 9)):
        for number in range(count):
            grey = random.integers(1, 255, (32, 40, 3)).astype(np.uint8)
            file, depth = f"{name}{number}.png", 2000 if name == "own" else 26214
            write_png(folder / name / "rgb" / file, grey)
            place = folder / name / ("depth" if name == "own" else "kd")
            write_png(place / file, np.full((32, 40), depth, np.uint16))
    (folder / "own" / "val.txt").write_text("own3.png\nown5.png\n")
    manifest = teacher_maps.make_manifest(10.0, None, {"name": "some.teacher"}, "d" * 64, False, {})
    manifest[learned_from.KEY] = [{"name": "some.teacher", "digest": "d" * 64}]
    teacher_maps.write_manifest(folder / "maps" / "kd", manifest)
    return folder


def recipe(root: Path, **changes) -> dict:
    """Returns a recipe of both sets; `own` has ground truth and `maps` cached maps alone."""
    own = {"set": "own", "name": "folder", "root": str(root / "own"), "images": "rgb"}
    maps = own | {"set": "maps", "root": str(root / "maps"), "val_fraction": 0.0}
    own |= {"depths": "depth", "depth_unit": 1000, "val_split": "val.txt", "workers": 0}
    maps |= {"validate": False, "teacher": {"maps": "kd", "audit": "off"}}
    return {
        "network": NETWORK,
        "losses": {"mse": {}, "silog": {"against": "ground_truth"}},
        "data": [own | {"augment": CROP} | changes.pop("own", {}), maps | changes.pop("maps", {})],
        "optimizer": {"name": "adamw", "lr": 0.001},
        "train": {"batch_size": 6, "iterations": 4, **changes.pop("train", {})},
        "evaluation": {"crop": "none", **changes.pop("evaluation", {})},
        "work_dir": str(root / "work"),
        **changes,
    }
