"""What stands in the place of a file is named at once, and never waited for."""

import errno
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tiekd import files, teaching
from tiekd.config import external, recipe
from tiekd.config.teacher_node import TeacherNode
from tiekd.data import decoded_cache, image_io, orientation, splits, teacher_maps, trained_on
from tiekd.distributed import hostfile
from tiekd.engine import config as engine_config
from tiekd.errors import DataError, RecipeError, UserError
from tiekd.inference.predict import inputs, video
from tiekd.kernels import layouts
from tiekd.models.weights import state_dicts
from tiekd.tools import cache_frames, plot_log
from tiekd.training import inputs as inputs_record
from tiekd.training.hooks import text_log
from tiekd.workdir import checkpoints, launch_record, manifest, weights_file, workdir
from tiekd.workdir.weights_file import write_weights

WAITS_S = 10


class WaitsForPipe(BaseException):
    """No Exception, which a reader of damaged files would take for damage."""


@pytest.fixture(autouse=True)
def _ended_when_waiting():
    """Ends a test that waits for a pipe's writer."""

    def end(*_):
        raise WaitsForPipe

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(WAITS_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pipe(tmp_path):
    """Returns a function that puts a pipe at a name below the test's folder."""

    def made(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        return path

    return made


def said(function, *arguments) -> str:
    """The line by which a function refuses its arguments."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_instead_of_file_names_kind(pipe, tmp_path, monkeypatch):
    """Folders, pipes, sockets and devices are named, also behind a link; files are not."""
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    (tmp_path / "link").symlink_to(pipe("pipe"))
    (tmp_path / "file").touch()
    (tmp_path / "link to file").symlink_to("file")
    kinds = {
        ".": "a folder",
        "pipe": "a pipe",
        "link": "a pipe",
        "socket": "a socket",
        "/dev/null": "a device",
        "file": None,
        "link to file": None,
        "missing": None,
        "zero\0byte": None,
    }
    assert {name: files.instead_of_file(name) for name in kinds} == kinds


def test_check_readable_says_what_is_there(pipe, tmp_path):
    """A pipe is refused in one line of the class asked for; a missing file is left alone."""
    path = pipe("r.yaml")
    with pytest.raises(RecipeError) as error:
        files.check_readable(path, "recipe", RecipeError, "--recipe ")
    assert str(error.value) == f"--recipe {path}: a pipe, no recipe; put the file itself there"
    files.check_readable(tmp_path / "missing", "recipe", RecipeError)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_image_readers_refuse_pipe(suffix, pipe):
    """A pipe in the place of an image is refused, whatever its suffix."""
    path = pipe(f"a{suffix}")
    for read in (image_io.read_image, image_io.read_photo, image_io.read_image_size):
        assert said(read, path) == f"{path}: a pipe, no image; put the file itself there"
    assert said(image_io.read_levels, path).startswith(f"{path}: a pipe, no depth map; ")
    assert not image_io.is_whole_depth_png(path)


def test_orientation_in_pipe_is_upright(pipe):
    """A pipe has no EXIF orientation; reading its pixels reports it."""
    assert orientation.orientation_in(pipe("a.jpg")) == orientation.UPRIGHT


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".gif"])
def test_frames_in_pipe_is_one(suffix, pipe):
    """A pipe counts as one frame; reading its pixels reports it."""
    path = pipe(f"a{suffix}")
    assert inputs.frames_in(path) == 1
    assert not inputs.Input("a", path).is_video


def test_video_refuses_pipe(pipe):
    """A pipe in the place of a video is refused before it is opened."""
    pytest.importorskip("av")
    path = pipe("v.mp4")
    assert said(video.Video, path) == f"{path}: a pipe, no video; put the file itself there"


def test_read_lines_refuses_pipe(pipe):
    """A pipe in the place of a split file is refused."""
    path = pipe("train.txt")
    told = said(splits.read_lines, path, "a line is a name")
    assert told == f"{path}: a pipe, no split file; give a text file, a line is a name"


def test_check_output_refuses_pipe(pipe):
    """A pipe in the place of an output is refused at the start."""
    path = pipe("figures.json")
    told = said(files.check_output, "--out", path, ".json")
    assert told == f"--out {path}: a file that ends in .json is written; give one"


def test_load_recipe_refuses_pipe(pipe, tmp_path):
    """A pipe is refused as a recipe, as its base, and as the teacher's recipe."""
    path = pipe("b.yaml")
    line = f"{path}: a pipe, no recipe; put the file itself there"
    assert said(recipe.load_recipe, path) == line
    own = tmp_path / "own.yaml"
    own.write_text("_base_: b.yaml\n")
    assert said(recipe.load_recipe, own) == line
    own.write_text("teacher: {recipe: b.yaml, network: {max_depth: 10}}\n")
    assert said(recipe.load_recipe, own) == line


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize(
    ("name", "read", "line"),
    [
        ("inputs.json", inputs_record.read, "record of a run's inputs"),
        ("launch.json", launch_record.read, "record of a run's launch"),
        ("outcome.json", workdir.read_outcome, "record of a run's end"),
        ("manifest.json", teacher_maps.read_manifest, "manifest of teacher maps"),
        ("layouts.json", layouts.read, "record of a run's layouts"),
    ],
)
def test_json_of_folder_refuses_what_is_no_file(kind, name, read, line, tmp_path):
    """A pipe or a folder in the place of a JSON file is refused in one line."""
    path = tmp_path / name
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    assert said(read, tmp_path) == f"{path}: a {kind}, no {line}; put the file itself there"


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (engine_config.read_engine_config, "--deepspeed_config {}: a pipe, no engine config; "),
        (state_dicts.read_checkpoint, "{}: a pipe, no checkpoint; "),
        (plot_log._read_run, "{}: a pipe, no log of a run; "),
        (hostfile.read, "--hostfile {}: a pipe; "),
    ],
)
def test_reader_of_file_refuses_pipe(read, line, pipe):
    """A pipe in the place of a named file is refused in one line that says so."""
    path = pipe("a.log.json")
    assert said(read, path).startswith(line.format(path))


