"""The list of an experiment's runs: their order, their keys, and which of them are finished."""

import ast
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import small_experiment, tar_shards

from tiekd.errors import RecipeError, UserError
from tiekd.tools.experiment import runs


@pytest.fixture
def write(tmp_path, scenes):
    """Writes a specification, and reads it."""
    return functools.partial(small_experiment.write, tmp_path, scenes)


def test_plan_lists_rows_by_seeds_and_floors(write):
    """All rows are trained with all seeds; the floors are one job for each set."""
    planned, floors = runs.plan(write())
    assert [(job.row, job.seed) for job in planned] == [
        ("new", 0),
        ("old", 0),
        ("new", 1),
        ("old", 1),
        ("new", 2),
        ("old", 2),
    ]
    assert len({job.key for job in planned}) == 6
    assert [job.label for job in floors] == ["streets/floors"]
    assert planned[0].folder.name == f"seed_0-{planned[0].key[:10]}"
    assert len(planned[0].frames.val) == 3
    assert "train.iterations=4" in planned[0].overrides


def test_plan_pilot_comes_first(write):
    """The primary comparison's rows with three seeds run before the others."""
    rows = {name: {"recipe": "recipe.yaml"} for name in ("other", "new", "old")}
    planned, _ = runs.plan(write(rows=rows, seeds=[4, 3, 2, 1]))
    assert {(job.row, job.seed) for job in planned[:6]} == {
        (row, seed) for row in ("new", "old") for seed in (4, 3, 2)
    }
    assert [job.row for job in planned[6:9]] == ["other"] * 3


def test_key_follows_what_figures_follow_from(write, scenes, tmp_path):
    """Recipe, engine config, ranks and data change a run's key; ports and logs don't."""

    def key_with(**changes):
        return runs.plan(write(**changes))[0][0].key

    key = key_with()
    assert key_with(set=["log.interval=7"], launcher=["--num_gpus=1", "--master_port=29999"]) == key
    assert key_with(set=[f"data.decoded={tmp_path}"]) == key  # the same pixels
    assert key_with(set=["optimizer.lr=0.1"]) != key
    assert key_with(launcher=["--num_gpus=2"]) != key
    (tmp_path / "engine.json").write_text(json.dumps({"train_batch_size": "auto", "seed": 3}))
    assert key_with(engine_config=str(tmp_path / "engine.json")) != key
    # The recipe names another folder here, so compare before and after the change of an image.
    copy = tmp_path / "copy"
    shutil.copytree(scenes, copy)
    moved = functools.partial(key_with, set=[f"data.root={copy}"])
    before = moved()
    assert moved() == before
    image = next((copy / "input").rglob("*.png"))
    image.write_bytes(image.read_bytes() + b"x")
    assert moved() != before


def test_key_of_floors_follows_scenes(write, tmp_path):
    """The best constant depends on the scenes, so another rule is another job; runs stay."""
    names = runs.plan(write())[0][0].frames.val
    (tmp_path / "scenes.txt").write_text("".join(f"{name} a\n" for name in names))

    def keys(**scenes):
        planned, floors = runs.plan(write(scenes=scenes))
        return planned[0].key, floors[0].key

    before = keys(list="scenes.txt")
    assert keys(list="scenes.txt") == before
    assert keys(regex="^(.)")[0] == before[0]
    assert keys(regex="^(.)")[1] != before[1]
    (tmp_path / "scenes.txt").write_text("".join(f"{name} b\n" for name in names))
    assert keys(list="scenes.txt")[1] != before[1]


def test_key_follows_content_of_hostfile(write, tmp_path):
    """Other machines or numbers of ranks are another run; another path of the hostfile isn't."""

    def key_with(name, content):
        (tmp_path / name).write_text(content)
        return runs.plan(write(launcher=[f"--hostfile={tmp_path / name}"]))[0][0].key

    key = key_with("hosts", "one slots=2\n")
    assert key_with("other", "one slots=2  # same\n") == key
    assert key_with("hosts", "one slots=1\n") != key
    spec = write(launcher=[f"--hostfile={tmp_path / 'other'}"])
    planned, _ = runs.plan(spec)
    assert runs.changed_sources(planned[0], spec) is None
    (tmp_path / "other").write_text("one slots=2\ntwo slots=2\n")
    assert "the hostfile" in runs.changed_sources(planned[0], spec)


