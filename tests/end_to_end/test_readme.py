"""Every command in the READMEs runs as it is written, from top to bottom, in a small checkout (small_checkout.py).

A command that nothing here says how to run fails. What is done with one, other than running it:
- what RECIPE and the like stand for is put in (STANDS_FOR);
- a second training of a recipe gets a work dir of its own, since one that holds a run is refused;
- `deepspeed --num_gpus 2 PROGRAM` becomes two processes without the launcher (forked.py); with it in the long tests;
- what would take long on a CPU is told to do less (DOING_LESS);
- `bin/check_data.py` may end with 1, for it finds something: the small KITTI has the same frames in both splits;
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
    "CHECKPOINT": f"work_dirs/{STUDENT}/best_abs_rel.pth",
}
# What the README's reader has besides: a second run, and files with published names.
PREPARING = [
    "cp -r work_dirs/NAME work_dirs/OTHER",
    "cp work_dirs/NAME/*.log.json LOG.json",
    "cp work_dirs/NAME/best_abs_rel.pth ENCODER.pth",
    "bin/import_weights.py work_dirs/NAME/best_abs_rel.pth RECIPE --out PUBLISHED.pth --to-published",
    "bin/import_weights.py work_dirs/bts_r50_kitti/best_abs_rel.pth TEACHER_RECIPE --out PUBLISHED_TEACHER.pth"
    " --to-published",
]
DOING_LESS = {
    "bin/benchmark.py head": "--height 16 --width 32 --channels 8 --bins 33 --rounds 1",
    "bin/train.py RECIPE --dry-run --find-micro-batch": "--memory 1",
}
# Command, as a pattern: a test, and what its file has to say so that it still does the same.
ELSEWHERE = {
    r"bin/demo": ("end_to_end/test_demo.py", "bin/demo"),
    r"bin/test( .*)?": ("../.ci/run", "bin/test"),
    r"pip install -e .*": ("../bin/environment.sh", "pip install --disable-pip-version-check -q -e"),
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
    r"srun .*python bin/train\.py .*": ("end_to_end/test_machines.py", 'step_of_two_tasks("python", TRAIN'),
    r"srun .* python bin/resume .*": ("end_to_end/test_machines.py", 'step_of_two_tasks("python", RESUME'),
}
NO_COMMANDS = {"deepspeed --num_gpus 2", "CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2"}  # the README is about them
COMMANDS = [command for command in commands.commands(runs.ROOT) if command not in NO_COMMANDS]
LIMIT_S = 120


def elsewhere(command: str) -> tuple[str, str] | None:
    return next((test for pattern, test in ELSEWHERE.items() if re.fullmatch(pattern, command)), None)


RUN_HERE = [command for command in COMMANDS if not elsewhere(command)]
TRAININGS = [c for c in RUN_HERE if c.startswith("deepspeed --num_gpus 2 bin/train.py model_configs/")]
LAUNCHED = [command for command in RUN_HERE if command.startswith("deepspeed ")]
FIRST = commands.commands(runs.ROOT, ("README.md",))  # those of the other documents take longer than bin/test may
MARKED = [c if c in FIRST else pytest.param(c, marks=pytest.mark.long) for c in RUN_HERE if c not in TRAININGS]


def filled_in(command: str) -> str:
    return re.sub(r"\b[A-Z_]+\b", lambda word: STANDS_FOR.get(word[0], word[0]), command)


class Checkout:
    """A small checkout, and the process that runs its programs."""

    def __init__(self, folder: Path):
        self.folder, self.runs = small_checkout.make(folder), 0
        for block in commands.blocks(runs.ROOT):
            if block.file is not None:
                (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.file).write_text(block.text)
        forked = [sys.executable, folder / "tests" / "end_to_end" / "forked.py", str(LIMIT_S)]
        self.program = runs.Program(forked, cwd=folder, recorder=False, stdin=subprocess.PIPE)

    def completed(self, command: str) -> str:
        """A command as it is run here; see this module's head."""
        less = next((less for start, less in DOING_LESS.items() if command.startswith(start)), "")
        command = f"{filled_in(command)} {less}".strip()
        trained = re.search(r"bin/(?:train\.py|dist_train\.sh) \S*?(\w+)\.yaml", command)
        if not trained or not (self.folder / "work_dirs" / trained[1]).exists():
            return command
        if re.search(r"--(work-dir|resume-from|dry-run)\b", command):
            return command
        return f"{command} --work-dir work_dirs/again_{self.runs}"

    def run(self, command: str, launch: bool = False) -> tuple[int, str]:
        """Runs a command, with the launcher or without; its exit code, or the first rank's that isn't 0, and output."""
        self.runs += 1
        command = self.completed(command)
        ranks, words = twin(command)
        if launch or not words:
            result = runs.finish(["bash", "-c", command], cwd=self.folder, recorder=False)
            return result.code, result.stdout + result.stderr
        out = self.folder / f"output_{self.runs}.txt"
        request = {"words": words, "environment": {}, "ranks": ranks, "out": str(out)}
        self.program.process.stdin.write(json.dumps(request) + "\n")
        self.program.process.stdin.flush()
        codes = json.loads(self.program.process.stdout.readline())
        return next((code for code in codes if code), 0), out.read_text()


