"""Computes the results of an experiment from the errors of each frame, as one dict (the table).

The dict has plain values for the report's JSON file, from which the Markdown and the plot are made
(report.py). It contains no times and no absolute paths, so an interrupted experiment gives the same
bytes as an uninterrupted one. NaN is null, and infinite values are "inf" and "-inf".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tiekd.config.recipe import load_recipe
from tiekd.errors import DataError
from tiekd.evaluation import intervals
from tiekd.evaluation.floors import NAMES as FLOORS
from tiekd.evaluation.frame_figures import FIGURES, FrameFigures
from tiekd.evaluation.intervals import Comparison, Interval
from tiekd.evaluation.range_errors import bounds_m
from tiekd.tools.experiment import launch, networks, score, states
from tiekd.tools.experiment import runs as listing
from tiekd.tools.experiment.runs import PILOT_SEEDS, Job
from tiekd.tools.experiment.spec import Spec, row_of
from tiekd.training.settings import Recipe

COMPARED = ("abs_rel", "abs_rel_aligned", "silog", "edge")
AGAINST_FLOORS = ("abs_rel", "abs_rel_aligned")
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Figures:
    """The results on one set of data: the errors of all rows and floors on the same frames.

    A row is a recipe with overrides, a floor a baseline that doesn't look at the image.

    Attributes:
        names: names of the frames.
        scenes: name of the scene of each frame.
        rows: row -> seed -> errors of each frame, for the finished runs.
        floors: floor -> errors of each frame; empty until the floors are evaluated.
    """

    names: list[str]
    scenes: list[str]
    rows: dict[str, dict[int, list[FrameFigures]]]
    floors: dict[str, list[FrameFigures]]

    def values(self, row: str, metric: str, seeds: Sequence[int]) -> np.ndarray:
        """Returns a metric of a row or floor on each frame, (seeds, frames) float64.

        A floor, i.e. a baseline that doesn't look at the image, has the same values for all seeds.

        Args:
            row: name of the row or the floor.
            metric: one of FIGURES.
            seeds: the seeds.
        """
        is_row = row in self.rows
        frames = [self.rows[row][seed] if is_row else self.floors[row] for seed in seeds]
        shape = (len(seeds), len(self.names))
        return np.array([[getattr(f, metric) for f in each] for each in frames]).reshape(shape)

    def has(self, metric: str) -> bool:
        """Returns True if a metric may be defined on these frames.

        Which metrics are defined follows from the ground truth, so it is the same for all rows.

        Args:
            metric: one of FIGURES.
        """
        each = [self.values(row, metric, list(seeds)) for row, seeds in self.rows.items()]
        values = np.concatenate([*map(np.ravel, each), np.empty(0)])
        return not values.size or not np.isnan(values).all()

    def compare(self, ours: str, theirs: str, metric: str) -> Comparison:
        """Compares two rows, or a row and a floor, by a metric, on the seeds that both have.

        Args:
            ours: name of the first row.
            theirs: name of the second row or of a floor.
            metric: one of FIGURES.

        Returns:
            The difference (first - second) as a mean of scene means, with its confidence intervals
            and p-value.
        """
        seeds = list(self.rows[ours])
        if theirs in self.rows:
            seeds = [seed for seed in seeds if seed in self.rows[theirs]]
        pair = (self.values(row, metric, seeds) for row in (ours, theirs))
        return intervals.compare(*pair, self.scenes)


def collect(spec: Spec, name: str, runs: Sequence[Job], floors: Sequence[Job]) -> Figures:
    """Reads the results of a set's finished runs and floors.

    Args:
        spec: the experiment.
        name: the set's name.
        runs: all runs of the experiment.
        floors: all evaluations of floors, i.e. of baselines that don't look at the image.

    Returns:
        The errors of each frame, by row and seed, and by floor.

    Raises:
        DataError: two rows were evaluated on different frames.
        RecipeError: the scene rule doesn't cover a frame.
    """
    # Read the errors of each row and seed. Leave a seed out until all of its folds are finished.
    here = [job for job in runs if job.set == name]
    rows: dict[str, dict[int, list[FrameFigures]]] = {row: {} for row in spec.table_rows}
    for row in spec.rows:
        for seed in spec.seeds:
            parts = [job for job in here if job.row == row and job.seed == seed]
            # Add the errors of each row of the table that the run gives, one per readout.
            for each, frames in (_joined(parts, spec) or {}).items():
                rows[each][seed] = frames
    found_floors = _joined([job for job in floors if job.set == name], spec) or {}
    # Check that every row was evaluated on the same pixels of the same frames.
    every = [(row, each) for row in rows for each in rows[row].values()] + [*found_floors.items()]
    names = [figures.name for figures in every[0][1]] if every else []
    pixels = [figures.pixels for figures in every[0][1]] if every else []
    if len(set(names)) != len(names):
        raise DataError(f"{name}: a frame is listed twice; list each frame once")
    for row, frames in every:
        if [f.name for f in frames] != names or [f.pixels for f in frames] != pixels:
            raise DataError(
                f"{name}: {row} was evaluated on other frames or pixels than {every[0][0]}; give "
                "all rows the same frames, crop, cap and depth range"
            )
    rule = spec.scene_rule()
    return Figures(names, [rule(each) for each in names], rows, found_floors)


def _joined(parts: Sequence[Job], spec: Spec) -> dict[str, list[FrameFigures]] | None:
    """Returns the errors of all frames of a run's folds, concatenated in the order of the folds.

    Args:
        parts: the jobs of all folds of one run, or of the evaluation of a set's floors, i.e.
            baselines that don't look at the image.
        spec: the experiment.

    Returns:
        A dict from the name of a row or of a floor to the errors of each frame; None if a fold
        isn't finished.
    """
    found = [
        listing.read_frame_errors(job, spec) for job in sorted(parts, key=lambda job: job.fold or 0)
    ]
    if not found or None in found:
        return None
    # Leave a floor (a baseline that doesn't look at the image) out if it couldn't be computed in
    # one of the folds.
    common = [name for name in found[0] if all(name in part for part in found)]
    return {name: [frame for part in found for frame in part[name]] for name in common}


def compute(spec: Spec, runs: Sequence[Job], floors: Sequence[Job]) -> dict:
    """Computes the results of an experiment on all sets.

    Args:
        spec: the experiment.
        runs: all runs.
        floors: all evaluations of floors, i.e. of baselines that don't look at the image.

    Returns:
        A dict of plain values for JSON: settings of the experiment; "sets", for each set its
        numbers of frames and scenes, the errors of each row and floor, and the comparisons of rows;
        "not_finished" and "failed", the jobs without results; and with `headline: true`
        "test_readings", how often each set's test list has been evaluated.
    """
    # Find the missing runs, which have failed, haven't been tried, or have been interrupted.
    every = [*runs, *floors]
    missing = [job for job in every if listing.read_frame_errors(job, spec) is None]
    failed = [job for job in missing if states.read(job).failure is not None]
    table = {
        "experiment": spec.path.stem,
        "split": spec.split,
        "steps": spec.steps,
        "seeds": list(spec.seeds),
        "weights": spec.weights,
        "code": listing.code_digest(),
        "sets": {name: _set(spec, name, runs, floors) for name in spec.sets},
        "not_finished": [job.label for job in missing if job not in failed],
        "failed": [
            {
                "run": job.label,
                "reason": states.read(job).failure,
                "log": str(job.log.relative_to(spec.folder.absolute())),
            }
            for job in failed
        ],
    }
    # For evaluations on test lists (`headline: true`), add how often each list has been evaluated.
    if spec.split == "test":
        lists = {name: launch.test_list_of(spec, _first(runs, name)) for name in spec.sets}
        table["test_readings"] = {
            name: len(score.readings_of(spec.readings_file, path)) for name, path in lists.items()
        }
    return table


def _first(runs: Sequence[Job], name: str) -> Job:
    return next(job for job in runs if job.set == name)


def _set(spec: Spec, name: str, runs: Sequence[Job], floors: Sequence[Job]) -> dict:
    figures = collect(spec, name, runs, floors)
    reference = _first(runs, name)
    cap = Recipe(load_recipe(reference.recipe, reference.overrides)).protocol("val").cap
    trained = [row for row, seeds in figures.rows.items() if seeds]
    comparisons = compare_rows(spec, name, figures)
    jobs = {job.row: job for job in runs if job.set == name}
    failed = {row: _comparisons_not_won(figures, row) for row in trained}
    return {
        "frames": len(figures.names),
        "scenes": len(set(figures.scenes)),
        "shared_scenes": listing.shared_scenes(runs, spec, name),
        "fold_overrides": _fold_overrides(spec, name),
        "smallest_detectable": _to_json_number(smallest_detectable(spec, name, figures)),
        "metric": spec.sets[name].metric,
        "rows": {
            row: {
                **_row(figures, row, list(figures.rows[row]), cap),
                "network": networks.counts(jobs[row_of(row)]),
            }
            for row in trained
        },
        "floors_left_out": _left_out(spec, [job for job in floors if job.set == name]),
        "floors": {floor: _row(figures, floor, [0], cap) for floor in figures.floors},
        "comparisons": comparisons,
        "not_above_floors": {row: lost for row, lost in failed.items() if lost},
    }


def _fold_overrides(spec: Spec, name: str) -> list[str]:
    """Returns for each fold of a set that has overrides a line that states them.

    Args:
        spec: the experiment.
        name: the set's name.
    """
    lines = []
    for place, fold in enumerate(spec.sets[name].folds or ()):
        told = [*fold.set, *(f"{row}: {' '.join(given)}" for row, given in fold.rows.items())]
        if told:
            lines.append(f"fold {place}: {'; '.join(told)}")
    return lines


def _left_out(spec: Spec, floors: Sequence[Job]) -> dict[str, str]:
    """Returns the floors of a set that couldn't be computed in some fold: name -> reason.

    Floors are baselines that don't look at the image, such as the median of all training depths.

    Args:
        spec: the experiment.
        floors: the evaluations of the set's floors, one for each fold.
    """
    found: dict[str, str] = {}
    for job in floors:
        found = listing.left_out(job, spec) | found
    return found


def _row(figures: Figures, row: str, seeds: Sequence[int], cap: float) -> dict:
    """Averages the errors of a row or a floor over frames and seeds.

    A row is a recipe with overrides, a floor a baseline that doesn't look at the image.

    Args:
        figures: the results on the set.
        row: name of the row or the floor.
        seeds: the row's seeds.
        cap: the evaluation's maximum depth, metres, where the last depth range ends.

    Returns:
        "seeds"; for each metric the mean over scenes of its mean in each scene, averaged over
        seeds, and with "_sd" its standard deviation over seeds; "by_scene", for each scene its
        metrics and number of frames; and "by_range", the list that `_by_range` returns.
    """
    found: dict = {"seeds": list(seeds)}
    # Average over the seeds last, so that the spread over seeds can be computed.
    by_scene: dict[str, dict] = {scene: {} for scene in sorted(set(figures.scenes))}
    for metric in FIGURES:
        values = figures.values(row, metric, seeds)
        each = [intervals.mean_of_scene_means(of_seed, figures.scenes) for of_seed in values]
        found[metric] = _to_json_number(float(np.mean(each)))
        spread = float(np.std(each, ddof=1)) if len(each) > 1 else math.nan
        found[f"{metric}_sd"] = _to_json_number(spread)
        for scene, per_seed in by_scene.items():
            here = [place == scene for place in figures.scenes]
            per_seed[metric] = _to_json_number(_nan_mean(values[:, here]))
    for scene, per_seed in by_scene.items():
        per_seed["frames"] = figures.scenes.count(scene)
    found["by_scene"] = by_scene
    found["by_range"] = _by_range(figures, row, seeds, cap)
    return found


def _nan_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _by_range(figures: Figures, row: str, seeds: Sequence[int], cap: float) -> list[dict]:
    """Averages abs_rel and bias over the pixels of all frames, separately in each depth range.

    Args:
        figures: the results on the set.
        row: name of a row (a recipe with overrides) or of a floor (a baseline that doesn't look at
            the image).
        seeds: the row's seeds.
        cap: the evaluation's maximum depth, metres, where the last range ends.

    Returns:
        A dict for each range: "from_m" and "to_m", its ends in metres; "pixels", their number;
        "abs_rel"; and "bias_m", the mean error in metres.
    """
    frames = (
        [figures.floors[row]]
        if row in figures.floors
        else [figures.rows[row][seed] for seed in seeds]
    )
    # Add the sums of all frames and seeds, so that means by range are means over pixels.
    sums = np.array([[f.ranges for f in each] for each in frames]).sum((0, 1))
    found = []
    for (low, high), (pixels, bias, relative, _) in zip(bounds_m(cap), sums, strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (relative / pixels, bias / pixels) if pixels else (math.nan, math.nan)
        found.append(
            {
                "from_m": low,
                "to_m": high,
                "pixels": int(pixels) // len(frames),
                "abs_rel": _to_json_number(float(means[0])),
                "bias_m": _to_json_number(float(means[1])),
            }
        )
    return found


def smallest_detectable(spec: Spec, name: str, figures: Figures) -> float:
    """Computes the smallest difference that the experiment can detect on a set, from its pilot.

    The pilot is the two rows of the primary comparison with the first three seeds. Other finished
    runs aren't used, so the value doesn't change after the pilot.

    Args:
        spec: the experiment.
        name: the set's name.
        figures: the results on the set.

    Returns:
        The difference in the metric of the primary comparison; NaN if the pilot isn't finished.
    """
    data_set = spec.sets[name]
    seeds = list(spec.seeds)[:PILOT_SEEDS]
    if len(seeds) < PILOT_SEEDS or any(
        seed not in figures.rows[row] for row in data_set.primary for seed in seeds
    ):
        return math.nan
    ours, theirs = (figures.values(row, data_set.metric, seeds) for row in data_set.primary)
    with np.errstate(invalid="ignore"):
        differences = ours - theirs
    if np.isinf(differences).any():
        return math.nan
    # Compute the paired differences by seed and by scene, whose spreads determine which difference
    # can be detected.
    by_seed = [intervals.mean_of_scene_means(row, figures.scenes) for row in differences]
    frames = differences.mean(0)
    places = np.array(figures.scenes)
    by_scene = [_nan_mean(frames[places == scene]) for scene in sorted(set(figures.scenes))]
    by_scene = np.array([value for value in by_scene if not math.isnan(value)])
    return intervals.smallest_detectable(np.array(by_seed), by_scene, len(spec.seeds))


def compare_rows(spec: Spec, name: str, figures: Figures) -> list[dict]:
    """Compares pairs of rows on a set of data: the primary comparison first, then all others.

    A row is a recipe with overrides. The p-values of the others are corrected together by Holm's
    method.

    Args:
        spec: the experiment.
        name: the set's name.
        figures: the results on the set.

    Returns:
        A dict for each pair of rows and metric: "row", "than" (the second row), "metric", "primary"
        (True for the primary comparison), "difference" with confidence intervals, "p",
        "p_corrected", and "verdict", the conclusion in words.
    """
    data_set = spec.sets[name]
    first, reference = data_set.primary
    # List the pairs of rows, the primary one first and only once.
    pairs = [tuple(pair) for pair in data_set.compare or ()]
    if data_set.compare is None:
        pairs = [(row, reference) for row in spec.table_rows if row not in data_set.primary]
    pairs = [(first, reference), *(pair for pair in pairs if pair != (first, reference))]
    # Compare all pairs in all metrics, even while runs are missing: those comparisons have p = 1,
    # so the number of tests to correct for stays that of the specification. Leave out a metric that
    # no frame has, such as the edge error with sparse ground truth.
    metrics = [metric for metric in COMPARED if metric != data_set.metric and figures.has(metric)]
    found = []
    for ours, theirs in pairs:
        for metric in (data_set.metric, *metrics):
            is_primary = (ours, theirs, metric) == (first, reference, data_set.metric)
            found.append((is_primary, ours, theirs, metric, figures.compare(ours, theirs, metric)))
    # Correct the p-values of all comparisons except the primary one together.
    corrected = intervals.holm([result.p for is_primary, *_, result in found if not is_primary])
    rows = []
    for is_primary, ours, theirs, metric, result in found:
        p = result.p if is_primary else corrected.pop(0)
        rows.append(
            {
                "primary": is_primary,
                "row": ours,
                "than": theirs,
                "metric": metric,
                **_numbers(result),
                "p_corrected": p,
                "verdict": verdict(result, p, ours, theirs),
            }
        )
    return rows


def _numbers(result: Comparison) -> dict:
    def ends(interval: Interval) -> list:
        return [_to_json_number(interval.low), _to_json_number(interval.high)]

    return {
        "difference": _to_json_number(result.difference),
        "over_seeds": ends(result.over_seeds),
        "over_scenes": ends(result.over_scenes),
        "over_both": ends(result.over_both),
        "over_frames": ends(result.over_frames),
        "num_seeds": result.seeds,
        "num_scenes": result.scenes,
        "p": result.p,
    }


def verdict(result: Comparison, p: float, ours: str, theirs: str) -> str:
    """Returns the conclusion of a comparison in words, such as "X beats Y" or "not resolved: ...".

    Args:
        result: the comparison; a negative difference means that the first row is better.
        p: the comparison's p-value, corrected if it isn't the primary comparison.
        ours: name of the first row.
        theirs: name of the second row.
    """
    if result.is_significant and p < SIGNIFICANT:
        better, worse = (ours, theirs) if result.difference < 0 else (theirs, ours)
        return f"{better} beats {worse}"
    # State only the first reason that applies; reasons that the user can change are checked first.
    if result.seeds < 2:
        why = f"{result.seeds} common seeds, at least 2 are needed"
    elif result.scenes < intervals.MIN_SCENES:
        why = f"{result.scenes} scenes, at least {intervals.MIN_SCENES} are needed"
    elif math.isnan(result.difference):
        why = "a figure is not finite"
    elif result.significant_over_frames_only:
        why = "frames support it, scenes don't"
    elif not result.over_scenes.excludes_zero:
        why = "scenes don't support it"
    elif not result.over_seeds.excludes_zero:
        why = "seeds don't support it"
    elif not result.over_both.excludes_zero:
        why = "seeds and scenes together don't support it"
    else:
        why = "not after Holm's correction"
    return f"not resolved: {why}"


def _comparisons_not_won(figures: Figures, row: str) -> list[dict]:
    """Returns the comparisons of a row with floors in which the row isn't certainly better.

    Floors are baselines that don't look at the image. A row is compared with each of them by
    abs_rel, once as it is, and once after each frame's depth is scaled to the median of the ground
    truth.

    Args:
        figures: the results on the set.
        row: name of the row.

    Returns:
        A dict for each such comparison: "floor", "metric", "difference" with confidence intervals,
        "p", and "verdict", the conclusion in words.
    """
    lost = []
    for floor in (name for name in FLOORS if name in figures.floors):
        for metric in AGAINST_FLOORS:
            result = figures.compare(row, floor, metric)
            # Add the comparison unless the row is certainly better. A row that may be equal doesn't
            # beat the floor.
            if not (result.is_significant and result.difference < 0):
                told = verdict(result, result.p, row, floor)
                lost.append({"floor": floor, "metric": metric, **_numbers(result), "verdict": told})
    return lost


def _to_json_number(value: float) -> float | str | None:
    """Converts a number to a JSON value: None for NaN, "inf" or "-inf" if it is infinite.

    Args:
        value: the number.
    """
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def as_number(value: float | str | None) -> float:
    """Converts a value that `_to_json_number` returned back to the number.

    Args:
        value: the value, as read from JSON.
    """
    return math.nan if value is None else float(value)


def is_complete(table: Mapping) -> bool:
    """Returns True if all runs of an experiment are finished, and all evaluations of floors.

    Floors are baselines that don't look at the image.

    Args:
        table: the results, as `compute` returns them.
    """
    return not table["not_finished"] and not table["failed"]
