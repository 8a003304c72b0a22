"""The ends of a program: the words and the exit code."""

import io
import os

import pytest

from tiekd.distributed import entrypoint, process_group
from tiekd.errors import DataError, LaunchError


def test_entrypoint_user_error_is_one_line_and_code_2(capsys, monkeypatch):
    """An error of the user is one line and code 2; any other exception is raised."""
    monkeypatch.delenv("TIEKD_DEBUG", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def mistaken():
        raise DataError("x.png: torn\nin the middle")

    assert entrypoint.run(mistaken) == 2
    assert capsys.readouterr().err == "DataError: x.png: torn in the middle\n"

    def faulty():
        raise KeyError("ours")

    with pytest.raises(KeyError):
        entrypoint.run(faulty)
    monkeypatch.setenv("TIEKD_DEBUG", "1")
    assert entrypoint.run(mistaken) == 2
    assert "Traceback" in capsys.readouterr().err


def test_entrypoint_error_escapes_control_characters(capsys, monkeypatch):
    """A name with a terminal's control characters is escaped in the error's line."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def mistaken():
        raise DataError("\x1b[2J\x9bx\x07.png: torn")

    assert entrypoint.run(mistaken) == 2
    assert capsys.readouterr().err == "DataError: \\x1b[2J\\x9bx\\x07.png: torn\n"


def test_printable_stream_escapes_control_characters():
    """The programs' own streams escape control characters but for the layout of lines."""
    file = io.BytesIO()
    stream = entrypoint._Printable(file, encoding="utf-8", errors="backslashreplace")
    assert stream.write("a\x1b[2J\tb\r\n\udcff") == 10
    stream.flush()
    assert file.getvalue() == b"a\\x1b[2J\tb\r\n\\udcff"


@pytest.mark.parametrize(
    ("visible", "accelerator", "told"),
    [
        ("GPU-8932f937", "", "CUDA_VISIBLE_DEVICES=GPU-8932f937: no GPU of that name is here"),
        ("MIG-8932f937", "", "no GPU of that name is here"),
        ("GPU-8932f937", "cpu", None),
        ("0,1", "", None),
        ("", "", None),
    ],
)
def test_check_hidden_devices_rejects_missing_gpu(visible, accelerator, told, monkeypatch):
    """A GPU name that this machine lacks is an error, unless DS_ACCELERATOR is cpu."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    if told is None:
        assert process_group._check_hidden_devices() is None
    else:
        with pytest.raises(LaunchError, match=told):
            process_group._check_hidden_devices()


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": ""}, None),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, None),
        ({"RANK": "0", "MASTER_PORT": "65535"}, None),
        ({"MASTER_PORT": "x"}, None),
        ({"RANK": "0", "MASTER_PORT": "x"}, "MASTER_PORT: got 'x'; a launcher sets it to a port"),
        ({"RANK": "0", "MASTER_PORT": ""}, "MASTER_PORT: got ''; "),
        ({"RANK": "0", "MASTER_PORT": "0"}, "MASTER_PORT: got '0'; "),
        ({"RANK": "0", "MASTER_PORT": "65536"}, "MASTER_PORT: got '65536'; "),
        ({"RANK": "3", "WORLD_SIZE": "2"}, "RANK: got 3 with WORLD_SIZE=2; it must be from 0 to 1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK: got 2 with WORLD_SIZE=2; it must be from 0 to 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK: got '-1'; "),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK: got 'one'; "),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK: got ''; "),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE: got '0'; "),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK: got 'x'; "),
        ({"LOCAL_RANK": "2", "WORLD_SIZE": "2"}, "LOCAL_RANK: got 2 with WORLD_SIZE=2; "),
        ({"LOCAL_RANK": "1", "LOCAL_SIZE": "1"}, "LOCAL_RANK: got 1 with LOCAL_SIZE=1; "),
    ],
)
def test_entrypoint_impossible_rank_is_one_line(told, line, monkeypatch, capsys):
    """A rank that no launcher gives is refused before the program starts, which would wait."""
    counts = ("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
    for name in ("RANK", "LOCAL_RANK", *counts, "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    ran = []
    assert entrypoint.run(lambda: ran.append(True)) == (0 if line is None else 2)
    assert bool(ran) == (line is None)
    err = capsys.readouterr().err
    assert err.startswith("" if line is None else f"LaunchError: {line}")
    assert err.count("\n") == (line is not None)


def test_entrypoint_folder_in_place_of_file_is_one_line(tmp_path, capsys):
    """A folder where a file is to be replaced is named in one line, with what to do."""
    (tmp_path / "new").touch()
    (tmp_path / "folder").mkdir()
    assert entrypoint.run(lambda: os.replace(tmp_path / "new", tmp_path / "folder")) == 2
    told = "Is a directory; a file is read or written there; move the folder, or give another path"
    assert capsys.readouterr().err == f"LaunchError: {tmp_path / 'folder'}: {told}\n"


def test_entrypoint_names_package_of_training_that_is_left_out(capsys):
    """On an install that only predicts, a training names the missing package in one line."""

    def trains():
        raise ModuleNotFoundError("No module named 'deepspeed'", name="deepspeed")

    assert entrypoint.run(trains) == 2
    told = "install it, or tiekd again without pip's --no-deps"
    assert capsys.readouterr().err == (
        f"LaunchError: deepspeed is not installed, and this needs it; {told}\n"
    )

    def of_the_user():
        raise ModuleNotFoundError("No module named 'my_part'", name="my_part")

    with pytest.raises(ModuleNotFoundError, match="my_part"):
        entrypoint.run(of_the_user)