def twin(command: str) -> tuple[int, list[str]]:
    """How many processes of which program with which arguments a command means; no words for what isn't ours."""
    words, ranks = shlex.split(command), 1
    if words[0] == "deepspeed":
        start = next(i for i, word in enumerate(words) if word.startswith("bin/"))
        ranks, words = int(words[words.index("--num_gpus") + 1]), words[start:]
    elif words[:2] == ["sh", "bin/dist_train.sh"]:
        ranks, words = int(words[3]), ["bin/train.py", words[2], *words[4:]]
    elif words[0] == "python":
        words = words[1:]
    return (ranks, words) if words[0].startswith("bin/") else (1, [])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Where the README's first trainings have been run, and the rest of what its reader has is there."""
    checkout = Checkout(tmp_path_factory.mktemp("readme") / "checkout")
    with checkout.program:
        for command in TRAININGS + PREPARING:
            code, output = checkout.run(command)
            assert code == 0, f"{command}\n{output[-3000:]}"
        yield checkout


def test_the_first_trainings_have_left_what_the_readme_says(checkout):
    work_dir = checkout.folder / "work_dirs" / STUDENT
    said = {"config.yaml", "ds_config.json", "environment.txt", "launch.json", "best_abs_rel.pth", "outcome.json"}
    there = {path.name for path in work_dir.iterdir()}
    assert said <= there and (work_dir / "checkpoints" / "latest").exists() and (work_dir / "tf_logs").is_dir()


@pytest.mark.parametrize("command", MARKED)
def test_a_command_runs_as_it_is_written(checkout, command):
    code, output = checkout.run(command)
    assert code == 0 or (code == 1 and command.startswith("bin/check_data.py")), output[-3000:]


@pytest.mark.parametrize("block", [b for b in commands.blocks(runs.ROOT) if b.language == "python" and not b.file])
def test_a_script_runs_as_it_is_written(checkout, block):
    script = checkout.folder / "bin" / "script.py"
    script.write_text(f"import sys\n\nsys.path[:0] = [{str(checkout.folder)!r}]\n{filled_in(block.text)}")
    code, output = checkout.run("bin/script.py")
    assert code == 0, output[-3000:]


@pytest.mark.parametrize("command", [command for command in COMMANDS if elsewhere(command)])
def test_a_command_that_cannot_run_here_is_run_in_another_test(command):
    file, what = elsewhere(command)
    assert what in (runs.HERE.parent / file).read_text(encoding="utf-8")


@pytest.mark.long
def test_the_launchers_commands_run_as_they_are_written(tmp_path):
    checkout = Checkout(tmp_path / "checkout")
    with checkout.program:
        for command in LAUNCHED:
            code, output = checkout.run(command, launch=True)
            assert code == 0, f"{command}\n{output[-3000:]}"


def test_the_first_command_stands_on_the_first_screen():
    assert "bin/demo" in (runs.ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]


def test_every_link_and_picture_of_the_readmes_is_there():
    folders = (runs.ROOT, *(runs.ROOT / name for name in ("bin", "tests", "model_configs", "ds_configs")))
    documents = [document for folder in folders for document in folder.glob("*.md")]
    assert len(documents) >= 8
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            assert link.startswith("http") or (document.parent / link).exists(), f"{document}: {link}"
        for name in re.findall(r"`((?:bin|tests|tiekd|ds_configs|model_configs)/[\w./]+\.\w+)`", text):
            assert (runs.ROOT / name).exists(), f"{document}: {name}"
    picture = runs.ROOT / "bin" / "demo.png"
    assert picture.stat().st_size <= 150_000 and Image.open(picture).width > 500


def test_every_extra_that_is_to_be_installed_is_one():
    lists = [re.findall(r"\[(.*)\]", command) for command in COMMANDS if command.startswith("pip install")]
    extras = set(",".join(names for names in sum(lists, [])).split(","))
    setup = (runs.ROOT / "setup.py").read_text(encoding="utf-8")
    assert extras >= {"test"} and all(f'"{extra}":' in setup for extra in extras)


def test_every_program_is_told_of():
    told = (runs.ROOT / "bin" / "README.md").read_text(encoding="utf-8")
    programs = [path.name for path in (runs.ROOT / "bin").iterdir() if path.suffix != ".md" and path.is_file()]
    assert [name for name in programs if f"`{name}`" not in told] == []
