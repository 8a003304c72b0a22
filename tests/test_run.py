"""What a run refuses before it starts, because its parts don't go together."""

from types import SimpleNamespace

import pytest
import torch

from tiekd.data.loader import Loading
from tiekd.data.section import loading_of
from tiekd.errors import RecipeError
from tiekd.losses import criterion
from tiekd.models.heads.dpm import Dpm
from tiekd.models.network import Network
from tiekd.options import TrainSettings
from tiekd.run import build_hooks, check_ignored_depths


def network(beyond: str) -> Network:
    head = Dpm(4, 1e-3, 10.0, num_bins=20, beyond=beyond)
    return Network(torch.nn.Identity(), torch.nn.Identity(), head, 1e-3, 10.0)


@pytest.mark.parametrize("node", [{"dpm": {}}, {"mse": {}, "dpm": {"max_depth": 12}}, {"far": {"name": "dpm"}}])
def test_a_divergence_that_counts_ignored_pixels_is_refused(node):
    losses, key = criterion.build(node, True), list(node)[-1]
    told = f"^losses.{key}.max_depth: got .*; set losses.{key}.max_depth=10.0"
    with pytest.raises(RecipeError, match=told) as caught:
        check_ignored_depths(network("ignore"), losses)
    assert "\n" not in str(caught.value)
    check_ignored_depths(network("clamp"), losses)
    check_ignored_depths(network("ignore"), criterion.build({"dpm": {"max_depth": 10}, "mse": {}}, True))


def test_the_maximum_that_is_asked_for_keeps_the_loss_of_a_picture_with_far_pixels():
    """Without it half of a picture beyond the range would halve the loss."""
    torch.manual_seed(0)
    target = torch.full((1, 1, 4, 4), 5.0)
    features = torch.randn(1, 4, 1, 1).expand(1, 4, 4, 4)
    head = network("ignore").head
    near = head(features, (4, 4), target).divergence
    target[:, :, :, 2:] = 20.0
    half = head(features, (4, 4), target).divergence
    loss = criterion.build({"dpm": {"max_depth": 10.0}}, True)
    values = [loss(SimpleNamespace(divergence=d), None, t)["loss"] for d, t in ((near, target * 0 + 5), (half, target))]
    torch.testing.assert_close(values[1], values[0])


@pytest.mark.parametrize(
    ("node", "shown"),
    [({"recipe": "t.yaml"}, True), ({"maps": "m"}, True), ({"name": "mine.teacher"}, False), (None, False)],
)
def test_a_teacher_from_outside_is_not_asked_for_the_validation_frames_of_one_rank(node, shown):
    def teacher(batch):
        raise AssertionError

    recipe = {"network": {"max_depth": 10.0}, "teacher": node}
    hooks, _ = build_hooks(recipe, [0, 1], network("clamp"), teacher, "cpu", Loading(), TrainSettings(epochs=1), None)
    board = next(hook for hook in hooks if type(hook).__name__ == "TensorBoard")
    assert board.frames.teacher is (teacher if shown else None)


def test_kept_memory_goes_back_before_an_evaluation_and_a_checkpoint_need_some():
    recipe = {"network": {"max_depth": 10.0}}
    hooks, _ = build_hooks(recipe, [0, 1], network("clamp"), None, "cpu", Loading(), TrainSettings(epochs=1), None)
    names = [type(hook).__name__ for hook in hooks]
    assert names.index("KeptMemory") < names.index("Evaluation") < names.index("Checkpoint")


def test_a_recipe_without_data_is_read_as_any():
    assert loading_of({}) == Loading()
    assert loading_of({"data": {"workers": 3}}).workers == 3
