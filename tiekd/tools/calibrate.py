"""Calibrates the confidence of a run's student with a temperature T: the body of bin/calibrate.py.

The student's probabilities over depth bins become softmax(logits / T). T is fitted on one half of
the validation frames, and its effect is measured on the other. The results are written to the work
dir, each file atomically, and the weights with T last. So weights with a temperature always have
its measurements beside them. Checkpoints aren't changed, and the run can be resumed. A later
training that replaces the best weights writes them without a temperature. The same command writes
the same bytes.

`confidence.json`:

    temperature, criterion     T, and the name of the loss that it minimises
    band                       confidence is the probability that the true depth differs from the
                               predicted one by at most this share
    against, reference         "ground truth" or "the teacher", and the teacher's name
    data_set                   name of the data set whose frames were used; only if the recipe has
                               several
    same_sequence, remarks     true if a folder has frames in both halves; warnings for the user
    weights, iteration         name of the weights file, and the iteration of its weights
    fitted, reported           numbers of frames, sequences and pixels of each half
    before, after              measurements on the second half with T = 1 and with the fitted T
                               (tiekd/evaluation/calibration.py)
"""

import argparse
import json
import os
import sys
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from tiekd import console, files
from tiekd.config.data_sets import errors_of_set
from tiekd.config.recipe import load_recipe
from tiekd.config.teacher_node import TeacherList
from tiekd.data import held_out, learned_from, least_size, trained_on
from tiekd.data.build import build_dataset
from tiekd.data.frames import Frames
from tiekd.data.held_out import SAME_SEQUENCE, FitAndReportParts
from tiekd.data.image_io import write_image
from tiekd.data.resize import Resize
from tiekd.errors import CheckpointError, DataError, LaunchError, RecipeError
from tiekd.evaluation import calibration, calibration_pixels
from tiekd.evaluation.agreement import LABEL, Reference
from tiekd.evaluation.calibration_pixels import Setting
from tiekd.inference.student import pick_device
from tiekd.models import confidence, load
from tiekd.models.confidence import Calibration
from tiekd.models.heads.dpm import Dpm
from tiekd.models.network import Network
from tiekd.models.weights import state_dicts
from tiekd.teaching import build_teachers, with_checkpoints
from tiekd.training import inputs
from tiekd.training.canonical import require_focals
from tiekd.training.reference import reference_of
from tiekd.training.settings import Recipe
from tiekd.visualization import reliability
from tiekd.workdir import checkpoints, launch_record, manifest, weights_file, workdir

FIGURES, PICTURE = "confidence.json", "confidence.png"
TRUTH, TEACHER = "ground truth", "the teacher"


class _Run(NamedTuple):
    """A run whose student is calibrated.

    Attributes:
        work_dir: the run's folder.
        recipe: the run's recipe, with overrides applied; of several data sets, the recipe of the
            chosen one.
        data_set: the name of the chosen data set; empty if the recipe has one.
        held_out: the names of its validation frames when the run began; None if unknown.
        weights: the weights file.
        content: the content of the weights file, a dict.
        target: the file to which the weights with the temperature are written.
        network: the network, in eval mode on the device.
        resize: how images are resized to the network's input size.
        device: the device.
    """

    work_dir: Path
    recipe: Recipe
    data_set: str
    held_out: list[str] | None
    weights: Path
    content: dict
    target: Path
    network: Network
    resize: Resize
    device: torch.device

    @property
    def section(self) -> str:
        """The recipe's section that describes the frames, such as `data` or `data.street`."""
        return f"data.{self.data_set}" if self.data_set else "data"


def run(args: argparse.Namespace) -> None:
    """Runs bin/calibrate.py: fits the temperature, and prints and writes the results.

    It writes confidence.json and confidence.png to the work dir, and the weights with the
    temperature to the weights file or that of --out.

    Args:
        args: the program's parsed command line.

    Raises:
        UserError: the work dir, the weights, the recipe or the frames can't be used.
    """
    found = _find(args)
    with errors_of_set(found.data_set):
        frames = _validation_frames(found)
    remarks = _remarks(found, frames, args.on_trained)
    print(f"Weights: {found.weights}")
    for line in learned_from.lines(learned_from.read(found.weights)):
        print(line)
    everything = _measure(found, frames, remarks)
    print(table(everything))
    _write(found, everything)
    for path in (found.work_dir / FIGURES, found.work_dir / PICTURE, found.target):
        print(f"Written: {path}")


