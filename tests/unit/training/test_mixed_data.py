"""Runs from several data sets: batches, losses of images without a target, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import mixed_sets
from support.fake_data import write_png
from support.mixed_sets import CROP, NETWORK
from support.mixed_sets import recipe as node
from torch import nn

from tiekd.data import trained_on
from tiekd.data.augment.augment import Augment
from tiekd.data.batch import Batch
from tiekd.data.loading.collate import collate
from tiekd.data.loading.loader import Loading, Unreadable, training_batches
from tiekd.data.loading.sampler import ALL_BATCHES, RankShare
from tiekd.data.mixed import MixedFrames, sets_in
from tiekd.data.sample import Sample
from tiekd.errors import DataError, RecipeError, TeacherError
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.evaluation.metrics import METRIC_NAMES, sets_table
from tiekd.losses.silog import SILog
from tiekd.models.network import Prediction
from tiekd.teachers.maps import CachedMaps
from tiekd.training import criterion, evaluation_hook, input_changes, inputs, mixed_data
from tiekd.training.build import build_parts
from tiekd.training.evaluation_hook import Evaluation, ValidationSet
from tiekd.training.settings import Recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return mixed_sets.make(tmp_path_factory.mktemp("mixed"))


def parts(root, **changes):
    recipe = node(root, **changes)
    return build_parts(
        Recipe(recipe), {"train_batch_size": "auto"}, CPU, resuming=False, begins=True
    )


def frames(root, **changes) -> MixedFrames:
    return mixed_data.training_frames(Recipe(node(root, **changes)), None)


def batches(root, iterations=range(3), share=ALL_BATCHES, accumulation=1, **changes) -> list[Batch]:
    dataset, recipe = frames(root, **changes), Recipe(node(root, **changes))
    sampler = mixed_data.sampler_of(dataset, recipe.train, iterations, accumulation, share)
    read = training_batches(dataset, sampler, Augment(**CROP), CPU)
    return list(mixed_data.with_target_counts(read, sampler, dataset))


def test_batch_says_what_each_image_has(root):
    """A mixed batch says the set of each image, and counts the targets of the global batch."""
    batch = batches(root)[0]
    assert batch.data_sets.count(0) + batch.data_sets.count(1) == 6
    assert batch.has_target.tolist() == [[number == 0, number == 1] for number in batch.data_sets]
    assert batch.target_counts == (batch.data_sets.count(0), batch.data_sets.count(1))
    for number, depth, taught in zip(
        batch.data_sets, batch.depth, batch.teacher_depth, strict=True
    ):
        # A set without ground truth has depth 0, and one without maps has maps of 0.
        assert depth.mean() == pytest.approx(2.0 if number == 0 else 0.0)
        assert taught.mean() == pytest.approx(0.0 if number == 0 else 4.0, abs=1e-4)


def test_shares_are_the_weights_or_the_sizes(root):
    """Without weights images are dealt by the sets' sizes, with them as they say."""
    sizes = [len(each.frames) for each in frames(root).sets]
    dealt = [number for batch in batches(root, range(5)) for number in batch.data_sets]
    assert dealt.count(0) == pytest.approx(30 * sizes[0] / sum(sizes), abs=1)
    weighted = batches(root, range(5), own={"weight": 2}, maps={"weight": 1})
    dealt = [number for batch in weighted for number in batch.data_sets]
    assert dealt.count(0) == 20


def test_ranks_and_accumulation_see_the_same_images(root):
    """Two ranks with two micro-batches each have the images and the counts of one batch."""
    whole = batches(root, train={"batch_size": 8})
    of_ranks = [
        batches(root, share=RankShare(rank, 2), accumulation=2, train={"batch_size": 8})
        for rank in (0, 1)
    ]
    for iteration, batch in enumerate(whole):
        pieces = [of_ranks[rank][2 * iteration + step] for step in (0, 1) for rank in (0, 1)]
        assert torch.equal(torch.cat([piece.image for piece in pieces]), batch.image)
        for piece in pieces:
            assert [4 * count for count in piece.target_counts] == list(batch.target_counts)


def test_one_layout_of_maps_in_a_batch(root):
    """Sets with other numbers of maps are stacked to one tensor, missing maps as 0."""
    twice = {"teacher": None, "teachers": [{"maps": "kd"}, {"maps": "kd"}]}
    batch = batches(root, own={"teacher": None}, maps=twice)[0]
    assert batch.teacher_depth.shape[1] == 2
    for number, taught in zip(batch.data_sets, batch.teacher_depth, strict=True):
        assert taught.mean() == pytest.approx(0.0 if number == 0 else 4.0, abs=1e-4)


