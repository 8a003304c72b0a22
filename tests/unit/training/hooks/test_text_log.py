import json
import math
import re
from pathlib import Path

import pytest
import torch
from support.some_state import logged_state
from support.text_logs import PREFIX, messages

from tiekd.errors import RecipeError
from tiekd.evaluation.agreement import Agreement
from tiekd.training import meters, schedules
from tiekd.training.hooks import text_log
from tiekd.training.hooks.text_log import TextLog

GOLDEN = Path(__file__).parents[3] / "golden/logs"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())


def run_iteration(log, state, **values):
    vars(state).update(values)
    state.iteration += 1
    log.after_iteration(state)


def train_lines(path):
    return [text.rstrip("\n") for text in messages(path) if re.match(r"(Epoch|Iter) \[", text)]


class FakeClock:
    """The clock of the recorded sessions.

    Call n advances it by a rule (see `fake_clock` in the manifest).
    """

    def __init__(self):
        self.now, self.calls = 1000.0, 0

    def __call__(self):
        self.calls += 1
        n = self.calls
        self.now += 0.0123 + 0.0001 * (n % 7) if n % 3 == 1 else 0.2345 + 0.001 * (n % 5)
        return self.now


def spread(mean, index, interval):
    """Values that differ within a window and have the given mean."""
    return mean * (1 + 0.3 * (index - (interval - 1) / 2) / interval)


