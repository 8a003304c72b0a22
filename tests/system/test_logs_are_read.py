"""The numbers that other tools find in a run that was killed and resumed.

Each number is there once, under its step.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from support import programs, recipes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PER_EPOCH, ITERATIONS, EVALUATED = 8, 24, [8, 16, 24]


@pytest.fixture(scope="module")
def work_dir(ground, tmp_path_factory) -> Path:
    """The work dir of a run with a checkpoint every fifth iteration.

    It was killed after the twelfth iteration or later, and resumed to its end.
    """
    work_dir = tmp_path_factory.mktemp("read") / "tiny"
    recipe = recipes.recipe(ground, batch_size=2, iterations=ITERATIONS, validate=True)
    recipe["checkpoint"] |= {"interval": 5}
    recipe["evaluation"] |= {"interval": 8, "by": "iteration"}
    to_the_end = work_dir.parent / "to_the_end"
    recipe["hooks"] = [{**recipes.RECORDER, "wait_for": str(to_the_end), "after": 20}]
    path = recipes.write_recipe(work_dir.parent / "recipe.yaml", recipe)
    with programs.Program(
        [sys.executable, programs.ROOT / "bin" / "train.py", path, "--work-dir", work_dir]
    ) as program:
        recorded = work_dir / "recorded.jsonl"
        program.wait_until(lambda: recorded.is_file() and recorded.read_text().count("\n") >= 12)
        program.kill()
    to_the_end.touch()
    result = programs.finish([programs.ROOT / "bin" / "resume", work_dir])
    assert result.code == 0, result.stderr[-3000:]
    assert len(list(work_dir.glob("*.log.json"))) == 2
    return work_dir


@pytest.fixture(scope="module")
def events(work_dir) -> EventAccumulator:
    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    events = EventAccumulator(str(work_dir / "tf_logs"), size_guidance=everything)
    events.Reload()
    return events


def rows(work_dir: Path, mode: str) -> list[dict]:
    """Reads a log as mmcv's tools do: rows with an `epoch`, of one mode, file by file."""
    lines = [
        line
        for path in sorted(work_dir.glob("*.log.json"))
        for line in path.read_text().splitlines()
    ]
    return [row for row in map(json.loads, lines) if "epoch" in row and row["mode"] == mode]


def test_json_log_has_each_iteration_once(work_dir):
    """The JSON logs of a killed and resumed run have every iteration of every epoch once."""
    train = rows(work_dir, "train")
    places = [(row["epoch"], row["iter"]) for row in train]
    assert places == [(epoch, i) for epoch in (1, 2, 3) for i in range(1, PER_EPOCH + 1)]
    assert [row["loss"] for row in train] == pytest.approx(programs.losses(work_dir), abs=1e-5)
    assert [(row["epoch"], row["iter"]) for row in rows(work_dir, "val")] == [
        (1, 4),
        (2, 4),
        (3, 4),
    ]


def test_tensorboard_scalars_have_right_step(work_dir, events):
    """Every TensorBoard scalar stands once, under the step that the JSON log gives."""
    scalars = {
        tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]
    }
    counts = Counter(len(events.Scalars(tag)) - len(values) for tag, values in scalars.items())
    assert set(counts) == {0}  # no step twice
    for tag, values in scalars.items():
        assert list(values) == (
            EVALUATED if tag.startswith("val/") else list(range(1, ITERATIONS + 1))
        ), tag
    recorded = programs.recorded(work_dir)
    assert list(scalars["train/loss"].values()) == pytest.approx(
        [row["loss"] for row in recorded], rel=1e-6
    )
    for step, row in enumerate(rows(work_dir, "train"), start=1):
        for key in row.keys() - {"mode", "epoch", "iter", "lr"}:
            assert scalars[f"train/{key}"][step] == pytest.approx(row[key], abs=1e-5, rel=1e-5), key
        assert scalars["learning_rate"][step] == pytest.approx(row["lr"], abs=1e-5)
    for step, row in zip(EVALUATED, rows(work_dir, "val"), strict=True):
        assert scalars["val/abs_rel"][step] == pytest.approx(row["abs_rel"], abs=1e-5)
        assert scalars["val/a1"][step] == pytest.approx(row["a1"], abs=1e-5)


def test_tensorboard_images_and_texts_have_right_step(events):
    """TensorBoard images, histograms and texts stand under their steps."""
    tags = events.Tags()
    steps = {tag: [image.step for image in events.Images(tag)] for tag in tags["images"]}
    evaluated = {f"val/{kind}_{i}": EVALUATED for kind in ("pictures", "why") for i in (1, 2, 3, 4)}
    trained = dict.fromkeys(("train/pictures_1", "train/pictures_2", "train/why_1"), [10, 20, 24])
    assert steps == trained | evaluated
    histograms = {
        tag: [event.step for event in events.Histograms(tag)] for tag in tags["histograms"]
    }
    assert histograms
    assert set(map(tuple, histograms.values())) == {tuple(EVALUATED)}
    assert set(histograms) <= {"val/error_0-20m", "val/error_20-40m", "val/error_40-80m"}
    texts = [event.step for event in events.Tensors("recipe/text_summary")]
    assert texts[0] == 0
    assert texts[1] in range(10, ITERATIONS)  # of both starts


def test_tensorboard_images_by_zero_stage(ground, tmp_path):
    """Two ranks write all image tags; under ZeRO-3 `train/why` is left out.

    With ZeRO-3 no rank has the weights; the copy for evaluations has them. No rank may wait for
    another.
    """
    jobs = []
    for name in ("zero3_offload", "bf16_zero2"):
        recipe = recipes.recipe(ground, iterations=4, validate=True)
        recipe["evaluation"] |= {"interval": 2, "by": "iteration"}
        recipe["tensorboard"] = {"image_interval": 2, "num_images": 1}
        jobs.append(
            {"name": name, "recipe": recipe, "engine": str(programs.DS_CONFIGS / f"{name}.json")}
        )
    programs.many(jobs, tmp_path, ranks=2)
    evaluated = {f"val/{kind}_{i}" for kind in ("pictures", "why") for i in (1, 2, 3, 4)}
    for name, reasons in (("zero3_offload", set()), ("bf16_zero2", {"train/why_1"})):
        events = EventAccumulator(str(tmp_path / name / "tf_logs"), size_guidance={"images": 0})
        events.Reload()
        assert set(events.Tags()["images"]) == evaluated | {"train/pictures_1"} | reasons
        assert [image.step for image in events.Images("train/pictures_1")] == [2, 4]


def test_plot_log_draws_png_and_refuses_unknown_key(work_dir, tmp_path):
    """`plot_log.py` draws a PNG of the run and refuses an unknown key with one line."""
    (first, second) = sorted(work_dir.glob("*.log.json"))
    program, out = programs.ROOT / "bin" / "plot_log.py", tmp_path / "plots" / "run.png"
    keys = ["--keys", "loss", "--keys", "abs_rel"]
    result = programs.finish([program, work_dir, first, *keys, "--out", out, "--by", "epoch"])
    assert result.code == 0, result.stderr
    with Image.open(out) as photo:
        assert photo.format == "PNG"
        assert photo.size == (1280, 400)
    result = programs.finish([program, second, "--keys", "absrel", "--out", tmp_path / "none.png"])
    assert result.code == 2
    assert len(result.our_lines()) == 1
    assert "'absrel'; it has: lr, " in result.our_lines()[0]
    assert not (tmp_path / "none.png").exists()
