"""The guard's lines on iterations that were not finite, and when it ends a run for them."""

import json
import math

import pytest
import torch
from support.guarded_run import iterate, start, told

from tiekd.errors import DivergedError, RecipeError
from tiekd.training.hooks import guard
from tiekd.training.settings import TrainSettings
from tiekd.workdir import checkpoints


def rows(work_dir) -> list[dict]:
    return [
        row
        for row in map(json.loads, (work_dir / "now.log.json").open())
        if row.get("mode") == "skipped"
    ]


def test_guard_reports_nonfinite_loss(tmp_path):
    """A nonfinite loss is reported at the next line with rank, micro-batch and sample names."""
    hook, state = start(tmp_path)
    iterate(hook, state)
    iterate(hook, state, (0.5, math.nan))
    iterate(hook, state, (-math.inf, 0.5))
    assert told(tmp_path) == []
    iterate(hook, state)
    assert told(tmp_path) == [
        "iteration 2: skipped, the loss was not finite on rank 0, micro-batch 1 "
        "(decode.loss_dpm: nan, loss: nan): c, d",
        "iteration 3: skipped, the loss was not finite on rank 0, micro-batch 0 "
        "(decode.loss_dpm: -inf, loss: -inf): a, b",
    ]
    first = {
        "rank": 0,
        "micro_batch": 1,
        "losses": {"decode.loss_dpm": "nan", "loss": "nan"},
        "names": ["c", "d"],
    }
    first |= {"bad_pictures": []}
    assert rows(tmp_path)[0] == {
        "mode": "skipped",
        "iteration": 2,
        "not_finite": "loss",
        "micro_batches": [first],
    }
    assert len(rows(tmp_path)) == 2
    assert not any("epoch" in row for row in rows(tmp_path))
    for _ in range(4):
        iterate(hook, state)
    assert len(told(tmp_path)) == 2


def test_guard_reports_nonfinite_gradient(tmp_path):
    """A nonfinite gradient is reported with all sample names, cut after 16 in the text log."""
    hook, state = start(tmp_path)
    iterate(hook, state, (0.5, 1.5), skipped=True)
    many = [[f"{i}.png" for i in range(start, start + 10)] for start in (0, 10)]
    iterate(hook, state, skipped=True, names=many)
    for _ in range(2):
        iterate(hook, state)
    first, second = told(tmp_path)
    assert (
        first
        == "iteration 1: skipped, the gradient was not finite (decode.loss_dpm: 0.5000, loss: "
        "1.0000): a, b, c, d"
    )
    assert second.endswith("14.png, 15.png and 4 more")
    assert [len(report["names"]) for report in rows(tmp_path)[1]["micro_batches"]] == [10, 10]


def test_guard_names_nonfinite_images(tmp_path):
    """Images with nonfinite pixels are named at the end of the message."""
    hook, state = start(tmp_path)
    iterate(hook, state, (math.nan, 1.0), sums=[[0.0, math.nan], [2.0, 3.0]])
    iterate(hook, state, skipped=True, sums=[[0.0, 1.0], [-math.inf, 3.0]])
    for _ in range(2):
        iterate(hook, state)
    assert [text.rsplit(": ", 2)[1:] for text in told(tmp_path)] == [
        ["a, b; not finite itself", "b"],
        ["a, b, c, d; not finite itself", "c"],
    ]
    assert [report["bad_pictures"] for report in rows(tmp_path)[1]["micro_batches"]] == [[], ["c"]]


def test_guard_limits_text_lines(tmp_path):
    """Text lines per window are limited, and the JSON log has every skipped iteration."""
    hook, state = start(tmp_path, interval=20)
    for _ in range(20):
        iterate(hook, state, (math.nan, 1.0))
    assert len(told(tmp_path)) == guard.MAX_LOGGED_ITERATIONS + 1
    assert told(tmp_path)[-1] == "and 15 more iterations; the .log.json has them all"
    assert [row["iteration"] for row in rows(tmp_path)] == list(range(1, 21))


def test_guard_reports_at_end_and_stop(tmp_path):
    """A skip after the last line is reported at the run's end or stop."""
    for name, values in (("ends", {"total_iterations": 6}), ("stops", {})):
        (tmp_path / name).mkdir()
        hook, state = start(tmp_path / name, **values)
        for _ in range(5):
            iterate(hook, state)
        state.stop_reason = "SIGTERM came" if name == "stops" else None
        iterate(hook, state, (math.nan, 1.0))
        assert len(told(tmp_path / name)) == 1