def test_key_follows_maps_of_several_teachers(write, tmp_path):
    """A map of the second teacher that changes is another run."""
    for name in "ab":
        (tmp_path / name).mkdir()
    teachers = f"teachers=[{{maps: {tmp_path / 'a'}}}, {{maps: {tmp_path / 'b'}}}]"
    spec = write(set=["teacher=null", teachers, "losses={silog: {weight: 1.0}}"])
    (before, *_), _ = runs.plan(spec)
    (tmp_path / "b" / before.frames.train[0].replace("/", "_")).write_bytes(b"x")
    assert runs.plan(spec)[0][0].key != before.key


def test_key_follows_code(write, monkeypatch):
    """A run of other code is another run, but the report's own code isn't part of that."""
    spec = write()
    key = runs.plan(spec)[0][0].key
    monkeypatch.setattr(runs, "code_digest", lambda: "other code")
    assert runs.plan(spec)[0][0].key != key
    skipped = runs._NOT_COMPUTED_WITH
    assert "tools/experiment/report.py".startswith(skipped)
    assert not "evaluation/metrics.py".startswith(skipped)
    # A process that evaluates a run starts in score.py: what it computes with counts.
    imported = ast.walk(ast.parse(Path(runs.__file__).with_name("score.py").read_text()))
    modules = [node.module for node in imported if isinstance(node, ast.ImportFrom)]
    of_tools = {f"{name.replace('.', '/').removeprefix('tiekd/')}.py" for name in modules}
    of_tools = {name for name in of_tools if name.startswith("tools/")}
    assert of_tools - {"tools/experiment/spec.py"} <= set(runs._COMPUTED_WITH)
    assert all((Path(runs.__file__).parents[2] / name).is_file() for name in runs._COMPUTED_WITH)
    # Images are decoded by Pillow, and encoders may be those of timm.
    assert {"pillow", "timm"} <= set(runs._PACKAGES)


def test_key_follows_cached_maps_of_several_teachers(write, tmp_path):
    """The maps of each of several teachers are data of the run."""
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
        for name in runs.plan(write())[0][0].frames.train:
            (place / name.replace("/", "_")).write_bytes(b"map")
    given = [f"teachers={json.dumps([{'maps': str(place)} for place in places])}"]
    rows = {"new": {"recipe": "recipe.yaml", "set": given}, "old": {"recipe": "recipe.yaml"}}
    before = runs.plan(write(rows=rows))[0][0].key
    next(places[1].iterdir()).write_bytes(b"other map")
    assert runs.plan(write(rows=rows))[0][0].key != before


def test_key_follows_weights_in_teachers_work_dir(write, tmp_path):
    """A teacher that is given by its work dir is another one when its best weights change."""
    best = tmp_path / "teacher" / "best_abs_rel.pth"
    best.parent.mkdir()
    best.write_bytes(b"first")
    network = json.loads((write().path.parent / "recipe.yaml").read_text())["network"]
    given = [f"teacher={json.dumps({'network': network, 'checkpoint': str(best.parent)})}"]

    def keys():
        rows = {"new": {"recipe": "recipe.yaml", "set": given}, "old": {"recipe": "recipe.yaml"}}
        return [job.key for job in runs.plan(write(rows=rows))[0][:2]]

    before = keys()
    assert keys() == before
    best.write_bytes(b"other")
    after = keys()
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_key_follows_code_of_parts_from_outside(write, tmp_path):
    """The code of a loss of one's own is a part of the key of the rows that name it."""
    module = tmp_path / "my_parts"
    module.mkdir()
    (module / "external_loss.py").write_text("build = dict\n")
    named = ["losses.mine.name=my_parts.external_loss"]

    def keys():
        spec = write(
            rows={"new": {"recipe": "recipe.yaml", "set": named}, "old": row("log.interval=1")}
        )
        return [job.key for job in runs.plan(spec)[0][:2]]

    before = keys()
    (module / "external_loss.py").write_text("build = list\n")
    after = keys()
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_readouts_are_rows_of_one_run(write):
    """A run is trained once for all of its readouts, and evaluated anew when they change."""
    rows = {"new": {"recipe": "recipe.yaml", "readouts": ["mean", "mode"]}, "old": row("log=null")}
    spec = write(rows=rows, sets={"streets": {"primary": ["new:mode", "old"]}})
    assert spec.table_rows == ["new", "new:mode", "old"]
    planned, _ = runs.plan(spec)
    assert [(job.row, job.seed) for job in planned[:2]] == [("new", 0), ("old", 0)]
    runs.check_recipes(planned, spec)
    other = write(rows=rows | {"new": {"recipe": "recipe.yaml"}})
    again, _ = runs.plan(other)
    assert again[0].key == planned[0].key
    assert runs.made_from(again[0], other) != runs.made_from(planned[0], spec)
    sigmoid = "network.head={name: sigmoid}"
    rows["new"]["set"] = [sigmoid, "losses={silog: {weight: 1}}"]
    spec = write(rows=rows)
    with pytest.raises(RecipeError, match="readout: got 'mode', but this network's head"):
        runs.check_recipes(runs.plan(spec)[0], spec)


