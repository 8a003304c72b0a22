"""Predicting many images.

Batches are of one size, broken files are passed over, and depth has each image's size.
"""

import csv
import io
import time
import weakref
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tiekd.data.image_io import write_image
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import DataError, RecipeError
from tiekd.inference.predict.inputs import find
from tiekd.inference.predict.outputs import Outputs
from tiekd.inference.predict.prediction import READ_AHEAD, predict_all
from tiekd.inference.predict.predictor import THREADS, WAITING, Predictor, Writes
from tiekd.inference.student import Reading, Student


class Brightness(Student):
    """A student whose depth is a tenth of the red level, in metres, certain where there is any."""

    def __init__(self, refuses: tuple[int, int] = (0, 0), readout: str = "mean"):
        self.batches, self.refuses, self.readout, self.resize = [], refuses, readout, OWN_SIZE
        self.network = None

    def predict_resized(self, pixels, with_confidence=False):
        self.batches.append(tuple(pixels.shape))
        if pixels.shape[2:] == self.refuses:
            raise RecipeError("an image of 30x40 has too few patches")
        depth = pixels[:, :1].float() / 10
        return Reading(depth, (depth > 0).float(), depth / 5) if with_confidence else Reading(depth)


def folder_of(tmp_path, sizes):
    for index, size in enumerate(sizes):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_image(tmp_path / f"in/{index}.png", np.full((*size, 3), 10 * (index + 1), np.uint8))
    return tmp_path / "in"


def predict(tmp_path, folder, student, resize=OWN_SIZE, batch_size=1, **kinds):
    student.resize = resize
    out, errors = io.StringIO(), io.StringIO()
    outputs = Outputs(tmp_path / "out", 256.0, 80.0, raw=True, **kinds)
    failed = predict_all(
        Predictor(student, outputs, batch_size), find([str(folder)], tmp_path / "out"), out, errors
    )
    return failed, out.getvalue(), errors.getvalue()


def raw(tmp_path, name):
    return np.load(tmp_path / f"out/raw/{name}.npy")


def test_predict_all_batches_by_size(tmp_path):
    """Images of one size share a batch whatever their order, and depths match their images."""
    folder, student = (
        folder_of(tmp_path, [(20, 30), (30, 20), (20, 30), (30, 20), (20, 30)]),
        Brightness(),
    )
    failed, out, _ = predict(tmp_path, folder, student, batch_size=2)
    assert failed == 0
    assert sorted(student.batches) == sorted([(2, 3, 20, 30), (1, 3, 20, 30), (2, 3, 30, 20)])
    for index in range(5):
        assert raw(tmp_path, index).shape == ((30, 20) if index in (1, 3) else (20, 30))
        assert np.allclose(raw(tmp_path, index), index + 1)
    assert "images: 5/5" in out
    assert "Predicted 5 image(s)" in out
    assert "images/s" in out


def test_predict_all_skips_broken_images(tmp_path):
    """Broken images are reported in one line each, and all others are predicted."""
    folder = folder_of(tmp_path, [(20, 30)] * 3)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    (folder / "9.jpg").write_text("no image")
    failed, out, errors = predict(tmp_path, folder, Brightness(), batch_size=2)
    assert failed == 2
    assert "images: 4/4" in out
    assert "Predicted 2 image(s)" in out
    lines = errors.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("DataError: ") for line in lines)
    assert f"{folder}/1.png: a torn or damaged PNG" in errors
    assert f"{folder}/9.jpg: can't be decoded" in errors
    assert np.allclose(raw(tmp_path, 0), 1)
    assert np.allclose(raw(tmp_path, 2), 3)


def test_predict_all_reports_pages_that_are_left_out(tmp_path):
    """Of a file of several images the first is predicted, and a line says so."""
    folder = folder_of(tmp_path, [(20, 30)])
    pages = [Image.new("RGB", (30, 20), (10 * red, 0, 0)) for red in (2, 3)]
    pages[0].save(folder / "1.tif", save_all=True, append_images=pages[1:])
    failed, _, errors = predict(tmp_path, folder, Brightness())
    assert failed == 0
    assert errors == (
        f"{folder}/1.tif: contains 2 images, of which only the first is predicted; to predict all, "
        "save them as separate files, or as a GIF or a video\n"
    )
    assert np.allclose(raw(tmp_path, 1), 2)


def test_predict_all_escapes_control_characters_of_names(tmp_path):
    """A broken image's name is escaped in its line, so that a terminal doesn't obey it."""
    folder = folder_of(tmp_path, [(30, 40)])
    (folder / "a\x1b[2J.png").write_bytes(b"")
    _, _, errors = predict(tmp_path, folder, Brightness())
    assert r"a\x1b[2J.png: an empty file" in errors
    assert "\x1b" not in errors