class Guess(nn.Module):
    """Predicts its one weight at each pixel."""

    def __init__(self):
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(3.0))

    def forward(self, batch):
        return Prediction(self.depth.expand_as(batch.depth), None, None)


def losses_and_gradient(pieces, terms):
    """Returns the mean losses of micro-batches, and the gradient of their mean."""
    network, found = Guess(), []
    for piece in pieces:
        # A part without an image of the set with maps has none.
        taught = torch.zeros_like(piece.depth)
        if piece.teacher_depth is not None:
            taught = piece.teacher_depth
        losses = terms(network(piece), piece, taught)
        (losses["loss"] / len(pieces)).backward()
        found.append({name: loss.item() for name, loss in losses.items()})
    means = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
    return means, network.depth.grad.item()


def test_maps_in_levels_and_in_metres_share_a_batch():
    """A data set from outside may give a teacher's depth in metres beside maps in levels."""
    plane, number = torch.ones(1, 4, 4), {"intrinsics": torch.eye(3), "name": "a"}
    metres = Sample(plane.byte().expand(3, -1, -1), plane, plane.bool(), plane * 3, **number)
    levels = metres._replace(teacher_depth=(plane * 30).to(torch.uint16), teacher_units=10.0)
    samples = [levels, metres]
    samples = [
        sample._replace(table=torch.zeros(3, 256), data_set=place, has_target=(True, True))
        for place, sample in enumerate(samples)
    ]
    batch = collate(samples)
    assert batch.teacher_depth.flatten().tolist() == [3.0] * 32
    assert batch.teacher_units.tolist() == [1.0, 1.0]