def test_figures_of_other_run_do_not_count(write):
    """A file of figures counts only for the run, split and weights that it was made from."""
    spec = write()
    job = runs.plan(spec)[0][0]
    assert runs.read_frame_errors(job, spec) is None
    made = small_experiment.figures(np.full(len(small_experiment.NAMES), 0.1))
    small_experiment.finish(job, spec, {"new": made})
    assert repr(runs.read_frame_errors(job, spec)) == repr({"new": made})
    content = json.loads(job.figures_file("val").read_text())
    for change in ({"key": "x"}, {"weights": "best"}, {"split": "test"}):
        other = content | {"made_from": content["made_from"] | change}
        job.figures_file("val").write_text(json.dumps(other))
        assert runs.read_frame_errors(job, spec) is None
    job.figures_file("val").write_text(json.dumps(content)[:-40])
    assert runs.read_frame_errors(job, spec) is None


def test_chosen_matches_row_set_and_seed(write):
    """--only takes a row, a set, a seed or all three, and refuses what matches nothing."""
    planned, _ = runs.plan(write())

    def labels(*patterns):
        return [(job.row, job.seed) for job in runs.chosen(planned, patterns)]

    assert labels("n*", "1") == [("new", 1)]
    assert labels("streets/old/[02]") == [("old", 0), ("old", 2)]
    assert len(labels("streets")) == len(labels()) == 6
    with pytest.raises(UserError) as error:
        runs.chosen(planned, ["none"])
    assert str(error.value) == (
        "--only none: no run matches; rows: new, old; sets: streets; seeds: 0, 1, 2"
    )


def test_plan_refuses_unknown_recipe_key(write):
    """A mistake in an override is refused before anything runs, with where it is set."""
    with pytest.raises(RecipeError, match="unknown key 'optimiser'"):
        runs.plan(write(set=["optimiser.lr=1"]))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.nothing=1", "nothing"),
        ("network.head.num_bins=0", "num_bins"),
        ("losses.silog.nothing=1", "nothing"),
        ("schedule.name=sudden", "sudden"),
        ("evaluation.crop=half", "evaluation.crop: got 'half'"),
        ("data.augment.flip_p=2", "flip_p"),
    ],
)
def test_check_recipes_refuses_what_training_would(write, override, told):
    """A value that a training would refuse is refused before the first run, with its place."""
    spec = write(rows={"new": {"recipe": "recipe.yaml"}, "old": row(override)})

    def check():
        planned, _ = runs.plan(spec)
        runs.check_recipes(planned, spec)

    with pytest.raises(RecipeError, match=told) as error:
        check()
    assert "\n" not in str(error.value)


def row(override) -> dict:
    return {"recipe": "recipe.yaml", "set": [override]}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("evaluation.crop=garg", "rows.old: evaluation.crop is garg on streets, and none for new"),
        ("evaluation.cap=20", "rows.old: evaluation.cap .* is 20.* on streets, and 80.* for new"),
        ("network.max_depth=40", "rows.old: evaluation.cap .* is 40.* on streets"),
        ("network.min_depth=0.5", "rows.old: network.min_depth is 0.5 on streets"),
    ],
)
def test_plan_refuses_rows_with_other_pixels(write, override, told):
    """Rows that would be evaluated on different pixels are refused before the first run."""
    spec = write(rows={"new": {"recipe": "recipe.yaml"}, "old": row(override)})
    with pytest.raises(RecipeError, match=told):
        runs.plan(spec)


def test_check_recipes_accepts_good_rows(write):
    """Recipes that can be trained pass."""
    spec = write()
    runs.check_recipes(runs.plan(spec)[0], spec)


def test_plan_refuses_recipe_that_validates_on_test_list(write, tmp_path):
    """A recipe whose own validation list is the test list is refused."""
    node = json.loads((write().path.parent / "recipe.yaml").read_text())
    node["data"] = {"name": "kitti", "root": str(write), "val_split": "test.txt"}
    sets = {"streets": {"primary": ["new", "old"], "test": "test.txt"}}
    spec = write(sets=sets)
    (tmp_path / "recipe.yaml").write_text(json.dumps(node))
    with pytest.raises(RecipeError, match="rows.new: data.val_split is test.txt, the test list"):
        runs.plan(spec)


