"""load_student needs no library that trains, and importing tiekd imports little."""

import subprocess
import sys

import pytest
from support import recipes

import tiekd
from tiekd.models.build import build_network
from tiekd.workdir.weights_file import write_weights


def test_load_student_needs_no_training_libraries(tmp_path):
    """Inference works where deepspeed, tensorboard, torchvision, triton and psutil are absent."""
    checkpoint = tmp_path / "best_abs_rel.pth"
    write_weights(checkpoint, build_network(recipes.STUDENT).state_dict(), recipes.STUDENT, 7)
    code = (
        "import sys\n"
        "missing = ('deepspeed', 'tensorboard', 'torchvision', 'triton', 'psutil')\n"
        "sys.modules |= dict.fromkeys(missing)\n"
        "import numpy, tiekd\n"
        "student = tiekd.load_student(sys.argv[1])\n"
        "print(student(numpy.zeros((32, 64, 3), 'uint8')).shape)"
    )
    words = [sys.executable, "-c", code, str(checkpoint)]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert told == "torch.Size([32, 64])\n"


def test_load_student_imports_nothing_of_training(tmp_path):
    """Of distributed/ only comm is imported, of engine/ and training/ nothing."""
    checkpoint = tmp_path / "best_abs_rel.pth"
    write_weights(checkpoint, build_network(recipes.STUDENT).state_dict(), recipes.STUDENT, 7)
    code = "import sys, tiekd; tiekd.load_student(sys.argv[1]); print(*sys.modules)"
    words = [sys.executable, "-c", code, str(checkpoint)]
    loaded = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    packages = ("tiekd.distributed.", "tiekd.engine", "tiekd.training")
    assert [name for name in loaded if name.startswith(packages)] == ["tiekd.distributed.comm"]
    assert not {"deepspeed", "tensorboard", "torchvision"} & set(loaded)


def test_import_tiekd_takes_milliseconds():
    """The fastest of five imports of tiekd takes at most 50 ms."""
    code = "from time import monotonic as now; start = now(); import tiekd; print(now() - start)"
    words = [sys.executable, "-c", code]
    times_s = [float(subprocess.check_output(words, text=True)) for _ in range(5)]
    assert min(times_s) < 0.05


def test_import_tiekd_is_lazy():
    """Importing tiekd doesn't import the student module, and unknown attributes raise."""
    code = "import sys, tiekd; "
    code += "print('tiekd.inference.student' in sys.modules, callable(tiekd.load_student))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout == "False True\n"
    with pytest.raises(AttributeError, match="no attribute 'load_teacher'"):
        tiekd.load_teacher  # noqa: B018