def test_losses_are_means_over_images_with_the_target(root):
    """Each term is the mean over images with its target: of 3 m against 4 m and 2 m."""
    terms = criterion.build({"mse": {"weight": 1.0}, "silog": {"against": "ground_truth"}}, True)
    (batch,) = batches(root, range(1))
    means, _ = losses_and_gradient([batch], terms)
    assert means["loss_mse"] == pytest.approx(1.0, abs=1e-3)
    wanted = SILog()(Guess()(batch), torch.full_like(batch.depth, 2.0)).mean().item()
    assert means["loss_silog"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_are_equal_on_any_number_of_ranks(root, ranks):
    """However a batch is split, losses and gradient are the same; some parts lack a target."""
    options = {"train": {"batch_size": 4}, "own": {"weight": 1}, "maps": {"weight": 3}}
    terms = criterion.build({"mse": {"weight": 1.0}, "silog": {"against": "ground_truth"}}, True)
    for iteration in range(3):
        chosen = range(iteration, iteration + 1)
        whole = losses_and_gradient(batches(root, chosen, **options), terms)
        split = [
            batches(root, chosen, RankShare(rank, ranks), **options)[0] for rank in range(ranks)
        ]
        assert not all(0 in piece.data_sets for piece in split)
        means, gradient = losses_and_gradient(split, terms)
        assert means == pytest.approx(whole[0], rel=1e-6)
        assert gradient == pytest.approx(whole[1], rel=1e-6)


def test_batch_without_a_target_gives_zero():
    """A micro-batch, and a global batch, without a target has loss 0 and gradient 0, no NaN."""
    terms = criterion.build({"mse": {}, "silog": {"against": "ground_truth"}}, True)
    nothing = torch.zeros(2, 1, 4, 4)
    for counts in ((0.0, 0.0), (0.5, 0.5)):
        batch = Batch(
            nothing.expand(2, 3, 4, 4), nothing, nothing == 0, nothing, None, ["a", "b"],
            data_sets=(0, 0), has_target=torch.zeros(2, 2, dtype=torch.bool), target_counts=counts,
        )  # fmt: skip
        means, gradient = losses_and_gradient([batch], terms)
        assert (means["loss_mse"], means["loss_silog"], gradient) == (0, 0, 0)


def test_loss_of_an_image_without_the_target_does_not_count():
    """A loss that isn't 0 without a target doesn't count for an image without one."""

    class Always(nn.Module):
        def forward(self, prediction, target):
            return prediction.depth.flatten(1).mean(1) + target.flatten(1).mean(1) * torch.nan

    terms = criterion.Criterion({"x": criterion.Term(Always(), 1.0, "teacher")})
    image, has = torch.ones(2, 1, 2, 2), torch.tensor([[True, False], [True, False]])
    batch = Batch(
        image.expand(2, 3, 2, 2), image, image > 0, image, None, ["a", "b"],
        data_sets=(0, 0), has_target=has, target_counts=(2.0, 0.0),
    )  # fmt: skip
    assert losses_and_gradient([batch], terms)[0]["loss_x"] == 0


def test_unreadable_sample_is_replaced_within_its_set(root, tmp_path):
    """A sample that can't be read is replaced by one of its own set, and named with the set."""
    for number in range(3):
        write_png(tmp_path / "rgb" / f"maps{number}.png", np.full((32, 40, 3), 9, np.uint8))
    (tmp_path / "rgb" / "maps2.png").write_bytes(b"no image")
    maps = {"root": str(tmp_path), "teacher": {"maps": str(root / "maps" / "kd"), "audit": "off"}}
    dataset = frames(root, maps=maps)
    recipe = Recipe(node(root, maps=maps))
    sampler = mixed_data.sampler_of(dataset, recipe.train, range(4), 1, RankShare())
    unreadable = Unreadable(10)
    read = training_batches(dataset, sampler, Augment(**CROP), CPU, unreadable=unreadable)
    for keys, batch in zip(sampler, read, strict=True):
        assert batch.data_sets == tuple(dataset.locate(index)[0] for _, index in keys)
    (told,) = unreadable.messages
    assert told.startswith("data.maps: ")
    assert "maps2.png" in told


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"train": {"epoch_images": 0}}, RecipeError, "^train.epoch_images: got 0"),
        ({"evaluation": {"set": "maps"}}, RecipeError, "^evaluation.set: got 'maps'; allowed: own"),
        ({"evaluation": {"set": "foo"}}, RecipeError, "^evaluation.set: got 'foo'; allowed: own"),
        ({"own": {"validate": False}}, RecipeError, "^train.validate: got true, but each set"),
        ({"own": {"augment": {"sizes": "bucket"}}}, RecipeError, "^data.augment.sizes: got bucket"),
        ({"maps": {"teacher": None}}, RecipeError, "^data.maps.depths: none given, but training"),
        ({"maps": {"validate": True}}, RecipeError, r"^data.maps.*data.maps.validate=false"),
        ({"losses": {"mse": {}}}, RecipeError, "^data.own: has ground truth alone, and no loss"),
        (
            {"losses": {"silog": {"against": "ground_truth"}}},
            RecipeError,
            "^data.maps: has a teacher, and no loss",
        ),
        (
            {"losses": {"mse": {}, "silog": {"against": "ground_truth", "reduce": "batch"}}},
            RecipeError,
            "^losses.silog.reduce: got batch, which mixes images",
        ),
        ({"maps": {"root": "/nowhere"}}, DataError, "^data.maps.root: no folder at /nowhere"),
        ({"maps": {"teacher": {"maps": "no"}}}, DataError, "^data.maps: teacher.maps: no folder"),
        ({"maps": {"decoded": "dec"}}, DataError, "^data.maps.decoded: no folder at"),
        (
            {"network": NETWORK | {"canonical_focal": 100.0}, "own": {"intrinsics": [9, 9, 9, 9]}},
            DataError,
            "^data.maps: network.canonical_focal: 9 of 9 training frames have no focal length",
        ),
        ({"evaluation": {"against": "teacher"}}, RecipeError, "^data.own: evaluation.against: got"),
    ],
)
def test_wrong_mixture_is_refused_in_one_line(root, changes, error, told):
    """What a mixture can't do, and what is wrong with one set, is one line that names the set."""
    with pytest.raises(error, match=told) as caught:
        parts(root, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "section", [{"train": {"epoch_images": 9}}, {"evaluation": {"set": "own"}}]
)
def test_settings_of_mixtures_are_refused_for_one_set(root, section):
    """`train.epoch_images` and `evaluation.set` are of several data sets alone."""
    recipe = node(root, **section)
    recipe["data"] = {k: v for k, v in recipe["data"][0].items() if k != "set"}
    with pytest.raises(RecipeError, match="one data set"):
        mixed_data.check_recipe(Recipe(recipe))


def test_parts_and_log_of_a_mixed_run(root):
    """A run builds both sets, says shares and the epoch's length, and records its teacher."""
    built = parts(root, train={"epoch_images": 60})
    assert built.state.iterations_per_epoch == 10
    report = "\n".join(built.report)
    assert "Data sets: 2, mixed by size; an epoch is 60 images (train.epoch_images)" in report
    assert "Data set own: 4 training frames, 30.77 % of the images, seen 4.615 times" in report
    assert "Data set maps: 9 training frames, 69.23 % of the images" in report
    assert [each["name"] for each in built.state.teachers] == ["some.teacher"]
    # The record of the frames that were trained on has those of both sets.
    assert len(built.state.trained_on.hashes) == 13
    evaluation = next(hook for hook in built.state.hooks if isinstance(hook, Evaluation))
    assert [each.name for each in evaluation.validation_sets] == ["own"]
    batch = next(built.batches(4))
    assert built.teacher(batch).shape == (6, 1, 32, 32)
    assert isinstance(built.teacher.sets[1].teacher, CachedMaps)


