"""bin/report.py on a tiny run: what it writes and refuses, and its page in headless Chromium."""

import json
import re
import shutil
import sys

import pytest
from support import browser, programs, reported_run

REPORT = "bin/report.py"
# Loads the report in a frame of each width, and writes the widths of its content into the title.
_MEASURE = """<!DOCTYPE html><iframe id="f" src="{page}" style="border:0;width:{width}px"></iframe>
<pre id="out"></pre><script>
document.getElementById("f").onload = function () {{
  const page = this.contentDocument.documentElement;
  const wide = [...page.querySelectorAll("*")].filter((e) => {{
    const style = this.contentWindow.getComputedStyle(e);
    return e.scrollWidth > e.clientWidth + 1 && style.overflowX === "visible"
      && style.display !== "inline" && !(e instanceof this.contentWindow.SVGElement);
  }});
  const images = [...page.querySelectorAll("img")].filter((e) => e.complete && e.naturalWidth);
  document.getElementById("out").textContent = "measured " + JSON.stringify({{
    content: page.scrollWidth, window: this.contentWindow.innerWidth,
    images: images.length, tables: page.querySelectorAll(".scroll").length,
    wide: wide.map((e) => e.tagName + "." + e.className) }});
}};
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs and the results of calls on them, all in one process (mains.py)."""
    folder = tmp_path_factory.mktemp("report")
    for name, options in {
        "accurate": {},
        "agreeing": {"against": "teacher"},
        "unvalidated": {"validate": False},
        "imageless": {},
        "unfinished": {},
    }.items():
        (folder / name).mkdir()
        reported_run.make(folder / name, **options)
    shutil.rmtree(folder / "imageless" / "data" / "pictures")
    for picture in (folder / "agreeing" / "data" / "pictures").rglob("1.png"):
        picture.unlink()
    (folder / "unfinished" / "work" / "best_abs_rel.pth").unlink()
    (folder / "mine.html").write_text("<html>mine</html>")
    calls = {
        # Relative paths are those of the current folder; the run's own begin at its folder.
        "accurate": [folder / "accurate"],
        "agreeing": [folder / "agreeing" / "work", "--out", folder / "agreeing.html"],
        "unvalidated": [folder / "unvalidated" / "work"],
        "imageless": [folder / "imageless" / "work"],
        "unfinished": [folder / "unfinished" / "work"],
        "none": [folder / "none"],
        "folder": [folder / "accurate", "--out", folder],
        "mine": [folder / "accurate", "--out", folder / "mine.html"],
        "export": [folder / "accurate", "--export", folder / "none.onnx"],
        "device": [folder / "accurate", "--device", "tpu"],
    }
    listing = folder / "calls.json"
    listing.write_text(json.dumps([[REPORT, *map(str, words)] for words in calls.values()]))
    result = programs.finish([sys.executable, programs.HERE / "mains.py", listing])
    assert result.code == 0, result.stderr[-3000:]
    results = json.loads((folder / "calls.out").read_text())
    (folder / "results.json").write_text(json.dumps(dict(zip(calls, results, strict=True))))
    return folder


def test_report_is_made_with_what_there_is(folder):
    """Reports are written; one without validation, or with images missing, says what it lacks."""
    results = json.loads((folder / "results.json").read_text())
    for name in ("accurate", "agreeing", "unvalidated", "imageless"):
        assert results[name]["code"] == 0, results[name]["stderr"][-3000:]
        assert "Written: " in results[name]["stdout"]
    assert "Left out" not in results["accurate"]["stdout"]
    told = results["unvalidated"]["stdout"]
    assert "Left out: Everything about validation frames: the run didn't validate" in told
    told = results["imageless"]["stdout"]
    assert "Left out: Everything about validation frames: " in told
    page = (folder / "imageless" / "work" / "report.html").read_text()
    assert "Learning curves" in page
    assert "Size and latency" in page
    page = (folder / "agreeing.html").read_text()
    assert "AGREEMENT WITH THE TEACHER, NOT ACCURACY" in page
    assert re.search("2 of the 8 validation frames of the run&#x27;s start are missing", page)


def test_report_refuses_in_one_line(folder):
    """No run, no weights, and outputs that aren't reports are refused with code 2."""
    results = json.loads((folder / "results.json").read_text())
    for name, told in {
        "none": "there is no such folder",
        "unfinished": "there are no weights in .* yet",
        "folder": "--out .*: a file that ends in .html is written",
        "mine": "mine.html: is there already, and is no report of tiekd",
        "export": "--export .*none.onnx: there is no such file",
        "device": "--device tpu: there is no such device",
    }.items():
        assert results[name]["code"] == 2, results[name]
        (line,) = results[name]["stderr"].strip().splitlines()
        assert re.search(told, line), line
    assert (folder / "mine.html").read_text() == "<html>mine</html>"


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [360, 1280])
def test_report_page_fits_its_window(folder, tmp_path, width):
    """In headless Chromium the page is no wider than the window, and its pictures are there."""
    page = folder / "accurate" / "report.html"
    measure = tmp_path / "measure.html"
    measure.write_text(_MEASURE.format(page=page.as_uri(), width=width))
    told = ""
    for _ in range(5):  # the browser's virtual clock may run out before the page is laid out
        options = ["--allow-file-access-from-files", "--dump-dom"]
        told = browser.open_page(measure.as_uri(), tmp_path / "profile", *options)
        if "measured {" in told:
            break
    found = json.loads(re.search(r"measured (\{.*?\})<", told)[1].replace("&gt;", ">"))
    assert found["window"] == width
    assert found["content"] <= width
    assert found["wide"] == []
    assert found["tables"] > 3
    assert found["images"] > 10
