"""bin/evaluate.py's tables, mean map and image, and the weights that it takes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiekd import files
from tiekd.data.resize import Resize
from tiekd.data.sample import Sample
from tiekd.errors import LaunchError
from tiekd.evaluation import report
from tiekd.evaluation.compare import Result
from tiekd.evaluation.evaluate import EvaluationProtocol, EvaluationSettings, mean_depth_map
from tiekd.evaluation.metrics import METRIC_NAMES, aggregate
from tiekd.evaluation.per_frame import FrameTable
from tiekd.evaluation.range_errors import range_figures
from tiekd.visualization import panel


class Frames(torch.utils.data.Dataset):
    """Frames whose measured depth is given; the image is grey."""

    def __init__(self, *depths):
        self.depths = [torch.tensor(depth, dtype=torch.float32)[None] for depth in depths]

    def __len__(self):
        return len(self.depths)

    def __getitem__(self, index):
        depth = self.depths[index]
        image = torch.full((3, *depth.shape[1:]), 128, dtype=torch.uint8)
        return Sample(
            image,
            depth,
            torch.ones_like(depth, dtype=torch.bool),
            None,
            torch.eye(3),
            f"{index}.png",
        )


def test_mean_depth_map_falls_back_to_row_then_all():
    """A pixel never measured takes the mean of its row, or else of all pixels."""
    frames = Frames([[2.0, 0.0, 6.0], [0.0, 0.0, 0.0]], [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # Pixel (0, 0) was measured twice, (0, 2) once, (0, 1) never; row 1 never.
    assert mean_depth_map(frames).tolist() == [[[[3.0, 4.0, 6.0], [4.0, 4.0, 4.0]]]]


def test_comparison_table_ratio_to_first_row():
    """The table names every metric; its last column is abs_rel over the first row's."""
    row = dict.fromkeys(METRIC_NAMES, 0.5)
    lines = report.comparison_table(
        {"mean map": {**row, "abs_rel": 0.4}, "student": {**row, "abs_rel": 0.3}}
    )
    head, first, second = lines.split("\n")
    assert [name for name in head.split()[:9]] == list(METRIC_NAMES)
    assert first.split()[-1] == "1.000"
    assert second.split()[-1] == "0.750"


def test_comparison_table_one_row_has_no_ratio():
    """A table of one network has no column of ratios."""
    head, row = report.comparison_table({"student": dict.fromkeys(METRIC_NAMES, 0.5)}).split("\n")
    assert head.split() == list(METRIC_NAMES)
    assert len(row.split()) == 10


def result_of(abs_rel, pixels=(5, 0, 2), bias_m=-1.0):
    """A result of one frame for each given abs_rel.

    a1 is 1 - abs_rel, all else 0; the pixels are one frame's.
    """
    rows = torch.zeros(len(abs_rel), len(METRIC_NAMES), dtype=torch.float64)
    rows[:, METRIC_NAMES.index("abs_rel")] = torch.tensor(abs_rel, dtype=torch.float64)
    rows[:, 0] = 1 - rows[:, METRIC_NAMES.index("abs_rel")]
    sums = torch.zeros(len(abs_rel), 3, 4, dtype=torch.float64)
    sums[:, :, 0] = torch.tensor(pixels)
    sums[:, :, 1] = bias_m * sums[:, :, 0]
    frames = FrameTable([f"{index}.png" for index in range(len(abs_rel))], rows, sums)
    return Result(Path("x.pth"), aggregate(rows), range_figures(sums, 80.0), frames)


def protocol(**options):
    return EvaluationProtocol(EvaluationSettings(**options), 0.001, 80.0)


def test_protocol_lines_state_all_settings():
    """The protocol states frames, pixels, range, crop, flip and working resolution."""
    text = report.protocol_lines(protocol(cap=50.0, flip=False), result_of([0.1, 0.2]))
    assert text == (
        "2 val frames, 2 of them with ground truth that counts, 14 pixels\n"
        "ground truth 0.001 < d < 50 m, crop garg, flip averaging off, mean over images"
    )
    assert "d < 80 m" in report.protocol_lines(protocol(), result_of([0.1]))
    resized = result_of([0.1])._replace(resize=Resize(height=192, width=640, mode="stretch"))
    assert report.protocol_lines(protocol(), resized).splitlines()[-1] == (
        "images at 192x640, stretch; depth is brought up bilinearly to the ground truth's own "
        "size and scored there"
    )


