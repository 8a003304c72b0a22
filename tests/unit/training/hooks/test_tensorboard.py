import errno
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.some_state import SomeState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tiekd.errors import RecipeError
from tiekd.evaluation.agreement import Agreement
from tiekd.models.heads.dpm import Dpm, DpmOptions
from tiekd.models.network import Network
from tiekd.training.hook import Hook
from tiekd.training.hooks import tensorboard, text_log
from tiekd.training.hooks.tensorboard import TensorBoard
from tiekd.training.hooks.text_log import TextLog
from tiekd.visualization import pictures
from tiekd.visualization.views import View


def make_state(work_dir, hooks, iteration=0):
    batch = SimpleNamespace(image=torch.randn(3, 3, 16, 32), depth=torch.rand(3, 1, 16, 32) * 9)
    return SomeState(
        iteration=iteration,
        iterations_per_epoch=20,
        total_iterations=40,
        by_epoch=True,
        batch_size=3,
        lr=[1e-3, 1e-2],
        momentum=[0.95, 0.95],
        losses={},
        grad_norm=None,
        time_s=0.5,
        data_time_s=0.1,
        work_dir=work_dir,
        timestamp="20240101_120000",
        recipe={"teacher": {"maps": "m"}},
        batch=batch,
        hooks=hooks,
        skipped_steps=0,
        loss_scale=None,
        engine=None,
        num_evaluated=7,
        teacher_depth=torch.rand(3, 1, 16, 32) * 9,
        prediction=SimpleNamespace(
            depth=torch.rand(3, 1, 16, 32, dtype=torch.float16, requires_grad=True)
        ),
    )


def train(state, until, validate_every=math.inf):
    for hook in state.hooks:
        hook.before_train(state)
    while state.iteration < until:
        loss = torch.tensor(float(state.iteration))
        state.losses, state.grad_norm = {"loss_dpm": loss, "loss": 2 * loss}, loss
        state.iteration += 1
        for hook in state.hooks:
            hook.after_iteration(state)
        if state.iteration % validate_every == 0:
            for hook in state.hooks:
                hook.after_evaluation(state, {"abs_rel": 1 / state.iteration})


def read(work_dir):
    events = EventAccumulator(str(work_dir / "tf_logs"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    scalars = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    return scalars, {tag: events.Images(tag) for tag in events.Tags()["images"]}


def test_tensorboard_scalars_equal_text_log(tmp_path, monkeypatch):
    """Scalars are the text log's means under MMCV's names, readable before the run ends."""
    calls = []
    monkeypatch.setattr(text_log, "_peak_memory_mb", lambda device: calls.append(device) or 77)
    state = make_state(tmp_path, [TextLog(10), TensorBoard(10, image_interval=0)])
    train(state, 40, validate_every=20)
    # Readable before the writer is closed: a kill now would lose nothing.
    scalars, images = read(tmp_path)
    state.hooks[1].after_train(state)
    state.hooks[0].after_train(state)
    means = [(10, 4.5), (20, 14.5), (30, 24.5), (40, 34.5)]
    assert scalars["train/decode.loss_dpm"] == scalars["train/grad_norm"] == means
    assert scalars["train/loss"] == [(step, 2 * value) for step, value in means]
    assert scalars["val/abs_rel"] == [(20, pytest.approx(0.05)), (40, pytest.approx(0.025))]
    assert scalars["learning_rate"][0] == (10, pytest.approx(1e-3))
    assert scalars["momentum"][0] == (
        10,
        pytest.approx(0.95),
    )
    assert scalars["train/time"][0][1] == 0.5
    assert scalars["train/images_per_s"][0][1] == 6.0
    names = {
        "learning_rate",
        "momentum",
        "val/abs_rel",
        *(f"train/{name}" for name in state.hooks[0].last_means),
    }
    assert set(scalars) == names - {"train/lr"}
    assert "train/memory" in names
    assert len(calls) == 4
    assert not images


def test_tensorboard_interval_is_multiple_of_log(tmp_path):
    """A longer interval writes scalars at its own multiples only."""
    state = make_state(tmp_path, [TextLog(5), TensorBoard(15, image_interval=0)])
    train(state, 40)
    for hook in state.hooks:
        hook.after_train(state)
    assert [step for step, _ in read(tmp_path)[0]["train/loss"]] == [15, 30]


def test_tensorboard_resume_replaces_later_events(tmp_path):
    """A resumed run replaces the events after its checkpoint without duplicates."""
    for begin, end in ((0, 30), (20, 40)):
        state = make_state(tmp_path, [TextLog(10), TensorBoard(10, image_interval=0)], begin)
        train(state, end, validate_every=20)
        for hook in state.hooks:
            hook.after_train(state)
    scalars, _ = read(tmp_path)
    assert [step for step, _ in scalars["train/loss"]] == [10, 20, 30, 40]
    assert [step for step, _ in scalars["val/abs_rel"]] == [20, 40]


@pytest.mark.parametrize("with_teacher", [True, False])
def test_tensorboard_image_per_sample(with_teacher, tmp_path, monkeypatch):
    """Each sample gets an image with one cell per map, and a teacher cell only with a teacher."""
    sheets = []
    monkeypatch.setattr(
        pictures, "sheet", lambda *args: sheets.append(args) or np.zeros((4, 6, 3), np.uint8)
    )
    state = make_state(
        tmp_path, [TextLog(10), TensorBoard(10, image_interval=15, num_images=2, max_depth=10.0)]
    )
    # Without a teacher the loop passes the ground truth on as what the student learns from.
    state.recipe = state.recipe if with_teacher else {}
    state.teacher_depth = state.teacher_depth if with_teacher else state.batch.depth
    train(state, 40)
    for hook in state.hooks:
        hook.after_train(state)
    images = read(tmp_path)[1]
    assert set(images) == {"train/pictures_1", "train/pictures_2"}
    for shown in images.values():
        assert [(image.step, image.height, image.width) for image in shown] == [
            (15, 4, 6),
            (30, 4, 6),
            (40, 4, 6),
        ]
    cells, max_depth, max_error, max_entropy, _ = sheets[0]
    assert (max_depth, max_error) == (
        10.0,
        1.0,
    )
    assert max_entropy is None  # there was no network to ask
    error = f"|student - {'teacher' if with_teacher else 'ground truth'}|"
    assert list(cells) == [
        "image",
        "ground truth",
        *(["teacher"] if with_teacher else []),
        "student",
        error,
    ]
    assert all(drawn.shape == (16, 32, 3) for drawn in cells.values())


def test_tensorboard_writes_full_image(tmp_path):
    """By default one full-size image is written at the end of a short run."""
    state = make_state(tmp_path, [TextLog(10), TensorBoard(10, num_images=1, max_depth=10.0)])
    train(state, 40)
    for hook in state.hooks:
        hook.after_train(state)
    (image,) = read(tmp_path)[1]["train/pictures_1"]
    assert image.step == 40
    assert image.width > 2 * 400
    assert image.height > 3 * 200


def make_network():
    torch.manual_seed(0)
    head = Dpm(3, 1e-3, 10.0, stride=1, options=DpmOptions(num_bins=20, sigma=0.5))
    return Network(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)), Pass(), head, 1e-3, 10.0)


