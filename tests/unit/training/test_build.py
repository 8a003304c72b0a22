"""Runs that are refused before they start, because their parts don't go together."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import tar_shards
from support.fake_data import write_png

from tiekd.config.teacher_node import TeacherList
from tiekd.data import learned_from, teacher_maps
from tiekd.data.build import loading_of
from tiekd.data.datasets import folder
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import Resize
from tiekd.errors import DataError, RecipeError, TeacherError
from tiekd.models.build import build_network
from tiekd.models.canonical import Canonical
from tiekd.models.heads.dpm import Dpm, DpmOptions
from tiekd.models.heads.sigmoid import Sigmoid
from tiekd.models.network import Network
from tiekd.training import criterion, startup_log
from tiekd.training.build import (
    Parts,
    _build_sets,
    build_hooks,
    build_parts,
    check_ignored_depths,
    check_sigmas,
)
from tiekd.training.settings import Recipe
from tiekd.workdir.weights_file import write_weights


def network(beyond: str) -> Network:
    head = Dpm(4, 1e-3, 10.0, options=DpmOptions(num_bins=20, beyond=beyond))
    return Network(torch.nn.Identity(), torch.nn.Identity(), head, 1e-3, 10.0)


@pytest.mark.parametrize(
    "node", [{"dpm": {}}, {"mse": {}, "dpm": {"max_depth": 12}}, {"far": {"name": "dpm"}}]
)
def test_check_ignored_depths_rejects_missing_max_depth(node):
    """A dpm loss needs the network's max_depth if its head ignores depth beyond it."""
    losses, key = criterion.build(node, True), list(node)[-1]
    told = f"^losses.{key}.max_depth: got .*; set losses.{key}.max_depth=10.0"
    with pytest.raises(RecipeError, match=told) as caught:
        check_ignored_depths(network("ignore"), losses)
    assert "\n" not in str(caught.value)
    check_ignored_depths(network("clamp"), losses)
    check_ignored_depths(
        network("ignore"), criterion.build({"dpm": {"max_depth": 10}, "mse": {}}, True)
    )


