"""What bin/evaluate.py shows: tables, the mean map, the picture, and which weights it takes."""

import numpy as np
import pytest
import torch
from PIL import Image

from tiekd import checkpoint, reports
from tiekd.data.transforms import Sample
from tiekd.errors import CheckpointError
from tiekd.evaluation import EvaluationSettings, mean_depth_map
from tiekd.metrics import METRIC_NAMES
from tiekd.models.factory import build_network

NETWORK = {
    "encoder": {"name": "mobilenet_v2", "width": 0.25},
    "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8], "extra_ups": 1},
    "head": {"name": "sigmoid"},
    "min_depth": 0.001,
    "max_depth": 80.0,
}


class Frames(torch.utils.data.Dataset):
    """Frames whose measured depth is given; the picture is grey."""

    def __init__(self, *depths):
        self.depths = [torch.tensor(depth, dtype=torch.float32)[None] for depth in depths]

    def __len__(self):
        return len(self.depths)

    def __getitem__(self, index):
        depth = self.depths[index]
        image = torch.full((3, *depth.shape[1:]), 128, dtype=torch.uint8)
        return Sample(image, depth, torch.ones_like(depth, dtype=torch.bool), None, torch.eye(3), f"{index}.png")


def write_recipe(folder, network=NETWORK):
    import yaml

    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"network": network, "work_dir": str(folder / "work")}))
    return str(path)


def test_mean_map_is_the_mean_of_what_was_measured_and_falls_back_to_row_then_all():
    frames = Frames([[2.0, 0.0, 6.0], [0.0, 0.0, 0.0]], [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # Pixel (0, 0) was measured twice, (0, 2) once, (0, 1) never; row 1 never.
    assert mean_depth_map(frames).tolist() == [[[[3.0, 4.0, 6.0], [4.0, 4.0, 4.0]]]]


def test_table_names_every_metric_and_compares_with_the_first_row():
    row = dict.fromkeys(METRIC_NAMES, 0.5)
    lines = reports.comparison_table({"mean map": {**row, "abs_rel": 0.4}, "student": {**row, "abs_rel": 0.3}})
    head, first, second = lines.split("\n")
    assert [name for name in head.split()[:9]] == list(METRIC_NAMES)
    assert first.split()[-1] == "1.000" and second.split()[-1] == "0.750"


def test_protocol_says_range_crop_and_flip():
    text = reports.protocol(EvaluationSettings(cap=50.0, flip=False), 0.001, 80.0)
    assert "0.001 < d < 50 m" in text and "crop garg" in text and "flip averaging off" in text


def test_without_a_checkpoint_the_best_weights_are_taken_and_named(tmp_path):
    recipe, network = write_recipe(tmp_path), build_network(NETWORK)
    (tmp_path / "work").mkdir()
    with pytest.raises(CheckpointError, match="train it with bin/train.py"):
        reports.load_network(recipe, None)
    checkpoint.write_weights(tmp_path / "work" / "best_abs_rel.pth", network.state_dict(), NETWORK, 7)
    loaded, path = reports.load_network(recipe, None)
    assert path == tmp_path / "work" / "best_abs_rel.pth"
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))


def test_panel_has_a_column_for_each_network_and_errors_are_the_last_ones(tmp_path):
    depth = np.full((32, 64), 10.0).tolist()
    exact, wrong = (lambda image: torch.full((1, 1, 32, 64), 10.0)), (lambda image: torch.full((1, 1, 32, 64), 60.0))
    pictures = []
    for predictors in ({"a": exact, "b": wrong}, {"b": wrong, "a": exact}):
        path = tmp_path / "deep" / "panel.png"
        reports.write_panel(path, Frames(depth, depth), predictors, 80.0, torch.device("cpu"), num_rows=2)
        pictures.append(np.asarray(Image.open(path)).astype(int))
    assert pictures[0].shape == pictures[1].shape and pictures[0].shape[1] > 5 * 400
    last_column = pictures[0].shape[1] * 4 // 5
    brightness = [picture[40:200, last_column : last_column + 200].mean() for picture in pictures]
    assert brightness[0] > brightness[1] + 50  # an error of 50 m shines, none is black
