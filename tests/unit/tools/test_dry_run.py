"""The foresight of a dry run.

A run's checkpoints, an iteration's time, and the largest micro-batch that fits.
"""

from types import SimpleNamespace

import pytest
import torch
from support.some_state import SomeState

from tiekd.distributed import memory
from tiekd.tools import dry_run, measure, micro_batch
from tiekd.training.evaluation_hook import Evaluation
from tiekd.training.hooks.checkpoint import Checkpoint

CPU = torch.device("cpu")
MB = 10**6


def parts(work_dir, total: int, validate: bool = True, **checkpoint) -> SimpleNamespace:
    hooks = [Checkpoint([], print, **checkpoint)]
    state = SomeState(
        work_dir=work_dir, total_iterations=total, iterations_per_epoch=10, hooks=hooks
    )
    train = SimpleNamespace(validate=validate)
    return SimpleNamespace(state=state, recipe=SimpleNamespace(train=train))


@pytest.mark.parametrize(
    ("total", "checkpoint", "saved", "kept", "at_most"),
    [
        (100, {"interval": 1, "keep_last": 3}, 10, 3, 4),  # one is written beside three
        (95, {"interval": 1, "keep_last": 3}, 10, 3, 4),  # the last one at 95
        (100, {"interval": 1, "keep_last": 2, "keep_every": 4}, 10, 4, 5),  # 90, 100; 40, 80
        (100, {"interval": 25, "by": "iteration", "keep_last": 9}, 4, 4, 4),
        (7, {"interval": 1}, 1, 1, 1),
    ],
)
def test_disk_is_of_the_checkpoints_that_stay_and_one_that_is_written(
    tmp_path, total, checkpoint, saved, kept, at_most
):
    work_dir = tmp_path / "not" / "there"
    (line,) = dry_run._disk(parts(work_dir, total, **checkpoint), 10 * MB, 50 * MB)
    told = (
        f"Disk: 50.0 MB a checkpoint, {saved} are saved, {kept} stay; with the best weights up to "
    )
    assert line.startswith(told + dry_run.size((50 * at_most + 20) * MB))
    assert line.endswith(f"free at {tmp_path}")
    (line,) = dry_run._disk(parts(work_dir, total, validate=False, **checkpoint), 10 * MB, 50 * MB)
    assert f"up to {dry_run.size(50 * at_most * MB)}, of" in line


def test_a_disk_that_is_too_small_is_warned_of(tmp_path):
    _, warning = dry_run._disk(parts(tmp_path, 100), 0, 10**15)
    assert warning.startswith("WARNING: the checkpoints don't fit on the disk")


@pytest.mark.parametrize(
    ("total", "interval", "by", "count"),
    [(100, 2, "epoch", 5), (95, 2, "epoch", 5), (5, 2, "iteration", 3)],
)
def test_evaluations_are_counted_with_the_last(tmp_path, total, interval, by, count):
    run = parts(tmp_path, total)
    settings = SimpleNamespace(interval=interval, by=by)
    run.state.hooks = [Evaluation(settings, None, None, CPU, None, print)]
    assert dry_run._evaluations(run) == count


def test_sizes_are_those_of_the_files_and_nothing_is_written(tmp_path):
    state = {
        "weights": torch.randn(1000, 33),
        "names": ["a"] * 50,
        "half": torch.zeros(7, dtype=torch.bfloat16),
    }
    torch.save(state, tmp_path / "real.pt")
    sizes = dry_run._Sizes()
    sizes.make_folder(tmp_path / "folder")
    sizes.save(state, tmp_path / "folder" / "a.pt")
    sizes.save(b"12345", tmp_path / "folder" / "b.json")
    assert sizes.written["a.pt"][0] == pytest.approx(
        (tmp_path / "real.pt").stat().st_size, rel=0.01
    )
    assert sizes.written["b.json"][0] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["real.pt"]