def test_splits_of_a_run_are_from_one_listing(tmp_path, monkeypatch):
    """A folder is listed once for both splits, so that a new file isn't in one of them alone."""
    for number in range(20):
        write_png(tmp_path / "rgb" / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    listed = []

    def list_files(*given):
        found = folder_listing(*given)
        write_png(tmp_path / "rgb" / f"new{len(listed)}.png", np.zeros((8, 8, 3), np.uint8))
        listed.append(len(found.files))
        return found

    folder_listing = folder.list_files
    monkeypatch.setattr(folder, "list_files", list_files)
    data = {"name": "folder", "root": str(tmp_path), "images": "rgb", "workers": 0}
    node = {"data": data, "network": {"min_depth": 0.1, "max_depth": 10.0}, "train": {"epochs": 1}}
    node |= {"teacher": {"name": "mine"}, "evaluation": {"against": "teacher"}}
    sets = _build_sets(Recipe(node), None)
    assert listed == [20]
    names = [{frame.name for frame in sets[key].frames} for key in ("training", "validation")]
    assert [len(each) for each in names] == [17, 2]  # one between them is in neither
    assert not names[0] & names[1]
    _build_sets(Recipe(node), None)
    assert listed == [20, 21]


def test_dpm_loss_max_depth_excludes_far_pixels():
    """With max_depth, an image half beyond the range has the loss of one fully within it.

    Without the maximum, half of an image beyond the range would halve the loss.
    """
    torch.manual_seed(0)
    target = torch.full((1, 1, 4, 4), 5.0)
    features = torch.randn(1, 4, 1, 1).expand(1, 4, 4, 4)
    head = network("ignore").head
    near = head(features, (4, 4), target).divergence
    target[:, :, :, 2:] = 20.0
    half = head(features, (4, 4), target).divergence
    loss = criterion.build({"dpm": {"max_depth": 10.0}}, True)
    values = [
        loss(SimpleNamespace(divergence=d), None, t)["loss"]
        for d, t in ((near, target * 0 + 5), (half, target))
    ]
    torch.testing.assert_close(values[1], values[0])


def hooks_of(recipe: dict, teacher) -> list:
    hooks, _ = build_hooks(
        Recipe(recipe | {"train": {"epochs": 1}}),
        "cpu",
        val_set=[0, 1],
        replica=network("clamp"),
        teacher=teacher,
        unreadable=None,
    )
    return hooks


@pytest.mark.parametrize(
    ("node", "shown"),
    [
        ({"recipe": "t.yaml"}, True),
        ({"maps": "m"}, True),
        ({"name": "huggingface", "model": "m"}, True),
        ({"name": "mine.teacher"}, False),
        ([{"maps": "m"}, {"name": "moge", "model": "m"}], True),
        ([{"maps": "m"}, {"name": "mine.teacher"}], False),
        (None, False),
    ],
)
def test_build_hooks_tensorboard_skips_outside_teacher(node, shown):
    """TensorBoard's frames get a network, a model or maps as the teacher, but no external one."""

    def teacher(_batch):
        raise AssertionError

    key = "teachers" if isinstance(node, list) else "teacher"
    hooks = hooks_of({"network": {"max_depth": 10.0}, key: node}, teacher)
    board = next(hook for hook in hooks if type(hook).__name__ == "TensorBoard")
    assert board.frames.teacher is (teacher if shown else None)


def test_build_hooks_orders_kept_memory_first():
    """KeptMemory runs before Evaluation, and Evaluation before Checkpoint."""
    names = [type(hook).__name__ for hook in hooks_of({"network": {"max_depth": 10.0}}, None)]
    assert names.index("KeptMemory") < names.index("Evaluation") < names.index("Checkpoint")


def test_loading_of_defaults_without_data():
    """A recipe without data has default loading settings."""
    assert loading_of({}) == Loading()
    assert loading_of({"workers": 3}).workers == 3


def test_recipe_sections_are_lazy():
    """A recipe's section is parsed once, on access; absent ones have defaults."""
    recipe = Recipe({"data": {"workers": 3, "augment": {"flip_p": 0.25}}, "train": {"epochs": 0}})
    assert recipe.loading.workers == 3
    assert recipe.loading is recipe.loading
    assert recipe.augment.flip_p == 0.25
    assert recipe.load.checkpoint is None
    assert not recipe.teachers.is_given
    assert recipe.evaluation.interval == 1
    assert recipe.teachers.maps == {}
    with pytest.raises(RecipeError, match="^train.epochs: got 0; it must be a whole number from 1"):
        recipe.train  # noqa: B018


@pytest.mark.parametrize(("key", "most"), [("epochs", 10**6), ("iterations", 10**9)])
def test_recipe_refuses_a_run_without_an_end(key, most):
    """A length whose end has no date is refused with the largest that is allowed."""
    assert getattr(Recipe({"train": {key: most}}).train, key) == most
    told = f"^train.{key}: got {most + 1}; it must be at most {most}$"
    with pytest.raises(RecipeError, match=told):
        Recipe({"train": {key: most + 1}}).train  # noqa: B018


def test_recipe_refuses_a_clip_norm_that_is_no_number():
    """NaN as the largest norm, which would make all weights NaN, is refused."""
    with pytest.raises(RecipeError, match="^train.clip_norm: got nan; it must be a number$"):
        Recipe({"train": {"epochs": 1, "clip_norm": float("nan")}}).train  # noqa: B018


def test_protocol_of_a_recipe_has_its_settings_and_its_network_s_range():
    """The cap is the recipe's, else the network's largest depth."""
    node = {"network": {"min_depth": 0.1, "max_depth": 80.0}, "evaluation": {"crop": "eigen"}}
    protocol = Recipe(node).protocol("train")
    assert (protocol.min_depth, protocol.cap, protocol.split) == (0.1, 80.0, "train")
    assert protocol.settings.crop == "eigen"
    capped = Recipe(node | {"evaluation": {"cap": 50.0}}).protocol("val")
    assert (capped.max_depth, capped.cap) == (80.0, 50.0)


def folder_recipe(root, depth):
    """A recipe for three images, each with this depth map, saved as NPY."""
    for index in range(3):
        write_png(root / f"images/{index}.png", np.full((64, 64, 3), index, np.uint8))
        (root / "depths").mkdir(exist_ok=True)
        np.save(root / f"depths/{index}.npy", depth)
    return {
        "network": {
            "encoder": {"name": "mobilenet_v2", "width": 0.25, "taps": [1, 3]},
            "decoder": {"name": "densedepth", "widths": [8, 8], "extra_ups": 2, "extra_width": 8},
            "head": {"name": "sigmoid"},
            "min_depth": 0.001,
            "max_depth": 10.0,
        },
        "data": {
            "name": "folder",
            "root": str(root),
            "images": "images",
            "depths": "depths",
            "val_fraction": 0.0,
        },
        "losses": {"silog": {"weight": 1.0, "against": "ground_truth"}},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "work_dir": str(root / "wd"),
    }


def parts_of(recipe, batch_size):
    train = {"batch_size": batch_size, "epochs": 1, "validate": False}
    recipe = Recipe(recipe | {"train": train})
    given = deepcopy(recipe.node)
    parts = build_parts(recipe, {}, torch.device("cpu"), resuming=False, begins=True)
    assert recipe.node == given
    return parts


def test_build_parts_rejects_wrong_depth_unit(tmp_path):
    """Depths that look like another unit end the run before it starts."""
    recipe = folder_recipe(tmp_path, np.full((64, 64), 2500, np.float32))
    with pytest.raises(
        DataError, match=r"float32 NPY is taken as metres \(data.float_depth_unit\): give the unit"
    ):
        parts_of(recipe, 2)
    recipe["data"]["float_depth_unit"] = 1000.0
    assert not any("metres" in line for line in parts_of(recipe, 2).report)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            {"resize": {"scale": 0.01}},
            r"^data.resize: 0.png: 64x64 would be 1x1 at the working resolution \(scaled by "
            r"0.01\); this network needs at least 8 pixels a side; set a larger size$",
        ),
        ({"resize": {"short_side": 7}}, "^data.resize: 0.png: 64x64 would be 7x7 at"),
        (
            {"augment": {"crop": [64, 7]}},
            r"^data.augment.crop: got \[64, 7\]; this network needs at least 8 pixels a side; set",
        ),
    ],
)
def test_build_parts_refuses_sizes_below_the_encoders_stride(tmp_path, data, told):
    """A run whose images or crops are smaller than the encoder's largest stride isn't started."""
    recipe = folder_recipe(tmp_path, np.full((64, 64), 5, np.float32))
    recipe["network"]["encoder"] = {"name": "mobilenet_v2", "width": 0.25}
    recipe["network"]["decoder"] = {"name": "densedepth", "widths": [8] * 4, "extra_ups": 1}
    recipe["data"] |= data
    with pytest.raises(RecipeError, match=told):
        parts_of(recipe, 2)