def _find(args: argparse.Namespace) -> _Run:
    """Finds and locks the run that the command line names, and loads its student.

    The current folder becomes that in which the run was started.

    Args:
        args: the program's parsed command line.

    Returns:
        The run.

    Raises:
        UserError: the work dir or the weights can't be used, or the student's head gives no
            distribution over depth bins.
    """
    work_dir = args.work_dir.resolve()
    out = args.out and args.out.resolve()
    given = args.checkpoint and args.checkpoint.resolve()
    config = work_dir / workdir.RECIPE
    if not config.is_file():
        raise CheckpointError(
            f"{args.work_dir}: no run to calibrate here (no {workdir.RECIPE}); give the work dir "
            f"that {console.command('train')} made"
        )
    whole = Recipe(load_recipe(config, args.overrides))
    data_set = whole.one_set(args.data_set)
    names = inputs.held_out_of(inputs.read(work_dir), whole, data_set.name)
    # Lock the work dir, so that no training replaces the weights until this process has ended.
    workdir.lock(work_dir)
    weights = _weights(work_dir, given)
    target = _target(weights, out)
    # Change to the folder in which the run was started, since relative paths in the recipe refer to
    # it.
    _enter(launch_record.read(work_dir).folder)
    device = pick_device(args.device)
    network, _, resize = load.load_network(str(config), str(weights), args.overrides)
    if not isinstance(network.head, Dpm):
        raise RecipeError(
            f"{weights}: this network's head ({type(network.head).__name__}) gives no distribution "
            "over fixed depth bins, so it has no confidence to calibrate; train a dpm head"
        )
    content = state_dicts.read_checkpoint(weights)
    if not isinstance(content.get("network"), dict):
        raise CheckpointError(
            f"{weights}: no weights file of tiekd, which would hold the temperature; convert it "
            f"with {console.command('import_weights')}"
        )
    network = network.to(device).eval()
    chosen = (data_set.recipe, data_set.name, names)
    return _Run(work_dir, *chosen, weights, content, target, network, resize, device)


def _measure(found: _Run, frames: Dataset, remarks: list[str]) -> dict:
    """Fits the temperature on one half of the frames, and measures its effect on the other.

    Args:
        found: the run.
        frames: the run's validation frames.
        remarks: warnings for the user about these frames.

    Returns:
        The content of confidence.json, as this module's docstring describes it.
    """
    recipe = found.recipe
    halves, *parts = _halves(frames)
    references = _references(recipe, parts, found.device)
    against = TEACHER if recipe.scores_teacher else TRUTH
    remarks = remarks + ([LABEL] if recipe.scores_teacher else [])
    remarks += [f"the two halves: {SAME_SEQUENCE}"] if halves.shares_sequence else []
    protocol = recipe.protocol("val")
    on_fitted, on_reported = (
        Setting(
            found.network,
            found.resize,
            replace(protocol, reference=reference),
            found.device,
            recipe.loading,
        )
        for reference in references
    )
    pixels = calibration_pixels.sample_for_fit(on_fitted, parts[0], sys.stderr)
    temperature = calibration.fit_temperature(*pixels)
    seen = calibration_pixels.measure_pixels(on_reported, parts[1], (1.0, temperature), sys.stderr)
    before, after = map(calibration.measure_calibration, seen)
    worse = [
        name for name in ("nll", "calibration_error", "sigma_error") if after[name] > before[name]
    ]
    if worse:
        remarks.append(f"larger with the temperature than without: {', '.join(worse)}")
    name = against if references[0] is None else references[0].name
    return {
        "temperature": temperature,
        "criterion": calibration.CRITERION,
        "band": confidence.RELATIVE_TOLERANCE,
        "against": against,
        "reference": name,
        **({"data_set": found.data_set} if found.data_set else {}),
        "same_sequence": halves.shares_sequence,
        "remarks": remarks,
        "weights": found.weights.name,
        "iteration": found.content.get("iteration"),
        "fitted": _half(halves, halves.fitted, len(pixels.bins)),
        "reported": _half(halves, halves.reported, len(seen[0].error)),
        "before": before,
        "after": after,
    }