class Pass(nn.Module):
    def forward(self, features, size):
        return features


def test_tensorboard_images_leave_network_unchanged(tmp_path):
    """Images leave weights, modes, gradients and the random state unchanged."""
    network = make_network().train()
    network.encoder[0].eval()  # frozen by somebody
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = make_state(
        tmp_path, [TextLog(10), TensorBoard(10, image_interval=15, num_images=3, max_depth=10.0)]
    )
    state.engine = SimpleNamespace(module=network)
    random_state = torch.get_rng_state()
    train(state, 40)
    for hook in state.hooks:
        hook.after_train(state)
    images = read(tmp_path)[1]
    assert [
        [image.step for image in images[f"train/{tag}"]] for tag in ("pictures_3", "why_1")
    ] == [[15, 30, 40]] * 2
    assert images["train/pictures_3"][0].width > 2 * 400 + 3 * 74  # with the scale of entropies
    assert all((before[name] == value).all() for name, value in network.state_dict().items())
    assert network.training
    assert network.encoder[1].training
    assert not network.encoder[0].training
    assert all(p.grad is None for p in network.parameters())
    assert (torch.get_rng_state() == random_state).all()


def test_tensorboard_skips_sharded_network(tmp_path):
    """A network whose weights are sharded by ZeRO isn't run for images."""
    network = make_network()
    for parameter in network.parameters():
        parameter.ds_id = 0
    network.forward = network.features = None
    state = make_state(tmp_path, [TextLog(10), TensorBoard(10, image_interval=40, max_depth=10.0)])
    state.engine = SimpleNamespace(module=network)
    train(state, 40)
    for hook in state.hooks:
        hook.after_train(state)
    assert set(read(tmp_path)[1]) == {"train/pictures_1", "train/pictures_2"}


def test_tensorboard_evaluation_images_and_errors(tmp_path):
    """Evaluations write images and error histograms, and a resume replaces later ones."""
    shown = [View(np.zeros((16, 32, 3), np.uint8), *[np.ones((16, 32), np.float32)] * 3)] * 2
    errors = {"0-2.5m": np.array([0.5, -1.5, 0.25])}
    frames = SimpleNamespace(views=lambda: shown, errors_by_range=lambda views: errors)
    for begin, end in ((0, 30), (10, 30)):
        board = TensorBoard(10, image_interval=100, max_depth=10.0, frames=frames)
        state = make_state(tmp_path, [TextLog(10), board], begin)
        train(state, end, validate_every=10)
        for hook in state.hooks:
            hook.after_train(state)
    events = EventAccumulator(
        str(tmp_path / "tf_logs"), size_guidance={"images": 0, "histograms": 0}
    )
    events.Reload()
    assert [image.step for image in events.Images("val/pictures_2")] == [10, 20, 30]
    found = events.Histograms("val/error_0-2.5m")
    assert [event.step for event in found] == [10, 20, 30]
    value = found[0].histogram_value
    assert (value.num, value.min, value.max, value.sum) == (3, -1.5, 0.5, -0.75)


