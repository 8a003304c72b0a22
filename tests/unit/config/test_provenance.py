"""A printed recipe is the recipe, and says where each value comes from."""

import re
from pathlib import Path

import pytest

from tiekd.config.provenance import annotated, with_origins
from tiekd.config.recipe import load_recipe
from tiekd.errors import RecipeError

ROOT = Path(__file__).parents[3]
RECIPES = sorted(
    path
    for path in (ROOT / "model_configs").rglob("*.yaml")
    if not {"_base_", "experiments"} & set(path.parts)
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def origins(text: str) -> dict[str, str]:
    """Returns the origins of values by dotted name."""
    found, parents = {}, []
    for line in text.splitlines():
        indent, key, origin = re.fullmatch(r"( *)([^:]+):(?:.*?  # (.*))?", line).groups()
        parents = [*parents[: len(indent) // 2], key]
        if origin:
            found[".".join(parents)] = origin
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_annotated_recipe_reloads_with_file_per_value(path, tmp_path):
    """A printed recipe loads as the recipe, and each value names its file or override."""
    text = annotated(path, ["data.workers=3"])
    assert load_recipe(write(tmp_path / "printed.yaml", text)) == load_recipe(
        path, ["data.workers=3"]
    )
    for line in text.splitlines():
        assert re.search(r"(:|  # (--set data.workers=3|model_configs/\S+\.yaml))$", line)
        named = line.rpartition("  # ")[2]
        assert not named.startswith("model_configs") or (ROOT / named).is_file()


def test_annotated_names_last_file_that_set_value(tmp_path):
    """Each value is annotated with the last file or override that set it."""
    write(
        tmp_path / "bases/a.yaml",
        "train: {epochs: 1, seed: 1}\ndata: {name: kitti, root: x, kb_crop: null}\n",
    )
    write(tmp_path / "bases/b.yaml", "_base_: a.yaml\ntrain: {epochs: 2}\nlosses: {dpm: {}}\n")
    path = write(
        tmp_path / "x.yaml",
        "_base_: bases/b.yaml\ntrain: {seed: 1}\nhooks: [{name: h, note: 'a # b'}]\n",
    )
    text = annotated(path, ["losses.depth.weight=1e-3", "data={name: nyu}"])
    assert origins(text) == {
        "train.epochs": "bases/b.yaml",
        "train.seed": "x.yaml",
        "data.name": "--set data={name: nyu}",
        "losses.dpm": "bases/b.yaml",
        "losses.depth.weight": "--set losses.depth.weight=1e-3",
        "hooks": "x.yaml",
    }
    assert load_recipe(write(tmp_path / "printed.yaml", text))["hooks"] == [
        {"name": "h", "note": "a # b"}
    ]


def test_annotated_teacher_network_names_its_files(tmp_path):
    """Values of the teacher's network are annotated with the teacher recipe's files."""
    network = "{encoder: {name: resnet, depth: 18}, decoder: {name: bts}, head: {name: sigmoid}}"
    write(tmp_path / "net.yaml", f"network: {network}\n")
    write(tmp_path / "teacher.yaml", "_base_: net.yaml\nnetwork: {encoder: {depth: 50}}\n")
    write(tmp_path / "old.yaml", f"teacher: {{network: {network}, checkpoint: old.pth}}\n")
    path = write(tmp_path / "student.yaml", "_base_: old.yaml\nteacher: {recipe: teacher.yaml}\n")
    found = origins(annotated(path, ["teacher.network.decoder.width=8"]))
    assert found == {
        "teacher.recipe": "student.yaml",
        "teacher.network.encoder.name": "net.yaml",
        "teacher.network.encoder.depth": "teacher.yaml",
        "teacher.network.decoder.name": "net.yaml",
        "teacher.network.decoder.width": "--set teacher.network.decoder.width=8",
        "teacher.network.head.name": "net.yaml",
    }


def test_with_origins_names_file_and_override_of_each_key(tmp_path):
    """An error about values names the base, recipe or override that gave each."""
    write(tmp_path / "bases/a.yaml", "train: {epochs: 1, seed: 3}\n")
    path = write(tmp_path / "x.yaml", "_base_: bases/a.yaml\ntrain: {iterations: 2}\n")
    error = RecipeError("train: both", ("train.epochs", "train.iterations"))
    told = with_origins(error, path)
    assert str(told) == (
        "train: both; train.epochs is from bases/a.yaml; train.iterations is from x.yaml"
    )
    assert told.keys == error.keys
    assert str(with_origins(error, path, ["train.epochs=7"])) == (
        "train: both; train.epochs is from --set train.epochs=7; train.iterations is from x.yaml"
    )
    # A value from elsewhere has no origin, and neither has a key that isn't there.
    other = RecipeError("train: both", ("train.seed.x", "optimizer.lr"))
    assert str(with_origins(other, path)) == "train: both"
    plain = RecipeError("train: no")
    assert with_origins(plain, path) is plain


def test_annotated_rejects_what_load_recipe_rejects(tmp_path):
    """`annotated` raises the RecipeError of `load_recipe` for an unknown key."""
    path = write(tmp_path / "x.yaml", "trian: {epochs: 1}\n")
    with pytest.raises(RecipeError, match="unknown key 'trian'; did you mean 'train'"):
        annotated(path)


@pytest.mark.parametrize(
    "value", ["'two\nlines'", "0.1", "1e-7", "'yes'", "null", "[]", "2026-01-01", "'0\n'", ".inf"]
)
def test_annotated_values_of_all_kinds_reload(tmp_path, value):
    """Values of every kind load back unchanged from the printed recipe."""
    path = write(tmp_path / "x.yaml", "train: {epochs: 1}\n")
    given = [f"train.extra={value}"]
    printed = write(tmp_path / "printed.yaml", annotated(path, given))
    assert load_recipe(printed) == load_recipe(path, given)
