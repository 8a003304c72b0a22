import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageColor

from tiekd.errors import DataError, LaunchError
from tiekd.tools import plot_log
from tiekd.visualization import figures

GOLDEN = Path(__file__).parents[2] / "golden/logs"


def write(folder, name, rows, text=""):
    folder.mkdir(exist_ok=True)
    lines = [{"env_info": "E", "seed": 0, "exp_name": "x"}, *rows]
    (folder / f"{name}.log.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if text:
        (folder / f"{name}.log").write_text(text)
    return folder


def train(epoch, iteration, loss, time=36.0):
    return {
        "mode": "train",
        "epoch": epoch,
        "iter": iteration,
        "lr": 0.1,
        "loss": loss,
        "time": time,
    }


def val(epoch, abs_rel):
    return {"mode": "val", "epoch": epoch, "iter": 7, "lr": 0.1, "abs_rel": abs_rel}


def test_plot_refuses_agreement_beside_accuracy(tmp_path):
    """Agreement with the teacher and accuracy aren't drawn in one chart, and titles name it."""
    accuracy = read(write(tmp_path / "a", "x", [train(1, 5, 1.0), val(1, 0.2)]))
    agreed = val(1, 0.1) | {"against": "teacher"}
    agreement = read(write(tmp_path / "b", "x", [train(1, 5, 1.0), agreed]))
    told = "^--keys: abs_rel of b is agreement with the teacher, that of a is accuracy"
    with pytest.raises(LaunchError, match=told):
        plot_log.plot([accuracy, agreement], ["abs_rel"])
    title = "abs_rel (agreement with the teacher, not accuracy)"
    assert plot_log._title([agreement], "abs_rel") == title
    assert plot_log._title([accuracy], "abs_rel") == "abs_rel"
    assert plot_log._title([accuracy, agreement], "loss") == "loss"


def read(path):
    (run,) = plot_log.read_runs([path])
    return run


def test_read_runs_epoch_rows_to_iterations():
    """Rows by epoch are placed at global iterations, with training's learning rate."""
    run = read(
        GOLDEN / "by_epoch_cuda.log.json"
    )  # of 120 iterations an epoch, as the .log beside it says
    assert run.curve("loss", "iteration") == (
        [50, 100, 170, 220],
        [12.39041, 8.47929, 5.70303, 4.66194],
    )
    assert run.curve("abs_rel", "iteration") == ([120, 240], [0.0656, 0.0656])
    assert run.curve("abs_rel", "epoch")[0] == [1, 2]
    assert run.curve("lr", "iteration")[1] == [
        0.00079,
        0.00093,
        0.00037,
        3e-05,
    ]  # training's, not the evaluations'


def test_read_runs_iteration_rows_unchanged():
    """Rows by iteration keep their own iteration numbers."""
    run = read(GOLDEN / "by_iter_cuda.log.json")
    assert run.curve("loss", "iteration")[0] == [50, 100, 150, 200]
    assert run.curve("abs_rel", "iteration")[0] == [100, 200]


def test_read_runs_without_text_log(tmp_path):
    """Without the text log, an epoch's length is the largest iteration among its rows."""
    rows = [
        train(1, 50, 9),
        train(1, 100, 8),
        val(1, 0.3),
        train(2, 50, 7),
        val(2, 0.25),
        train(2, 100, 6),
    ]
    run = read(write(tmp_path / "run", "1", rows))
    assert run.name == "run"
    assert run.curve("loss", "iteration") == (
        [50, 100, 150, 200],
        [9, 8, 7, 6],
    )
    assert run.curve("abs_rel", "iteration")[0] == [100, 150]  # the second one within its epoch
    assert run.curve("loss", "epoch")[0] == [0.5, 1, 1.5, 2]


def test_read_runs_time_counts_all_iterations(tmp_path):
    """The time axis counts every iteration, including those that no row shows."""
    text = "t - depth - INFO - Epoch [1][50/110]\tlr: 1\n"
    rows = [train(1, 50, 9), train(1, 100, 8), val(1, 0.3), train(2, 50, 7, time=72.0)]
    run = read(write(tmp_path / "run", "1", rows, text))
    assert run.curve("loss", "time")[0] == pytest.approx([0.5, 1.0, 2.2])
    assert run.curve("abs_rel", "time")[0] == pytest.approx([1.0])


def test_read_runs_joins_resumed_files(tmp_path):
    """The files of a resumed run are joined, and later files replace repeated iterations."""
    write(tmp_path / "run", "20260101", [train(1, 50, 9), train(1, 100, 8), train(2, 50, 7)])
    write(tmp_path / "run", "20260102", [train(1, 100, 5), train(2, 50, 4), train(2, 100, 3)])
    write(tmp_path / "run", "20260103", [])
    run = read(tmp_path / "run")
    assert run.curve("loss", "iteration") == ([50, 100, 150, 200], [9, 5, 4, 3])
    assert run.curve("loss", "time")[0] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_read_runs_epochs_renumbered(tmp_path):
    """After an epochs_renumbered row, iterations continue with the new epoch length."""
    text = "t - depth - INFO - Epoch [1][1/3]\tlr: 1\n"
    write(
        tmp_path / "run", "1", [*(train(epoch, i, 9) for epoch in (1, 2) for i in (1, 2, 3))], text
    )
    of = {"mode": "epochs_renumbered", "iteration": 6, "was": {"epoch": 2, "iter": 3, "of": 3}}
    rows = [
        of | {"now": {"epoch": 2, "iter": 1, "of": 5}},
        *(train(2, i, 5) for i in (2, 3, 4, 5)),
        val(2, 0.1),
    ]
    write(tmp_path / "run", "2", rows)
    write(tmp_path / "run", "3", [train(3, 1, 4)])
    run = read(tmp_path / "run")
    assert run.curve("loss", "iteration") == (list(range(1, 12)), [9] * 6 + [5] * 4 + [4])
    assert run.curve("abs_rel", "iteration")[0] == [10]


def test_read_runs_ignores_skipped_rows(tmp_path):
    """Rows about skipped iterations don't enter the curves."""
    skipped = {"mode": "skipped", "iteration": 60, "not_finite": "loss", "micro_batches": []}
    run = read(write(tmp_path / "run", "1", [train(1, 50, 9), skipped, train(1, 100, 8)]))
    assert run.curve("loss", "iteration") == ([50, 100], [9, 8])


def test_read_runs_partial_and_invalid_logs(tmp_path):
    """An unfinished last line is ignored; missing, empty and other files are rejected."""
    folder = write(tmp_path / "run", "1", [train(1, 50, 9), {"bad_iteration": 3}])
    path = folder / "1.log.json"
    path.write_text(path.read_text() + '{"mode": "train", "ep')
    assert read(path).curve("loss", "iteration")[1] == [9]
    path.write_text("2026-01-01 - depth - INFO - Epoch\n")
    with pytest.raises(DataError, match=r"1\.log\.json: line 1 is no row"):
        read(path)
    with pytest.raises(DataError, match="can't be read"):
        read(tmp_path / "none.log.json")
    with pytest.raises(DataError, match="has no .log.json"):
        read(tmp_path)
    with pytest.raises(DataError, match="no row of training yet"):
        read(write(tmp_path / "new", "1", []))


def test_read_runs_shortest_distinct_names(tmp_path):
    """Runs are named by their folder, or by their file if they share a folder."""
    a, b = (write(tmp_path / name, "1", [train(1, 50, 9)]) for name in "ab")
    two = write(tmp_path / "a", "2", [train(1, 50, 9)])
    assert [run.name for run in plot_log.read_runs([a, b / "1.log.json"])] == ["a", "b"]
    assert [run.name for run in plot_log.read_runs([a / "1.log.json", two / "2.log.json"])] == [
        "1",
        "2",
    ]


def test_plot_rejects_unknown_key(tmp_path):
    """An unknown key raises a LaunchError that lists the run's keys."""
    run = read(write(tmp_path / "run", "1", [train(1, 50, 9), val(1, 0.1)]))
    with pytest.raises(
        LaunchError, match="^--keys: run has no 'absrel'; it has: lr, loss, time, abs_rel$"
    ):
        plot_log.plot([run], ["loss", "absrel"])


def test_plot_one_chart_per_key(tmp_path):
    """The image has one chart per key and one coloured curve per run."""
    rows = [[train(1, i, 9 - i / 20 + offset) for i in range(1, 101)] for offset in (0, 3)]
    runs = [read(write(tmp_path / name, "1", part)) for name, part in zip("ab", rows, strict=True)]
    one, three = (
        plot_log.plot(runs, ["loss"]),
        plot_log.plot(runs, ["loss", "lr", "time"], by="time", smooth=5),
    )
    assert one.shape == (400, 640, 3)
    assert three.shape == (800, 1280, 3)
    assert one.dtype == np.uint8
    for colour in plot_log.COLOURS[:2]:
        rgb = ImageColor.getrgb(colour)
        assert (np.abs(one.astype(int) - rgb).sum(-1) < 40).any(0).sum() > 400


def drawn(monkeypatch, *arguments, **options) -> list:
    """The matplotlib axes of a plot."""
    seen = []
    original = figures.pixels_of

    def keep(figure):
        seen.extend(figure.axes)
        return original(figure)

    monkeypatch.setattr(figures, "pixels_of", keep)
    plot_log.plot(*arguments, **options)
    return seen


def test_plot_draws_the_rows_and_names_runs_as_their_folders(tmp_path, monkeypatch):
    """Names that matplotlib would leave out (_a) or typeset ($b$) stay as they are."""
    rows = [train(1, 10, 4.0), train(1, 20, math.nan), train(1, 30, 2.0), val(1, 0.5)]
    runs = [read(write(tmp_path / name, "1", rows)) for name in ("_a", "$b$")]
    loss, metric = drawn(monkeypatch, runs, ["loss", "abs_rel"], log_y=True)
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["_a", "$b$"]
    assert loss.get_title("left") == "loss"
    assert loss.get_xlabel() == "iteration"
    assert loss.get_yscale() == "log"
    assert [line.get_color() for line in loss.lines] == list(plot_log.COLOURS[:2])
    assert list(loss.lines[0].get_xdata()) == [10, 20, 30]
    np.testing.assert_equal(loss.lines[0].get_ydata(), [4.0, math.nan, 2.0])
    assert list(metric.lines[1].get_ydata()) == [0.5]


def test_plot_smoothed_keeps_the_rows_pale(tmp_path, monkeypatch):
    run = read(write(tmp_path / "run", "1", [train(1, i, float(i)) for i in (1, 2, 3)]))
    (axes,) = drawn(monkeypatch, [run], ["loss"], by="time", smooth=2)
    rows, means = axes.lines
    assert rows.get_alpha() == 0.33
    assert list(rows.get_ydata()) == [1, 2, 3]
    assert means.get_alpha() is None
    assert list(means.get_ydata()) == [1, 1.5, 2.5]
    assert axes.get_xlabel() == "minutes of training"
    assert means.get_xdata() == pytest.approx([0.6, 1.2, 1.8])


def test_dots_of_a_long_curve_are_where_no_line_is():
    assert plot_log._dot_indices([1.0, math.nan]) == [0, 1]
    ys = [1.0, math.nan, 2.0, math.inf, *range(100), math.nan, 3.0]
    assert plot_log._dot_indices(ys) == [0, 2, 105]


def test_plot_write_error_names_file(tmp_path):
    """An image that can't be written raises a DataError with its path."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file/x.png: can't be written"):
        plot_log.write(tmp_path / "file" / "x.png", np.zeros((4, 4, 3), np.uint8))
    assert (tmp_path / "file").read_text() == "mine"


def test_running_mean_skips_nan():
    """The running mean covers the last rows, skips NaN and is NaN only if all of them are."""
    ys = [1.0, 3.0, math.nan, 5.0, 9.0]
    assert plot_log._running_mean(ys, 2) == [1.0, 2.0, 3.0, 5.0, 7.0]
    assert math.isnan(plot_log._running_mean([math.nan, 1.0], 1)[0])
