"""Training over broken files.

What takes their place, how they are counted and logged, and when they are too many.
"""

import numpy as np
import pytest
import torch
from support import fake_data
from support.fake_data import depth_name, image_name, write_png
from support.frames import kitti_frames
from support.some_state import logged_state
from support.text_logs import messages

from tiekd.data.augment.augment import Augment
from tiekd.data.loading.loader import Loading, Unreadable, training_batches, validation_batches
from tiekd.data.loading.sampler import MicroBatches, RankShare
from tiekd.distributed import comm
from tiekd.errors import DataError, RecipeError
from tiekd.training.build import _check_loading
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.settings import Recipe
from tiekd.training.unreadable_hook import UnreadableSamples

CPU = torch.device("cpu")


def tear(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.fixture
def data(tmp_path):
    """Seven frames; 2's image is torn, 3's depth map has 8 bits, and 6's image is gone."""
    root = fake_data.make(tmp_path, num_frames=7)
    tear(root / "input" / image_name(2))
    write_png(root / "gt_depth" / depth_name(3), np.ones((20, 30), np.uint8))
    (root / "input" / image_name(6)).unlink()
    return kitti_frames(str(root), "train", 80.0)


def training(data, unreadable, workers=0, start=0, total=7, rank=0, world_size=1, augment=None):
    share = RankShare(rank, world_size)
    sampler = MicroBatches(len(data), 2, range(start, total), seed=3, share=share)
    augment = augment or Augment(crop=(12, 16))
    loading = Loading(workers=workers, timeout_s=60)
    return list(
        training_batches(data, sampler, augment, CPU, loading=loading, unreadable=unreadable)
    )


def indices(names):
    return [int(name[-5]) for name in names]


REPLACED = {2: 4, 3: 4, 6: 0}


def test_skip_takes_next_readable_sample(data, tmp_path):
    """The next readable sample takes an unreadable one's place; each file is reported once."""
    unreadable = Unreadable(10)
    names = [name for batch in training(data, unreadable, total=4) for name in batch.names]
    order = [index for _, index in sum(MicroBatches(7, 2, range(4), seed=3), [])]
    assert sorted(set(order)) == list(range(7))
    assert indices(names) == [REPLACED.get(index, index) for index in order]
    found = sorted(unreadable.messages)
    assert len(found) == 3, "each file once, however often it was met"
    assert found[0].startswith(
        f"{tmp_path / 'gt_depth' / depth_name(3)}: a depth map must be a one-channel 16-bit PNG"
    )
    assert found[1].startswith(
        f"{tmp_path / 'input' / image_name(2)}: a torn or damaged PNG (60 bytes)"
    )
    assert found[2].startswith(f"{tmp_path / 'input' / image_name(6)}: no such image")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_names_what_it_skipped(data, workers):
    """Each batch has the messages of its own skipped samples, in the order they were met."""
    keys = list(MicroBatches(7, 2, range(7), seed=3))
    for batch, samples in zip(training(data, Unreadable(10), workers), keys, strict=True):
        # 2 and 3 are replaced by 4, 6 by 0.
        skips = [{2: [2, 3], 3: [3], 6: [6]}.get(index, []) for _, index in samples]
        files = [message.partition(".png: ")[0] for message in batch.skipped]
        assert [int(file[-1]) for file in files] == sum(skips, [])


def test_replacement_keeps_augmentation_of_replaced(data):
    """A replacement has the augmentation of the sample that it replaces.

    Two that are replaced by the same sample are therefore not the same image twice.
    """
    augment = Augment(crop=(12, 16), rotate_p=0.0, flip_p=0.0, colour_p=0.0)
    columns = {}
    for batch in training(data, Unreadable(10), total=4, augment=augment):
        for name, principal_x in zip(batch.names, batch.intrinsics[:, 0, 2].tolist(), strict=True):
            columns.setdefault(indices([name])[0], set()).add(round(609.5593 - principal_x))
    assert len(columns[4]) == 3


def test_replacement_independent_of_workers_ranks_start(data):
    """Replacements depend on neither the workers, the ranks nor the first iteration."""
    whole = training(data, Unreadable(10))
    assert [b.names for b in training(data, Unreadable(10), workers=2)] == [b.names for b in whole]
    later = training(data, Unreadable(10), start=5)
    ranks = [training(data, Unreadable(10), rank=rank, world_size=2) for rank in (0, 1)]
    for one, other in [*zip(whole[5:], later, strict=True)]:
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.depth, other.depth)
    for one, first, second in zip(whole, *ranks, strict=True):
        assert torch.equal(one.image, torch.cat([first.image, second.image]))


def test_skip_reports_image_smaller_than_crop(data, tmp_path):
    """With skipping, an image that is smaller than the crop is reported as unreadable."""
    write_png(tmp_path / "input" / image_name(0), np.zeros((10, 30, 3), np.uint8))
    write_png(tmp_path / "gt_depth" / depth_name(0), np.ones((10, 30), np.uint16))
    unreadable = Unreadable(10)
    training(data, unreadable)
    assert any(
        "data.augment.crop: 12x16 is larger than the image" in message
        for message in unreadable.messages
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_skip_ends_after_many_in_a_row(data, tmp_path, workers):
    """Skipping ends with a `DataError` after too many unreadable samples in a row."""
    (tmp_path / "input").rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError,
        match="^data.on_error: 7 training samples in a row can't be read; the last: .*no such",
    ):
        training(data, Unreadable(10), workers)
    with pytest.raises(DataError, match="^data.on_error: 4 training samples in a row"):
        training(data, Unreadable(3), workers)