def test_guard_ignores_loss_scale_search(tmp_path):
    """Steps skipped by the loss-scale search are neither reported nor counted in a row."""
    hook, state = start(tmp_path, max_in_a_row=3)
    for _ in range(8):
        iterate(hook, state, skipped=True, searches=True)
    assert told(tmp_path) == []
    # A bad loss is bad all the same, and the search in between is no good iteration.
    for _ in range(2):
        iterate(hook, state, (math.nan, 1.0), searches=True)
        iterate(hook, state, skipped=True, searches=True)
    assert [text[:12] for text in told(tmp_path)] == ["iteration 9:", "iteration 11"]

    def go_on():
        for searches in (False, True, True, True):  # a gradient at the smallest scale counts
            iterate(hook, state, skipped=True, searches=searches)

    with pytest.raises(DivergedError, match="^3 iterations in a row, from 9 on, "):
        go_on()


@pytest.fixture
def with_checkpoints(tmp_path):
    """Checkpoints of iterations 2, 4 and 6, of which the second is torn."""
    for number in (2, 4, 6):
        (tmp_path / checkpoints.FOLDER / f"iter_{number}").mkdir(parents=True)
    return tmp_path


def whole(monkeypatch, *numbers):
    monkeypatch.setattr(
        checkpoints, "check", lambda path: None if int(path.name[5:]) in numbers else "torn"
    )


def run_into_it(work_dir) -> str:
    """Good iterations 1 to 4, then bad ones; the message that ends it."""
    hook, state = start(work_dir, interval=2, max_in_a_row=3)
    for _ in range(4):
        iterate(hook, state)

    def go_on():
        for _ in range(10):
            iterate(hook, state, (math.nan, 1.0))

    with pytest.raises(DivergedError) as caught:
        go_on()
    assert state.iteration == 8  # the line after the third
    assert "\n" not in str(caught.value)
    assert told(work_dir)[-1] == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("numbers", "named"), [((2, 4, 6), 4), ((2, 6), 2), ((6,), 6)])
def test_guard_end_names_last_good_checkpoint(with_checkpoints, monkeypatch, numbers, named):
    """The final error names the last whole checkpoint from before the first bad iteration.

    The checkpoint is one from before the first bad iteration. Where none is left it is one from
    within, for the weights have stayed.
    """
    whole(monkeypatch, *numbers)
    message = run_into_it(with_checkpoints)
    assert message.startswith(
        "4 iterations in a row, from 5 on, had a loss or gradient that was not finite"
    )
    path = with_checkpoints / checkpoints.FOLDER / f"iter_{named}"
    assert f"the last good checkpoint is {path}: resume from it with" in message
    assert path.is_dir()
    assert f"bin/show_batch.py {with_checkpoints} --iteration 5 shows" in message


def test_guard_end_without_checkpoint(tmp_path):
    """Without a checkpoint the final error says to start again."""
    assert "there is no checkpoint yet; start again" in run_into_it(tmp_path)


def test_guard_counter_resets_and_resumes(tmp_path):
    """A good iteration resets the count, and a resumed run continues it."""
    whole_state = None
    hook, state = start(tmp_path, interval=1, max_in_a_row=3)
    for _ in range(3):
        for _ in range(2):
            iterate(hook, state, (math.nan, 1.0))
            whole_state = json.loads(json.dumps(hook.state_dict()))
        iterate(hook, state)
    resumed, state = start(tmp_path, interval=1, max_in_a_row=3, iteration=8)
    resumed.load_state_dict(whole_state)
    with pytest.raises(DivergedError, match="^3 iterations in a row, from 7 on, "):
        iterate(resumed, state, (math.nan, 1.0))


def test_guard_between_lines_reads_no_tensor(tmp_path):
    """Iterations between lines read no tensor's value, which would wait for the device."""
    hook, state = start(tmp_path, interval=50)
    for _ in range(49):
        state.iteration += 1
        nothing = torch.zeros((), device="meta")  # reading its value raises
        state.micro_losses, state.names, state.step_skipped = [{"loss": nothing}], [["a"]], nothing
        state.image_sums = [nothing[None]]
        hook.after_iteration(state)
    assert len(hook._stored) == 49, "all wait for the next line"
    assert told(tmp_path) == []


@pytest.mark.parametrize("value", [-1, 2.5])
def test_train_settings_reject_invalid_max_bad_iterations(value):
    """A train.max_bad_iterations that isn't a whole number from 0 is rejected."""
    with pytest.raises(
        RecipeError,
        match="train.max_bad_iterations: got .*; it must be a whole number, 0 for no end",
    ):
        TrainSettings(epochs=1, max_bad_iterations=value)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_train_settings_reject_invalid_timeout(value):
    """A train.timeout_minutes that isn't finite and above 0 is rejected."""
    with pytest.raises(RecipeError, match="train.timeout_minutes: got .*; it must be above 0"):
        TrainSettings(epochs=1, timeout_minutes=value)