def test_predict_all_reports_refused_size(tmp_path):
    """A size that the network rejects is reported with its file, and no output is written."""
    folder = folder_of(tmp_path, [(20, 30), (30, 40)])
    failed, _, errors = predict(tmp_path, folder, Brightness(refuses=(30, 40)))
    assert failed == 1
    assert errors == (
        f"RecipeError: {folder}/1.png, as 30x40: an image of 30x40 has too few patches; --size "
        "HxW scales images\n"
    )
    assert (tmp_path / "out/raw/0.npy").exists()
    assert not (tmp_path / "out/raw/1.npy").exists()


def test_predict_all_names_file_of_enormous_working_size(tmp_path):
    """An image whose working size would be too large is reported with its file, others aren't."""
    folder = folder_of(tmp_path, [(1, 400), (40, 60)])
    failed, _, errors = predict(tmp_path, folder, Brightness(), Resize(short_side=64))
    assert failed == 1
    assert errors.startswith(f"DataError: {folder / '0.png'}: 1x400 would be 64x25600 at the ")
    assert raw(tmp_path, "1").shape == (40, 60)


def test_predict_all_large_image_keeps_size(tmp_path):
    """A large image is resized for the network, and its outputs have the original size."""
    folder, student = tmp_path / "in", Brightness()
    folder.mkdir()
    ramp = np.repeat(np.linspace(0, 255, 400).round().astype(np.uint8)[None, :, None], 300, axis=0)
    write_image(folder / "ramp.png", np.repeat(ramp, 3, axis=2))
    assert (
        predict(tmp_path, folder, student, resize=Resize(at_most=(60, 80)), confidence=True)[0] == 0
    )
    assert student.batches == [(1, 3, 60, 80)]
    depth = raw(tmp_path, "ramp")
    assert depth.shape == (300, 400)
    assert np.abs(depth - ramp[..., 0] / 10).max() < 0.3
    assert Image.open(tmp_path / "out/confidence/ramp.png").size == (400, 300)


def test_predict_all_mode_upsampling_adds_no_depth(tmp_path):
    """Upsampling mode depth adds no values between the two sides of an edge."""
    (tmp_path / "in").mkdir()
    halves = np.full((90, 120, 3), 50, np.uint8)
    halves[:, 60:] = 250
    write_image(tmp_path / "in/halves.png", halves)
    predict(
        tmp_path,
        tmp_path / "in",
        Brightness(readout="mode"),
        Resize(height=30, width=40, mode="fit"),
    )
    # The network's input has two levels beside the edge, from shrinking the image; growing depth
    # adds none.
    assert len(np.unique(raw(tmp_path, "halves"))) == 4


def test_predict_all_batches_by_working_size(tmp_path):
    """Images with one working size share a batch, and each gets depth at its own size."""
    folder, student = folder_of(tmp_path, [(20, 30), (31, 20), (60, 90)]), Brightness()
    stretch = Resize(height=16, width=24, mode="stretch")
    assert predict(tmp_path, folder, student, stretch, batch_size=3, confidence=True)[0] == 0
    assert student.batches == [(3, 3, 16, 24)]
    for index, size in enumerate([(20, 30), (31, 20), (60, 90)]):
        assert raw(tmp_path, index).shape == size
        assert np.allclose(raw(tmp_path, index), index + 1)


def test_predict_all_contain_removes_padding(tmp_path):
    """With contain, depth has the image's size and no trace of the padding."""
    folder, student = folder_of(tmp_path, [(20, 40), (40, 20)]), Brightness()
    contain = Resize(height=32, width=32, mode="contain")
    assert predict(tmp_path, folder, student, contain, confidence=True)[0] == 0
    assert student.batches == [(1, 3, 32, 32)] * 2
    for index, size in enumerate([(20, 40), (40, 20)]):
        assert raw(tmp_path, index).shape == size
        assert np.allclose(raw(tmp_path, index), index + 1)
        confidence = np.load(tmp_path / f"out/confidence/{index}.npy")
        assert confidence.shape == size
        assert np.allclose(confidence, 1)
        depth, sigma = (np.load(tmp_path / f"out/{kind}/{index}.npy") for kind in ("raw", "sigma"))
        assert np.allclose(sigma, depth / 5, rtol=1e-5)


def test_predict_all_bounds_images_in_memory(tmp_path):
    """At most batch, read-ahead, waiting and one more full-size images are in memory.

    A thread that has just ended a write may hold its image for a moment longer.
    """
    folder, alive, most = folder_of(tmp_path, [(20, 30)] * 20), set(), []

    class Counted(Predictor):
        def prepare(self, name, path, pixels):
            alive.add(name)
            most.append(len(alive))
            image = super().prepare(name, path, pixels)
            weakref.finalize(image.pixels, alive.discard, name)
            return image

        def write(self, *arguments, **options):
            time.sleep(0.01)  # a slow disk
            super().write(*arguments, **options)

    for batch_size in (1, 8):
        outputs = Outputs(tmp_path / f"out{batch_size}", 256.0, 80.0)
        inputs, told = find([str(folder)], tmp_path / "out"), io.StringIO()
        assert predict_all(Counted(Brightness(), outputs, batch_size), inputs, told, told) == 0
        bound = batch_size + READ_AHEAD + WAITING + 1 + THREADS
        assert 1 < max(most) <= bound, (batch_size, max(most))
        most.clear()


