"""Runs the commands of the documents in a small checkout (small_checkout.py), as a reader would.

Before a command runs, it is changed where necessary:

- RECIPE and other placeholders are filled in (STANDS_FOR).
- A second training of a recipe gets another work dir, since a work dir with a run raises an error.
- `deepspeed --num_gpus 2 PROGRAM` is replaced by two processes of PROGRAM (warm.py), unless the
  test asks for the launcher.
- Options are added to commands that would take long on a CPU, and to the resume of a finished run
  (TOLD).
"""

import contextlib
import os
import re
import shlex
import signal
from pathlib import Path

from support import commands, programs, small_checkout
from support.warm import WarmServer

STUDENT = "tiekd_mobilenet_v2_bts_kitti"
STANDS_FOR = {
    "RECIPE": f"model_configs/students/{STUDENT}.yaml",
    "TEACHER_RECIPE": "model_configs/teachers/bts_r50_kitti.yaml",
    "OTHER_RECIPE": "model_configs/teachers/bts_r50_kitti.yaml",
    "NAME": STUDENT,
    "iter_N": "iter_4",
    "CHECKPOINT": f"work_dirs/{STUDENT}/best_abs_rel.pth",
}
# Commands that make further files which a reader would have: a second run, and weights with
# published names.
PREPARING = [
    "cp -r work_dirs/NAME work_dirs/OTHER",
    "cp work_dirs/NAME/*.log.json LOG.json",
    "cp work_dirs/NAME/best_abs_rel.pth ENCODER.pth",
    "bin/import_weights.py work_dirs/NAME/best_abs_rel.pth RECIPE --out PUBLISHED.pth "
    "--to-published",
    "bin/import_weights.py work_dirs/bts_r50_kitti/best_abs_rel.pth TEACHER_RECIPE --out "
    "PUBLISHED_TEACHER.pth --to-published",
]
TOLD = {
    "bin/benchmark.py head": "--height 16 --width 32 --channels 8 --bins 33 --rounds 1",
    "bin/benchmark.py loader": "--kb-crop 48 96 --crop 32 64 --rounds 1",
    "bin/benchmark.py eval": "--kb-crop 48 96 --rounds 1",
    "bin/benchmark.py layouts": "--shrink 16 --rounds 1",
    "bin/benchmark.py growth": "--height 32 --width 64 --batches 1 --crops 1 --bins 33 --rounds 1",
    **{
        f"bin/benchmark.py {word}": "--height 32 --width 64 --rounds 1"
        for word in ("step", "engine", "student", "teacher")
    },
    "bin/train.py RECIPE --dry-run --find-micro-batch": "--memory 1",
    "deepspeed --num_gpus 4 bin/resume": "--set train.epochs=3",
}
IN_SHELL = (
    "printf ",
    "cp ",
    "python tests/",
)  # commands of other programs that change nothing outside the checkout
LIMIT_S = 600


class Reader:
    """A small checkout with the files that the READMEs tell the reader to write.

    Its programs run on a warm server (warm.py), which the caller must close.
    """

    def __init__(self, folder: Path):
        self.folder, self.typed = small_checkout.make(folder), 0
        for block in commands.blocks(programs.ROOT):
            if block.file is not None:
                (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.file).write_text(block.text)
        self.server = WarmServer(folder, {**os.environ, "OMP_NUM_THREADS": "1"})

    def types(self, command: str, launches: bool = False) -> tuple[int, str]:
        """Runs a command, and returns (exit code, output).

        With several ranks, the exit code is the first one that isn't 0.

        Args:
            command: the command, as in the documents.
            launches: True to run the command in a shell, including its launcher.
        """
        self.typed += 1
        command = self._completed(command)
        ranks, words = twin(command)
        if launches or not words:
            assert launches or command.startswith(IN_SHELL), (
                f"nothing here says how to run {command}"
            )
            # Eight slots, which DeepSpeed counts from LOCAL_SIZE on a CPU, since commands use
            # devices 4 and 5.
            result = programs.finish(
                ["bash", "-c", command], cwd=self.folder, recorder=False, LOCAL_SIZE="8"
            )
            return result.code, result.stdout + result.stderr
        process = self.server.start(words, self.folder, dict(os.environ), [], ranks)
        try:
            out, errors = process.communicate(LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, out + errors

    def _completed(self, command: str) -> str:
        told = next((options for start, options in TOLD.items() if command.startswith(start)), "")
        command = f"{filled_in(command)} {told}".strip()
        trained = re.search(r"bin/(?:train\.py|dist_train\.sh) \S*?(\w+)\.yaml", command)
        if not trained or not (self.folder / "work_dirs" / trained[1]).exists():
            return command
        if re.search(r"--(work-dir|resume-from|dry-run)\b", command):
            return command
        return f"{command} --work-dir work_dirs/again_{self.typed}"


def filled_in(text: str) -> str:
    return re.sub(r"\b([A-Z_]+|iter_N)\b", lambda word: STANDS_FOR.get(word[0], word[0]), text)


def twin(command: str) -> tuple[int, list[str]]:
    """Returns (number of ranks, words) of a command; the words are the program and its arguments.

    The words are empty if the command's program isn't in bin/.
    """
    words, ranks = shlex.split(re.sub(r"^(\w+=\S+ )+", "", command)), 1
    if words[0] == "deepspeed":
        start = next(i for i, word in enumerate(words) if word.startswith("bin/"))
        chosen = dict(zip(words[1:start:2], words[2:start:2], strict=True))
        devices = chosen.get("--include", "").split(",")
        ranks, words = int(chosen.get("--num_gpus", len(devices))), words[start:]
    elif words[:2] == ["sh", "bin/dist_train.sh"]:
        ranks, words = int(words[3]), ["bin/train.py", words[2], *words[4:]]
    elif words[0] == "python":
        words = words[1:]
    return (ranks, words) if words[0].startswith("bin/") else (1, [])
