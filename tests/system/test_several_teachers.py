"""Two teachers in one recipe: maps are cached, and a student learns their mixture and resumes."""

import shlex
import sys

import torch
from support import programs, recipes

from tiekd.models.build import build_network
from tiekd.workdir.weights_file import write_weights


def test_two_teachers_are_cached_learned_and_resumed(ground, tmp_path):
    """The printed override trains on both folders; a resumed run has the same losses."""
    torch.manual_seed(2)
    other = build_network(recipes.TEACHER).state_dict()
    write_weights(tmp_path / "far.pth", other, recipes.TEACHER, 0)
    node = recipes.recipe(ground, iterations=3, validate=True)
    node["evaluation"] = {"against": "teacher", "crop": "none", "interval": 3, "by": "iteration"}
    first = node.pop("teacher") | {"weight": 2.0, "sigma": 2.5}
    node["teachers"] = [first, first | {"checkpoint": str(tmp_path / "far.pth"), "sigma": 4.0}]
    node["checkpoint"] |= {"interval": 1, "keep_last": 3}
    path = recipes.write_recipe(tmp_path / "student.yaml", node)
    result = programs.finish(
        [programs.ROOT / "bin" / "cache_teacher.py", path, "--out", tmp_path / "maps"]
    )
    assert result.code == 0, result.stderr[-3000:]
    folders = [tmp_path / "maps" / f"gt_kd_student_{place}" for place in (0, 1)]
    # Evaluations compare with the teachers, so there are maps of the 4 validation frames, too.
    assert [len(list(folder.glob("*.png"))) for folder in folders] == [20, 20]
    given = shlex.split(result.stdout.strip().splitlines()[-1].partition("with ")[2])
    # The audit, which random weights don't pass, isn't an affair of their maps.
    given[-1] = given[-1].replace('"weight"', '"audit": "off", "weight"')
    train = [sys.executable, programs.ROOT / "bin" / "train.py", path, *given, "--work-dir"]

    result = programs.finish([*train, tmp_path / "run"])
    assert result.code == 0, result.stderr[-3000:]
    log = programs.log_text(tmp_path / "run")
    assert f"teachers[1]: Teacher: cached maps in {folders[1]}, of the weights with digest" in log
    assert (
        "The student learns a mixture of 2 teachers, weights 2 (sigma 2.5 m), 2 (sigma 4 m)" in log
    )
    maps = "; ".join(f"cached maps in {folder}" for folder in folders)
    assert (
        f"agreement with the teacher, not accuracy, compared with the mean of 2 teachers: {maps}"
        in log
    )
    resumed = ["--resume-from", tmp_path / "run" / "checkpoints" / "iter_2"]
    result = programs.finish([*train, tmp_path / "again", *resumed])
    assert result.code == 0, result.stderr[-3000:]
    losses = programs.losses(tmp_path / "run")
    assert len(losses) == 3
    assert programs.losses(tmp_path / "again") == losses[2:]
