"""A model of transformers as the teacher of a run: cached, then learned from; and online."""

import json
import sys
from pathlib import Path

import pytest
from support import programs, recipes, tiny_depth_models

from tiekd.data import learned_from
from tiekd.data.image_io import is_whole_depth_png

NUM_FRAMES = 16
MODELS = {"depth_anything": "metres", "glpn": "metres"}


@pytest.fixture(scope="module")
def recipe(ground, tmp_path_factory) -> Path:
    """A student's recipe that names a model's folder, which is yet to be given."""
    folder = tmp_path_factory.mktemp("foundation")
    for architecture in MODELS:
        tiny_depth_models.save(architecture, folder / architecture)
    node = recipes.recipe(ground)
    # Random weights wouldn't pass an audit.
    node["teacher"] = {"name": "huggingface", "model": "nowhere/at-all", "audit": "off"}
    return recipes.write_recipe(folder / "student.yaml", node)


def cache(recipe: Path, out: Path, *overrides: str, ranks: int = 1) -> programs.Result:
    command = [programs.ROOT / "bin" / "cache_teacher.py", recipe, "--out", out]
    return programs.finish([*command, "--set", *overrides], ranks=ranks)


def train(recipe: Path, work_dir: Path, *overrides: str) -> programs.Result:
    command = [sys.executable, programs.ROOT / "bin" / "train.py", recipe, "--work-dir", work_dir]
    return programs.finish([*command, "--set", "train.iterations=2", *overrides])


@pytest.mark.parametrize("architecture", MODELS)
def test_student_learns_from_cached_maps_of_a_model(recipe, tmp_path, architecture):
    """Two ranks cache a folder's maps; a job that lost some goes on; a student learns from them."""
    model = f"teacher.model={recipe.parent / architecture}"
    result = cache(recipe, tmp_path / "maps", model, ranks=2)
    assert result.code == 0, result.stderr[-3000:]
    told = f"Teacher: huggingface {architecture} ({architecture}), output metres, licence apache-2"
    assert told in result.stdout
    assert "Writing model" not in result.stderr
    assert "Loading weights" not in result.stderr
    maps = sorted((tmp_path / "maps").glob("*.png"))
    assert len(maps) == NUM_FRAMES
    assert all(map(is_whole_depth_png, maps))
    before = {path.name: path.read_bytes() for path in maps}
    for path in maps[:3]:
        path.unlink()
    result = cache(recipe, tmp_path / "maps", model)
    assert f"{NUM_FRAMES - 3} there already, 3 to make" in result.stdout, result.stderr[-3000:]
    assert {path.name: path.read_bytes() for path in (tmp_path / "maps").glob("*.png")} == before
    learns = ["teacher=null", "teacher.audit=off", f"teacher.maps={tmp_path / 'maps'}"]
    result = train(recipe, tmp_path / "run", *learns)
    assert result.code == 0, result.stderr[-3000:]
    log = programs.log_text(tmp_path / "run")
    assert f"of huggingface {architecture}, output metres, licence apache-2.0, the weights" in log
    assert "decode.loss_dpm" in log


def test_student_learns_online_with_a_warning(recipe, tmp_path):
    """The model may run beside the student; the log says what it is and that it sees crops.

    It gives a sigma per pixel, and the log warns that nothing shows what it is worth.
    """
    model = f"teacher.model={recipe.parent / 'glpn'}"
    sigma = ("teacher.flip=true", "teacher.sigma={from: flip, factor: 2}")
    result = train(recipe, tmp_path / "run", model, "teacher.batch_size=3", *sigma)
    assert result.code == 0, result.stderr[-3000:]
    log = programs.log_text(tmp_path / "run")
    assert "Teacher: huggingface glpn (glpn), output metres, licence apache-2.0, digest " in log
    assert "WARNING: the teacher sees augmented crops here; cache its maps of whole images" in log
    assert "Warning: teacher.sigma: nothing shows that flip orders this teacher's errors" in log
    assert "decode.loss_dpm" in log
    # Another model isn't what the run began with.
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert "teacher model.safetensors" in inputs["files"]
    # Every file of the run says from which teacher it learned.
    (teacher,) = inputs["teachers"]
    assert (teacher["model"], teacher["licence"]) == ("glpn", "apache-2.0")
    assert f"digest {teacher['digest']:.12}" in log
    weights = tmp_path / "run" / "checkpoints" / "iter_2" / "student.pth"
    assert learned_from.read(weights) == [teacher]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher.model=/nowhere", "teacher.model: no folder /nowhere; give a model's folder"),
        ("teacher.name=hugging_face", "teacher.name: got 'hugging_face'; allowed: huggingface, "),
        ("teacher.weights=x", "teacher (huggingface): unknown key 'weights'"),
    ],
)
def test_wrong_teachers_end_in_one_line(recipe, tmp_path, override, words):
    """Exit code 2 and one line, in caching and in training."""
    for result in (
        cache(recipe, tmp_path / "m", override),
        train(recipe, tmp_path / "r", override),
    ):
        (line,) = result.our_lines()
        assert result.code == 2
        assert words in line
