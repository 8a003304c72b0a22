"""A user's own parts that were written for an older tiekd.

They work, or one line says how to write the import.
"""

import ast
import sys
from pathlib import Path

import pytest

import tiekd
from tiekd.config import external, moved
from tiekd.distributed import entrypoint
from tiekd.errors import RecipeError

TIEKD = Path(tiekd.__file__).parent
# As the documents of the older tiekd had them, up to their imports.
LOSS = """
from torch import nn

from tiekd.losses import mean_over_valid, valid_pixels


class BerHu(nn.Module):
    def __init__(self, limit: float = 1.0):
        super().__init__()
        self.limit = limit

    def forward(self, prediction, target):
        error = (prediction.depth - target).abs()
        squared = (error.square() + self.limit**2) / (2 * self.limit)
        return mean_over_valid(error.where(error <= self.limit, squared), valid_pixels(target))


build = BerHu
"""
DATA_SET = """
import torch

from tiekd.data.transforms import Sample


def build(split: str, counts: dict):
    return [Sample]
"""
HOOK = '''
"""Ends a run whose best figure is old."""

from tiekd.hooks.base import Hook


class Patience(Hook):
    pass


build = Patience
'''
BATCH = "from tiekd.data.batch import Batch\nbuild = Batch\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder that is the current one; Python's path and modules are put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(external, "_recipe_folders", [])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(text: str) -> str:
    Path("part_of_before.py").write_text(text)
    with pytest.raises(RecipeError) as error:
        external.import_module("part_of_before")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("text", [LOSS, BATCH])
def test_import_module_unmoved_paths_still_work(text):
    """An older part whose import paths still exist is imported."""
    Path("still_there.py").write_text(text)
    assert callable(external.import_module("still_there").build)


@pytest.mark.parametrize(
    ("text", "line", "old", "new"),
    [
        (HOOK, 4, "from tiekd.hooks.base import Hook", "from tiekd import Hook"),
        (DATA_SET, 4, "from tiekd.data.transforms import Sample", "from tiekd import Sample"),
        (
            "from tiekd.distributed import is_main, mean_over_ranks\n",
            1,
            "from tiekd.distributed import is_main, mean_over_ranks",
            "from tiekd import is_main, mean_over_ranks",
        ),
        (
            "from tiekd.hooks.base import (\n    Hook as Base,\n)\n",
            1,
            "from tiekd.hooks.base import Hook as Base",
            "from tiekd import Hook",
        ),
        (
            "from tiekd.data.depth_io import read_depth_npy\n",
            1,
            "from tiekd.data.depth_io import read_depth_npy",
            "from tiekd.data.image_io import read_depth_npy",
        ),
        (
            "from tiekd.evaluation import evaluate, predict\n",
            1,
            "from tiekd.evaluation import evaluate, predict",
            "from tiekd.evaluation.evaluate import evaluate; from tiekd.models.flip import predict",
        ),
        (
            "from tiekd import metrics\n",
            1,
            "from tiekd import metrics",
            "from tiekd.evaluation import metrics",
        ),
        (
            "import tiekd.frame_rows\n",
            1,
            "import tiekd.frame_rows",
            "from tiekd.evaluation import per_frame",
        ),
    ],
)
def test_import_module_old_path_names_new_one(text, line, old, new, folder):
    """An old import path raises one line that names file, line and new import."""
    told = refused(text)
    assert told == f"{folder}/part_of_before.py:{line}: `{old}` is of an older tiekd; write `{new}`"
    for statement in new.split("; "):
        exec(statement, {})


def test_entrypoint_old_import_is_one_line(capsys):
    """A program that meets an old import exits with 2 and one line on stderr."""
    Path("old_hook.py").write_text(HOOK)
    code = entrypoint.run(lambda: external.import_module("old_hook"))
    told = capsys.readouterr().err
    assert code == 2
    assert told.count("\n") == 1
    assert told.startswith("RecipeError: ")
    assert "from tiekd import Hook" in told


@pytest.mark.parametrize(
    "text", ["import tiekd.nothing_at_all\n", "from tiekd.errors import NoError\n"]
)
def test_import_module_unknown_path_is_import_error(text):
    """An import that never existed in tiekd stays a plain ImportError."""
    Path("wrong.py").write_text(text)
    with pytest.raises(ImportError):
        external.import_module("wrong")


def test_moved_public_names_match_tiekd():
    """`moved.PUBLIC` lists exactly the names of `tiekd.__all__`, and each exists."""
    assert sorted(moved.PUBLIC) == sorted(tiekd.__all__)
    assert all(getattr(tiekd, name) is not None for name in moved.PUBLIC)


def test_moved_targets_exist_and_sources_do_not():
    """Each new place of the moved tables exists with its names, and no old module does."""
    for old, new in moved.MODULES.items():
        assert (TIEKD / f"{new.replace('.', '/')}.py").is_file()
        assert not (TIEKD / f"{old.replace('.', '/')}.py").is_file()
    for old, places in moved.SPLIT.items():
        assert not (TIEKD / f"{old.replace('.', '/')}.py").is_file()
        for new, names in places.items():
            tree = ast.parse((TIEKD / f"{new.replace('.', '/')}.py").read_text(encoding="utf-8"))
            bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
            bound |= {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
            assert names == "*" or set(names.split()) <= bound


def test_home_of_name_without_successor_is_none():
    """A name that was removed or changed gets no advice; its old module's other names do."""
    assert moved.home_of("models.teacher", "is_outside") is None
    assert moved.home_of("comparison", "Entrant") is None
    assert moved.home_of("comparison", "evaluate") == "evaluation.compare"
    assert moved.home_of("comparison", "") == "evaluation.compare"
    assert moved.home_of("models.teacher", "build_teacher") == "teaching"
