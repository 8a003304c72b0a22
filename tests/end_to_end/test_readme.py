"""Every command in the READMEs runs as it is written, from top to bottom, in a small checkout (small_checkout.py).

A command that nothing here says how to run fails. What is done with one, other than running it:
- what RECIPE and the like stand for is put in (STANDS_FOR);
- a second training of a recipe gets a work dir of its own, since one that holds a run is refused;
- `deepspeed --num_gpus 2 PROGRAM` becomes two processes without the launcher (forked.py); with it in the long tests;
- what would take long on a CPU is told to do less (DOING_LESS);
- what this machine can't do as it stands is looked for in the test that does the same another way (ELSEWHERE).
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import runs
import small_checkout
from PIL import Image

STUDENT = "tiekd_mobilenet_v2_bts_kitti"
STANDS_FOR = {
    "RECIPE": f"model_configs/students/{STUDENT}.yaml",
    "TEACHER_RECIPE": "model_configs/teachers/bts_r50_kitti.yaml",
    "OTHER_RECIPE": "model_configs/teachers/bts_r50_kitti.yaml",
    "NAME": STUDENT,
}
# Before the command that begins so: the README's reader has a second run and published files.
BEFORE = {
    "bin/evaluate.py RECIPE": [
        "cp -r work_dirs/NAME work_dirs/OTHER",
        "cp work_dirs/NAME/best_abs_rel.pth ENCODER.pth",
        "python bin/import_weights.py work_dirs/NAME/best_abs_rel.pth RECIPE --out PUBLISHED.pth --to-published",
        "python bin/import_weights.py work_dirs/bts_r50_kitti/best_abs_rel.pth TEACHER_RECIPE"
        " --out PUBLISHED_TEACHER.pth --to-published",
    ],
}
DOING_LESS = {
    "bin/benchmark.py head": "--height 16 --width 32 --channels 8 --bins 33 --rounds 1",
    "bin/train.py RECIPE --dry-run --find-micro-batch": "--memory 1",
}
# Command, as a pattern: a test, and what its file has to say so that it still does the same.
ELSEWHERE = {
    r"bin/demo": ("end_to_end/test_demo.py", "bin/demo"),
    r"bin/test( .*)?": ("../.ci/run", "bin/test"),
    r"python tests/mutants\.py.*": ("README.md", "python tests/mutants.py"),
    r"pip install -e \.": ("../bin/environment.sh", "pip install --disable-pip-version-check -q -e"),
    r"tensorboard --logdir .*": ("end_to_end/test_tensorboard_server.py", "--logdir"),
    r"deepspeed --include localhost:4,5 .*": ("end_to_end/test_jobs.py", "--include localhost:4,5"),
    r"CUDA_VISIBLE_DEVICES=4,5 .* sh bin/dist_train\.sh .*": ("end_to_end/test_jobs.py", "CUDA_VISIBLE_DEVICES"),
    r"deepspeed --hostfile hosts bin/train\.py .*": ("end_to_end/test_machines.py", '"--hostfile", "hosts", TRAIN'),
    r"deepspeed --hostfile hosts --no_ssh .*": (
        "end_to_end/test_machines.py",
        '"--hostfile", "hosts", "--no_ssh", "--master_addr", "node1"',
    ),
    r"bin/resume /shared/run": ("end_to_end/test_machines.py", 'RESUME, "work")'),
    r"bin/resume /shared/run --exclude node2": ("end_to_end/test_machines.py", '"--exclude=node2"'),
    r"srun .* python bin/train\.py .*": ("end_to_end/test_machines.py", 'step_of_two_tasks("python", TRAIN'),
    r"srun .* python bin/resume .*": ("end_to_end/test_machines.py", 'step_of_two_tasks("python", RESUME'),
}
NO_COMMANDS = {"deepspeed --num_gpus 2", "CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2"}  # the README is about them
COMMANDS = [command for command in commands.commands(runs.ROOT) if command not in NO_COMMANDS]
LIMIT_S = 120


def elsewhere(command: str) -> tuple[str, str] | None:
    return next((test for pattern, test in ELSEWHERE.items() if re.fullmatch(pattern, command)), None)


RUN_HERE = [command for command in COMMANDS if not elsewhere(command)]
LAUNCHED = [command for command in RUN_HERE if command.startswith("deepspeed ")]


def filled_in(command: str) -> str:
    return re.sub(r"\b[A-Z_]+\b", lambda word: STANDS_FOR.get(word[0], word[0]), command)


class Checkout:
    """A small checkout, and the process that runs its programs."""

    def __init__(self, folder: Path):
        self.folder = small_checkout.make(folder)
        for block in commands.blocks(runs.ROOT):
            if block.file is not None:
                (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.file).write_text(block.text)
        forked = [sys.executable, folder / "tests" / "end_to_end" / "forked.py", str(LIMIT_S)]
        self.program = runs.Program(forked, cwd=folder, recorder=False, stdin=subprocess.PIPE)

    def run(self, command: str, number: int) -> tuple[int, str]:
        """Runs a command; exit code, the first that isn't 0 of many ranks, and what it said."""
        for start, preparing in BEFORE.items():
            if command.startswith(start) and not (self.folder / "work_dirs" / "OTHER").exists():
                for preparation in preparing:
                    code, output = self.run(preparation, 1000 + number)
                    assert code == 0, output[-3000:]
        less = next((less for start, less in DOING_LESS.items() if command.startswith(start)), "")
        ranks, words = twin(f"{filled_in(command)} {less}")
        out = self.folder / f"output_{number}.txt"
        if not words:
            return self.in_shell(filled_in(command))
        if words[0] == "bin/train.py" and not {"--work-dir", "--resume-from", "--dry-run"} & set(words):
            if (self.folder / "work_dirs" / Path(words[1]).stem).exists():
                words += ["--work-dir", f"work_dirs/again_{number}"]
        request = {"words": words, "environment": {}, "ranks": ranks, "out": str(out)}
        self.program.process.stdin.write(json.dumps(request) + "\n")
        self.program.process.stdin.flush()
        codes = json.loads(self.program.process.stdout.readline())
        return next((code for code in codes if code), 0), out.read_text()

    def in_shell(self, command: str) -> tuple[int, str]:
        result = runs.finish(["bash", "-c", command], cwd=self.folder, recorder=False)
        return result.code, result.stdout + result.stderr