def test_sets_without_any_teacher_learn_from_ground_truth(root):
    """If no set has a teacher, the target is the ground truth, as in a run with one set."""
    truth = {"teacher": None, "depths": "kd", "depth_unit": 6553.5}
    built = parts(
        root, maps=truth, teacher={"maps": "unused"}, own={"teacher": None}, losses={"mse": {}}
    )
    batch = next(built.batches(1))
    assert torch.equal(built.teacher(batch), batch.depth)
    assert built.criterion.terms["mse"].against == "ground_truth"
    assert batch.target_counts == (6.0, 0.0)
    assert built.state.teachers == []


def test_set_beyond_the_networks_range_is_said(root):
    """A set whose depths reach beyond max_depth is named in the log."""
    dataset = frames(root)
    dataset.sets[0].frames.max_depth = 1.5
    told = mixed_data.describe(Recipe(node(root)), dataset, SimpleNamespace(max_depth=1.5))
    assert any(line.startswith("Data set own: 1e+02 % of the ground truth") for line in told)
    assert any("maps reach 10 m, the network's max_depth is 1.5 m" in line for line in told)


def hook(monkeypatch, chosen=None) -> Evaluation:
    """Returns a hook of two sets of 2 and 3 frames, whose abs_rel are 0.1 and 0.3."""
    settings = EvaluationSettings(set=chosen)
    made = Evaluation(settings, None, SimpleNamespace(min_depth=0, max_depth=9), CPU, None, print)
    made.sets = tuple(
        ValidationSet(name, [0] * count, EvaluationSettings(crop=crop), None)
        for name, count, crop in (("near", 2, "none"), ("far", 3, "garg"))
    )

    def evaluate(_, dataset, protocol, *__, **___):
        assert protocol.settings.crop == ("none" if len(dataset) == 2 else "garg")
        return dict.fromkeys(METRIC_NAMES, 0.1 if len(dataset) == 2 else 0.3)

    monkeypatch.setattr(evaluation_hook, "evaluate", evaluate)
    monkeypatch.setattr(made, "_fill_replica", lambda _: None)
    return made


@pytest.mark.parametrize(
    ("chosen", "value", "count", "label"),
    [(None, 0.2, 5, "mean over near, far"), ("far", 0.3, 3, "far"), ("near", 0.1, 2, "near")],
)
def test_best_is_chosen_by_the_set_or_the_mean(monkeypatch, tmp_path, chosen, value, count, label):
    """Each set is scored by its own protocol; one of them or the mean chooses the best."""
    made = hook(monkeypatch, chosen)
    state = SimpleNamespace(
        weights=dict, hooks=[], work_dir=tmp_path, recipe={"network": {}}, iteration=7,
        training_record={}, average=None, lr=[0.0], teacher_comparison=None,
    )  # fmt: skip
    told = []
    made.info = told.append
    made._evaluate(state)
    assert state.metrics["abs_rel"] == pytest.approx(value)
    assert state.num_evaluated == count
    assert {name: each["abs_rel"] for name, each in state.set_metrics.items()} == {
        "near": 0.1,
        "far": 0.3,
    }
    assert told[0].endswith(f"saved as best_abs_rel.pth ({label})")
    saved = torch.load(tmp_path / "best_abs_rel.pth", weights_only=True)
    assert saved["metrics_of"] == label
    assert saved["metrics_by_set"]["far"]["abs_rel"] == 0.3
    # A best value of another set can't be compared with.
    other = hook(monkeypatch, "near" if chosen == "far" else "far")
    other.load_state_dict(made.state_dict())
    assert other.best is None
    made.best = None
    made.load_state_dict({"best": 1.0, "owed": None, "set": label, "resize": None})
    assert made.best == 1.0


def test_table_has_a_row_for_each_set():
    """The table of several sets has their names in its rows."""
    rows = sets_table({"near": {"a1": 0.5}, "far": {"a1": 0.25}}).splitlines()
    assert [row.split("|")[1].strip() for row in (rows[1], *rows[3:5])] == [
        "data set",
        "near",
        "far",
    ]
    assert rows[4].split("|")[2].strip() == "0.25"