@pytest.mark.parametrize("spelling", ["test.txt", "{root}/test.txt", "lists/../test.txt"])
def test_plan_refuses_test_list_in_any_spelling(write, scenes, spelling):
    """A validation list that is the test list is refused, however its path is written."""
    (scenes / "lists").mkdir(exist_ok=True)
    (scenes / "test.txt").write_text((scenes / "kitti_eigen_test.txt").read_text())
    data = [f"data={{name: kitti, root: {scenes}, val_split: {spelling.format(root=scenes)}}}"]
    streets = {"primary": ["new", "old"], "set": data, "test": "test.txt"}
    with pytest.raises(RecipeError, match="rows.new: data.val_split is test.txt, the test list"):
        runs.plan(write(sets={"streets": streets}))


def test_plan_refuses_test_list_that_is_the_data_sets_own(write, scenes):
    """A recipe without a validation list must not validate on the test list either."""
    data = [f"data={{name: kitti, root: {scenes}}}"]
    streets = {"primary": ["new", "old"], "set": data, "test": "kitti_eigen_test.txt"}
    with pytest.raises(RecipeError, match="data.val_split is kitti_eigen_test.txt, the test list"):
        runs.plan(write(sets={"streets": streets}))


def test_plan_refuses_headline_without_test_list(write, scenes):
    """A test list that isn't there is told before the trainings, and not after them."""
    streets = {"primary": ["new", "old"], "test": "nowhere.txt"}
    with pytest.raises(RecipeError, match=f"sets.streets.test: no file at {scenes}/nowhere.txt"):
        runs.plan(write(sets={"streets": streets}, headline=True))


def test_check_scenes_refuses_rows_with_other_frames(write, scenes):
    """Rows that are validated on different frames are refused before the first run."""
    lines = (scenes / "kitti_eigen_test.txt").read_text().splitlines(keepends=True)
    (scenes / "fewer.txt").write_text("".join(lines[1:]))
    data = [f"data={{name: kitti, root: {scenes}}}"]
    rows = {"new": {"recipe": "recipe.yaml"}, "old": row("data.val_split=fewer.txt")}
    spec = write(rows=rows, sets={"streets": {"primary": ["new", "old"], "set": data}})
    with pytest.raises(RecipeError, match="rows.old: has other validation frames on streets"):
        runs.check_scenes(runs.plan(spec)[0], spec)


def test_check_scenes_counts_and_refuses_shared_scene(write, scenes):
    """The scenes of a set are counted; folds that share a scene are refused."""
    spec = write()
    planned, _ = runs.plan(spec)
    assert runs.check_scenes(planned, spec) == ["streets: 3 scenes, 3 validation frames"]
    lists = kitti_folds(scenes)
    spec = write(**folds(scenes, lists))
    planned, _ = runs.plan(spec)
    assert [job.fold for job in planned[:2]] == [0, 1]
    assert runs.check_scenes(planned, spec) == ["streets: 3 scenes, 3 validation frames"]
    lists[1]["val"] = lists[0]["val"]
    spec = write(**folds(scenes, lists))
    with pytest.raises(RecipeError, match="fold 1 is evaluated on scene"):
        runs.check_scenes(runs.plan(spec)[0], spec)


def test_overrides_of_a_fold_are_those_of_its_runs(write, scenes):
    """A fold's overrides apply to its runs alone, those for a row to this row alone."""
    lists = kitti_folds(scenes)
    before = [job.key for job in runs.plan(write(**folds(scenes, lists)))[0]]
    for place, fold in enumerate(lists):
        fold["set"] = [f"optimizer.lr=0.{place + 1}"]
        fold["rows"] = {"old": [f"losses.silog.weight=1.{place}"]}
    planned, _ = runs.plan(write(**folds(scenes, lists)))
    for job in planned:
        assert f"optimizer.lr=0.{job.fold + 1}" in job.overrides
        assert (f"losses.silog.weight=1.{job.fold}" in job.overrides) == (job.row == "old")
    assert not set(before) & {job.key for job in planned}
    # A fold that is changed is another run; the others stay.
    lists[1]["set"] = ["optimizer.lr=0.5"]
    again = [job.key for job in runs.plan(write(**folds(scenes, lists)))[0]]
    same = [job.fold for job, key in zip(planned, again, strict=True) if job.key == key]
    assert set(same) == {0}
    assert len(same) == len(planned) / 2