def test_unreadable_raises_without_skip_and_in_validation(data):
    """Without skipping, and in validation, an unreadable file raises a `DataError`."""
    with pytest.raises(DataError, match="^/.*png: "):
        training(data, None)
    with pytest.raises(DataError, match=r"^/.*torn or damaged PNG \(60 bytes\)"):
        list(validation_batches(data, 1, CPU))


def run(hook, log, folder, found: dict, iterations=8, **options):
    """`found`: what the loader meets by iteration."""
    state = logged_state(
        folder, iterations_per_epoch=8, total_iterations=iterations, stop_reason=None, **options
    )
    log.before_train(state)
    try:
        for iteration in range(1, iterations + 1):
            state.iteration = iteration
            hook.found.messages.update(dict.fromkeys(found.get(iteration, ())))
            hook.after_iteration(state)
    finally:
        log.after_train(state)


def told(folder):
    texts = [text.strip() for text in messages(folder / "20240101_120000.log")]
    return [text for text in texts if text.startswith("Warning")]


def test_hook_warns_once_per_file_at_log_step(tmp_path, monkeypatch):
    """The hook warns once of each file of all ranks, with one collective a log step."""
    calls = []

    def gather(mine):
        calls.append(mine)
        return [mine, ["c.png: from rank 1"] if len(calls) == 1 else []]

    monkeypatch.setattr(comm, "gather_objects", gather)
    log = TextLog(4)
    hook = UnreadableSamples(Unreadable(5), log)
    run(
        hook,
        log,
        tmp_path,
        {1: ["b.png: torn"], 2: ["a.png: gone", "b.png: torn"], 6: ["b.png: torn", "d.png: x"]},
    )
    head = "Warning: a training sample can't be read, another takes its place "
    assert told(tmp_path) == [
        f"{head}(1 of at most 5): a.png: gone",
        f"{head}(2 of at most 5): b.png: torn",
        f"{head}(3 of at most 5): c.png: from rank 1",
        f"{head}(4 of at most 5): d.png: x",
    ]
    assert calls == [["b.png: torn", "a.png: gone"], ["d.png: x"]], (
        "one collective a log line, with the news only"
    )


def test_hook_ends_run_above_max_errors(tmp_path, monkeypatch):
    """More unreadable samples than `max_errors` on all ranks together end the run."""
    monkeypatch.setattr(comm, "gather_objects", lambda mine: [["a: x"], ["b: y"], ["c: z"]])
    log = TextLog(4)
    hook = UnreadableSamples(Unreadable(2), log)
    with pytest.raises(
        DataError,
        match="^data.max_errors: 3 training samples can't be read, 2 are allowed; .*: c: z$",
    ):
        run(hook, log, tmp_path, {})
    assert len(told(tmp_path)) == 3


def test_hook_state_survives_resume(tmp_path):
    """A resumed run counts the earlier files but doesn't warn of them again."""
    log = TextLog(4)
    first, second = (UnreadableSamples(Unreadable(2), log) for _ in range(2))
    run(first, log, tmp_path, {1: ["a: x", "b: y"]})
    second.load_state_dict(first.state_dict())
    (tmp_path / "on").mkdir()
    with pytest.raises(DataError, match="3 training samples can't be read, 2 are allowed"):
        run(second, log, tmp_path / "on", {1: ["a: x", "c: z"]})
    assert [line[-4:] for line in told(tmp_path / "on")] == ["c: z"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"workers": -1}, "data.workers: got -1; it must be a whole number from 0 to 1024"),
        ({"on_error": "ignore"}, "data.on_error: got 'ignore'; allowed: raise, skip"),
        (
            {"max_errors": 0},
            "data.max_errors: got 0; it must be a whole number from 1 (for none: "
            "data.on_error=raise)",
        ),
        ({"timeout_s": 0}, "data.timeout_s: got 0; it must be seconds > 0, at most 1e6"),
    ],
)
def test_loading_wrong_option_is_refused(options, line):
    """A wrong loading option raises a `RecipeError` of one line."""
    with pytest.raises(RecipeError) as error:
        Loading(**options)
    assert str(error.value) == line


def test_skip_with_bucket_is_refused():
    """`on_error: skip` can't be combined with `sizes: bucket`."""
    augment = {"sizes": "bucket"}
    with pytest.raises(
        RecipeError, match="^data.on_error: skip can't be combined with data.augment.sizes=bucket"
    ):
        _check_loading(
            Recipe({"data": {"name": "kitti", "root": "x", "on_error": "skip", "augment": augment}})
        )
    recipe = Recipe({"data": {"name": "kitti", "augment": augment}})
    _check_loading(recipe)
    assert recipe.loading == Loading()
