"""Formats the summary that bin/distill.py prints at the end: the files it has made, and metrics."""

import json
import math
import shlex
from pathlib import Path

from tiekd import console
from tiekd.evaluation import floors
from tiekd.tools.distill import recipes
from tiekd.tools.distill.plan import Plan
from tiekd.tools.report import calibrated

_METRICS = ("abs_rel", "rmse", "a1")


def lines(plan: Plan, out: Path) -> list[str]:
    """Returns the lines of the summary that bin/distill.py prints at the end.

    They list the files with the metrics of each evaluation, and commands that use the student.

    Args:
        plan: The plan, in which no value is missing.
        out: The folder of --out.
    """
    summary = [f"The student {plan.student} is in {out}:"]
    for name, words in (
        ("evaluation.json", "figures against the teacher"),
        ("accuracy.json", "figures against measured depth"),
    ):
        path = out / name
        if path.exists():
            summary.append(f"  {name}: {words}: {metrics_text(path)}")
    summary.append(_confidence(out))
    robot = "for the robot: image in, depth, confidence and sigma out"
    for pattern, words in (
        ("student.onnx", robot),
        ("student.pt2", robot),
        (f"{recipes.RUN}/best_*.pth", "its weights"),
        (recipes.STUDENT, "the recipe, to be edited and run by hand"),
        ("plan.yaml", "every choice, and what was measured for it"),
        ("report.html", "the report"),
    ):
        summary += [f"  {path.relative_to(out)}: {words}" for path in sorted(out.glob(pattern))]
    recipe, run = str(out / recipes.STUDENT), str(out / recipes.RUN)
    train = f"{console.command('train')} {shlex.join([recipe, '--work-dir', 'ANOTHER'])}"
    summary.append(
        f"By hand: OMP_NUM_THREADS={plan.rank_threads} {_with_launcher(train, plan.ranks)}"
    )
    summary.append(
        f"Try it: {console.command('predict')} {shlex.join([recipe, run])} IMAGE --out DIR"
    )
    return summary


def _confidence(out: Path) -> str:
    """Returns the summary's line about the calibration of the student's confidence.

    It states the fitted temperature, the calibration error before and after the fit, and if the fit
    was against ground truth or the teacher. Without a calibration it says so.

    Args:
        out: The folder of --out.
    """
    found = calibrated.read(out / recipes.RUN)
    if found is None:
        return "  confidence: not calibrated, temperature 1"
    before, after = found.figures.get("calibration_error", (math.nan, math.nan))
    return (
        f"  {recipes.RUN}/{calibrated.NAME}: confidence, temperature {found.temperature:.4g}: "
        f"calibration error {before:.4f} before, {after:.4f} after (against {found.against})"
    )


def _with_launcher(command: str, ranks: int) -> str:
    """Returns a training command with the option or the launcher that starts it on several ranks.

    Args:
        command: The command that trains on one rank.
        ranks: Number of ranks.
    """
    if console.names_bin():
        return f"deepspeed --num_gpus={ranks} {command}"
    return f"{command} --num_gpus={ranks}"


def metrics_text(path: Path) -> str:
    """Returns the main metrics in a JSON file of bin/evaluate.py as text, such as "abs_rel 0.0912".

    The abs_rel of the median map of training depths, which ignores the image, follows if the file
    has it. If the file has a label that says what the metrics mean, such as agreement with a
    teacher, it is appended in parentheses.

    Args:
        path: The JSON file.
    """
    node = json.loads(path.read_text(encoding="utf-8"))
    # The student is the last network; before it come the baselines of --floors, if any.
    *_, student = node["networks"].values()
    metrics = student["metrics"]
    text = ", ".join(f"{name} {metrics[name]:.4f}" for name in _METRICS if name in metrics)
    floor = node["networks"].get(floors.NAMES[-1])
    if floor is not None:
        text += (
            f"; {floors.NAMES[-1]} of training frames: abs_rel {floor['metrics']['abs_rel']:.4f}"
        )
    label = node.get("protocol", {}).get("figures_are")
    return text if label is None else f"{text} ({label})"
