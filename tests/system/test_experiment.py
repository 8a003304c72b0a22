"""bin/experiment.py as a user starts it: mistakes, evaluations, and an experiment that is killed.

    bin/experiment.py SPEC

The test of the kills takes some minutes: it trains two rows with two seeds twice.
"""

import contextlib
import json
import os
import signal
from pathlib import Path

import psutil
import pytest
import yaml
from support import programs, recipes

from tiekd.evaluation import floors
from tiekd.evaluation.frame_figures import FrameFigures

EXPERIMENT = programs.ROOT / "bin" / "experiment.py"


def write(folder: Path, ground: Path, **changes) -> Path:
    """Writes an experiment of two rows and two seeds on the rendered scenes."""
    node = recipes.recipe(ground, batch_size=2)
    del node["teacher"], node["hooks"]
    node["losses"] = {"silog": {"weight": 1.0}}
    del node["train"]["validate"]
    node["checkpoint"] = {"interval": 3, "by": "iteration", "keep_last": 2}
    recipes.write_recipe(folder / "recipe.yaml", node)
    spec = {
        "steps": 12,
        "seeds": [0, 1],
        "scenes": {"regex": r"([^/]+)\.png$"},
        "work_dir": str(folder / "work"),
        "rows": {
            "plain": {"recipe": "recipe.yaml"},
            "slow": {"recipe": "recipe.yaml", "set": ["optimizer.lr=0.00001"]},
        },
        "sets": {"streets": {"primary": ["plain", "slow"]}},
        **changes,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return folder / "spec.yaml"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"set": ["optimizer.nothing=1"]}, "RecipeError: optimizer (adamw): unknown key 'nothing'"),
        ({"scenes": {"regex": "^kitchen"}}, "RecipeError: scenes.regex: '^kitchen' doesn't match"),
    ],
)
def test_experiment_mistake_is_one_line(tmp_path, ground, changes, told):
    """A specification that can't be run is refused with one line and exit code 2, before a run."""
    result = programs.finish([EXPERIMENT, write(tmp_path, ground, **changes)])
    assert result.code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert told in result.stderr
    assert not (tmp_path / "work").exists()


def test_experiment_scores_network_and_floors(tmp_path, ground):
    """The evaluation of a run and of the floors writes the figures of every validation frame."""
    write(tmp_path, ground)
    network = {"network": recipes.TEACHER}
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    recipes.write_recipe(tmp_path / "recipe.yaml", recipe | network)
    job = {"recipe": str(tmp_path / "recipe.yaml"), "overrides": [], "list": None, "readings": ""}
    job["scenes"] = {"regex": r"([^/]+)\.png$"}
    found = {}
    for title, weights in (("plain", str(ground / "teacher.pth")), (None, None)):
        out = tmp_path / f"{title}.json"
        told = {"title": title, "readouts": {"plain": "mean"}}
        told |= {"weights": weights, "made_from": {"key": "x"}, "out": str(out)}
        (tmp_path / "job.json").write_text(json.dumps(job | told))
        result = programs.finish([EXPERIMENT, "--score", tmp_path / "job.json"])
        assert result.code == 0, result.stderr[-3000:]
        content = json.loads(out.read_text())
        assert content["made_from"] == {"key": "x"}
        found |= content["figures"]
    assert set(found) == {"plain", *floors.NAMES}
    read = {name: list(map(FrameFigures.from_json, frames)) for name, frames in found.items()}
    assert {len(frames) for frames in read.values()} == {4}
    assert len({tuple(frame.pixels for frame in frames) for frames in read.values()}) == 1
    for frames in read.values():
        assert all(0 < frame.abs_rel_aligned < 2 for frame in frames)
    means = {name: sum(frame.abs_rel for frame in frames) / 4 for name, frames in read.items()}
    assert means["median map"] < means["plain"]
    assert means["best constant"] < min(means["plain"], means["training median"])


def processes_of(folder: Path) -> list[psutil.Process]:
    """All processes that have the folder in their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(process.cmdline()) and process.pid != os.getpid():
                found.append(process)
    return found


def finished(folder: Path) -> list[Path]:
    return sorted((folder / "work").glob("runs/*/*/*/figures_val.json"))


def newest(folder: Path) -> int:
    """The largest iteration of a complete checkpoint in the runs that aren't finished."""
    done = {path.parent for path in finished(folder)}
    manifests = (folder / "work").glob("runs/*/*/*/train/checkpoints/iter_*/manifest.json")
    numbers = [int(path.parent.name[5:]) for path in manifests if path.parents[3] not in done]
    return max(numbers, default=0)


@pytest.mark.long
def test_experiment_killed_three_times_has_table_of_unbroken_one(tmp_path, ground):
    """Three kills, at runs, at an evaluation and of all processes, change no byte of the table.

    Nor does `--jobs 2`.
    """
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    specs = {folder: write(folder, ground) for folder in (broken, whole)}

    def kill(condition, everything: bool, *options: str) -> None:
        """Kills the experiment, or all of its processes, and sees that none is left."""
        with programs.Program([EXPERIMENT, specs[broken], *options], fresh=True) as program:
            program.wait_until(condition)
            hit = processes_of(broken) if everything else [psutil.Process(program.process.pid)]
            for process in hit:
                with contextlib.suppress(psutil.Error):
                    os.kill(process.pid, signal.SIGKILL)
            program.result()
            _, alive = psutil.wait_procs(processes_of(broken), timeout=120)
            assert alive == []

    kill(lambda: newest(broken) >= 3, False, "--jobs", "2")
    assert finished(broken) == []
    kill(lambda: len(finished(broken)) == 1 and newest(broken) >= 3, everything=True)
    kill(
        lambda: any("--score" in process.cmdline() for process in processes_of(broken)),
        everything=False,
    )
    before = {path: path.stat().st_mtime_ns for path in finished(broken)}
    assert before
    for spec, options in ((specs[broken], ["--jobs", "2"]), (specs[whole], [])):
        result = programs.finish([EXPERIMENT, spec, *options], fresh=True)
        assert result.code == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert len(finished(broken)) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in ("report.json", "report.md"):
        tables = [(folder / "work" / name).read_bytes() for folder in (broken, whole)]
        assert tables[0] == tables[1]
    assert json.loads((whole / "work" / "report.json").read_text())["failed"] == []
