"""The report of an experiment in Markdown, JSON and as a plot."""

import copy
import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from support import small_experiment

from tiekd.errors import LaunchError
from tiekd.tools.experiment import report, table


@pytest.fixture(scope="module")
def found(tmp_path_factory, scenes) -> dict:
    """The table of an experiment in which `new` wins and `old` doesn't beat the floors."""
    folder = tmp_path_factory.mktemp("experiment")
    spec = small_experiment.write(folder, scenes, scenes={"regex": "^([^/]+)/"})
    return table.compute(spec, *small_experiment.finish_all(spec, 0.15, floor=0.2))


def test_markdown_names_rows_floors_and_verdicts(found):
    """The report has every row with its spread, the floors, the verdicts and the failed rows."""
    text = report.markdown(found)
    new = found["sets"]["streets"]["rows"]["new"]
    assert f"| new | 3 | {new['abs_rel']:.4f} ± {new['abs_rel_sd']:.4f} |" in text
    assert "| *median map* |  | 0.2000 | 0.1000 |" in text
    size = found["sets"]["streets"]["rows"]["new"]["network"]
    assert f"| {size['parameters'] / 1e6:.2f} M | {size['gmac']:.2f} |\n" in text
    assert "| parameters | GMAC |\n" in text
    assert "| **new - old** (primary) | abs_rel | -0.15" in text
    assert "new beats old |" in text
    assert (
        "**FAILED: old** does not beat: best constant on abs_rel (best constant beats old; " in text
    )
    assert "| desk | 3 |" in text
    assert "| 20 to 40 m | 900 | 0.0400 (0.0200 m) |" in text
    least = found["sets"]["streets"]["smallest_detectable"]
    assert text.count(f"| {least:.4f} |") == 2
    assert "nan" not in text


def test_markdown_of_one_seed_and_of_none(found):
    """A row of one seed isn't called failed, and pairs without a common seed take one line."""
    other = copy.deepcopy(found)
    streets = other["sets"]["streets"]
    streets["rows"]["old"]["seeds"] = [0]
    primary = streets["comparisons"][0]
    none = {**primary, "row": "third", "primary": False, "num_seeds": 0}
    streets["comparisons"] += [none, {**none, "metric": "silog"}]
    text = report.markdown(other)
    assert "FAILED" not in text
    assert "Not compared with the floors, which takes two seeds: old.\n" in text
    assert "| third - old |" not in text
    assert "Without a common seed yet: third - old.\n" in text


def test_markdown_names_failed_and_unfinished_runs(found):
    """Failed runs are named with reason and log, and unfinished ones by name."""
    failed = [{"run": "streets/old seed 1", "reason": "no memory", "log": "x/log.txt"}]
    text = report.markdown({**found, "failed": failed, "not_finished": ["streets/new seed 2"]})
    assert "- streets/old seed 1: no memory (`x/log.txt`)" in text
    assert "## Not finished\n\n- streets/new seed 2" in text


def test_write_plots_costs_of_different_networks(found, tmp_path):
    """costs.png is written if rows have different networks, with latencies that were measured."""
    other = copy.deepcopy(found)
    other["sets"]["streets"]["rows"]["new"]["network"]["gmac"] = 171.0
    told = report.write(other, tmp_path)
    assert told[0].endswith(f" {tmp_path}/costs.png")
    before = (tmp_path / "costs.png").read_bytes()
    rows = other["sets"]["streets"]["rows"]
    timed = {row: {"ms": 3.0, "network": rows[row]["network"]} for row in ("new", "old")}
    latency = {"machine": {}, "threads": 1, "sets": {"streets": timed}}
    (tmp_path / "latency.json").write_text(json.dumps(latency))
    report.write(other, tmp_path)
    assert (tmp_path / "costs.png").read_bytes() != before
    # When the rows have one network again, the plot of the earlier report goes.
    assert "costs.png" not in report.write(found, tmp_path)[0]
    assert not (tmp_path / "costs.png").exists()


def test_interval_without_ends_is_told_and_not_drawn(found):
    """An interval from -inf to inf is written as such, and the plot leaves it out."""
    primary = found["sets"]["streets"]["comparisons"][0]
    ends = [table._to_json_number(-math.inf), table._to_json_number(math.inf)]
    other = copy.deepcopy(found)
    other["sets"]["streets"]["comparisons"] = [{**primary, "over_scenes": ends}]
    assert f"{primary['row']} - {primary['than']}** (primary)" in report.markdown(other)
    assert "| -inf to inf |" in report.markdown(other)
    missing = copy.deepcopy(other)
    missing["sets"]["streets"]["comparisons"][0]["over_scenes"] = [None, None]
    assert report.plot(other) == report.plot(missing)


def test_write_makes_three_files(found, tmp_path, monkeypatch):
    """Markdown, JSON and plot are written; without matplotlib the plot alone is missing."""
    told = report.write(found, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert (tmp_path / "report.md").read_text() == report.markdown(found)
    image = np.asarray(Image.open(io.BytesIO((tmp_path / "report.png").read_bytes())))
    assert image.std() > 10
    assert told == [f"Written: {tmp_path}/report.md {tmp_path}/report.json {tmp_path}/report.png"]
    (tmp_path / "report.png").unlink()

    def refuse() -> None:
        raise LaunchError("no matplotlib")

    monkeypatch.setattr(report.figures, "check_installed", refuse)
    assert report.write(found, tmp_path)[1] == "No report.png: no matplotlib"
    assert not (tmp_path / "report.png").exists()