def twin(command: str) -> tuple[int, list[str]]:
    """How many processes of which program with which arguments a command means; no words for what isn't ours."""
    words, ranks = shlex.split(command), 1
    if words[0] == "deepspeed":
        start = next(i for i, word in enumerate(words) if word.startswith("bin/"))
        ranks, words = int(words[words.index("--num_gpus") + 1]), words[start:]
    elif words[0] == "python":
        words = words[1:]
    return (ranks, words) if words[0].startswith("bin/") and words[0] != "bin/dist_train.sh" else (1, [])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and output of every command and every script, run one after another."""
    folder = tmp_path_factory.mktemp("readme") / "checkout"
    folder.mkdir()
    checkout = Checkout(folder)
    with checkout.program:
        found = {command: checkout.run(command, number) for number, command in enumerate(RUN_HERE)}
        for number, block in enumerate(block for block in commands.blocks(runs.ROOT) if block.language == "python"):
            if block.file is None:
                script = folder / "bin" / f"script_{number}.py"
                script.write_text(f"import sys\n\nsys.path[:0] = [{str(folder)!r}]\n{filled_in(block.text)}")
                found[block.text] = checkout.run(f"bin/{script.name}", 500 + number)
        found["folder"] = folder
    return found


@pytest.mark.parametrize("command", RUN_HERE)
def test_a_command_runs_as_it_is_written(outcomes, command):
    code, output = outcomes[command]
    assert code == 0, output[-3000:]


@pytest.mark.parametrize("block", [b for b in commands.blocks(runs.ROOT) if b.language == "python" and not b.file])
def test_a_script_runs_as_it_is_written(outcomes, block):
    code, output = outcomes[block.text]
    assert code == 0, output[-3000:]


@pytest.mark.parametrize("command", [command for command in COMMANDS if elsewhere(command)])
def test_a_command_that_cannot_run_here_is_run_in_another_test(command):
    file, what = elsewhere(command)
    assert what in (runs.HERE.parent / file).read_text(encoding="utf-8")


@pytest.mark.long
def test_the_launchers_commands_run_as_they_are_written(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    checkout = Checkout(folder)
    with checkout.program:
        for command in LAUNCHED:
            code, output = checkout.in_shell(filled_in(command))
            assert code == 0, f"{command}\n{output[-3000:]}"


def test_the_first_command_stands_on_the_first_screen():
    assert "bin/demo" in (runs.ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]


def test_every_link_and_picture_of_the_readmes_is_there():
    documents = [*runs.ROOT.glob("*.md"), *(p for d in ("bin", "tests", "model_configs", "ds_configs") for p in (runs.ROOT / d).glob("*.md"))]
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            assert link.startswith("http") or (document.parent / link).exists(), f"{document}: {link}"
        for name in re.findall(r"`((?:bin|tests|tiekd|ds_configs|model_configs)/[\w./]+\.\w+)`", text):
            assert (runs.ROOT / name).exists(), f"{document}: {name}"
    picture = runs.ROOT / "model_configs" / "demo.png"
    assert picture.stat().st_size <= 150_000 and Image.open(picture).width > 500


def test_every_program_is_told_of():
    told = (runs.ROOT / "bin" / "README.md").read_text(encoding="utf-8")
    programs = [path.name for path in (runs.ROOT / "bin").iterdir() if path.suffix != ".md" and path.is_file()]
    assert [name for name in programs if f"`{name}`" not in told] == []
