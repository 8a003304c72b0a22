"""Every program that writes a folder refuses one from which the data set reads."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_data import write_png
from support.recipes import TEACHER

from tiekd.distributed import process_group
from tiekd.errors import LaunchError
from tiekd.models.build import build_network
from tiekd.tools import cache_frames, cache_teacher, check_data, evaluate, predict
from tiekd.workdir.weights_file import write_weights


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a data set in images/ and depth/, a recipe of it and weights."""
    monkeypatch.setattr(process_group, "start_rank", lambda *_: torch.device("cpu"))
    for index in range(4):
        write_png(tmp_path / f"images/{index}.png", np.full((32, 48, 3), index, np.uint8))
        write_png(tmp_path / f"depth/{index}.png", np.full((32, 48), 5000, np.uint16))
    data = {"name": "folder", "root": str(tmp_path), "images": "images", "depths": "depth"}
    data |= {"depth_unit": 1000.0, "val_fraction": 0.5}
    recipe = {"network": TEACHER, "data": data, "work_dir": str(tmp_path / "work")}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    write_weights(tmp_path / "w.pth", build_network(TEACHER).state_dict(), TEACHER, 1)
    return tmp_path


PROGRAMS = {
    "cache_frames": (
        cache_frames,
        "depth/x",
        lambda place: {"split": "both", "workers": 0, "verify": False},
    ),
    "check_data": (
        check_data,
        "images",
        lambda place: {"split": "both", "workers": 0, "neighbours": 0, "drop": ()},
    ),
    "cache_teacher": (
        cache_teacher,
        "images/x",
        lambda place: {"split": "train", "checkpoint": str(place / "w.pth")},
    ),
    "predict": (
        predict,
        ".",
        lambda place: {
            **{"words": [str(place / "w.pth"), str(place / "images")], "size": None},
            **{"points": False, "confidence": False, "raw": False, "depth_unit": None},
            **{"device": "cpu", "readout": "mean", "overwrite": False, "batch_size": None},
            **{"intrinsics": None, "focal": None},
        },
    ),
    "evaluate": (
        evaluate,
        "images",
        lambda place: {
            **{"checkpoint": str(place / "w.pth"), "against": [], "split": "val"},
            **{"on_trained": True, "per_image": None, "panel": None, "mean_map": False},
            **{"floors": False},
            **{"show_dir": place / "images", "out": None},
        },
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_refuse_folders_that_the_data_set_reads(name, place):
    """The refusal is one line that names folder and option, and nothing is written."""
    module, out, options = PROGRAMS[name]
    overrides = [f"data.decoded={out}"] if name == "cache_frames" else []
    before = sorted(place.rglob("*"))
    given = {"recipe": str(place / "r.yaml"), "overrides": overrides, "out": place / out}
    given["data_set"] = None
    with pytest.raises(LaunchError, match=r"the data set reads from .* \(data.(images|depths)\)"):
        module.run(Namespace(**(given | options(place))))
    assert sorted(place.rglob("*")) == before


def test_predict_refuses_an_output_folder_that_cannot_be_made(place):
    """The folder is made before the first image is predicted, whatever error that gives."""
    options = PROGRAMS["predict"][2](place)
    given = {"recipe": str(place / "r.yaml"), "overrides": [], "out": Path("/proc/tiekd")}
    with pytest.raises(LaunchError, match="^--out /proc/tiekd: /proc/tiekd can't be made"):
        predict.run(Namespace(**(given | options)))
