"""The ends of a program: the words and the exit code."""

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
