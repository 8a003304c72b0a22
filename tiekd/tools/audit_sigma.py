"""Measures the ways to estimate a teacher's error (sigma), for bin/audit_teacher.py --sigma.

A source of sigma is a way to estimate the teacher's error in each pixel, such as the difference of
its depth for an image and the mirrored image. Each source is compared with the true errors on
frames with ground truth (tiekd/evaluation/sigma_quality.py). The module writes the calibrations of
all sources to a file, which a recipe can name in `teacher.sigma`, and an image of their
sparsification curves. The teacher is built once for each source. Not covered: the sigma of cached
maps, and of teachers from outside the project.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tiekd import console
from tiekd.config.teacher_node import TeacherNode, errors_of
from tiekd.data import sigma_calibration
from tiekd.data.build import build_dataset
from tiekd.data.image_io import write_durably, write_image
from tiekd.data.sigma_calibration import NAME, Calibration
from tiekd.errors import DataError, TeacherError
from tiekd.evaluation import sigma_quality
from tiekd.evaluation.sigma_quality import SigmaFigures, SigmaFrame
from tiekd.evaluation.teacher_audit import sigmas
from tiekd.evaluation.teacher_audit.observe import Observer
from tiekd.teachers.network import FrozenTeacher
from tiekd.teachers.outputs import digest as digests
from tiekd.teachers.outputs.sigma import SOURCES
from tiekd.teachers.outputs.teacher import FoundationTeacher
from tiekd.teaching import build_teacher, build_teachers, digest_of_maps
from tiekd.tools.cache_teacher import TeacherSettings, settings_of_teachers
from tiekd.training.settings import Recipe
from tiekd.visualization import charts
from tiekd.visualization.charts import Curve

CURVES = "sigma.png"
FILES = (NAME, CURVES)
_SOURCE, _ORACLE, _RANDOM = (90, 160, 250), (90, 200, 120), (150, 150, 158)


class Sigmas(NamedTuple):
    """The measured sources of a teacher's sigma, i.e. ways to estimate its error in each pixel.

    Attributes:
        measured: name of the source -> how well its sigma agrees with the true errors.
        calibrations: name of the source -> the calibration of its sigma, which is written to a
            file.
        missing: name of a source that the teacher doesn't have -> the reason.
    """

    measured: dict[str, SigmaFigures]
    calibrations: dict[str, Calibration]
    missing: dict[str, str]


def measure(recipe: Recipe, args: argparse.Namespace, observer: Observer, index: int = 0) -> Sigmas:
    """Measures each source of sigma that a recipe's teacher has, on frames with ground truth.

    Args:
        recipe: the recipe, with overrides applied.
        args: the parsed command line of bin/audit_teacher.py.
        observer: the object that runs the teacher on the audited frames. For each source, its
            teacher is replaced by one with this source.
        index: the index of the teacher to measure, from 0, if the recipe has several.

    Returns:
        The measurements and calibrations of all sources.

    Raises:
        TeacherError: The teacher is a folder of maps, a second camera, or a module from outside the
            project.
        DataError: Too few frames have ground truth.
    """
    teachers = recipe.teachers
    teacher = teachers.nodes[index] if teachers.is_given else TeacherNode(None)
    if teacher.maps is not None:
        raise TeacherError(
            f"--sigma: not for cached maps ({teacher.where}.maps); give the recipe of the teacher "
            "that made them"
        )
    if teacher.module is not None:
        raise TeacherError(
            f"--sigma: {teacher.module} is from outside the project, and its sigma isn't measured; "
            "leave it out"
        )
    if teacher.kind == "stereo":
        raise TeacherError(
            f"--sigma: {teacher.where} is a stereo teacher, whose sigma follows from its "
            "disparity_error and has no other source; leave it out"
        )
    all_settings = settings_of_teachers(recipe, args.recipe, args.checkpoint, args.overrides)
    settings = next(each for each in all_settings if each.teacher.where == teacher.where)
    found = Sigmas({}, {}, {})
    for name in SOURCES:
        node = without_sigma(settings) | {"sigma": {"from": name}}
        # Build the teacher with this source. The source "flip" needs the depth for the mirrored
        # image; other sources keep the recipe's setting of flip averaging.
        node |= {"flip": True} if name == "flip" else {}
        with errors_of(teacher.where):
            built = _build(node, observer, settings, found.missing)
        if built is None:
            continue
        frames = sigmas.observe(replace(observer, teacher=built), args.frames)
        _add(found, name, frames, recipe.max_depth_m, _digest(built), bool(node.get("flip")))
    return found


def measure_mean(recipe: Recipe, args: argparse.Namespace, device: torch.device) -> Sigmas:
    """Measures the sigma of a mean of several teachers: how far their cached depth maps differ.

    Args:
        recipe: the recipe, with overrides applied, whose teacher is a mean of several.
        args: the parsed command line of bin/audit_teacher.py.
        device: the device on which maps are averaged.

    Returns:
        The measurement and the calibration of one source of sigma, "between".

    Raises:
        TeacherError: A teacher has no cached maps.
        DataError: Too few frames have ground truth.
    """
    teachers = recipe.teachers
    for node in teachers.nodes:
        if node.maps is None:
            raise TeacherError(
                f"--sigma: {node.where} has no cached maps; make them with "
                f"{console.command('cache_teacher')}, and give their folders"
            )
    node = recipe.node["teacher"] | {"sigma": {"from": "between"}}
    mean = build_teachers(recipe.node | {"teacher": node}, device, recipe.max_depth_m)
    frames = build_dataset(recipe.dataset, "train", as_evaluated=True, held_out=())
    observer = Observer(mean, frames, recipe.max_depth_m, device)
    found = Sigmas({}, {}, {})
    seen = sigmas.observe(observer, args.frames)
    digest = digest_of_maps(teachers, recipe.data)
    _add(found, "between", seen, recipe.max_depth_m, digest, flip=False)
    return found


def _build(
    node: dict, observer: Observer, settings: TeacherSettings, missing: dict[str, str]
) -> FrozenTeacher | FoundationTeacher | None:
    """Builds a teacher that estimates its error (sigma) by a given source.

    Args:
        node: the teacher's recipe section, in which `sigma` names the source.
        observer: the object that runs the teacher on the audited frames; it has the device and the
            student's largest depth.
        settings: the recipe's teacher, with the resizing of its images.
        missing: name of a source that the teacher doesn't have -> the reason. An entry is added if
            the teacher doesn't have this source.

    Returns:
        The teacher; None if it doesn't have the source.
    """
    try:
        return build_teacher(node, observer.device, settings.resize, observer.max_depth_m)
    except TeacherError as error:
        place, _, why = str(error).partition(": ")
        if not place.startswith("teacher.sigma."):
            raise
        missing[node["sigma"]["from"]] = why
        return None


def _add(
    found: Sigmas,
    name: str,
    frames: list[SigmaFrame],
    max_depth_m: float,
    digest: str | None,
    flip: bool,
) -> None:
    """Measures a source of sigma, and adds the measurements and the calibration to `found`.

    Args:
        found: the sources that have been measured so far; changed in place.
        name: the name of the source.
        frames: the depth, sigma and error of pixels with ground truth, for each frame.
        max_depth_m: the student's largest depth in metres.
        digest: digest of the teacher's weights; None if they aren't accessible.
        flip: True if the teacher averages its depth with that for the mirrored image.

    Raises:
        DataError: Too few frames have ground truth.
    """
    shortage = sigmas.shortage(frames)
    if shortage is not None:
        raise DataError(f"--sigma: {shortage}; give more --frames, or leave --sigma out")
    figures = sigma_quality.measure(frames, max_depth_m)
    found.measured[name] = figures
    found.calibrations[name] = sigmas.calibration_of(name, figures, digest, flip)


def curves(measured: Mapping[str, SigmaFigures]) -> np.ndarray:
    """Draws the sparsification curve of each source of sigma.

    A curve shows the mean error of the remaining pixels, after those with the largest sigma have
    been dropped. Each chart also has the curve of an oracle, which drops the pixels with the
    largest errors, and that of a random order.

    Args:
        measured: name of the source -> its measurements.

    Returns:
        (height, width, 3) uint8, one chart per source, side by side.
    """
    drawn = []
    for source, figures in measured.items():
        dropped = np.arange(len(figures.curve)) / len(figures.curve)
        drawn.append(
            charts.chart(
                [
                    Curve(dropped, np.ones(len(dropped)), _RANDOM),
                    Curve(dropped, figures.oracle, _ORACLE),
                    Curve(dropped, figures.curve, _SOURCE),
                ],
                title=f"error left: {source} (blue), oracle (green), random (grey)",
                x_label="share of pixels dropped, those of the largest sigma first",
                y_range=(0, max(1.1, float(figures.curve.max()))),
            )
        )
    return np.concatenate(drawn, axis=1)


def write(found: Sigmas, folder: Path) -> None:
    """Writes the calibrations to sigma.json, and the sparsification curves to sigma.png.

    Without a measured source there is no sigma.png.

    Args:
        found: the measured sources of sigma.
        folder: the folder of the audit's results.
    """
    write_durably(folder / NAME, sigma_calibration.to_json(found.calibrations))
    if found.measured:
        write_image(folder / CURVES, curves(found.measured))


def as_text(found: Sigmas, folder: Path) -> str:
    """Returns the measured sources of sigma as a table for the user, in one text.

    If a source orders pixels by their errors, a line below the table tells how to set
    `teacher.sigma` in the recipe to use it.

    Args:
        found: the measured sources.
        folder: the folder of the audit's results, which has the file of calibrations.
    """
    lines = [sigmas.table(found.measured, found.missing)]
    usable = [name for name, each in found.calibrations.items() if each.orders_errors]
    if usable:
        lines.append(
            f"Set teacher.sigma to {{from: {usable[0]}, calibration: {folder / NAME}}}; it can be "
            f"from {' or '.join(usable)}"
        )
    return "\n".join(lines)


def without_sigma(settings: TeacherSettings) -> dict:
    """Returns a teacher's recipe section, a dict, without the key `sigma`.

    A module from outside the project interprets all keys itself, so its section is unchanged.

    Args:
        settings: the recipe's teacher.
    """
    if settings.teacher.module is not None:
        return settings.node
    return {key: value for key, value in settings.node.items() if key != "sigma"}


def _digest(teacher) -> str | None:
    if isinstance(teacher, FrozenTeacher):
        return digests.of_network(teacher.network)
    return teacher.description.get("digest")
