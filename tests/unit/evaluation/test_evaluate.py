"""Evaluation: means over images, flip averaging, the cap, and the best weights."""

import io
import types
from functools import partial
from unittest import mock

import pytest
import torch
from support.noise_frames import CPU, Frames, Slanted, protocol
from torch import nn

from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import OWN_SIZE, Resize, resized_image
from tiekd.evaluation.evaluate import EvaluationSettings, evaluate
from tiekd.evaluation.metrics import METRIC_NAMES, aggregate, depth_metrics
from tiekd.models.flip import predict
from tiekd.models.network import Prediction
from tiekd.training.evaluation_hook import Evaluation


def figures(flip=True, **options):
    predictor = partial(predict, Slanted(), flip=flip)
    return evaluate(predictor, Frames(), protocol(flip=flip, **options), CPU)


def test_evaluate_means_over_images_with_truth():
    """Metrics are means over the images that have ground truth."""
    from tiekd.data.augment.augment import normalise

    rows = []
    for index in (0, 1, 2, 4, 5, 6):
        sample = normalise(Frames()[index])
        depth = predict(Slanted(), sample.image[None], flip=True)
        rows.append(depth_metrics(depth, sample.depth[None], 1e-3, 80.0, "none"))
    expected = {name: torch.cat(rows)[:, i].mean().item() for i, name in enumerate(METRIC_NAMES)}
    assert figures() == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(aggregate(torch.cat(rows)))


def test_predict_flip_averages_both_predictions():
    """With flip, depth is the mean of the prediction and the mirrored one, flipped back."""
    image = torch.rand(2, 3, 4, 6)
    depth = predict(Slanted(), image, flip=True)
    # The ramp and its mirror image average to the middle; the grey part is mirror-symmetric and
    # stays.
    torch.testing.assert_close(depth, 20 + 5 * image.mean(1, keepdim=True) + 2.5)
    torch.testing.assert_close(predict(Slanted(), image, flip=False), Slanted()(image).depth)
    assert figures(flip=True) != figures(flip=False)


def test_evaluate_cap_excludes_far_truth():
    """Ground truth at or beyond the cap is not scored; the default is max_depth."""
    assert figures() == figures(cap=80.0)
    assert figures(cap=50.0) != figures() != figures(cap=100.0)
    exact = {name: frame.depth[None] for name, frame in ((str(i), Frames()[i]) for i in range(7))}
    depths = iter([exact[str(i)].where(exact[str(i)] < 50, 1e3).clamp(min=1) for i in range(7)])
    found = evaluate(lambda image: next(depths), Frames(), protocol(cap=50.0), CPU)
    assert found["abs_rel"] == 0
    assert found["a1"] == 1


def test_evaluate_uses_crop_setting():
    """The crop of the settings changes the metrics."""
    assert figures(crop="garg") != figures(crop="none")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(out, **options):
    evaluate(lambda image: image[:, :1], Frames(), protocol(batch_size=2), CPU, out=out, **options)
    return out.getvalue()


def test_evaluate_progress_on_terminal_only():
    """Progress is written to a terminal and nothing is written to a file."""
    text = shown(Terminal())
    assert text.startswith("\rframes [")
    assert "] 0/7, " in text
    assert text.endswith("\n")
    assert "] 7/7, " in text.split("\r")[-1]
    assert text.count("\n") == 1
    assert shown(io.StringIO()) == ""


def test_evaluate_watchers_see_every_batch():
    """Each watcher gets indices, batch, depth and metrics of every batch."""
    seen = []
    watchers = [lambda *batch: seen.append(batch)]
    evaluate(
        lambda image: image[:, :1] + 9, Frames(), protocol(batch_size=2), CPU, watchers=watchers
    )
    assert [indices for indices, *_ in seen] == [[0, 1], [2, 3], [4, 5], [6]]
    for indices, batch, depth, rows in seen:
        assert batch.names == list(map(str, indices))
        assert torch.equal(depth, batch.image[:, :1] + 9)
        expected = depth_metrics(depth, batch.depth, 1e-3, 80.0, "none")
        torch.testing.assert_close(rows, expected, equal_nan=True)


def test_evaluation_hook_progress_on_log_terminal():
    """The evaluation hook shows progress where the log writes to a terminal."""
    out = Terminal()
    hook = Evaluation(
        EvaluationSettings(crop="none", flip=False),
        Frames(),
        Slanted(),
        CPU,
        Loading(workers=0),
        print,
        out,
    )
    hook.replica.min_depth, hook.replica.max_depth = 1e-3, 80.0
    state = types.SimpleNamespace(weights=dict, hooks=[])
    with mock.patch.object(hook, "_save_best"):
        hook._evaluate(state)
    assert "] 7/7, " in out.getvalue()
    assert state.metrics["abs_rel"] > 0


