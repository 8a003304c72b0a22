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
def test_dry_run_disk_counts_kept_and_written(tmp_path, total, checkpoint, saved, kept, at_most):
    """The disk estimate covers the kept checkpoints, the one being written and best weights."""
    work_dir = tmp_path / "not" / "there"
    (line,) = dry_run._disk(parts(work_dir, total, **checkpoint), 10 * MB, 50 * MB)
    told = (
        f"Disk: 50.0 MB a checkpoint, {saved} are saved, {kept} stay; with the best weights up to "
    )
    assert line.startswith(told + dry_run.size((50 * at_most + 20) * MB))
    assert line.endswith(f"free at {tmp_path}")
    (line,) = dry_run._disk(parts(work_dir, total, validate=False, **checkpoint), 10 * MB, 50 * MB)
    assert f"up to {dry_run.size(50 * at_most * MB)}, of" in line


def test_dry_run_warns_of_small_disk(tmp_path):
    """A warning is printed if the checkpoints don't fit on the disk."""
    _, warning = dry_run._disk(parts(tmp_path, 100), 0, 10**15)
    assert warning.startswith("WARNING: the checkpoints don't fit on the disk")


@pytest.mark.parametrize(
    ("total", "interval", "by", "count"),
    [(100, 2, "epoch", 5), (95, 2, "epoch", 5), (5, 2, "iteration", 3)],
)
def test_dry_run_counts_last_evaluation(tmp_path, total, interval, by, count):
    """The number of evaluations includes the one at the run's end."""
    run = parts(tmp_path, total)
    settings = SimpleNamespace(interval=interval, by=by)
    run.state.hooks = [Evaluation(settings, None, None, CPU, None, print)]
    assert dry_run._evaluations(run) == count


def test_dry_run_sizes_equal_files(tmp_path):
    """The predicted file sizes equal the real ones within 1 %, and nothing is written."""
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


def test_stopwatch_excludes_warm_up(monkeypatch):
    """Median and range exclude the first iterations and those of prefetched data."""
    watch = measure.Stopwatch(CPU, workers=2, accumulation=2)
    assert (
        Clock(monkeypatch).run(watch, [9.0, 5.0, 5.0, *[1.0, 1.0, 1.2, 0.8, 1.0], *[7.0] * 99]) == 8
    )
    assert watch.median_s() == (pytest.approx(1.0), 0.01)
    assert watch.range_s() == (pytest.approx(0.8), pytest.approx(1.2))


def test_stopwatch_stops_by_time_or_count(monkeypatch):
    """Timing ends after 3 s, after 50 iterations, or after a minute of slow ones."""
    watch = measure.Stopwatch(CPU, workers=0, accumulation=1)
    assert Clock(monkeypatch).run(watch, [0.2] * 99) == 16
    watch = measure.Stopwatch(CPU, workers=0, accumulation=1)
    assert Clock(monkeypatch).run(watch, [0.001] * 99) == 51
    watch = measure.Stopwatch(CPU, workers=4, accumulation=1)
    assert Clock(monkeypatch).run(watch, [50.0, 30.0, 31.0]) == 3
    assert watch.median_s()[0] == 30.5


def test_stopwatch_excludes_skipped_steps(monkeypatch):
    """Steps skipped while the loss scale is searched count as warm-up."""
    watch = measure.Stopwatch(CPU, workers=0, accumulation=1)
    assert Clock(monkeypatch).run(watch, [9.0, 9.0, 9.0, *[1.0] * 9], skipped=(1, 2)) == 8
    assert watch.median_s()[0] == 1.0


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


def test_find_largest_stops_at_out_of_memory(monkeypatch):
    """Running out of memory ends the tries and is recorded as not fitting."""
    device = Device(monkeypatch, held=10.0, per_image=5.0, room=35.0)
    tries = micro_batch.find_largest([1, 2, 4, 8], device, CPU, None)
    assert device.tried == [1, 1, 2, 2, 4, 4, 8]
    assert [(t.images, t.fits) for t in tries] == [(1, True), (2, True), (4, True), (8, False)]
    assert tries[-1].time_s is None
    assert tries[2].peak_bytes == 30


def test_find_largest_cpu_predicts_limit(monkeypatch):
    """On a CPU, a batch predicted to exceed the limit is reported but not run."""
    device = Device(monkeypatch, held=10.0, per_image=5.0)
    tries = micro_batch.find_largest([1, 2, 4, 8, 16], device, CPU, 50.0)
    assert max(device.tried) == 8, "8 take exactly 50"
    assert [(t.images, t.peak_bytes, t.fits) for t in tries[-2:]] == [
        (8, 50.0, True),
        (16, 90.0, False),
    ]


def test_find_largest_all_or_none_fit(monkeypatch):
    """All sizes are tried if all fit, and only the first is reported if none does."""
    device = Device(monkeypatch, held=10.0, per_image=5.0)
    assert [t.images for t in micro_batch.find_largest([1, 3], device, CPU, 1e9)] == [1, 3]
    (only,) = micro_batch.find_largest([1, 3], device, CPU, 9.0)
    assert (only.images, only.fits) == (1, False)
