"""bin/train.py --dry-run on tiny recipes.

It says what a run will need, writes nothing, and refuses what a run refuses.
"""

import json
import re
import sys
from pathlib import Path

import pytest
from support import programs, recipes

DRY = ["--dry-run"]
FIND = ["--dry-run", "--find-micro-batch"]


@pytest.fixture(scope="module")
def folder(ground, tmp_path_factory) -> Path:
    """A run, dry runs in its work dir and elsewhere, and mistakes, all in one process.

    `results.json` has how they ended.
    """
    folder = tmp_path_factory.mktemp("dry")
    recipe = recipes.recipe(ground, iterations=8, validate=True)
    recipe["evaluation"]["interval"] = 1
    recipes.write_recipe(folder / "plain.yaml", recipe)
    recipes.write_recipe(folder / "wrong.yaml", {**recipe, "losses": {"dmp": {}}})
    commands = {
        "run": ["plain"],
        "dry": ["plain", *DRY],
        "dry_no_validate": ["plain", *DRY, "--no-validate"],
        "find": ["plain", *FIND],
        "no_room": ["plain", *FIND, "--memory", "0.1"],
        "wrong_run": ["wrong"],
        "wrong": ["wrong", *DRY],
        "undealt": ["plain", *DRY, "--deepspeed_config", str(folder / "three.json")],
        "resumed": ["plain", *DRY, "--resume-from", "auto"],
        "alone": ["plain", "--find-micro-batch"],
    }
    (folder / "three.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 3}))
    lists = []
    for name, command in commands.items():
        work_dir = folder / ("elsewhere" if name == "dry_no_validate" else "run")
        lists.append(
            [str(folder / f"{command[0]}.yaml"), "--work-dir", str(work_dir), *command[1:]]
        )
    (folder / "commands.json").write_text(json.dumps(lists[:1]))
    (folder / "later.json").write_text(json.dumps(lists[1:]))
    results = []
    for listing in ("commands", "later"):
        result = programs.finish(
            [sys.executable, programs.HERE / "mains.py", folder / f"{listing}.json"]
        )
        assert result.code == 0, result.stderr[-3000:]
        results += json.loads((folder / f"{listing}.out").read_text())
        if listing == "commands":
            (folder / "files.json").write_text(json.dumps(programs.files_of(folder / "run")))
    (folder / "results.json").write_text(json.dumps(dict(zip(commands, results, strict=True))))
    return folder


def result(folder: Path, name: str) -> programs.Result:
    return programs.Result(**json.loads((folder / "results.json").read_text())[name])


def number(text: str, pattern: str) -> float:
    return float(re.search(pattern, text)[1])


def test_dry_run_prints_estimates(folder):
    """A dry run prints frames, parameters, batch, time and memory, and ends with code 0."""
    dry = result(folder, "dry")
    assert dry.code == 0, dry.stderr
    for line in (
        "Training frames: 16",
        "Validation frames: 4",
        "Student: 0.03 M parameters, trainable",
        "Global batch: 4 = 4 a rank x 1 accumulated x 1 ranks",
        "Iterations: 4 an epoch, 8 in all",
    ):
        assert f"{line}\n" in dry.stdout
    assert re.search(
        r"^Teacher: 0\.0\d M parameters, frozen, from .*teacher\.pth$", dry.stdout, re.M
    )
    each = number(
        dry.stdout,
        r"Time per iteration: ([\d.]+) s \([\d.]+ to [\d.]+\), of which [\d.]+ s waiting for "
        r"data\n",
    )
    evaluation = number(dry.stdout, r"\nEvaluations: 2 of ([\d.]+) s each\n")
    assert number(dry.stdout, r"\nETA: ([\d.]+) s for ") == pytest.approx(
        8 * each + 2 * evaluation, abs=0.25
    )
    assert 0.3 < number(dry.stdout, r"\nPeak memory: ([\d.]+) GB of a rank's process\n") < 10
    without = result(folder, "dry_no_validate")
    assert without.code == 0
    assert "Evaluations" not in without.stdout
    assert "Validation is off" in without.stdout


def test_dry_run_checkpoint_size_matches_run(folder):
    """The checkpoint size that a dry run prints is that of the real run."""
    told = number(
        result(folder, "dry").stdout, r"\nDisk: ([\d.]+) MB a checkpoint, 1 are saved, 1 stay; "
    )
    files = (folder / "run" / "checkpoints" / "iter_8").iterdir()
    assert told == pytest.approx(
        sum(file.stat().st_size for file in files) / 1e6, rel=0.1, abs=0.06
    )


def test_dry_run_writes_nothing(folder):
    """A dry run writes nothing and says that the work dir already holds a run."""
    assert programs.files_of(folder / "run") == json.loads((folder / "files.json").read_text())
    assert not (folder / "elsewhere").exists()
    told = (
        f"\nA run would be refused here now: {folder / 'run'} already holds a run (iter_8); resume "
        "it with bin/resume"
    )
    assert told in result(folder, "dry").stdout
    assert "would be refused" not in result(folder, "dry_no_validate").stdout


def test_dry_run_refuses_like_run(folder):
    """A dry run refuses a wrong recipe with the line of the real run."""
    wrong, run = result(folder, "wrong"), result(folder, "wrong_run")
    assert (wrong.code, wrong.stdout) == (2, "")
    assert wrong.our_lines() == run.our_lines() != []
    undealt = result(folder, "undealt")
    assert undealt.code == 2
    assert "can't be split" in undealt.our_lines()[0]


def test_dry_run_refuses_conflicting_options(folder):
    """Options that conflict with or need `--dry-run` are refused."""
    for name, told in (("resumed", "leave --resume-from out"), ("alone", "that needs --dry-run")):
        assert result(folder, name).code == 2
        assert told in result(folder, name).stderr


def test_find_micro_batch_prints_largest_as_json(folder):
    """`--find-micro-batch` prints the largest micro-batch that fits, as JSON."""
    found = result(folder, "find")
    assert found.code == 0, found.stderr
    rows = re.findall(
        r"^ +(\d+) +(\d+) +([\d.]+ [GM]B) +([\d.]+ s|does not fit)$", found.stdout, re.M
    )
    assert [(int(images), int(accumulation)) for images, accumulation, *_ in rows] == [
        (1, 4),
        (2, 2),
        (4, 1),
    ]
    assert "The student has BatchNorm" in found.stdout
    assert json.loads("{" + "".join(found.stdout.splitlines()[-2:]) + "}") == {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
    }
    no_room = result(folder, "no_room")
    assert no_room.code == 2
    assert "LaunchError: not even one image fits" in no_room.our_lines()[0]


def test_dry_run_two_ranks_print_once(ground, tmp_path):
    """Two ranks with accumulation print the estimates once."""
    recipe = recipes.recipe(ground, batch_size=8, iterations=4)
    config = {"zero_optimization": {"stage": 1}, "gradient_accumulation_steps": 2}
    (tmp_path / "zero1.json").write_text(json.dumps(config))
    path = recipes.write_recipe(tmp_path / "recipe.yaml", recipe)
    for options in (DRY, FIND):
        command = [
            programs.ROOT / "bin" / "train.py",
            path,
            "--work-dir",
            tmp_path / "work",
            *options,
        ]
        ended = programs.finish([*command, "--deepspeed_config", tmp_path / "zero1.json"], ranks=2)
        assert ended.code == 0, ended.stderr[-3000:]
        assert not (tmp_path / "work").exists()
        if options is DRY:
            assert ended.stdout.count("Global batch: 8 = 2 a rank x 2 accumulated x 2 ranks\n") == 1
        else:
            assert ended.stdout.count('  "train_micro_batch_size_per_gpu": 4,\n') == 1


@pytest.mark.long
@pytest.mark.usefixtures("ground")
def test_find_micro_batch_memory_matches_engine(tmp_path):
    """The memory measured for a micro-batch equals that of the real engine within 20 %.

    The copy beside the engine is held to the engine itself. The network's images take most of
    the memory.
    """
    data = {
        "name": "scenes",
        "root": str(tmp_path / "scenes"),
        "height": 192,
        "width": 640,
        "num_train": 8,
        "num_val": 1,
    }
    path = programs.ROOT / "model_configs" / "demo_teacher.yaml"
    given = [
        f"data={json.dumps(data | {'augment': {'crop': [192, 640]}, 'workers': 0})}",
        "train.batch_size=8",
    ]
    command = [
        sys.executable,
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        tmp_path / "work",
        "--no-validate",
    ]
    found = programs.finish([*command, *FIND, "--set", *given], fresh=True)
    dry = programs.finish([*command, *DRY, "--set", *given], fresh=True)
    assert found.code == dry.code == 0, found.stderr + dry.stderr
    foreseen = number(found.stdout, r"\n +8 +1 +([\d.]+) GB")
    assert foreseen == pytest.approx(number(dry.stdout, r"Peak memory: ([\d.]+) GB"), rel=0.2)
    assert foreseen > 1.5 * number(found.stdout, r"\n +1 +8 +([\d.]+) GB")