def test_evaluation_hook_saves_best_before_hooks():
    """The best weights are saved before other hooks run; the log line comes last."""
    done = mock.Mock()
    settings = EvaluationSettings(crop="none", flip=False)
    hook = Evaluation(settings, Frames(), Slanted(), CPU, Loading(workers=0), done.info)
    hook.replica.min_depth, hook.replica.max_depth = 1e-3, 80.0
    state = types.SimpleNamespace(weights=dict, hooks=[done.log, done.board])
    with mock.patch.object(hook, "_save_best", done.save_best):
        hook._evaluate(state)
    names = ["save_best", "log.after_evaluation", "board.after_evaluation", "info"]
    assert [call[0] for call in done.mock_calls] == names
    done.board.after_evaluation.assert_called_once_with(state, state.metrics)
    done.info.assert_called_once_with(done.save_best.return_value)
    assert state.num_evaluated == 7


def test_predict_records_no_gradients():
    """A prediction requires no gradient, even if the image does."""
    image = torch.rand(1, 3, 4, 6, requires_grad=True)
    assert not predict(Slanted(), image, flip=True).requires_grad


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("mode", ["stretch", "cover", "contain", "fit"])
def test_evaluate_resized_scores_at_truth_size(mode, batch_size):
    """Depth of resized images is brought to the ground truth's size before scoring."""
    resize = Resize(height=9, width=11, mode=mode)
    predictor = partial(predict, Slanted(), flip=True)
    found = evaluate(predictor, Frames(), protocol(batch_size=batch_size), CPU, resize=resize)
    place, rows = resize.placement_of(12, 20), []
    for index in (0, 1, 2, 4, 5, 6):
        sample = Frames()[index]
        canvas = torch.zeros(3, *place.canvas, dtype=torch.uint8)
        rows_of, columns_of = (
            slice(first, first + side) for first, side in zip(place[2:], place.scaled, strict=True)
        )
        canvas[:, rows_of, columns_of] = resized_image(sample.image, place.scaled)
        depth = predictor(look_up(canvas[None], colour_table()[None]))[:, :, rows_of, columns_of]
        depth = nn.functional.interpolate(
            depth, size=(12, 20), mode="bilinear", align_corners=False
        )
        rows.append(depth_metrics(depth, sample.depth[None], 1e-3, 80.0, "none"))
    assert found == pytest.approx(aggregate(torch.cat(rows)), rel=1e-9)


def evaluated_without_a_pixel(
    settings: EvaluationSettings, predict_depth=None
) -> tuple[Evaluation, list[str]]:
    """Returns a hook that has evaluated once, and its lines."""
    told = []
    replica = Slanted()
    if predict_depth is not None:
        replica.forward = predict_depth
    hook = Evaluation(settings, Frames(), replica, CPU, Loading(workers=0), told.append)
    replica.min_depth, replica.max_depth = 1e-3, 80.0
    with mock.patch.object(hook, "_save_best", side_effect=AssertionError("a best was saved")):
        hook._evaluate(types.SimpleNamespace(weights=dict, hooks=[]))
    return hook, told


def test_evaluation_hook_no_pixel_saves_no_best():
    """If no pixel counts, no best is saved and the log says why."""
    hook, told = evaluated_without_a_pixel(EvaluationSettings(crop="none", flip=False, cap=0.5))
    assert hook.best is None
    assert told == [
        "No best is saved: abs_rel is nan, since no pixel of the 7 validation frames counts "
        "(ground truth 0.001 < d < 0.5 m, crop none); look at the ground truth with "
        "bin/check_data.py, or set another evaluation.crop or evaluation.cap"
    ]


def test_evaluation_hook_nonfinite_is_never_best():
    """If predicted depth isn't finite, no best is saved and the log says why."""

    def broken(image):
        return Prediction(image[:, :1] * float("nan"))

    hook, (told,) = evaluated_without_a_pixel(EvaluationSettings(crop="none", flip=False), broken)
    assert hook.best is None
    assert told.startswith("No best is saved: abs_rel is inf, since depth was predicted that is")


@pytest.mark.parametrize(
    ("state", "best"),
    [
        ({"best": 0.3, "owed": None, "metric": "abs_rel"}, 0.3),
        ({"best": 0.3, "owed": None}, 0.3),  # of an older version
        ({"best": 0.9, "owed": None, "metric": "a1"}, None),
        ({"best": float("nan"), "owed": None}, None),
    ],
)
def test_evaluation_hook_restores_best_of_same_metric(state, best):
    """A checkpoint's best of another metric, or NaN, is not restored."""
    hook = Evaluation(EvaluationSettings(), Frames(), Slanted(), CPU, Loading(), print)
    hook.load_state_dict(state)
    assert hook.best == best


@pytest.mark.parametrize(
    ("resize", "before", "best"),
    [
        (Resize(scale=0.5), {}, None),  # of a version that evaluated images at their own size
        (Resize(scale=0.5), {"resize": {"scale": 0.5}}, 0.3),
        (OWN_SIZE, {}, 0.3),
        (Resize(at_most=(352, 1216)), {}, 0.3),
    ],
)
def test_evaluation_hook_restores_best_of_same_resize(resize, before, best):
    """A checkpoint's best at another working resolution is not restored."""
    hook = Evaluation(
        EvaluationSettings(), Frames(), Slanted(), CPU, Loading(), print, resize=resize
    )
    hook.load_state_dict({"best": 0.3, "owed": None, "metric": "abs_rel", **before})
    assert hook.best == best
    assert hook.state_dict()["resize"] == resize.node()
