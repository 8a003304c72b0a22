"""Evaluates a trained network, or the floors of a set of data, and writes errors of each frame.

Floors are baselines that don't look at the image, such as the best constant depth. The evaluation
runs in a process of its own, which bin/experiment.py starts (`--score JOB`), so that its memory and
its GPU are free before the next training. The job is a JSON file:

    {"title": NAME, "recipe": PATH, "overrides": [...], "weights": PATH or null for the floors,
     "readouts": {ROW OF THE TABLE: READOUT, ...}, left out for the floors,
     "list": TEST LIST or null, "scenes": {"regex": PATTERN} or {"list": PATH},
     "readings": FILE, "made_from": {...}, "out": PATH}

A readout is how depth is computed from a distribution over depth bins. "readings" is a file that
records each evaluation on a test list, so that the report can state their number. A line is
appended to it before the list is read, so that every evaluation is counted, even one that fails.
"""

import json
import os
import subprocess
import sys
from datetime import datetime
from functools import partial
from pathlib import Path

from tiekd.config.recipe import load_recipe
from tiekd.data import least_size
from tiekd.data.build import build_dataset
from tiekd.data.file_fingerprints import crc
from tiekd.distributed import process_group
from tiekd.errors import DataError
from tiekd.evaluation import compare, floors
from tiekd.evaluation.compare import EvaluatedPredictor
from tiekd.evaluation.evaluate import EvaluationProtocol
from tiekd.evaluation.frame_figures import AlignedFigures, FrameFigures
from tiekd.files import append_line, replace_text, sync
from tiekd.tools.experiment.readout import ReadoutPredictor
from tiekd.tools.experiment.spec import scene_rule
from tiekd.training.canonical import require_focals
from tiekd.training.settings import Recipe

_CHECKOUT = Path(__file__).resolve().parents[3]


def run(path: Path) -> None:
    """Evaluates the job that a JSON file describes, and writes errors of each frame to its "out".

    Args:
        path: the job's JSON file.

    Raises:
        UserError: the recipe, the weights or the frames can't be used.
    """
    job = json.loads(path.read_text(encoding="utf-8"))
    overrides = list(job["overrides"])
    if job["list"] is not None:
        overrides.append(f"data.val_split={job['list']}")
    recipe = Recipe(load_recipe(job["recipe"], overrides))
    device = process_group.start_rank()
    protocol = recipe.protocol("val")
    # Build the dataset of the evaluated frames: the validation frames of training, or the test
    # frames in their place.
    data = recipe.without_teacher().dataset
    if job["list"] is not None:
        _count_reading(job, recipe)
        # Refuse test frames that are validation frames. This reads the test list, so it comes after
        # the reading is counted.
        _refuse_selection_frames(job)
    frames = build_dataset(data, "val", as_evaluated=True)
    # Build the predictors: one network, or all floors, i.e. baselines that don't look at the image.
    left_out = {}
    if job["weights"] is None:
        # Use only training frames with ground truth: `data` has no teacher, and without one other
        # frames are skipped.
        training = partial(build_dataset, data, "train", as_evaluated=True)
        rule = scene_rule(job["scenes"], Path())
        predictors, left_out = floors.build(
            training,
            frames,
            protocol,
            rule,
            device,
            sys.stderr,
            skips_errors=data.loading.on_error == "skip",
        )
    else:
        named = [(job["recipe"], job["weights"])]
        networks = compare.load_networks(named, overrides, recipe.evaluation.flip, device)
        predictor = next(iter(networks.values()))
        _check(predictor, frames, job)
        predictors = {name: _read(predictor, readout) for name, readout in job["readouts"].items()}
    # Evaluate the predictors, and write all results in one step, which marks the job as finished.
    found = {
        name: _figures(predictor, frames, protocol, device, recipe)
        for name, predictor in predictors.items()
    }
    plain = {name: [each.as_json() for each in figures] for name, figures in found.items()}
    content = {"made_from": job["made_from"], "figures": plain, "left_out": left_out}
    replace_text(Path(job["out"]), json.dumps(content, allow_nan=False) + "\n")


def _read(predictor: EvaluatedPredictor, readout: str) -> EvaluatedPredictor:
    """Returns a network whose depth is computed by another readout of its distribution over bins.

    Args:
        predictor: the network with its own readout, the mean.
        readout: "mean", "mode" (most probable bin) or "local" (mean around the mode).

    Returns:
        The network with a function from images to depth that uses this readout; for "mean" the
        argument itself.
    """
    if readout == "mean":
        return predictor
    return predictor._replace(predict=ReadoutPredictor(predictor.predict.network, readout))