def test_teacher_checkpoint_refuses_pipe(pipe):
    """A pipe as the teacher's checkpoint is called one."""
    path = pipe("t.pth")
    told = said(teaching.teacher_checkpoint, TeacherNode({"checkpoint": str(path)}))
    assert told == f"teacher.checkpoint: {path}: a pipe, no checkpoint; put the file itself there"


def test_optional_readers_pass_over_pipe(pipe, tmp_path):
    """What isn't needed, or is reported by another reader, counts as not there."""
    pipe("launch.json")
    assert external._of_run(tmp_path) == ()
    assert trained_on.read(pipe("w.pth")) is None
    assert weights_file.made_at(pipe("best_abs_rel.pth")) == -1
    pipe(workdir.LOCK)
    assert workdir.pid_of_rank_0(tmp_path) is None


def test_locks_refuse_pipe(pipe, tmp_path):
    """A pipe in the place of a lock is named, and may be removed."""
    path = pipe(workdir.LOCK)
    assert said(workdir.lock, tmp_path) == f"{path}: a pipe, no lock; remove it"
    path = pipe(f"cache/{cache_frames._LOCK}")
    with (
        pytest.raises(DataError, match="a pipe, no lock; remove it"),
        cache_frames._locked(path.parent),
    ):
        pass


def test_checkpoint_check_names_pipe(pipe):
    """A pipe in the place of a checkpoint's manifest is its fault."""
    path = pipe("iter_1/manifest.json")
    assert manifest.check(path.parent) == "its manifest is a pipe"
    assert checkpoints.check(path.parent) == "its manifest is a pipe"


def test_drop_rows_passes_over_pipe(pipe, tmp_path):
    """A pipe beside the logs has no rows to drop."""
    path = pipe("a.log.json")
    text_log.TextLog().drop_rows(tmp_path)
    assert path.is_fifo()


def test_decoded_cache_refuses_pipe(tmp_path):
    """A pipe in the place of a decoded file can't be read."""
    source = tmp_path / "a.png"
    source.touch()
    cache = decoded_cache.Decoded(tmp_path / "cache", tmp_path)
    path = cache.path(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    assert not cache.holds(source)


@contextmanager
def small_files() -> Iterator[None]:
    """Limits this process's files to 1000 bytes.

    Decorates a test, and is no fixture: pytest itself writes between a fixture and its test.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


LIMIT = "File too large: the file size limit (ulimit -f) is 1000 bytes"


@small_files()
def test_replace_bytes_leaves_the_old_file_alone(tmp_path):
    """A file that can't be replaced stays as it was, without a partial file beside it."""
    path = tmp_path / "a"
    files.replace_bytes(path, b"old")
    with pytest.raises(OSError, match="File too large") as error:
        files.replace_bytes(path, bytes(2000))
    assert error.value.filename == str(path)
    assert files.cause_of(error.value) == LIMIT
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"


def test_replace_bytes_takes_the_longest_name(tmp_path):
    """A file with a name as long as a disk takes is written, and so is another like it."""
    for name in ("x" * 251 + ".png", "x" * 250 + "y.png"):
        files.replace_bytes(tmp_path / name, name.encode())
        assert (tmp_path / name).read_text() == name
    assert len(list(tmp_path.iterdir())) == 2


def test_replace_bytes_interrupted_leaves_no_partial_file(monkeypatch, tmp_path):
    """Ctrl-C between writing and renaming leaves no partial file."""

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.replace_bytes(tmp_path / "a", b"new")
    assert list(tmp_path.iterdir()) == []


@small_files()
def test_cause_of_names_the_limit_only_where_it_was_the_cause(tmp_path):
    """A library's own error comes from the limit if the file is as large as the limit."""
    partial = tmp_path / "partial"
    error = RuntimeError("unexpected pos 64 vs 0")
    partial.write_bytes(bytes(999))
    assert files.cause_of(error, partial) == "unexpected pos 64 vs 0"
    partial.write_bytes(bytes(1000))
    assert files.cause_of(error, partial) == LIMIT
    full = OSError(errno.ENOSPC, "No space left on device")
    assert files.cause_of(full, partial) == "No space left on device"


@pytest.mark.parametrize("content", [bytes(2000), {"a": torch.zeros(1000)}])
@small_files()
def test_checkpoint_files_name_the_limit(content, tmp_path):
    """A checkpoint's file cut by the file size limit names the limit, whoever wrote it."""
    written = manifest.Files()
    written.save(content, tmp_path / "student.pth")
    assert written.problem == f"student.pth: {LIMIT}"
    assert written.errno == errno.EFBIG


@small_files()
def test_weights_file_names_the_limit_and_leaves_no_partial_file(tmp_path):
    """Weights that exceed the file size limit name it; no partial file stays."""
    with pytest.raises(OSError, match="File too large") as error:
        write_weights(tmp_path / "best.pth", {"a": torch.zeros(1000)}, {}, 1)
    assert error.value.errno == errno.EFBIG
    assert LIMIT in str(error.value)
    assert list(tmp_path.iterdir()) == []
