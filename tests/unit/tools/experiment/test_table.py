"""The table of an experiment: means of scene means, verdicts, floors, and what is missing."""

import json

import numpy as np
import pytest
from support import small_experiment

from tiekd.errors import DataError
from tiekd.evaluation import floors, intervals
from tiekd.tools.experiment import report, runs, table


@pytest.fixture
def spec(tmp_path, scenes):
    return small_experiment.write(tmp_path, scenes, scenes={"regex": "^([^/]+)/"})


def computed(spec, gain=0.03, floor=0.5):
    return table.compute(spec, *small_experiment.finish_all(spec, gain, floor))


def primary(found) -> dict:
    return found["sets"]["streets"]["comparisons"][0]


def test_compute_headline_is_mean_of_scene_means(spec):
    """A row's figure is the mean over seeds of the mean of scene means, with its spread."""
    planned, of_sets = small_experiment.finish_all(spec, 0.03)
    found = table.compute(spec, planned, of_sets)["sets"]["streets"]
    assert (found["frames"], found["scenes"]) == (18, 5)
    each = []
    for job in planned:
        if job.row == "new":
            values = [frame.abs_rel for frame in runs.read_frame_errors(job, spec)["new"]]
            by_scene = {}
            for name, value in zip(small_experiment.NAMES, values, strict=True):
                by_scene.setdefault(name.split("/")[0], []).append(value)
            each.append(np.mean([np.mean(values) for values in by_scene.values()]))
    assert found["rows"]["new"]["abs_rel"] == pytest.approx(np.mean(each))
    assert found["rows"]["new"]["abs_rel_sd"] == pytest.approx(np.std(each, ddof=1))
    assert found["rows"]["new"]["abs_rel_aligned"] == pytest.approx(np.mean(each) / 2)
    assert found["rows"]["new"]["edge"] is None
    assert found["rows"]["new"]["by_scene"]["desk"]["frames"] == 3
    near = found["rows"]["new"]["by_range"][0]
    assert (near["pixels"], near["abs_rel"], near["bias_m"]) == (900, 0.04, 0.02)


def test_compute_clear_win_is_named(spec):
    """A gain that all seeds and scenes show is a win of the primary comparison and the others."""
    found = computed(spec)
    assert primary(found)["primary"]
    assert primary(found)["difference"] == pytest.approx(-0.03, abs=0.002)
    verdicts = [each["verdict"] for each in found["sets"]["streets"]["comparisons"]]
    assert verdicts == ["new beats old"] * 3
    assert found["sets"]["streets"]["not_above_floors"] == {}
    assert table.is_complete(found)
    json.dumps(found, allow_nan=False)


def test_compute_no_gain_is_not_resolved(spec):
    """Two rows that differ by chance alone are not resolved, in either direction."""
    for each in computed(spec, gain=0.0)["sets"]["streets"]["comparisons"]:
        assert each["verdict"].startswith("not resolved: ")


def test_compute_row_behind_floor_is_named(spec):
    """A row that doesn't beat the floors is named, for each floor and metric."""
    lost = computed(spec, gain=0.15, floor=0.2)["sets"]["streets"]["not_above_floors"]
    assert set(lost) == {"old"}
    assert {(each["floor"], each["metric"]) for each in lost["old"]} == {
        (floor, metric) for floor in floors.NAMES for metric in ("abs_rel", "abs_rel_aligned")
    }
    assert lost["old"][0]["verdict"] == "best constant beats old"


def test_compute_win_of_frames_alone_is_not_resolved(spec):
    """A gain in the scene with most frames alone isn't a win, and the table says why."""
    planned, of_sets = small_experiment.finish_all(spec, 0.0)
    names = [f"kitchen/{place}" for place in range(200)] + small_experiment.NAMES[6:]
    random = np.random.default_rng(1)
    base = random.uniform(0.25, 0.35, len(names))
    gains = {"kitchen": 0.05, "hall": -0.02, "desk": 0.03, "office": -0.01, "lab": 0.02}
    gain = np.array([gains[name.split("/")[0]] for name in names])
    for job in [*planned, *of_sets]:
        shift = 0.002 * (job.seed or 0) - (gain if job.row == "new" else 0)
        row = {job.row: small_experiment.figures(base + shift, names)}
        if job.row is None:
            row = dict.fromkeys(floors.NAMES, small_experiment.figures(base + 0.2, names))
        small_experiment.finish(job, spec, row)
    found = primary(table.compute(spec, planned, of_sets))
    assert found["over_frames"][1] < 0
    assert found["verdict"] == "not resolved: frames support it, scenes don't"