@pytest.mark.parametrize("session", MANIFEST["sessions"])
def test_text_log_equals_mmcv(session, tmp_path, monkeypatch):
    """Lines and JSON rows equal those that MMCV recorded, apart from added fields."""
    recorded = MANIFEST["sessions"][session]
    by_epoch = recorded["runner"]["type"] == "EpochBasedRunner"
    per_epoch, interval = recorded["n_train_iters_per_epoch"], 50
    total = (
        recorded["runner"]["max_epochs"] * per_epoch
        if by_epoch
        else recorded["runner"]["max_iters"]
    )
    rows = [json.loads(line) for line in (GOLDEN / f"{session}.log.json").read_text().splitlines()]
    means = {
        (row["epoch"] if by_epoch else 1, row["iter"]): row
        for row in rows[1:]
        if row["mode"] == "train"
    }
    metrics = next(
        {k: v for k, v in row.items() if k not in ("mode", "epoch", "iter", "lr")}
        for row in rows[-1:]
    )
    if recorded["cuda_faked"]:
        monkeypatch.setattr(text_log, "_peak_memory_mb", lambda device: 5432)
    keys = ("div_factor", "final_div_factor", "min_lr_ratio", "warmup_ratio", "warmup_iters")
    node = {
        k.replace("iters", "iterations"): recorded["lr_config"][k]
        for k in keys
        if k in recorded["lr_config"]
    }
    schedule = schedules.build(
        {"name": "one_cycle" if "div_factor" in node else "cosine", **node},
        base_lr=recorded["optimizer"]["lr"],
        base_momentum=None,
        total_iterations=total,
        iterations_per_epoch=per_epoch,
    )

    log = TextLog(interval, exp_name=rows[0]["exp_name"])
    state = logged_state(
        tmp_path, iterations_per_epoch=per_epoch, total_iterations=total, by_epoch=by_epoch
    )
    log.before_train(state)
    clock = FakeClock()
    for i in range(total):
        epoch, position = (i // per_epoch + 1, i % per_epoch) if by_epoch else (1, i)
        if position == 0:
            started = clock()
        data_time_s = clock() - started
        time_s, started = clock() - started, clock()
        row = means.get((epoch, position // interval * interval + interval))
        # What is left of an epoch after its last window must leave no trace.
        # The recorded numbers have five places; a little less decides the ties of the fourth as
        # their own values did.
        names = {"loss_depth": "decode.loss_depth", "loss": "loss", "grad_norm": "grad_norm"}
        values = {name: row[shown] - 2e-6 if row else 1e6 for name, shown in names.items()}
        values = {
            name: spread(value, position % interval, interval) for name, value in values.items()
        }
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        grad_norm = values.pop("grad_norm")
        lr = [schedule.lr(i)]
        run_iteration(
            log,
            state,
            losses=values,
            grad_norm=grad_norm,
            time_s=time_s,
            data_time_s=data_time_s,
            lr=lr,
        )
        if state.iteration % (per_epoch if by_epoch else 100) == 0:
            state.num_evaluated = recorded["n_val"]
            log.after_evaluation(state, metrics)
    log.after_train(state)

    theirs = messages(GOLDEN / f"{session}.log", "YYYY-MM-DD HH:MM:SS,mmm - depth - INFO - ")
    ours = messages(tmp_path / "20240101_120000.log")
    kept = re.compile(r"Epoch|Iter|Exp name|Summary|\n\+--")
    assert [text for text in ours if kept.match(text)] == [
        text for text in theirs if kept.match(text)
    ]
    written = [
        json.loads(line)
        for line in (tmp_path / "20240101_120000.log.json").read_text().splitlines()
    ]
    assert list(written[0]) == ["env_info", "seed", "exp_name"]
    for row in written[1:]:
        if row["mode"] == "train":
            assert row.pop("images_per_s") == pytest.approx(16 / row["time"], rel=1e-3)
    assert [list(row.items()) for row in written[1:]] == [list(row.items()) for row in rows[1:]]


@pytest.mark.parametrize("case", MANIFEST["direct_eta"])
def test_text_log_eta_of_long_run(case, tmp_path, monkeypatch):
    """The last line of a long run equals MMCV's, including its ETA."""
    monkeypatch.setattr(text_log, "_peak_memory_mb", lambda device: 12345)
    state = logged_state(tmp_path, by_epoch=case["by_epoch"], iterations_per_epoch=2895)
    state.total_iterations, state.iteration = case["max_iters"], case["start_iter"]
    log = TextLog(case["interval"])
    log.before_train(state)
    losses = {"loss_depth": torch.tensor(1.23456), "loss": torch.tensor(1.23456)}
    for _ in range(case["runner_iter"] + 1 - case["start_iter"]):
        run_iteration(
            log, state, losses=losses, grad_norm=11.66667, time_s=case["time"], data_time_s=0.12345
        )
    log.after_train(state)
    assert train_lines(tmp_path / "20240101_120000.log")[-1] == case["lines"][0]


def test_text_log_line_format(tmp_path):
    """A training line and the start messages have the expected format, flushed at once."""
    log = TextLog(2, exp_name="tiny")
    state = logged_state(tmp_path, iterations_per_epoch=4, total_iterations=8)
    state.hooks = [log]
    log.before_train(state)
    for _ in range(2):
        run_iteration(log, state, losses={"loss_dpm": torch.tensor(0.5), "loss": torch.tensor(0.5)})
    # Read before the files are closed: a kill now would lose nothing.
    text = (tmp_path / "20240101_120000.log").read_text()
    line = (
        r"Epoch \[1\]\[2/4\]\tlr: 4\.000e-05, eta: 0:00:03, time: 0\.500, data_time: 0\.100, "
        r"decode\.loss_dpm: 0\.5000, loss: 0\.5000, grad_norm: 1\.0000\n"
    )
    assert re.search(rf"^{PREFIX}{line}\Z", text, flags=re.M)
    for start in (
        "Environment info:\n---",
        "Start running, host: ",
        "Hooks, in order: TextLog\n",
        "max: 2 epochs",
    ):
        assert any(
            message.startswith(start) for message in messages(tmp_path / "20240101_120000.log")
        )
    assert len((tmp_path / "20240101_120000.log.json").read_text().splitlines()) == 2
    log.after_train(state)


def test_text_log_fp16_loss_scale(tmp_path):
    """In fp16 the current loss scale ends each line and is in its row."""
    log, state = TextLog(1), logged_state(tmp_path)
    log.before_train(state)
    for loss_scale in (65536.0, 32768.0):
        run_iteration(log, state, losses={"loss": torch.tensor(0.5)}, loss_scale=loss_scale)
    log.after_train(state)
    lines = train_lines(tmp_path / "20240101_120000.log")
    assert [line[line.index("grad_norm") :] for line in lines] == [
        "grad_norm: 1.0000, loss_scale: 65536.0000",
        "grad_norm: 1.0000, loss_scale: 32768.0000",
    ]
    rows = [
        json.loads(line)
        for line in (tmp_path / "20240101_120000.log.json").read_text().splitlines()
    ]
    assert (
        [row["loss_scale"] for row in rows[1:]]
        == [65536.0, 32768.0]
        == [log.last_means["loss_scale"] * 2, 32768.0]
    )


def test_text_log_resume_within_window(tmp_path):
    """A run resumed within a window writes the same lines as an uninterrupted one."""

    def run(folder, stop_at):
        (tmp_path / folder).mkdir()
        state = logged_state(
            tmp_path / folder, iteration=5, iterations_per_epoch=25, total_iterations=50
        )
        log = TextLog(10)
        log.before_train(state)
        for i in range(5, 50):
            if i == stop_at:
                log.after_train(state)
                saved = json.loads(json.dumps(log.state_dict()))
                log = TextLog(10)
                log.load_state_dict(saved)
                log.before_train(state)
            losses = {"loss": torch.tensor(float(i))}
            run_iteration(
                log, state, losses=losses, grad_norm=float(i), time_s=0.1 * i, data_time_s=0.01 * i
            )
        log.after_train(state)
        return train_lines(tmp_path / folder / "20240101_120000.log")

    straight = run("straight", None)
    assert len(straight) == 4
    assert "loss: 7.0000" in straight[0]
    assert "[2][20/25]" in straight[3]
    assert run("stopped", 17) == straight


def test_text_log_drops_rows_after_checkpoint(tmp_path):
    """A resume drops JSON rows after its checkpoint and keeps the text lines.

    A run that is started, saved at iteration 3 and killed at 5. It begins anew and is killed at
    4; then it resumes from 3 once more.
    """

    def train(timestamp, first, last, saved=None):
        log, state = TextLog(1), logged_state(tmp_path, timestamp=timestamp, iteration=first)
        if saved is not None:
            log.load_state_dict(saved)
            log.drop_rows(tmp_path)
        log.before_train(state)
        states = {}
        for _ in range(first, last):
            run_iteration(log, state, losses={"loss": torch.tensor(1.0)})
            states[state.iteration] = json.loads(json.dumps(log.state_dict()))
        log.after_train(state)
        return states.get(3)

    def numbers(timestamp):
        rows = [
            json.loads(line)
            for line in (tmp_path / f"{timestamp}.log.json").read_text().splitlines()
        ]
        assert "env_info" in rows[0]
        return [row["iter"] for row in rows[1:]]

    saved = train("20240101_120000", 0, 5)
    assert numbers("20240101_120000") == [1, 2, 3, 4, 5]
    train("20240101_130000", 3, 4, saved)
    assert numbers("20240101_120000") == [1, 2, 3]
    assert numbers("20240101_130000") == [4]
    train("20240101_140000", 3, 5, saved)
    assert [numbers(f"20240101_{hour}0000") for hour in (12, 13, 14)] == [[1, 2, 3], [], [4, 5]]
    assert len(train_lines(tmp_path / "20240101_120000.log")) == 5


def test_text_log_between_lines_reads_no_tensor(tmp_path):
    """Iterations without a line read no tensor's value, which would wait for the device."""
    log = TextLog(50)
    state = logged_state(tmp_path)
    log.before_train(state)
    for _ in range(49):
        # A tensor on the meta device has no value: reading one raises.
        tensor = torch.zeros((), device="meta")
        run_iteration(log, state, losses={"loss_dpm": tensor, "loss": tensor}, grad_norm=tensor)
    log.after_train(state)
    assert log.last_iteration != 49
    assert train_lines(tmp_path / "20240101_120000.log") == []


def test_text_log_norm_on_other_device(tmp_path):
    """A gradient norm on another device than the losses is accepted."""
    log, state = TextLog(50), logged_state(tmp_path)
    log.before_train(state)
    run_iteration(
        log, state, losses={"loss": torch.zeros((), device="meta")}, grad_norm=torch.tensor(3.0)
    )
    log.after_train(state)
    assert log._window.device.type == "meta"
    assert log._window._sums == {"grad_norm": 3.0}


def test_text_log_one_collective_per_line(tmp_path, monkeypatch):
    """Each line costs one collective on every rank, and only rank 0 writes files."""
    calls = []

    def mean_with_another_rank(values):
        calls.append(values)
        return {
            key: (float(value) + (120.0 if key == ("sum", "loss") else float(value))) / 2
            for key, value in values.items()
        }

    monkeypatch.setattr(meters, "mean_over_ranks", mean_with_another_rank)
    for main in (True, False):
        monkeypatch.setattr(text_log, "is_main", lambda main=main: main)
        folder = tmp_path / str(main)
        folder.mkdir()
        log, state = TextLog(4), logged_state(folder, iterations_per_epoch=8)
        log.before_train(state)
        for _ in range(8):
            run_iteration(log, state, losses={"loss": torch.tensor(10.0)})
        state.num_evaluated = 3
        log.after_evaluation(state, {"abs_rel": 0.1})
        log.info("a line")
        assert log.last_means["loss"] == 20.0
        assert log.last_iteration == 8
        log.after_train(state)
    assert len(calls) == 4
    assert len(train_lines(tmp_path / "True/20240101_120000.log")) == 2
    assert list((tmp_path / "False").iterdir()) == []


def test_text_log_labels_agreement(tmp_path):
    """Figures against the teacher are labelled in the heading and in the .log.json row."""
    log, state = TextLog(4), logged_state(tmp_path, num_evaluated=3)
    log.before_train(state)
    state.teacher_comparison = Agreement("agreement", {"abs_rel_at_edges": 0.5}, "by range: x")
    log.after_evaluation(state, {"abs_rel": 0.1})
    log.after_train(state)
    text = (tmp_path / "20240101_120000.log").read_text()
    assert "INFO - Summary, agreement:\n" in text
    assert "INFO - by range: x\n" in text
    row = json.loads((tmp_path / "20240101_120000.log.json").read_text().splitlines()[-1])
    assert row["against"] == "teacher"
    assert (row["abs_rel"], row["abs_rel_at_edges"]) == (0.1, 0.5)


def test_text_log_excludes_nonfinite_from_means(tmp_path):
    """Nonfinite values are counted in a message and left out of the means."""
    log = TextLog(4)
    state = logged_state(tmp_path, iterations_per_epoch=8, total_iterations=16, skipped_steps=3)
    log.before_train(state)
    values = [1.0, math.nan, 3.0, math.inf, 1.0, 1.0, math.inf, 1.0, *[math.nan] * 4]
    for i, value in enumerate(values):
        skipped = 3 if i < 4 else 4 if i < 8 else 8
        run_iteration(
            log, state, losses={"loss": torch.tensor(value)}, grad_norm=value, skipped_steps=skipped
        )
    log.after_train(state)
    texts = [text.rstrip("\n") for text in messages(tmp_path / "20240101_120000.log")[4:]]
    assert [text for text in texts if not text.startswith(("Epoch", "Exp"))] == [
        "2 of the last 4 iterations had a loss or gradient that was not finite",
        "skipped 1 steps: loss or gradient was not finite; the weights stayed as they were",
        "skipped 4 steps: loss or gradient was not finite; the weights stayed as they were",
    ]
    shown = [
        re.search(r"loss: (\S+), grad_norm: (\S+)", text).groups()
        for text in texts
        if text.startswith("Epoch")
    ]
    assert shown == [("2.0000", "2.0000"), ("1.0000", "1.0000"), ("nan", "nan")]


def test_text_log_interval_longer_than_epoch(tmp_path):
    """An interval longer than an epoch still writes one line per epoch."""
    log, state = TextLog(50), logged_state(tmp_path, iterations_per_epoch=3, total_iterations=6)
    log.before_train(state)
    for _ in range(6):
        run_iteration(log, state, losses={"loss": torch.tensor(1.0)}, grad_norm=None)
    log.after_train(state)
    lines = train_lines(tmp_path / "20240101_120000.log")
    assert [line[: line.index("\t")] for line in lines] == ["Epoch [1][3/3]", "Epoch [2][3/3]"]
    assert "eta: 0:00:00" in lines[1]
    assert lines[1].endswith("grad_norm: nan")


def test_text_log_experiment_name_every_1000(tmp_path):
    """The experiment name is logged every thousand iterations."""
    log, state = (
        TextLog(500, exp_name="tiny"),
        logged_state(tmp_path, by_epoch=False, total_iterations=2000),
    )
    log.before_train(state)
    for _ in range(1500):
        run_iteration(log, state)
    log.after_train(state)
    texts = [text.split("\t")[0].strip() for text in messages(tmp_path / "20240101_120000.log")[4:]]
    assert texts == ["Iter [500/2000]", "Exp name: tiny", "Iter [1000/2000]", "Iter [1500/2000]"]


@pytest.mark.parametrize("interval", [0, -1, 2.5, "50", True])
def test_text_log_rejects_invalid_interval(interval):
    """An interval that isn't a whole number from 1 raises a RecipeError."""
    with pytest.raises(
        RecipeError, match="^interval: got .*; it must be a whole number of iterations from 1"
    ):
        TextLog(interval)


def test_text_log_escapes_non_utf8_name(tmp_path):
    """A file name that isn't UTF-8 is logged with escapes."""
    log = TextLog()
    log.open(tmp_path, "20240101_120000")
    log.info("K\udce4fer.png can't be read")
    log.after_train(None)
    assert messages(tmp_path / "20240101_120000.log") == ["K\\udce4fer.png can't be read\n"]