def test_build_parts_allows_sizes_of_the_encoders_stride(tmp_path):
    """Images and crops of exactly the encoder's largest stride are allowed."""
    recipe = folder_recipe(tmp_path, np.full((64, 64), 5, np.float32))
    recipe["network"]["encoder"] = {"name": "mobilenet_v2", "width": 0.25}
    recipe["network"]["decoder"] = {"name": "densedepth", "widths": [8] * 4, "extra_ups": 1}
    recipe["data"] |= {"resize": {"scale": 0.125}, "augment": {"crop": [8, 8]}}
    assert parts_of(recipe, 2).train_set is not None


def test_build_parts_records_teachers_and_compares_cameras(tmp_path):
    """The record has the maps' teacher and those of the initial weights; the log names both.

    Maps that were made with another focal length are warned of.
    """
    recipe = folder_recipe(tmp_path, np.full((64, 64), 5, np.float32))
    first, second = ({"name": "moge", "model": name, "digest": name * 64} for name in "ab")
    maps = tmp_path / "maps"
    maps.mkdir()
    manifest = teacher_maps.make_manifest(10.0, None, {"name": "moge"}, None, False)
    teacher_maps.write_manifest(maps, manifest | {"teachers": [first]})
    (maps / "focals.json").write_text('{"0.png": 50.0, "1.png": 60.0, "2.png": 60.0}')
    weights = build_network(recipe["network"]).state_dict()
    write_weights(tmp_path / "w.pth", weights, recipe["network"], 3, teachers=[second])
    recipe |= {"teacher": {"maps": str(maps)}, "load": {"checkpoint": str(tmp_path / "w.pth")}}
    recipe["data"]["intrinsics"] = [60.0, 60.0, 31.5, 31.5]
    recipe["losses"] = {"silog": {"weight": 1.0}}
    parts = parts_of(recipe, 2)
    assert parts.state.teachers == [first, second]
    assert parts.state.training_record["teachers"] == [first, second]
    assert f"Learned from: {learned_from.describe(second)}" in startup_log.first_lines(parts)
    (line,) = (line for line in parts.report if "another focal length" in line)
    assert line.startswith("Warning: 1 of 3: maps were made with another focal length, such as 0")


def maps_of(folder, *teachers: dict) -> str:
    """Makes a folder of maps without a file but the manifest, with its record of teachers."""
    folder.mkdir()
    manifest = teacher_maps.make_manifest(10.0, None, {"name": "moge"}, None, False)
    teacher_maps.write_manifest(folder, manifest | {"teachers": list(teachers)})
    return str(folder)