def test_compute_other_comparisons_are_corrected(spec):
    """All comparisons but the primary one are corrected together by Holm's method."""
    primary_one, *others = computed(spec)["sets"]["streets"]["comparisons"]
    assert primary_one["p_corrected"] == primary_one["p"]
    assert [each["p_corrected"] for each in others] == intervals.holm(
        [each["p"] for each in others]
    )
    assert max(each["p_corrected"] / each["p"] for each in others) > 1


def test_compute_corrects_partial_table_for_the_whole_family(tmp_path, scenes):
    """A comparison has no smaller family while the runs of others are missing."""
    rows = {name: {"recipe": "recipe.yaml"} for name in ("new", "old", "late")}
    by_scene = {"regex": "^([^/]+)/"}
    spec = small_experiment.write(tmp_path, scenes, scenes=by_scene, rows=rows)
    planned, of_sets = small_experiment.finish_all(spec, 0.03)
    for job in planned:
        if job.row == "late":
            job.figures_file("val").unlink()
    comparisons = table.compute(spec, planned, of_sets)["sets"]["streets"]["comparisons"]
    # Two pairs of three metrics each, since the frames have no edge error.
    assert len(comparisons) == 6
    least, *_ = sorted(each["p"] for each in comparisons[1:])
    ours = [each for each in comparisons[1:] if each["p"] == least]
    assert ours[0]["p_corrected"] == pytest.approx(5 * least)
    late = [each for each in comparisons if each["row"] == "late"]
    assert {each["verdict"] for each in late} == {
        "not resolved: 0 common seeds, at least 2 are needed"
    }


def test_compute_names_what_is_missing(spec):
    """Unfinished and failed runs are named, the latter with reason and log."""
    planned, of_sets = small_experiment.finish_all(spec, 0.03)
    planned[0].figures_file("val").unlink()
    planned[1].figures_file("val").unlink()
    state = {"label": planned[1].label, "key": planned[1].key, "failure": "no memory"}
    (planned[1].folder / "run.json").write_text(json.dumps(state))
    found = table.compute(spec, planned, of_sets)
    assert found["not_finished"] == ["streets/new seed 0"]
    assert found["failed"] == [
        {
            "run": "streets/old seed 0",
            "reason": "no memory",
            "log": f"runs/streets/old/{planned[1].folder.name}/log.txt",
        }
    ]
    assert found["sets"]["streets"]["rows"]["new"]["seeds"] == [1, 2]
    assert primary(found)["num_seeds"] == 2
    assert found["sets"]["streets"]["smallest_detectable"] is None
    assert not table.is_complete(found)


def test_compute_smallest_detectable_is_of_the_pilot(spec):
    """The smallest detectable difference follows from the primary rows with three seeds."""
    planned, of_sets = small_experiment.finish_all(spec, 0.03)
    least = table.compute(spec, planned, of_sets)["sets"]["streets"]["smallest_detectable"]
    assert 0.001 < least < 0.03
    assert table.compute(spec, planned, [])["sets"]["streets"]["smallest_detectable"] == least


def test_compute_labels_scenes_that_are_trained_on(spec):
    """The table and the report name the evaluated scenes that a run was trained on."""
    found = computed(spec)
    # By this rule all rendered frames are of one scene.
    assert found["sets"]["streets"]["shared_scenes"] == ["2000_01_01"]
    told = "**Evaluated on scenes that were also trained on:** 2000_01_01."
    assert told in report.markdown(found)
    found["sets"]["streets"]["shared_scenes"] = []
    assert told[:20] not in report.markdown(found)


def test_compute_names_floors_that_are_left_out(spec):
    """A floor that can't be made is named with the reason, and the others count."""
    planned, of_sets = small_experiment.finish_all(spec, 0.03)
    path = of_sets[0].figures_file("val")
    content = json.loads(path.read_text())
    del content["figures"]["median map"]
    path.write_text(json.dumps(content | {"left_out": {"median map": "no depths"}}))
    found = table.compute(spec, planned, of_sets)
    assert found["sets"]["streets"]["floors_left_out"] == {"median map": "no depths"}
    assert list(found["sets"]["streets"]["floors"]) == ["best constant", "training median"]
    assert "The floor *median map* is left out: no depths." in report.markdown(found)
    assert found["sets"]["streets"]["not_above_floors"] == {}