def test_predict_all_raises_write_error(tmp_path):
    """An OSError in a writer thread is raised in the caller."""
    folder = folder_of(tmp_path, [(20, 30)] * 2)
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(NotADirectoryError):
        predict(tmp_path, folder, Brightness())


def test_writes_bounds_pending_writes():
    """At most two writes are pending at a time, and leaving the context waits for all."""

    class Write:
        asked = 0

        def result(self):
            Write.asked += 1

    with Writes() as writes:
        for count in range(10):
            writes.add(Write())
            assert count + 1 - Write.asked <= 2
    assert Write.asked == 10


def test_predict_all_video_outputs(tmp_path):
    """A video yields depth frames, times, flicker and a coloured video with the same times."""
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    from tiekd.inference.predict.video import Video, mp4_writer

    times = [0, 100, 200, 350, 400]
    with mp4_writer(tmp_path / "v.mp4", Fraction(10), Fraction(1, 1000)) as add:
        for pts in times:
            add(np.full((48, 64, 3), 100, np.uint8), pts)
    failed, out, errors = predict(tmp_path, tmp_path / "v.mp4", Brightness(), batch_size=2)
    assert failed == 0
    assert errors == ""
    assert "v.mp4, frames: 5/5" in out
    assert "Flicker: 0.0" in out
    assert "Predicted 5 frames of" in out
    assert sorted(path.name for path in (tmp_path / "out/depth/v").iterdir()) == [
        f"{i:06}.png" for i in range(5)
    ]
    rows = list(csv.DictReader((tmp_path / "out/times/v.csv").open()))
    assert [float(row["time_s"]) for row in rows] == pytest.approx([pts / 1000 for pts in times])
    assert rows[0]["static_change_m"] == ""
    assert float(rows[1]["static_share"]) == 1.0
    colours = Video(tmp_path / "out/colour/v.mp4")
    assert [frame.time_s for frame in colours.frames()] == pytest.approx(
        [pts / 1000 for pts in times]
    )
    assert not (tmp_path / "out/colour/v").exists()


def test_predict_all_removes_stale_video_frames(tmp_path):
    """A shorter rerun removes the longer video's stale frames and keeps other files."""
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    from tiekd.inference.predict.video import mp4_writer

    for count in (4, 2):
        with mp4_writer(tmp_path / "v.mp4", Fraction(10), Fraction(1, 10)) as add:
            for pts in range(count):
                add(np.full((48, 64, 3), 100, np.uint8), pts)
        assert predict(tmp_path, tmp_path / "v.mp4", Brightness())[0] == 0
        if count == 4:
            (tmp_path / "out/depth/v/mine.png").touch()
    for place in ("depth/v", "raw/v"):
        numbered = [
            path.stem
            for path in sorted((tmp_path / "out" / place).iterdir())
            if path.stem != "mine"
        ]
        assert numbered == ["000000", "000001"]
    assert (tmp_path / "out/depth/v/mine.png").exists()


def test_predict_all_video_with_varying_sizes(tmp_path, monkeypatch):
    """Frames of a video that change size are batched and predicted at each size."""
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    from tiekd.inference.predict import video

    with video.mp4_writer(tmp_path / "v.mp4", Fraction(10), Fraction(1, 10)) as add:
        for pts in range(5):
            add(np.full((48, 64, 3), 100, np.uint8), pts)
    whole = video.Video.frames

    def changing(self):
        for index, frame in enumerate(whole(self)):
            yield frame if index < 3 else frame._replace(rgb=frame.rgb[:, :40])

    monkeypatch.setattr(video.Video, "frames", changing)
    student = Brightness()
    assert predict(tmp_path, tmp_path / "v.mp4", student, batch_size=2)[0] == 0
    assert student.batches == [(2, 3, 48, 64), (1, 3, 48, 64), (2, 3, 48, 40)]
    assert [raw(tmp_path, f"v/{i:06}").shape for i in range(5)] == [(48, 64)] * 3 + [(48, 40)] * 2


def test_predict_all_keeps_frames_of_broken_video(tmp_path, monkeypatch):
    """A video that fails midway keeps its predicted frames and reports one error."""
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    from tiekd.inference.predict import video

    with video.mp4_writer(tmp_path / "v.mp4", Fraction(10), Fraction(1, 10)) as add:
        for pts in range(4):
            add(np.full((48, 64, 3), 100, np.uint8), pts)
    whole = video.Video.frames

    def breaking(self):
        yield from list(whole(self))[:2]
        raise DataError(f"{self.path}: can't be decoded after frame 1")

    monkeypatch.setattr(video.Video, "frames", breaking)
    failed, _, errors = predict(tmp_path, tmp_path / "v.mp4", Brightness())
    assert failed == 1
    assert errors.splitlines() == [f"DataError: {tmp_path}/v.mp4: can't be decoded after frame 1"]
    assert len(list((tmp_path / "out/depth/v").iterdir())) == 2
    monkeypatch.undo()
    assert len(list(video.Video(tmp_path / "out/colour/v.mp4").frames())) == 2