def test_build_parts_records_all_of_several_teachers(tmp_path):
    """The record has the teachers of each folder of maps, and the log names them all, once."""
    recipe = folder_recipe(tmp_path, np.full((64, 64), 5, np.float32))
    first, second = ({"name": "moge", "model": name, "digest": name * 64} for name in "ab")
    maps = [maps_of(tmp_path / "one", first), maps_of(tmp_path / "two", first, second)]
    recipe |= {"teachers": [{"maps": each} for each in maps]}
    recipe["losses"] = {"silog": {"weight": 1.0}}
    parts = parts_of(recipe, 2)
    assert parts.state.teachers == [first, second]
    told = [line for line in startup_log.first_lines(parts) if line.startswith("Learned from: ")]
    assert told == learned_from.lines([first, second])


def test_startup_log_tells_the_sigma_of_a_mean_of_teachers(tmp_path):
    """The sigma between teachers that nothing was measured of is warned of, as any other."""
    recipe = folder_recipe(tmp_path, np.full((64, 64), 5, np.float32))
    record = {"name": "moge", "model": "a", "digest": "a" * 64}
    entries = [{"maps": maps_of(tmp_path / name, record)} for name in ("one", "two")]
    recipe["teacher"] = {"name": "average", "teachers": entries}
    recipe["network"]["head"] = {"name": "dpm", "num_bins": 8, "sigma": 0.7}
    recipe["losses"] = {"dpm": {"weight": 1.0}}
    warning = "Warning: teacher.sigma: nothing shows that between orders this teacher's errors"
    for sigma, count in (({"from": "between"}, 1), (0.9, 0)):
        recipe["teacher"]["sigma"] = sigma
        told = startup_log.first_lines(parts_of(recipe, 2))
        assert "The student learns the mean of 2 teachers, weights 1, 1" in told
        assert sum(line.startswith(warning) for line in told) == count


@pytest.mark.parametrize("place", [0, 1])
def test_build_parts_refuses_a_teacher_of_files_by_its_place(tmp_path, place):
    """A teacher that reads whole images from files is refused in a list, too."""
    recipe = folder_recipe(tmp_path, np.full((64, 64), 5, np.float32))
    maps = {"maps": maps_of(tmp_path / "one")}
    stereo = {"name": "stereo", "baseline": 0.5}
    recipe["teachers"] = [stereo, maps] if place == 0 else [maps, stereo]
    recipe["losses"] = {"silog": {"weight": 1.0}}
    told = rf"^teachers\[{place}\].name: stereo reads whole image pairs, and training has augmented"
    with pytest.raises(TeacherError, match=told):
        parts_of(recipe, 2)


def test_startup_log_warns_of_unmatched_and_batch(tmp_path):
    """The log warns of unmatched depth maps and of a batch larger than the data set."""
    recipe = folder_recipe(tmp_path, np.full((64, 64), 2.5, np.float32))
    np.save(tmp_path / "depths/alone.npy", np.ones((64, 64)))
    parts = parts_of(recipe, 4)
    assert [
        line
        for line in parts.report
        if line.startswith("Warning: train.batch_size 4 is more than there are")
    ]
    told = startup_log.first_lines(parts)
    assert (
        f"Warning: 1 of 4 depth maps in {tmp_path}/depths match no image, such as alone.npy" in told
    )


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, ({}, False, True)),
        ({"teacher": {"network": {}, "maps": "m"}}, ({"teacher.maps": "m"}, True, True)),
        ({"teacher": {"network": {}}}, ({}, True, True)),
        (
            {"teachers": [{"maps": "a"}, {"name": "moge"}, {"maps": "b"}]},
            ({"teachers[0].maps": "a", "teachers[2].maps": "b"}, True, True),
        ),
        # The arguments of a teacher from outside the project are its own.
        ({"teacher": {"name": "mine.teacher", "maps": "m"}}, ({}, True, True)),
        ({"train": {"validate": False}}, ({}, False, False)),
    ],
)
def test_recipe_dataset_reads_each_of_its_sections(sections, expected):
    """The dataset's node has neither augmentation nor what is said for any dataset."""
    data = {"name": "kitti", "root": "~/r", "kb_crop": [8, 16], "workers": 3, "augment": {}}
    settings = Recipe({"network": {"max_depth": 80.0}, "data": data} | sections).dataset
    assert settings.part == {"name": "kitti", "root": "~/r", "kb_crop": [8, 16]}
    assert (settings.max_depth_m, settings.loading.workers) == (80.0, 3)
    assert settings.resize == Resize(at_most=(8, 16))
    assert settings.root == Path.home() / "r"
    assert (settings.maps, settings.has_teacher, settings.validates) == expected


def several(*entries: dict) -> TeacherList:
    return TeacherList.of({"teachers": [{"maps": "m"} | entry for entry in entries]})


