"""The parts of tests/digests.py that start no program."""

from pathlib import Path

import digest_lab
import digests
import torch

HEAD = "2026-11-29 20:28:05,419 - depth - INFO - "
TIMES = "eta: 1 day, 0:01:26, time: 0.615, data_time: 0.031, memory: 12, "
LOG = f"""{HEAD}Training frames: 120
{HEAD}Environment info:
------
CPU: x86_64, 2 cores
------

{HEAD}Start running, host: root@vm, work_dir: /a/b
{HEAD}Epoch [1][10/30]\tlr: 1.357e-04, {TIMES}loss: 3.4003
{HEAD}
+----+
| a1 |
+----+
{HEAD}Epoch(val) [5][32]\ta1: 0.6790
"""


def test_figures_and_words_splits_log():
    """A log is split into figures, without times, and other lines."""
    figures, words = digest_lab.figures_and_words(LOG)
    assert figures == [
        "Epoch [1][10/30]\tlr: 1.357e-04, loss: 3.4003",
        "+----+\n| a1 |\n+----+",
        "Epoch(val) [5][32]\ta1: 0.6790",
    ]
    assert words == ["Training frames: 120"]


def test_without_places_and_sizes_masks_text():
    """Paths, sizes, durations and progress are masked; metres are not."""
    places = {Path("/a"): "<checkout>", Path("/a/b"): "<work>"}
    assert (
        digest_lab.without_places("/a/b/x.pth of /a/bin", places)
        == "<work>/x.pth of <checkout>/bin"
    )
    moving = "maps: 3/16, 24.3/s, eta: 0:00:01\n[2026-11-30 00:18:20,224] [WARNING] [x.py] none\n"
    assert digest_lab.without_sizes(f"a\n{moving}2 images in 3 s: 7.5 images/s") == (
        "a\n2 images in # s: # images/s"
    )
    assert digest_lab.without_sizes("12.5 MB in 1,200 s, up to 80 m") == "# MB in # s, up to 80 m"


def test_bits_of_tensors_include_name_dtype_shape():
    """A tensor's name, dtype, shape and each bit change its bytes; order doesn't."""

    def bits(value) -> bytes:
        return b"".join(digest_lab.bits_of(value))

    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    assert bits(one) == bits(dict(reversed(one.items())))
    others = [
        {**one, "a": torch.tensor([1.0, 2.0000002])},
        {**one, "a": torch.tensor([[1.0, 2.0]])},
        {**one, "b": torch.tensor(3, dtype=torch.int32)},
        {"a": one["a"], "c": one["b"]},
        {**one, "a": torch.tensor([-0.0, 2.0])},
    ]
    assert len({bits(one), *map(bits, others)}) == 6


def test_compared_reports_differing_digests():
    """Digests that differ or are missing are reported; words may be excepted."""
    before = digests.read("plain.rows  aa\nplain.log.words  bb\nzero1.rows  cc\n", ["plain"])
    assert before == {"plain.rows": "aa", "plain.log.words": "bb"}
    lines, differs = digests.compared(before, {"plain.rows": "aa", "plain.log.words": "bc"})
    assert differs
    assert [line.endswith("DIFFERS") for line in lines] == [False, True, False]
    assert not digests.compared(before, {"plain.rows": "aa", "plain.log.words": "bc"}, True)[1]
    assert digests.compared(before, {"plain.log.words": "bb"}, True)[1]


def test_compared_with_a_case_that_is_new():
    """It differs from nothing, and is counted; a new digest of an old case is a difference."""
    before = {"plain.rows": "aa"}
    lines, differs = digests.compared(before, before | {"student_timm.rows": "bb"})
    assert not differs
    assert lines[-2].endswith("bb  new case")
    assert lines[-1] == "1 of 1 digests are equal; 0 differ, 0 of words; 1 of new cases"
    assert digests.compared(before, before | {"plain.weights": "bb"})[1]


def test_digest_cases_cover_every_part(tmp_path):
    """A case includes the cases it needs, and each part of tiekd has one."""
    assert digests.with_needs(["on_decoded"]) == {"on_decoded", "decoded", "maps", "teacher"}
    assert digests.parts_without_case(digests.ROOT) == []
    new = tmp_path / "tiekd" / "models" / "encoders" / "new.py"
    new.parent.mkdir(parents=True)
    new.write_text("build = New\n")
    assert digests.parts_without_case(tmp_path) == ["tiekd/models/encoders/new.py"]
