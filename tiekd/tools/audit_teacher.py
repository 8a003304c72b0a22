"""Audits the teacher of a recipe: runs it on some frames and reports measurements out of limits.

The measurements and their limits are defined in tiekd/evaluation/teacher_audit/. They are written
to audit.json. audit.png shows the frame with the largest error, and the one with the median error.
The teacher sees whole images, as when its maps are cached. With --sigma, its ways to estimate its
own error in each pixel are measured, too, and their calibrations and sparsification curves written.
The audit runs in one process. Not covered: audits of ground truth, which bin/check_data.py checks,
and the sigma of teachers from outside the project.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch.utils.data import Dataset

from tiekd import console
from tiekd.config.data_sets import errors_of_set
from tiekd.config.recipe import load_recipe
from tiekd.config.teacher_node import IN_MEAN, TeacherNode, errors_of
from tiekd.data.build import build_dataset
from tiekd.data.frames import Frames, listed_frames
from tiekd.data.image_io import write_durably, write_image
from tiekd.data.resize import OWN_SIZE
from tiekd.data.stored import Source, as_openable, source_of
from tiekd.distributed import process_group
from tiekd.errors import DataError, TeacherError
from tiekd.evaluation.teacher_audit import report, verdict
from tiekd.evaluation.teacher_audit.grid import AuditFrame
from tiekd.evaluation.teacher_audit.observe import ChangedImages, Observer
from tiekd.evaluation.teacher_audit.verdict import Verdict
from tiekd.files import claim_folder
from tiekd.teachers.stereo import StereoTeacher
from tiekd.teaching import build_teacher
from tiekd.tools import audit_sigma
from tiekd.tools.cache_teacher import TIMEOUT_MINUTES, frames_of, settings_of_teachers
from tiekd.training.settings import Recipe
from tiekd.visualization import pictures
from tiekd.visualization.frame_pictures import dilation_radius

JSON = "audit.json"
PICTURE = "audit.png"
_FULL_FRAME_MM = 43.267  # diagonal in mm of the film to which EXIF's FocalLengthIn35mmFilm refers


def observer_of(
    recipe: Recipe, args: argparse.Namespace, device: torch.device, index: int = 0
) -> Observer:
    """Builds a recipe's teacher and frames, and the observer that runs the teacher on the frames.

    Args:
        recipe: the recipe, with overrides applied.
        args: the parsed command line of bin/audit_teacher.py.
        device: the device on which the teacher runs.
        index: the index of the teacher to audit, from 0, if the recipe has several.

    Returns:
        The observer. Its `observe(count)` runs the teacher on frames, on unchanged and, for a
        network, also on changed images.

    Raises:
        TeacherError: The recipe has no teacher network, or an option doesn't apply to its cached
            maps.
    """
    teachers = recipe.teachers
    node = teachers.nodes[index] if teachers.is_given else TeacherNode(None)
    if node.maps is not None:
        # Refuse --checkpoint and --split val with cached maps (`teacher.maps`): there is no network
        # to load a checkpoint into, and maps exist for training frames only.

        if args.split == "val" or args.checkpoint is not None:
            option = "--split val" if args.split == "val" else "--checkpoint"
            raise TeacherError(f"{option}: not for cached maps ({node.where}.maps); leave it out")
        frames = build_dataset(recipe.dataset, "train", as_evaluated=True, held_out=())
        map_index, changed_images = teachers.map_index_of(index), ChangedImages()
        with errors_of(node.where):
            teacher = build_teacher(node.own_section, device, map_index=map_index)
    else:
        all_settings = settings_of_teachers(recipe, args.recipe, args.checkpoint, args.overrides)
        settings = next(each for each in all_settings if each.teacher.where == node.where)
        frames = frames_of(recipe, args.split)
        with errors_of(node.where):
            plain = audit_sigma.without_sigma(settings)
            teacher = build_teacher(plain, device, settings.resize, recipe.max_depth_m)
        changed_images = ChangedImages(swapped=True, covered=True, changed=True)
        if isinstance(teacher, StereoTeacher):
            # Run a stereo teacher on unchanged images only. It reads the image files itself, so
            # changes of the image tensor would have no effect.
            changed_images = ChangedImages()
            for line in teacher.check_frames(listed_frames(frames)):
                print(line)
    return Observer(
        teacher,
        frames,
        recipe.max_depth_m,
        device,
        getattr(teacher, "resize", OWN_SIZE),
        changed_images,
        lambda index: other_focals(frames, index, args.focal),
    )


def other_focals(frames: Dataset, index: int, given: float | None) -> Mapping[str, float]:
    """Returns a frame's focal lengths from other sources than its dataset.

    Args:
        frames: the dataset.
        index: index of the frame.
        given: the focal length that the user gave, in pixels of the frame's image; None if none.

    Returns:
        source -> focal length in pixels of the frame's image. The sources are "given" and "exif"; a
        source that isn't known is left out.
    """
    found = {} if given is None else {"given": given}
    if isinstance(frames, Frames):
        exif = exif_focal(source_of(frames.frames[index].image))
        found |= {} if exif is None else {"exif": exif}
    return found


def exif_focal(path: Source) -> float | None:
    """Returns the focal length that an image's EXIF states, in pixels; None if it states none.

    Args:
        path: the image file.
    """
    try:
        with Image.open(as_openable(path)) as image:
            millimetres = (
                image.getexif()
                .get_ifd(ExifTags.IFD.Exif)
                .get(ExifTags.Base.FocalLengthIn35mmFilm, 0)
            )
            focal = float(millimetres) / _FULL_FRAME_MM * float(np.hypot(*image.size))
    except Exception:  # noqa: BLE001 - corrupt EXIF raises many types; it counts as missing
        return None
    return focal if np.isfinite(focal) and focal > 0 else None


def shown_frames(judged: Verdict, observed: list[AuditFrame]) -> dict[str, AuditFrame]:
    """Returns the frame for which the teacher is worst, and the median frame.

    If enough frames have enough ground truth, they are sorted by the teacher's error after its
    depth is multiplied by the best scale. Otherwise they are sorted by how far edges in the image
    and in the teacher's depth disagree.

    Args:
        judged: the audit's result.
        observed: the audited frames.

    Returns:
        "worst" and "median" -> frame.
    """
    badness = np.full(len(observed), np.nan)
    if judged.truth is not None:
        badness = np.array([frame.aligned for frame in judged.truth.frames])
    elif judged.edges is not None:
        badness = -judged.edges.own
    known = np.flatnonzero(np.isfinite(badness))
    if not len(known):
        known, badness = np.arange(len(observed)), np.zeros(len(observed))
    order = known[np.argsort(badness[known], kind="stable")]
    return {
        "worst": observed[order[-1]],
        "median": observed[order[len(order) // 2]],
    }


def picture(observer: Observer, shown: Mapping[str, AuditFrame]) -> np.ndarray:
    """Draws one row per frame: image, teacher's depth, ground truth and their difference.

    Args:
        observer: the object that runs the teacher on frames. It predicts the depth of these frames
            again, at full size.
        shown: caption of a frame, which is written above its image -> the frame.

    Returns:
        (height, width, 3) uint8.
    """
    panels = []
    for word, frame in shown.items():
        batch = next(observer.batches(frame.index))
        depth = observer.depth(batch).numpy()
        truth = batch.depth[0, 0].cpu().numpy()
        radius = dilation_radius(truth)
        cells = [
            pictures.denormalise(observer.image(batch).numpy()),
            pictures.colourise(depth, observer.max_depth_m),
            pictures.colourise(pictures.dilate(truth, radius), observer.max_depth_m),
            pictures.error_map(depth, truth, observer.max_depth_m / 8, radius),
        ]
        titles = [f"{word}: image", "teacher", "ground truth", "difference"]
        panels.append(
            pictures.panel([cells], titles, observer.max_depth_m, observer.max_depth_m / 8)
        )
    return np.concatenate(panels)


def run(args: argparse.Namespace) -> int:
    """Runs bin/audit_teacher.py: audits a recipe's teacher, writes the results and prints a table.

    The results are audit.json and audit.png in the folder of --out. If the recipe has several
    teachers or data sets, each teacher is audited by itself and has a subfolder. With --sigma, the
    differences of teachers that are averaged are measured, too.

    Args:
        args: the program's parsed command line.

    Returns:
        The program's exit code: 0 if all measurements are within their limits, else 1.

    Raises:
        UserError: the recipe has no teacher to audit, or too few frames can be read.
    """
    recipe = Recipe(load_recipe(args.recipe, args.overrides))
    device = process_group.start_rank(TIMEOUT_MINUTES)
    if not recipe.is_mixed:
        recipe.sets_named(args.data_set)
        return _audit_set(recipe, args, device)
    codes, folder = [], _folder(args)
    for name, _, own in recipe.sets_named(args.data_set):
        if not own.teachers.is_given:
            continue
        print(f"Data set {name}:")
        args.out = folder / name
        with errors_of_set(name):
            codes.append(_audit_set(own, args, device))
    if not codes:
        raise TeacherError(f"teacher: {args.recipe} has none for {args.data_set or 'any data set'}")
    return max(codes)


def _audit_set(recipe: Recipe, args: argparse.Namespace, device: torch.device) -> int:
    """Audits the teachers of one data set, writes the results, and prints a table for each teacher.

    Args:
        recipe: the recipe with this data set as its only one.
        args: the program's parsed command line.
        device: the device on which teachers run.

    Returns:
        The exit code: 0 if all measurements are within their limits, else 1.
    """
    teachers = recipe.teachers
    code = max(audit(recipe, args, device, i) for i in range(max(1, len(teachers.nodes))))
    if args.sigma and teachers.several == IN_MEAN:
        found, out = audit_sigma.measure_mean(recipe, args, device), _folder(args)
        claim_folder(out, audit_sigma.FILES)
        audit_sigma.write(found, out)
        print(audit_sigma.as_text(found, out))
    return code


def _folder(args: argparse.Namespace) -> Path:
    return args.out or Path("work_dirs") / f"audit_{Path(args.recipe).stem}"


def audit(recipe: Recipe, args: argparse.Namespace, device: torch.device, index: int = 0) -> int:
    """Audits one teacher of a recipe, writes audit.json and audit.png, and prints a table.

    They are written to the folder of --out; if the recipe has several teachers, to its subfolder
    `teacher_<index>`.

    Args:
        recipe: the recipe, with overrides applied.
        args: the parsed command line of bin/audit_teacher.py.
        device: the device on which the teacher runs.
        index: the index of the teacher to audit, from 0, if the recipe has several.

    Returns:
        The exit code: 0 if all measurements are within their limits, else 1.

    Raises:
        TeacherError: --sigma is given for a teacher that can't have a sigma.
        DataError: too few frames can be read, or have ground truth for --sigma.
    """
    out = _folder(args)
    # Don't measure sigma here if the recipe's teacher is a mean of several teachers. The sigma of
    # their mean is measured once all of them are audited.
    with_sigma = args.sigma and recipe.teachers.several != IN_MEAN
    if recipe.teachers.several is not None:
        out = out / f"teacher_{index}"
        print(f"{recipe.teachers.nodes[index].where}:")
    observer = observer_of(recipe, args, device, index)
    claim_folder(out, (JSON, PICTURE, *(audit_sigma.FILES if with_sigma else ())))
    observed = observer.observe(args.frames)
    if len(observed) < verdict.MIN_FRAMES:
        raise DataError(
            f"{args.recipe}: only {len(observed)} frames can be read, an audit needs "
            f"{verdict.MIN_FRAMES}; {console.command('check_data')} says what is wrong with them"
        )
    if args.no_truth:
        observed = [replace(frame, truth=np.zeros_like(frame.truth)) for frame in observed]
    judged = verdict.judge(observed, recipe.max_depth_m)
    uncertain = None
    if with_sigma:
        uncertain = audit_sigma.measure(recipe, args, observer, index)
    shown = shown_frames(judged, observed)
    names = {word: frame.name for word, frame in shown.items()}
    # Write JSON and image before printing, so that the printed path exists.
    result = {
        "recipe": str(args.recipe),
        "split": args.split,
        **report.as_json(judged),
        "names": [frame.name for frame in observed],
        "shown": names,
    }
    write_durably(out / JSON, (json.dumps(result, indent=1) + "\n").encode())
    write_image(out / PICTURE, picture(observer, shown))
    if uncertain is not None:
        audit_sigma.write(uncertain, out)
    print(report.table(judged))
    if uncertain is not None:
        print(audit_sigma.as_text(uncertain, out))
    print(f"Worst frame: {names['worst']}, median frame: {names['median']}; see {out / PICTURE}")
    return int(bool(judged.suspicions))