def record(root, **changes) -> dict:
    recipe = Recipe(node(root, **changes))
    train = mixed_data.training_frames(recipe, None)
    config = SimpleNamespace(values={})
    return inputs.collect(recipe, root / "none.yaml", config, {"train": train, "val": None}, 3)


def test_inputs_name_each_set(root):
    """The record of a run's inputs has the splits and files of each set by its name."""
    found = record(root)
    assert set(found["splits"]) == {"own train", "maps train"}
    assert "data.maps.teacher.maps" in found["files"]
    assert input_changes.compare(found, found).refused == []


def test_changed_inputs_name_the_set(root):
    """A resume refuses another unit, weight or fewer frames, and names the set."""
    before = record(root)
    for changes, told in (
        ({"own": {"depth_unit": 500}}, "data.own.depth_unit is 500, was 1000"),
        ({"maps": {"teacher": None, "depths": "kd", "depth_unit": 1000}}, "data.maps.teacher"),
    ):
        refused = input_changes.compare(before, record(root, **changes)).refused
        assert any(told in text for text in refused), refused
    one = node(root)
    one["data"] = one["data"][:1]
    found = input_changes.compare(before, before | {"recipe": one}).refused
    assert "data is the sets own, was the sets own, maps" in found
    after = record(root)
    split = after["splits"]["maps train"]
    gone = split["names"].pop()
    for states in split["files"].values():
        states.pop()
    (refused,) = input_changes.compare(before, after).refused
    assert refused == f"1 of 9 maps train frames were removed ({gone})"
    # A folder that has moved, and the loader's workers, are no other data.
    assert input_changes.compare(before, record(root, own={"workers": 1})).refused == []


def test_held_out_frames_of_each_set_stay(root):
    """A resumed run holds out the validation frames that each set had at the start."""
    started = {"recipe": node(root), "splits": {"own val": {"names": ["3.png"]}}}
    assert inputs.held_out(started, Recipe(node(root))) == {"own": ["3.png"], "maps": None}
    changed = Recipe(node(root, own={"val_fraction": 0.5}))
    assert inputs.held_out(started, changed) == {"own": None, "maps": None}


def test_overlap_counts_frames_of_each_set(root):
    """Frames of a set that were trained on are found by their hashes."""
    dataset = frames(root)
    seen = trained_on.trained_on(dataset)
    for _, each in sets_in(dataset):
        found = trained_on.overlap(seen, trained_on.hashes_of(each))
        assert found.is_whole


def test_held_out_names_of_one_set(root):
    """A program that takes one set gets the validation frames of its record, by the set's name."""
    recipe = Recipe(node(root))
    record = {"recipe": recipe.node, "splits": {"own val": {"names": ["own3.png"]}}}
    assert inputs.held_out_of(record, recipe, "own") == ["own3.png"]
    assert inputs.held_out_of(record, recipe, "maps") is None
    assert inputs.held_out_of(None, recipe, "own") is None
    alone = recipe.data_sets[0].recipe
    record = {"recipe": alone.node, "splits": {"val": {"names": ["own5.png"]}}}
    assert inputs.held_out_of(record, alone, "") == ["own5.png"]


def test_sets_are_chosen_by_name(root):
    """`--data-set` takes a set by name or number; another one is refused with those there are."""
    recipe = Recipe(node(root))
    assert [each.name for each in recipe.sets_named("maps")] == ["maps"]
    assert [each.name for each in recipe.sets_named("1")] == ["maps"]
    assert [each.name for each in recipe.sets_named(None)] == ["own", "maps"]
    for wrong in ("foo", "2", "-1", "9" * 5000):
        with pytest.raises(
            RecipeError, match=f"^--data-set: got '{wrong}'; the recipe has: own, m"
        ):
            recipe.sets_named(wrong)
    alone = recipe.data_sets[0].recipe
    assert alone.sets_named("") == alone.sets_named(None) == (("", None, alone),)
    with pytest.raises(RecipeError, match="^--data-set: got '0'; the recipe has one set$"):
        alone.sets_named("0")
    with pytest.raises(RecipeError, match=r"^data: got a list of sets \(own, maps\)"):
        _ = recipe.dataset
    assert Loading(workers=0) == recipe.loading


def test_teacher_that_reads_files_is_refused_with_its_set(root):
    """What training refuses of a teacher is told with the set's name."""
    with pytest.raises((TeacherError, RecipeError), match="^data.maps: "):
        parts(root, maps={"teacher": {"name": "moge", "model": "/nowhere"}})