class Clock:
    """Iterations of given lengths, by a clock that only they move."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def run(self, watch, seconds, skipped=()) -> int:
        state = SimpleNamespace(stop_reason=None, data_time_s=0.01, iteration=0, step_skipped=False)
        watch.before_train(state)
        for length in seconds:
            self.now += length
            state.iteration += 1
            state.step_skipped = state.iteration in skipped
            watch.after_iteration(state)
            if state.stop_reason:
                return state.iteration
        raise AssertionError("it never stopped")


def test_the_first_iteration_and_those_of_data_read_ahead_are_not_timed(monkeypatch):
    watch = measure.Stopwatch(CPU, workers=2, accumulation=2)
    assert (
        Clock(monkeypatch).run(watch, [9.0, 5.0, 5.0, *[1.0, 1.0, 1.2, 0.8, 1.0], *[7.0] * 99]) == 8
    )
    assert watch.median_s() == (pytest.approx(1.0), 0.01)
    assert watch.range_s() == (pytest.approx(0.8), pytest.approx(1.2))


def test_fast_iterations_are_timed_for_seconds_and_slow_ones_for_a_minute(monkeypatch):
    watch = measure.Stopwatch(CPU, workers=0, accumulation=1)
    assert Clock(monkeypatch).run(watch, [0.2] * 99) == 16
    watch = measure.Stopwatch(CPU, workers=0, accumulation=1)
    assert Clock(monkeypatch).run(watch, [0.001] * 99) == 51
    watch = measure.Stopwatch(CPU, workers=4, accumulation=1)
    assert Clock(monkeypatch).run(watch, [50.0, 30.0, 31.0]) == 3
    assert watch.median_s()[0] == 30.5


def test_steps_that_a_loss_scale_skipped_are_warm_up(monkeypatch):
    watch = measure.Stopwatch(CPU, workers=0, accumulation=1)
    assert Clock(monkeypatch).run(watch, [9.0, 9.0, 9.0, *[1.0] * 9], skipped=(1, 2)) == 8
    assert watch.median_s()[0] == 1.0


def test_the_peak_of_a_process_begins_anew():
    peak = memory.peak_bytes(CPU)
    block = torch.ones(100 * MB // 4)
    grown = memory.peak_bytes(CPU)
    assert grown > peak - 1
    assert memory.held_bytes(CPU) >= 100 * MB
    del block
    memory.restart_peak(CPU)
    assert memory.peak_bytes(CPU) < grown - 50 * MB
    assert memory.free_bytes(CPU) > 0


class Device:
    """Stands for what tries take: `per_image` bytes over `held`."""

    def __init__(self, monkeypatch, held: float, per_image: float, room: float | None = None):
        self.tried, self.peak, self.per_image, self.room, self.held = (
            [],
            held,
            per_image,
            room,
            held,
        )
        monkeypatch.setattr(memory, "held_bytes", lambda _device: held)
        monkeypatch.setattr(memory, "peak_bytes", lambda _device: self.peak)
        monkeypatch.setattr(memory, "restart_peak", lambda _device: None)

    def __call__(self, images: int) -> None:
        self.tried.append(images)
        self.peak = self.held + self.per_image * images
        if self.room is not None and self.peak > self.room:
            raise torch.OutOfMemoryError("full")


def test_an_accelerator_that_runs_out_of_memory_ends_the_tries(monkeypatch):
    device = Device(monkeypatch, held=10.0, per_image=5.0, room=35.0)
    tries = micro_batch.find_largest([1, 2, 4, 8], device, CPU, None)
    assert device.tried == [1, 1, 2, 2, 4, 4, 8]
    assert [(t.images, t.fits) for t in tries] == [(1, True), (2, True), (4, True), (8, False)]
    assert tries[-1].time_s is None
    assert tries[2].peak_bytes == 30


def test_on_a_cpu_what_would_not_fit_is_not_tried(monkeypatch):
    device = Device(monkeypatch, held=10.0, per_image=5.0)
    tries = micro_batch.find_largest([1, 2, 4, 8, 16], device, CPU, 50.0)
    assert max(device.tried) == 8, "8 take exactly 50"
    assert [(t.images, t.peak_bytes, t.fits) for t in tries[-2:]] == [
        (8, 50.0, True),
        (16, 90.0, False),
    ]


def test_all_is_tried_where_all_fits_and_nothing_where_nothing_does(monkeypatch):
    device = Device(monkeypatch, held=10.0, per_image=5.0)
    assert [t.images for t in micro_batch.find_largest([1, 3], device, CPU, 1e9)] == [1, 3]
    (only,) = micro_batch.find_largest([1, 3], device, CPU, 9.0)
    assert (only.images, only.fits) == (1, False)