def _half(halves: FitAndReportParts, names: Collection[str], pixels: int) -> dict:
    sequences = held_out.count_sequences(names, halves.fitted | halves.reported)
    return {"frames": len(names), "sequences": sequences, "pixels": pixels}


def _write(found: _Run, everything: dict) -> None:
    """Writes confidence.json, confidence.png, and then the weights with the temperature.

    Args:
        found: the run.
        everything: the content of confidence.json.

    Raises:
        LaunchError: a file can't be written.
    """
    text = json.dumps(everything, indent=1, allow_nan=False) + "\n"
    picture = reliability.picture(everything["before"], everything["after"])
    record = Calibration(everything["temperature"], everything["against"])._asdict()
    try:
        files.replace_text(found.work_dir / FIGURES, text)
        write_image(found.work_dir / PICTURE, picture)
        entry = {confidence.KEY: record}
        weights_file.write_with(found.weights, found.content, found.target, **entry)
    except OSError as error:
        raise LaunchError(
            f"{error.filename}: can't be written ({files.cause_of(error)}); mend that, and run "
            "the program again"
        ) from None


def table(found: dict) -> str:
    """Formats the measurements with T = 1 and with the fitted temperature as a table, one text.

    Args:
        found: the content of confidence.json.
    """
    before, after = found["before"], found["after"]
    fitted, reported = found["fitted"], found["reported"]
    band, against = f"{found['band']:.0%}", found["against"]
    if found["reference"] != against:
        against += f": {found['reference']}"
    if "data_set" in found:
        against += f", data set {found['data_set']}"
    lines = [
        f"Confidence against {against}",
        *(f"Remark: {remark}" for remark in found["remarks"]),
        f"Fitted on {_told(fitted)}; figures of {_told(reported)}",
        "",
        f"{'':<44}{'T = 1':>10}{'T = ' + format(found['temperature'], 'g'):>12}",
    ]
    rows = {
        "negative log-likelihood, nats": "nll",
        "mean confidence": "mean_confidence",
        f"share of depths within {band}": "share_within",
        "calibration error of confidence": "calibration_error",
        "mean sigma, m": "mean_sigma_m",
        "root mean square error, m": "rms_error_m",
        "errors within 1 sigma (Gaussian: 0.683)": "within_1_sigma",
        "errors within 2 sigma (Gaussian: 0.954)": "within_2_sigma",
        "calibration error of sigma": "sigma_error",
    }
    lines += [f"{name:<44}{before[key]:>10.4f}{after[key]:>12.4f}" for name, key in rows.items()]
    areas = [each["sparsification"] for each in (before, after)]
    if areas[0]["dropped"] is not None:
        for name, key in (
            ("area under sparsification by sigma", "area_by_sigma"),
            ("area under sparsification by confidence", "area_by_confidence"),
            ("the same of an oracle (random: 1)", "area_oracle"),
        ):
            lines.append(f"{name:<44}{areas[0][key]:>10.4f}{areas[1][key]:>12.4f}")
    return "\n".join(lines)


def _told(half: dict) -> str:
    return f"{half['frames']} frames of {half['sequences']} folder(s), {half['pixels']} pixels"


def _weights(work_dir: Path, given: Path | None) -> Path:
    """Returns the path of the weights file to calibrate.

    Args:
        work_dir: the run's folder.
        given: the file, work dir or checkpoint folder on the command line; None for the run's best
            weights.

    Raises:
        CheckpointError: there is no weights file.
    """
    if given is not None and not given.is_dir():
        return given
    try:
        return checkpoints.find_weights(given or work_dir)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; train the run with {console.command('train')}, or name weights"
        ) from None


def _target(weights: Path, out: Path | None) -> Path:
    """Returns the file to which the weights with the temperature are written.

    Args:
        weights: the weights file that is calibrated.
        out: the value of --out; None to overwrite `weights`.

    Raises:
        UserError: the file would be in a checkpoint, whose files mustn't change, or can't be
            written.
    """
    if out is not None:
        files.check_output("--out", out, ".pth")
        if (out.parent / manifest.NAME).exists():
            raise LaunchError(
                f"--out {out}: in a checkpoint, whose files may not change; give another"
            )
        return out
    if (weights.parent / manifest.NAME).exists():
        raise CheckpointError(
            f"{weights}: in a checkpoint, whose files may not change, as the run couldn't resume "
            "from it; give --out FILE.pth for the weights with the temperature"
        )
    return weights


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise LaunchError(
            f"{folder}, where the run was started and its relative paths begin, can't be entered "
            f"({error.strerror}); make it"
        ) from None