def test_compute_has_a_row_for_each_readout(tmp_path, scenes):
    """The readouts of one network are rows of the table, and may be compared."""
    rows = {"new": {"recipe": "recipe.yaml", "readouts": ["mean", "mode"]}}
    rows["old"] = {"recipe": "recipe.yaml"}
    sets = {"streets": {"primary": ["new", "old"], "compare": [["new:mode", "new"]]}}
    by_scene = {"regex": "^([^/]+)/"}
    spec = small_experiment.write(tmp_path, scenes, scenes=by_scene, rows=rows, sets=sets)
    planned, of_sets = small_experiment.finish_all(spec, 0.03)
    for job in planned:
        mean = runs.read_frame_errors(job, spec)[job.row]
        if job.row == "new":
            better = np.array([frame.abs_rel for frame in mean]) - 0.05
            mode = small_experiment.figures(better)
            small_experiment.finish(job, spec, {"new": mean, "new:mode": mode})
    found = table.compute(spec, planned, of_sets)["sets"]["streets"]
    assert list(found["rows"]) == ["new", "new:mode", "old"]
    compared = [each for each in found["comparisons"] if each["row"] == "new:mode"]
    assert compared[0]["difference"] == pytest.approx(-0.05)


def test_collect_refuses_other_frames(spec):
    """Rows that were evaluated on other pixels can't be compared."""
    planned, of_sets = small_experiment.finish_all(spec, 0.0)
    other = small_experiment.figures(np.full(18, 0.3))
    other[4] = other[4].__class__(**{**vars(other[4]), "pixels": 99})
    small_experiment.finish(planned[-1], spec, {"old": other})
    with pytest.raises(DataError, match="old was evaluated on other frames or pixels than new"):
        table.compute(spec, planned, of_sets)


def test_collect_joins_folds(tmp_path, scenes):
    """The frames of a row are those of all folds, once all folds are finished."""
    lines = (scenes / "kitti_eigen_test.txt").read_text().splitlines(keepends=True)
    folds = []
    for place, part in enumerate((lines[:1], lines[1:])):
        rest = [line for line in lines if line not in part]
        (scenes / f"t{place}.txt").write_text("".join(rest))
        (scenes / f"v{place}.txt").write_text("".join(part))
        own = {
            "set": [f"log.interval={place + 5}"],
            "rows": {"old": [f"losses.silog.weight=1.{place}"]},
        }
        folds.append({"train": f"t{place}.txt", "val": f"v{place}.txt", **own})
    sets = {"streets": {"primary": ["new", "old"], "folds": folds}}
    sets["streets"]["set"] = [f"data={{name: kitti, root: {scenes}}}"]
    spec = small_experiment.write(tmp_path, scenes, scenes={"regex": "^([^/]+)/"}, sets=sets)
    planned, of_sets = runs.plan(spec)
    for job in planned:
        names = small_experiment.NAMES[:6] if job.fold == 0 else small_experiment.NAMES[6:]
        if (job.row, job.seed, job.fold) != ("old", 2, 1):
            row = small_experiment.figures(np.full(len(names), 0.3), names)
            small_experiment.finish(job, spec, {job.row: row})
    found = table.collect(spec, "streets", planned, of_sets)
    assert found.names == small_experiment.NAMES
    assert {row: list(seeds) for row, seeds in found.rows.items()} == {
        "new": [0, 1, 2],
        "old": [0, 1],
    }
    # The report states what each fold overrides.
    told = [f"fold {n}: log.interval={n + 5}; old: losses.silog.weight=1.{n}" for n in (0, 1)]
    computed = table.compute(spec, planned, of_sets)
    assert computed["sets"]["streets"]["fold_overrides"] == told
    assert f"Overrides of folds:\n\n- {told[0]}\n- {told[1]}\n" in report.markdown(computed)


def test_compute_counts_readings_of_test_list(tmp_path, scenes):
    """A headline's table says how often its test list has been read."""
    lines = (scenes / "kitti_eigen_test.txt").read_text().splitlines(keepends=True)
    (scenes / "counted.txt").write_text(lines[0])
    (scenes / "others.txt").write_text(lines[1])
    streets = {"primary": ["new", "old"], "test": "counted.txt", "val": "others.txt"}
    sets = {"streets": streets | {"set": [f"data={{name: kitti, root: {scenes}}}"]}}
    spec = small_experiment.write(
        tmp_path, scenes, scenes={"regex": "^([^/]+)/"}, sets=sets, headline=True
    )
    planned, of_sets = runs.plan(spec)
    path = scenes / "counted.txt"
    lines = [{"list": str(path), "commit": "a"}, {"list": "other", "commit": "a"}]
    spec.readings_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert table.compute(spec, planned, of_sets)["test_readings"] == {"streets": 1}
    spec.readings_file.write_text("{")
    with pytest.raises(DataError, match="a line is damaged"):
        table.compute(spec, planned, of_sets)