def test_tensorboard_tags_agreement(tmp_path, monkeypatch):
    """Figures against the teacher have tags of their own, never those of accuracy.

    Images show the error against the teacher, where the teacher's depth is known.
    """
    drawn = []
    monkeypatch.setattr(tensorboard, "overview", lambda *arguments: drawn.append(arguments[-1]))
    plain = View(np.zeros((16, 32, 3), np.uint8), *[np.ones((16, 32), np.float32)] * 3)
    shown = [plain, plain._replace(teacher=None)]
    frames = SimpleNamespace(views=lambda: shown, errors_by_range=lambda _: {})
    board = TensorBoard(10, image_interval=100, frames=frames)
    state = make_state(tmp_path, [TextLog(10), board])
    state.teacher_comparison = Agreement("agreement", {"abs_rel_at_edges": 0.5}, "")
    train(state, 10, validate_every=10)
    assert drawn == ["teacher", "ground truth"]
    for hook in state.hooks:
        hook.after_train(state)
    scalars, _ = read(tmp_path)
    assert scalars["agreement/abs_rel_at_edges"] == [(10, 0.5)]
    assert "agreement/abs_rel" in scalars
    assert not [tag for tag in scalars if tag.startswith("val/")]


def test_tensorboard_writes_recipe_text(tmp_path):
    """The recipe and the engine config are written as verbatim text."""
    (tmp_path / "config.yaml").write_text("data: {root: '*x*'}\ntrain:\n  epochs: 3\n")
    (tmp_path / "ds_config.json").write_text('{\n  "zero_optimization": 1\n}\n')
    state = make_state(tmp_path, [TextLog(10), TensorBoard(10, image_interval=0)])
    train(state, 10)
    for hook in state.hooks:
        hook.after_train(state)
    events = EventAccumulator(str(tmp_path / "tf_logs"))
    events.Reload()
    (recipe,) = events.Tensors("recipe/text_summary")
    assert (
        recipe.tensor_proto.string_val[0].decode()
        == "    data: {root: '*x*'}\n    train:\n      epochs: 3"
    )
    assert "zero_optimization" in str(events.Tensors("ds_config/text_summary")[0].tensor_proto)


@pytest.mark.parametrize("values", [{"skipped_steps": 3}, {"loss_scale": 512.0}])
def test_tensorboard_writes_skipped_steps(values, tmp_path):
    """Skipped steps and the loss scale are written as scalars where they occur."""
    happens = Hook()
    happens.after_iteration = lambda state: vars(state).update(values)
    state = make_state(tmp_path, [happens, TextLog(10), TensorBoard(10, image_interval=0)])
    train(state, 10)
    for hook in state.hooks:
        hook.after_train(state)
    scalars, _ = read(tmp_path)
    assert scalars["train/skipped_steps"] == [(10, values.get("skipped_steps", 0))]
    assert scalars.get("train/loss_scale", [(10, 512.0)]) == [(10, 512.0)]


def test_tensorboard_other_ranks_write_nothing(tmp_path, monkeypatch):
    """Ranks other than 0 create no event files."""
    monkeypatch.setattr(tensorboard, "is_main", lambda: False)
    state = make_state(tmp_path, [TextLog(10), TensorBoard(10, image_interval=5)])
    train(state, 20, validate_every=10)
    for hook in state.hooks:
        hook.after_train(state)
    assert not (tmp_path / "tf_logs").exists()


def test_tensorboard_rejects_invalid_arguments(tmp_path):
    """An invalid num_images, or a missing text_log hook, raises a RecipeError."""
    with pytest.raises(RecipeError, match="^num_images: got 0; it must be a whole number from 1"):
        TensorBoard(num_images=0)
    with pytest.raises(RecipeError, match="put text_log before it in hooks"):
        TensorBoard().before_train(make_state(tmp_path, []))


def test_tensorboard_error_of_the_disk_names_the_folder(tmp_path):
    """An error of the writer's thread, which names no file, gets the writer's folder."""

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    hook = TensorBoard(10)
    hook._writer = SimpleNamespace(flush=full, log_dir=tmp_path)
    with pytest.raises(OSError, match="No space left on device") as error:
        hook._flush()
    assert error.value.filename == str(tmp_path)