def dpm_network(target: str = "gaussian", canonical: Canonical | None = None) -> Network:
    head = Dpm(4, 1e-3, 10.0, options=DpmOptions(num_bins=20, sigma=0.5, target=target))
    nothing = torch.nn.Identity()
    return Network(nothing, nothing, head, 1e-3, 10.0, canonical=canonical)


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ([{"sigma": 0.4}], r"^teachers\[0\].sigma: got 0.4; it must be within the head's"),
        (
            [{}, {"sigma": 6.0}],
            r"^teachers\[1\].sigma: got 6; .* network.head.sigma \(0.5\)",
        ),
    ],
)
def test_sigma_beyond_the_heads_limits_is_refused(entries, line):
    """A constant sigma that the head would clamp is refused, except in canonical metres."""
    with pytest.raises(RecipeError, match=line):
        check_sigmas(dpm_network(), several(*entries), None)
    check_sigmas(dpm_network(canonical=Canonical(100.0, 0.5, 2.0)), several(*entries), None)
    check_sigmas(dpm_network(), several({"sigma": 0.5}, {"sigma": 5.0}, {}), None)
    one = TeacherList.of({"teacher": {"name": "moge", "sigma": 0.4}})
    with pytest.raises(RecipeError, match="^teacher.sigma: got 0.4; it must be within the head's"):
        check_sigmas(dpm_network(), one, None)
    source = TeacherList.of({"teacher": {"name": "moge", "sigma": {"from": "flip"}}})
    check_sigmas(dpm_network(), source, None)


def test_sigma_without_a_dpm_head_is_refused():
    """No other head learns a sigma; the weights of a mean use it."""
    nothing = torch.nn.Identity()
    network = Network(nothing, nothing, Sigmoid(4, 10.0), 1e-3, 10.0)
    with pytest.raises(RecipeError, match=r"^teachers\[0\].sigma: got 2, which only a dpm head"):
        check_sigmas(network, several({"sigma": 2.0}), None)
    check_sigmas(network, several({}, {}), None)
    node = {"name": "average", "weights": "precision", "teachers": [{"maps": "m", "sigma": 0.1}]}
    check_sigmas(network, TeacherList.of({"teacher": node}), None)
    sigma = {"sigma": {"from": "between"}}
    for told in (node | sigma, {"name": "moge"} | sigma):
        with pytest.raises(RecipeError, match=r"^teacher.sigma: got {'from': 'between'}, which on"):
            check_sigmas(network, TeacherList.of({"teacher": told}), None)
    check_sigmas(network, TeacherList.of({"teacher": {"name": "mine.own", "sigma": 2}}), None)


def test_released_target_is_refused_for_several_teachers_and_sigma():
    """The published target has one teacher and one sigma, also where maps bring a sigma."""
    line = "^network.head.target: got released, which is defined for one teacher"
    with_sigma = SimpleNamespace(map_folders=[SimpleNamespace(sigma_scale_m=80.0)])
    one = TeacherList.of({"teacher": {"maps": "m"}})
    for teachers, frames in (
        (several({}, {}), None),
        (several({"sigma": 1.0}), None),
        (TeacherList.of({"teacher": {"name": "moge", "sigma": {"from": "flip"}}}), None),
        (one, with_sigma),
    ):
        with pytest.raises(RecipeError, match=line):
            check_sigmas(dpm_network("released"), teachers, frames)
    mean = TeacherList.of({"teacher": {"name": "average", "teachers": [{"maps": "m"}] * 2}})
    for teachers, frames in ((several({}), None), (one, None), (mean, with_sigma)):
        check_sigmas(dpm_network("released"), teachers, frames)


def test_batches_have_the_order_of_the_data_set(tmp_path):
    """A run reads its samples in the order that the data set states, from any iteration on."""
    frames = tar_shards.frames(tar_shards.make(tmp_path, (4, 4)), window=1)
    data = {"workers": 0, "augment": {"crop": [12, 16]}}
    parts = SimpleNamespace(
        recipe=Recipe({"train": {"batch_size": 4, "iterations": 2}, "data": data}),
        config=SimpleNamespace(accumulation=1),
        state=SimpleNamespace(iteration=1),
        targets=SimpleNamespace(camera=None),
        train_set=frames,
        device=torch.device("cpu"),
        groups=None,
        unreadable=None,
        teacher=None,
    )
    (batch,) = Parts.batches(parts, 2)
    expected = frames.epoch_order(0, parts.recipe.train.seed)[4:]
    assert list(batch.names) == [frames.frames[index].name for index in expected]
    assert len({name.split("/")[0] for name in batch.names}) == 1