def _figures(
    predictor: EvaluatedPredictor, frames, protocol: EvaluationProtocol, device, recipe: Recipe
) -> list[FrameFigures]:
    """Evaluates one predictor, and returns a list with the errors of each frame.

    Args:
        predictor: the predictor to evaluate.
        frames: the dataset of evaluation frames.
        protocol: depth range, crop and batch size.
        device: the predictor's device.
        recipe: the recipe, for its loading settings.
    """
    aligned = AlignedFigures(protocol.min_depth, protocol.cap, protocol.settings.crop)
    result = compare.evaluate(
        predictor, frames, protocol, device, recipe.loading, sys.stderr, [aligned]
    )
    return aligned.figures(result.frames)


def _check(predictor: EvaluatedPredictor, frames, job: dict) -> None:
    """Checks that a network can predict the frames, and wasn't trained on any of them.

    Args:
        predictor: the network.
        frames: the dataset of evaluation frames.
        job: the content of the job's JSON file.

    Raises:
        UserError: a frame is too small, its focal length is needed and not known, or it is a
            training frame.
    """
    least_size.check_frames(frames, predictor.resize, predictor.least_side, "data.resize")
    if predictor.needs_focal:
        require_focals(frames, predictor.resize, "val")
    seen = compare.overlaps({job["title"]: predictor}, frames)[job["title"]]
    # Refuse even a single frame, about which bin/evaluate.py only warns, because an experiment's
    # results are published as claims.
    if seen is not None and seen.seen:
        raise DataError(
            f"{job['title']}: {seen}, so the metrics would not be valid for new images; "
            "give lists without common frames"
        )


def _refuse_selection_frames(job: dict) -> None:
    """Checks that no test frame is a validation frame, since weights may be chosen by the latter.

    Args:
        job: the content of the job's JSON file, with a test list.

    Raises:
        DataError: a frame is in both lists.
    """
    lists = {}
    for title, overrides in (("val", []), ("test", [f"data.val_split={job['list']}"])):
        recipe = Recipe(load_recipe(job["recipe"], [*job["overrides"], *overrides]))
        dataset = build_dataset(recipe.without_teacher().dataset, "val", as_evaluated=True)
        lists[title] = {frame.name for frame in getattr(dataset, "frames", ())}
    common = sorted(lists["val"] & lists["test"])
    if common:
        raise DataError(
            f"{job['list']}: {common[0]} is a validation frame too; selection must not see a test "
            "frame, so remove it from one of the lists"
        )


def _count_reading(job: dict, recipe: Recipe) -> None:
    """Appends a line to the file that records each evaluation on a test list.

    The line is a JSON object: "time", "list" (absolute path of the test list), "crc" (its
    checksum), "by" (folder of the job) and "commit" (of tiekd).

    Args:
        job: the content of the job's JSON file, with a test list.
        recipe: the recipe.
    """
    path = recipe.dataset.root / job["list"]
    line = {
        "time": datetime.now().isoformat(timespec="seconds"),
        "list": str(path.absolute()),
        "crc": crc(path),
        "by": str(Path(job["out"]).parent.absolute()),
        "commit": commit(),
    }
    readings = Path(job["readings"])
    readings.parent.mkdir(parents=True, exist_ok=True)
    append_line(readings, json.dumps(line))
    # Flush the line to the disk, so that it survives a power cut: the reading can't be undone.
    sync(readings)


def commit() -> str:
    """Returns the commit of tiekd's checkout, with "+changes" if files differ from it.

    The result is "unknown" for an installed tiekd, or without git.
    """
    if not (_CHECKOUT / ".git").exists():
        return "unknown"
    said = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            found = subprocess.run(
                ["git", "-C", str(_CHECKOUT), *words],
                capture_output=True,
                text=True,
                check=True,
                # Disable optional locks, so that git status doesn't disturb a commit that is being
                # made.
                env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            )
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        said.append(found.stdout.strip())
    return said[0] + ("+changes" if said[1] else "")


def readings_of(path: Path, test_list: Path) -> list[dict]:
    """Returns the recorded evaluations on a test list.

    Args:
        path: the file of records, to which `_count_reading` appends.
        test_list: the test list.

    Returns:
        A dict for each evaluation, with the keys that `_count_reading` writes; empty if the file
        doesn't exist.

    Raises:
        DataError: a line of the file is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    try:
        found = [json.loads(line) for line in lines]
        # One list may be named in several ways, such as through `..` or a link.
        wanted = test_list.resolve()
        return [line for line in found if Path(line["list"]).resolve() == wanted]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: a line is damaged; put the file back, readings count") from None
