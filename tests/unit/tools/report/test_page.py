"""A report as a document: what it shows, escapes and needs, and how it is recognised."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from support import reported_run
from support.noise_frames import CPU

from tiekd.data.build import build_dataset
from tiekd.evaluation import compare, report
from tiekd.evaluation.agreement import LABEL
from tiekd.tools.plot_log import Row, Run
from tiekd.tools.report import page
from tiekd.tools.report.calibrated import Calibrated
from tiekd.tools.report.markup import plain, text
from tiekd.tools.report.sections import confidence, curves
from tiekd.training import inputs

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that elements are closed in order."""

    def __init__(self, document: str):
        super().__init__()
        self.open, self.attributes, self.said, self.tags = [], [], [], set()
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture(scope="session")
def read(html) -> Reader:
    return Reader(html)


def test_document_needs_nothing_but_itself(html, read):
    """There is no script, and nothing is loaded: sources are data, links are anchors."""
    assert "<script" not in html
    assert "@import" not in html
    assert "url(" not in html
    sources = [value for _, key, value in read.attributes if key in ("src", "href", "xlink:href")]
    assert len(sources) > 10
    assert [s[:40] for s in sources if not s.startswith(("data:image/jpeg;base64,", "#"))] == []
    handlers = [key for _, key, _ in read.attributes if key.startswith("on")]
    assert handlers == []
    assert "http:" not in html
    assert "https:" not in html


def test_document_escapes_names(html, read, accurate):
    """Names of folders, frames, teachers and machines appear as they are, and open no tag."""
    assert html.encode("utf-8")  # no lone surrogate is left
    said = "".join(read.said)
    names = [each.chosen.name for each in accurate.frame_pictures]
    assert any("<" in name for name in names)
    assert [plain(name) for name in names if plain(name) not in said] == []
    assert "m<1>" in said
    assert "test <cpu>" in said
    assert {"b", "cpu", "1"} & read.tags == set()
    assert {"section", "svg", "table"} <= read.tags


def test_document_says_which_byte_a_name_has(accurate):
    """A byte that isn't UTF-8 is shown as an escape."""
    folders = list(accurate.records.splits[0].folders)
    assert reported_run.SEQUENCES[0] in folders or reported_run.SEQUENCES[1] in folders
    assert text(reported_run.BAD_BYTE) == "x\\xff.png"


def test_document_has_css_for_phones(html):
    """The page has a viewport, tables and commands scroll or wrap inside their own boxes."""
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert re.search(r"\.scroll \{ overflow-x: auto; max-width: 100%", html)
    assert "overflow-wrap: anywhere" in html
    assert "prefers-color-scheme: dark" in html
    assert html.count("<table>") == html.count('class="scroll"') > 3


def test_document_figures_are_those_of_evaluate(html, accurate):
    """The metrics and errors by range are what bin/evaluate.py prints, to its digits."""
    found = accurate.validation
    recipe, work_dir = accurate.recipe, accurate.place.work_dir
    (student,) = compare.load_networks(
        [(work_dir / "config.yaml", work_dir)], [], True, CPU
    ).values()
    names = inputs.held_out(accurate.records.inputs, recipe)
    frames = build_dataset(recipe.without_teacher().dataset, "val", held_out=names)
    result = compare.evaluate(student, frames, found.protocol, CPU, recipe.loading, None)
    table = report.comparison_table({"x": result.metrics}).splitlines()[1].split()[1:]
    cells = re.findall(r"<td>([^<]*)</td>", html)
    place = cells.index(table[0])
    assert cells[place : place + 9] == table
    rows = report.ranges_table({"x": result}).splitlines()[1:]
    for row, figures in zip(rows, result.ranges, strict=True):
        if figures.pixels:
            assert [cell for cell in row.split()[-3:] if cell not in cells] == []


def test_document_of_accuracy_is_not_labelled_agreement(html, accurate):
    """With ground truth the label is at the row against the teacher alone."""
    assert LABEL.upper() not in html
    assert f"The row against the teacher is {LABEL}." in html
    assert "<h2>Errors</h2>" in html
    assert accurate.left_out == []
    titles = set(accurate.frame_pictures[0].pictures)
    assert titles == {
        *("image", "ground truth", "teacher", "student", "difference from ground truth"),
        "excess width",
    }


def test_document_of_agreement_is_labelled_everywhere(agreeing):
    """Without accuracy each section with figures says so, and the title isn't "Errors"."""
    document = page.document(agreeing)
    assert document.count(f"{LABEL.upper()}") >= 4  # summary, figures, frames, confidence
    assert "<h2>Agreement with the teacher</h2>" in document
    assert "<h2>Errors</h2>" not in document
    assert f"Validation: abs_rel ({LABEL})" in document
    assert agreeing.agreement is None
    assert "The median map is that of the teacher&#x27;s depth of some training frames" in document
    assert agreeing.validation.measured.floor["abs_rel"] > 0


@pytest.mark.parametrize(
    ("losses", "is_logarithmic"),
    [((4.0, 2.0), False), ((400.0, 2.0), True), ((400.0, -2.0), False), ((math.nan, 2.0), False)],
)
def test_curves_of_losses_that_differ_are_logarithmic(accurate, losses, is_logarithmic):
    """Losses above 0 that differ by more than a factor of 20 have a logarithmic axis."""
    rows = [Row("train", i, i, i, {"loss": loss}) for i, loss in enumerate(losses)]
    records = accurate.records._replace(run=Run("x", rows))
    shown = "".join(curves.curves_section(replace(accurate, records=records)))
    assert ("(logarithmic)" in shown) is is_logarithmic
    assert "Learning rate" not in shown


def test_document_says_what_is_left_out(accurate):
    """Without validation frames the rest is there, and the reason is escaped."""
    bare = replace(accurate, validation=None, frame_pictures=[], left_out=["no frames: <none>"])
    document = page.document(bare)
    assert "no frames: &lt;none&gt;" in document
    assert "Learning curves" in document
    assert "<h2>Errors</h2>" not in document


def test_calibrated_confidence_is_shown_before_and_after(accurate):
    """Figures with temperature 1 and the fitted one stand side by side; stale ones are marked."""
    curves = (([0.2, 0.8], [0.1, 0.5]), ([0.2, 0.8], [0.2, 0.8]))
    figures = {"calibration_error": (0.25, 0.0125)}
    of_these = Calibrated(
        2.5, "ground truth", 0.1, "best_abs_rel.pth", 8, ["a <remark>"], figures, curves
    )
    calibrated = replace(accurate, records=accurate.records._replace(temperature=2.5))
    shown = "".join(confidence.confidence_section(replace(calibrated, calibration=of_these)))
    assert "<td>0.2500</td><td>0.0125</td>" in shown
    assert "temperature 2.5" in shown
    assert "a &lt;remark&gt;" in shown
    assert "Calibrate again" not in shown
    stale = of_these._replace(iteration=4)
    assert "other weights" in "".join(
        confidence.confidence_section(replace(calibrated, calibration=stale))
    )
    # The figures are there, and the weights weren't written.
    without = "".join(confidence.confidence_section(replace(accurate, calibration=of_these)))
    assert "The weights don" in without
    assert "hold this temperature" in without


def test_is_report_knows_its_own(tmp_path, html):
    """A document is recognised by its head, and no other file is."""
    path = tmp_path / "x.html"
    path.write_text(html)
    assert page.is_report(path)
    path.write_text("<!DOCTYPE html><html><head></head></html>")
    assert not page.is_report(path)
    assert not page.is_report(tmp_path)
    assert not page.is_report(tmp_path / "none.html")
