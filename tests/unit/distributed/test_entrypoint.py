"""The ends of a program: the words and the exit code."""

import pytest

from tiekd.distributed import entrypoint, process_group
from tiekd.errors import DataError, LaunchError


def test_a_mistake_is_one_line_and_code_2_and_a_fault_is_not_hidden(capsys, monkeypatch):
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
def test_a_gpu_that_is_not_here_is_no_reason_to_train_on_the_cpu(
    visible, accelerator, told, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    if told is None:
        assert process_group._check_hidden_devices() is None
    else:
        with pytest.raises(LaunchError, match=told):
            process_group._check_hidden_devices()
