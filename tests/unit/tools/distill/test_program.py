"""The frame around the stages: the folder of --out, its plan, and signals."""

import argparse
import signal
from contextlib import suppress

import pytest

from tiekd.distributed import visible_devices
from tiekd.errors import DataError, LaunchError, TeacherError
from tiekd.tools.distill import options, program, stages
from tiekd.tools.distill import plan as plans
from tiekd.tools.distill.commands import Commands
from tiekd.tools.distill.work import Stopped
from tiekd.workdir import workdir

GIVEN = {"accept_audit": None, "init": None, "depth": None, "teacher_set": [], "launcher": []}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls the command with options; the stages are replaced by a note of their plan."""
    (tmp_path / "rides").mkdir()
    (tmp_path / "rides" / "1.jpg").touch()
    seen = []
    monkeypatch.setattr(program.stages, "run", lambda *_: seen.append(plans.read(tmp_path / "out")))
    monkeypatch.setattr(program, "_catch_signals", lambda _commands: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(program.summary, "lines", lambda *_: [])
    monkeypatch.setattr(workdir, "lock", lambda folder: folder.mkdir(exist_ok=True))

    def call(**given) -> plans.Plan:
        names = ("size", "max_latency", *plans._OPTIONS)
        node = dict.fromkeys(names) | GIVEN | {"until": None, "dry_run": False}
        node |= {"images": tmp_path / "rides", "out": tmp_path / "out", "teacher": "stereo"}
        args = argparse.Namespace(**node | {"teacher_set": ["baseline=0.5"]} | given)
        options.check(args)
        assert program.run(args) == 0
        return seen[-1]

    return call


def test_program_keeps_plan(call):
    """The plan is there before the first stage; later calls keep it, and may leave options out."""
    assert call(epochs=3, seed=4).seed == 4
    assert call(teacher=None).epochs == 3
    with pytest.raises(LaunchError, match="--epochs: got 5"):
        call(epochs=5)


def test_program_refuses_devices_at_once(call, monkeypatch, tmp_path):
    """Devices that don't exist are refused before the first stage, and nothing is written."""
    monkeypatch.setattr(visible_devices, "_uuids", lambda: ["GPU-a"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "cuda:0")
    with pytest.raises(LaunchError, match="cuda:0 is no device"):
        call(epochs=3)
    assert not (tmp_path / "out").exists()


def test_program_accepts_audit_afterwards(call):
    """--accept-audit may be added after the audit has stopped a call, and stays."""
    assert call(epochs=3).audit
    assert not call(epochs=3, accept_audit=True).audit
    assert not call(epochs=3).audit


def test_program_keeps_audit_of_training(call, tmp_path):
    """Once the training has begun, --accept-audit is refused, and later calls go on without it."""
    call(epochs=3)
    records = stages.Records(tmp_path / "out")
    records.begin("train", "key")
    with pytest.raises(LaunchError, match="--accept-audit: got False, but .* says audit: True"):
        call(epochs=3, accept_audit=True)
    assert call(epochs=3).audit


def test_program_refuses_work_dir(call, tmp_path):
    """A folder with a lock is no folder of ours unless nothing else is there."""
    out = tmp_path / "out"
    out.mkdir()
    (out / workdir.LOCK).touch()
    (out / "config.yaml").touch()
    with pytest.raises(LaunchError, match=r"--out .*: holds config.yaml, but no plan.yaml"):
        call(epochs=3)
    (out / "config.yaml").unlink()
    (out / ".1.plan.yaml.partial").touch()
    assert call(epochs=3).epochs == 3


def test_program_refuses_foreign_folder(call, tmp_path):
    """A folder with other files and no plan is refused, and stays as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(LaunchError, match=r"--out .*: holds thesis.txt, but no plan.yaml"):
        call(epochs=3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_program_checks_inputs_first(call, tmp_path):
    """Images and depth that can't be used are told before --out is made."""
    (tmp_path / "depth").mkdir()
    with pytest.raises(DataError, match="--depth: no .png or .npy file"):
        call(epochs=3, depth=tmp_path / "depth")
    (tmp_path / "rides" / "1.jpg").unlink()
    with pytest.raises(DataError, match="no .jpg, .jpeg, .png files and no videos"):
        call(epochs=3)
    assert not (tmp_path / "out").exists()


def test_program_needs_weights_of_teacher(call, tmp_path):
    """A network of ours without weights is told before anything is written."""
    (tmp_path / "net.yaml").write_text("network: {max_depth: 10.0}\n")
    with pytest.raises(TeacherError, match=r"teacher\.checkpoint: no file at none\.pth"):
        call(epochs=3, teacher=str(tmp_path / "net.yaml"), teacher_set=["checkpoint=none.pth"])
    assert not (tmp_path / "out").exists()


def test_program_refuses_folder_in_use(call, monkeypatch):
    """A folder that another call uses is refused, with the option's own name."""

    def lock(folder):
        raise LaunchError(f"{folder} is in use by process 7; give another --work-dir")

    monkeypatch.setattr(workdir, "lock", lock)
    with pytest.raises(LaunchError, match="is in use by process 7; give another --out"):
        call(epochs=3)


def test_program_signals_reach_running_program(tmp_path, monkeypatch):
    """A signal is left to the program that runs; without one it ends the stage."""
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    commands = Commands(tmp_path, 1, 1, [], print)
    program._catch_signals(commands)
    commands.is_running = True
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert commands.received_signals == [signal.SIGTERM]
    commands.is_running = False
    # Code that goes on after every failure of its own stops, too.
    with pytest.raises(Stopped, match="the same command continues"), suppress(Exception):
        handlers[signal.SIGINT](signal.SIGINT, None)