def test_ranges_table_row_per_range():
    """The table has one row for each range and says `no pixel` for an empty one."""
    lines = report.ranges_table({"student": result_of([0.1, 0.2])}).split("\n")
    assert [line.split()[-4:] for line in lines[1::2]] == [
        ["10", "-1.000", "0.0000", "0.000"],
        ["4", "-1.000", "0.0000", "0.000"],
    ]
    assert lines[1].split()[:4] == ["student", "0", "-", "20"]
    assert lines[2].endswith("0  no pixel")


def test_pairwise_table_differences_and_counts():
    """A pairwise table shows the difference and each side's number of better frames by metric."""
    results = {"teacher": result_of([0.3, 0.1, 0.2]), "student": result_of([0.1, 0.2, 0.1])}
    head, difference, ours, theirs = report.pairwise_table(results).split("\n")
    place = head.split().index("abs_rel") - len(METRIC_NAMES)
    assert difference.startswith("student - teacher ")
    assert difference.split()[place] == "-0.0667"
    assert ours.startswith("frames where student is better")
    assert ours.split()[place] == "2"
    assert theirs.startswith("frames where teacher is better")
    assert theirs.split()[place] == "1"
    # Accuracies are better where they are larger.
    assert difference.split()[-9] == "+0.0667"
    assert ours.split()[-9] == "2"
    assert theirs.split()[-9] == "1"


def test_report_texts_name_worst_frames():
    """The report names the worst frames, unless no pixel counts."""
    said = "\n".join(report.report_texts({"student": result_of([0.1, 0.4, 0.3, 0.2])}, protocol()))
    assert said.endswith("by abs_rel:\n  0.4000  1.png\n  0.3000  2.png\n  0.2000  3.png")
    assert "better" not in said
    nothing = "\n".join(
        report.report_texts({"student": result_of([math.nan], pixels=(0, 0, 0))}, protocol())
    )
    assert "0 of them with ground truth that counts, 0 pixels" in nothing
    assert "Worst" not in nothing


@pytest.mark.parametrize(
    ("path", "suffix", "words"),
    [
        ("mine.yaml", ".json", "mine.yaml: a file that ends in .json is written; give one"),
        ("folder.json", ".json", "folder.json: a file that ends in .json is written; give one"),
        (
            "20261128_1.log.json",
            ".json",
            "runs' logs end in .log.json; give another name, such as figures.json",
        ),
        ("mine.yaml/x.csv", ".csv", "mine.yaml can't be made (File exists); give another place"),
        ("mine.yaml", None, "mine.yaml can't be made (File exists); give another place"),
    ],
)
def test_check_output_rejects_suffix_log_or_file(tmp_path, path, suffix, words):
    """A wrong suffix, a run's log or a file in a folder's place raises a LaunchError."""
    (tmp_path / "mine.yaml").write_text("mine")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(LaunchError) as error:
        files.check_output("--out", tmp_path / path, suffix)
    assert str(error.value).startswith("--out ")
    assert str(error.value).endswith(words)
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_check_output_creates_folder(tmp_path):
    """The folder of an output is created, and no output is accepted."""
    files.check_output("--out", tmp_path / "a" / "x.json", ".json")
    files.check_output("--show-dir", tmp_path / "b" / "c", None)
    files.check_output("--panel", None, ".png")
    assert (tmp_path / "a").is_dir()
    assert (tmp_path / "b" / "c").is_dir()


def test_write_panel_column_per_network(tmp_path):
    """The panel has a column for each network, and errors are in the last column."""
    depth = np.full((32, 64), 10.0).tolist()
    exact, wrong = (
        lambda image, device, intrinsics, metres=metres: torch.full((1, 1, 32, 64), metres)
        for metres in (10.0, 60.0)
    )
    images = []
    for predictors in ({"a": exact, "b": wrong}, {"b": wrong, "a": exact}):
        path = tmp_path / "deep" / "panel.png"
        panel.write_panel(
            path, Frames(depth, depth), predictors, 80.0, torch.device("cpu"), num_rows=2
        )
        images.append(np.asarray(Image.open(path)).astype(int))
    assert images[0].shape == images[1].shape
    assert images[0].shape[1] > 5 * 400
    last_column = images[0].shape[1] * 4 // 5
    brightness = [photo[40:200, last_column : last_column + 200].mean() for photo in images]
    assert brightness[0] > brightness[1] + 50  # an error of 50 m shines, none is black