def test_plan_refuses_folds_with_other_pixels(write, scenes):
    """Folds that would be evaluated up to different depths are refused before the first run."""
    lists = kitti_folds(scenes)
    for fold, cap in zip(lists, (80, 20), strict=True):
        fold["set"] = [f"evaluation.cap={cap}"]
    with pytest.raises(
        RecipeError, match=r"new, fold 1: evaluation\.cap .* is 20.* for new, fold 0"
    ):
        runs.plan(write(**folds(scenes, lists)))


def test_check_scenes_refuses_fold_trained_on_its_scene(write, scenes):
    """A fold that trains on a scene on which it is evaluated is refused."""
    lists = kitti_folds(scenes)
    lists[0]["train"] = lists[0]["val"]
    spec = write(**folds(scenes, lists))
    with pytest.raises(RecipeError, match="sets.streets: 1 of 3 scenes are trained on too: 0*10*;"):
        runs.check_scenes(runs.plan(spec)[0], spec)


def test_check_scenes_refuses_training_on_an_evaluated_scene(write, scenes):
    """Frames of one scene in both lists are refused with the scene's name, or named if allowed."""
    lines = (scenes / "kitti_eigen_test.txt").read_text().splitlines(keepends=True)
    lists = {"train": "first_two.txt", "val": "last_two.txt", "test": "last.txt"}
    for name, part in zip(lists.values(), (lines[:2], lines[1:], lines[2:]), strict=True):
        (scenes / name).write_text("".join(part))
    streets = {"primary": ["new", "old"], "set": [f"data={{name: kitti, root: {scenes}}}"], **lists}
    shared = r"sets.streets: 1 of 2 scenes are trained on too: 1000001; give lists without"
    rule = {"regex": r"0*([^/]+)\.png$"}
    spec = write(sets={"streets": streets}, scenes=rule)
    with pytest.raises(RecipeError, match=shared):
        runs.check_scenes(runs.plan(spec)[0], spec)
    spec = write(sets={"streets": streets | {"shared_scenes": True}}, scenes=rule)
    planned, _ = runs.plan(spec)
    assert runs.check_scenes(planned, spec) == [
        "streets: 2 scenes, 2 validation frames",
        "streets: 1 of 2 scenes are trained on too: 1000001",
    ]
    assert runs.shared_scenes(planned, spec, "streets") == ["1000001"]
    # A headline is evaluated on the test list, of which only the names are read here.
    spec = write(sets={"streets": streets}, scenes=rule, headline=True)
    planned, _ = runs.plan(spec)
    assert runs.check_scenes(planned, spec) == ["streets: 1 scenes, 1 test frames"]
    (scenes / "last.txt").write_text("".join(lines[:1]))
    spec = write(sets={"streets": streets}, scenes=rule, headline=True)
    with pytest.raises(RecipeError, match="1 of 1 scenes are trained on too: 1000000"):
        runs.check_scenes(runs.plan(spec)[0], spec)


def test_check_scenes_sees_frames_in_shards(write, tmp_path):
    """Scenes of frames in tar shards are counted, and refused if training has them too."""
    root = tar_shards.make(tmp_path / "shards")
    data = f"data={{name: shards, root: {root}, depth_unit: 1000, val_shards: s2.tar}}"
    sets = {"streets": {"primary": ["new", "old"], "set": [data]}}
    spec = write(sets=sets, scenes={"regex": "^(day[0-9])/"})
    planned, _ = runs.plan(spec)
    assert planned[0].frames.val == ("day2/0007.png", "day2/0008.png")
    assert runs.check_scenes(planned, spec) == ["streets: 1 scenes, 2 validation frames"]
    spec = write(sets=sets, scenes={"regex": "^(day)"})
    with pytest.raises(RecipeError, match="sets.streets: 1 of 1 scenes are trained on too: day;"):
        runs.check_scenes(runs.plan(spec)[0], spec)


def kitti_folds(scenes) -> list[dict]:
    """Two folds of the rendered validation scenes, read as KITTI."""
    lines = (scenes / "kitti_eigen_test.txt").read_text().splitlines(keepends=True)
    found = []
    for place, held_out in enumerate((lines[:1], lines[1:])):
        train = [line for line in lines if line not in held_out]
        for name, part in (("train", train), ("val", held_out)):
            (scenes / f"{name}_{place}.txt").write_text("".join(part))
        found.append({"train": f"train_{place}.txt", "val": f"val_{place}.txt"})
    return found


def folds(scenes, lists) -> dict:
    data = [f"data={{name: kitti, root: {scenes}}}"]
    return {"sets": {"streets": {"primary": ["new", "old"], "set": data, "folds": lists}}}