def _validation_frames(found: _Run) -> Dataset:
    """Builds the dataset of the run's validation frames, and checks that the network fits them.

    Frames that the run held out are those that the record in its folder names.

    Args:
        found: the run.

    Raises:
        UserError: the run has fewer than two validation frames, a frame is too small for the
            network, or its focal length is needed and not known.
    """
    recipe = found.recipe
    if not recipe.validates:
        key = f"{found.section}.validate" if found.data_set else "train.validate"
        raise RecipeError(
            f"{key}: false, so the run has no validation frames; set {key}=true and "
            f"{found.section}.val_split, a list of frames that it wasn't trained on"
        )
    data = recipe.dataset if recipe.scores_teacher else recipe.without_teacher().dataset
    frames = build_dataset(data, "val", as_evaluated=True, held_out=found.held_out)
    if len(frames) < 2:
        raise DataError(
            f"{len(frames)} validation frame, and two or more are needed, some to fit the "
            f"temperature and others to report; give more ({found.section}.val_split or "
            f"{found.section}.val_fraction)"
        )
    least = least_size.least_side(found.network)
    least_size.check_frames(frames, found.resize, least, "data.resize")
    if found.network.canonical is not None:
        require_focals(frames, found.resize, "val")
    return frames


def _remarks(found: _Run, frames: Dataset, on_trained: bool) -> list[str]:
    """Returns warnings for the user about the validation frames, one line each.

    They say if validation frames are similar to training frames, or if the weights were trained on
    some of them.

    Args:
        found: the run, whose weights file records its training frames.
        frames: the validation frames.
        on_trained: the option --on-trained; True to allow frames that were all trained on.

    Raises:
        DataError: the weights were trained on all of the frames.
    """
    seen = trained_on.overlap_of(trained_on.read(found.weights), frames)
    if seen is not None and seen.is_whole and not on_trained:
        raise DataError(
            f"{found.weights} was trained on all {seen.frames} validation frames, so that its "
            "confidence on them says nothing of new images; give others "
            f"({found.section}.val_split=FILE), or say --on-trained"
        )
    remark = getattr(frames, "remark", "")
    remarks = [f"validation frames and training frames: {remark}"] if remark else []
    return remarks + ([str(seen)] if seen is not None and seen.seen else [])


def _halves(frames: Dataset) -> tuple[FitAndReportParts, Dataset, Dataset]:
    """Divides validation frames into a half to fit the temperature on, and one to measure it on.

    The frames are divided by folder if possible.

    Args:
        frames: the frames. A dataset from outside the project has no frame names; its frames count
            as one sequence, in the dataset's order.

    Returns:
        The names of the frames in both halves, the dataset of the first half, and that of the
        second.
    """
    if isinstance(frames, Frames):
        names = [frame.name for frame in frames.frames]
    else:
        names = [f"{index}" for index in range(len(frames))]
    halves = held_out.fit_and_report_parts(names)
    return halves, *(_only(frames, names, half) for half in (halves.fitted, halves.reported))


def _only(frames: Dataset, names: list[str], chosen: Collection[str]) -> Dataset:
    indices = [index for index, name in enumerate(names) if name in chosen]
    if not isinstance(frames, Frames):
        return Subset(frames, indices)
    part = copy(frames)
    part.frames = frames.frames.take(np.array(indices, np.int64))
    return part


def _references(
    recipe: Recipe, parts: Sequence[Dataset], device: torch.device
) -> list[Reference | None]:
    """Returns for each half of the frames the reference with which the student is compared.

    Args:
        recipe: the recipe.
        parts: the datasets of the two halves.
        device: the teacher's device.

    Returns:
        A list of two: the teacher as a Reference if the recipe evaluates against the teacher,
        otherwise None for ground truth.
    """
    if not recipe.scores_teacher:
        return [None for _ in parts]
    node = with_checkpoints(recipe.node)
    teacher = build_teachers(node, device, recipe.max_depth_m)
    return [reference_of(teacher, TeacherList.of(node), part) for part in parts]
