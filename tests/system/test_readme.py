"""Every command in the documents runs as it is written, from top to bottom.

reader.py says what is put in for its placeholders.

What this machine can't do as it stands is looked for in the test that does the same another way
(ELSEWHERE). A command that nothing says how to run fails. `bin/check_data.py` may end with 1, for
it finds something: the small KITTI has the same frames in both splits. So may
`bin/audit_teacher.py`, whose teacher has trained for moments.
"""

import contextlib
import re
from pathlib import Path

import pytest
from PIL import Image
from support import commands, reader
from support import programs as runs

# Command, as a pattern: a file below tests/, and what it has to say so that it still does the same.
ELSEWHERE = {
    # A student that has trained for moments has no temperature.
    r"bin/calibrate\.py .*": ("system/test_calibrate.py", '"bin" / "calibrate.py"'),
    r"bin/demo": ("system/test_demo.py", "bin/demo"),
    r"bin/distill\.py .*": ("system/test_distill.py", 'DISTILL, rides, "--teacher"'),
    r"bin/experiment\.py .*": ("system/test_experiment.py", "bin/experiment.py"),
    r"bin/predict\.py street\.jpg": ("unit/inference/test_released.py", 'arguments("street.jpg"'),
    r"python -m tiekd\.tools\.rebuild_student": (
        "system/test_rebuild_student.py",
        '"-m", "tiekd.tools.rebuild_student"',
    ),
    r"bin/test( .*)?": ("../.ci/run", "bin/test"),
    r"pip install (-e .*|'tiekd\[\w+\]')": (
        "../bin/environment.sh",
        "pip install --disable-pip-version-check -q -e",
    ),
    r"pip wheel --no-deps \.": ("unit/config/test_shipped.py", "puts into a wheel"),
    r"tensorboard --logdir .*": ("system/test_tensorboard_server.py", "--logdir"),
    r"deepspeed --hostfile hosts bin/train\.py .*": (
        "system/test_machines.py",
        '"--hostfile", "hosts", TRAIN',
    ),
    r"deepspeed --hostfile hosts --no_ssh .*": (
        "system/test_machines.py",
        '"--hostfile", "hosts", "--no_ssh", "--master_addr", "node1"',
    ),
    r"bin/resume /shared/run": ("system/test_machines.py", 'RESUME, "work")'),
    r"bin/resume /shared/run --exclude node2": ("system/test_machines.py", '"--exclude=node2"'),
    r"srun .*python bin/train\.py .*": (
        "system/test_machines.py",
        'step_of_two_tasks("python", TRAIN',
    ),
    r"srun .*python bin/resume .*": (
        "system/test_machines.py",
        'step_of_two_tasks("python", RESUME',
    ),
}
_MAY_FIND = ("bin/check_data.py", "bin/audit_teacher.py")
NO_COMMANDS = {"CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2"}  # bin/README.md is about it
COMMANDS = [command for command in commands.commands(runs.ROOT) if command not in NO_COMMANDS]


def elsewhere(command: str) -> tuple[str, str] | None:
    return next(
        (test for pattern, test in ELSEWHERE.items() if re.fullmatch(pattern, command)), None
    )


RUN_HERE = [command for command in COMMANDS if not elsewhere(command)]
TRAININGS = [
    c for c in RUN_HERE if c.startswith("deepspeed --num_gpus 2 bin/train.py model_configs/")
]
LAUNCHED = [command for command in RUN_HERE if re.search(r"deepspeed |dist_train\.sh", command)]
# Of what bin/test runs: the other commands take longer than it may.
FIRST = commands.commands(
    runs.ROOT, ("README.md", "bin/MANY_MACHINES.md", "bin/TROUBLESHOOTING.md")
)
FIRST += commands.outside_blocks((runs.ROOT / "bin" / "README.md").read_text(encoding="utf-8"))
MARKED = [
    c if c in FIRST else pytest.param(c, marks=pytest.mark.long)
    for c in RUN_HERE
    if c not in TRAININGS
]
SCRIPTS = [
    block.text
    for block in commands.blocks(runs.ROOT)
    if block.language == "python" and block.file is None
]


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A reader who has followed the README through its first trainings."""
    user = reader.Reader(tmp_path_factory.mktemp("readme") / "checkout")
    with contextlib.closing(user.server):
        for command in TRAININGS + reader.PREPARING:
            code, output = user.types(command)
            assert code == 0, f"{command}\n{output[-3000:]}"
        yield user


def test_readme_trainings_leave_documented_files(user):
    """The first trainings of the README leave the files that it lists in the work dir."""
    work_dir = user.folder / "work_dirs" / reader.STUDENT
    said = {"config.yaml", "ds_config.json", "environment.txt", "launch.json", "inputs.json"}
    said |= {"best_abs_rel.pth", "outcome.json"}
    there = {path.name for path in work_dir.iterdir()}
    assert said <= there
    assert (work_dir / "checkpoints" / "latest").exists()
    assert (work_dir / "tf_logs").is_dir()


@pytest.mark.parametrize("command", MARKED)
def test_documented_command_runs(user, command):
    """Every documented command that can run here runs as it is written."""
    code, output = user.types(command)
    assert code == 0 or (code == 1 and command.startswith(_MAY_FIND)), output[-3000:]


@pytest.mark.parametrize("text", SCRIPTS)
def test_documented_script_runs(user, text):
    """Every Python script in the documents runs as it is written."""
    script = user.folder / "bin" / "script.py"
    script.write_text(f"import sys\n\nsys.path[:0] = [{str(user.folder)!r}]\n{text}")
    code, output = user.types("bin/script.py")
    assert code == 0, output[-3000:]


@pytest.mark.parametrize("command", [command for command in COMMANDS if elsewhere(command)])
def test_documented_command_covered_by_other_test(command):
    """A documented command that can't run here stands in the test that covers it."""
    file, what = elsewhere(command)
    assert what in (runs.HERE.parent / file).read_text(encoding="utf-8")


@pytest.mark.long
def test_documented_launcher_commands_start_ranks(tmp_path):
    """The documented launcher commands run as written, with real ranks."""
    user = reader.Reader(tmp_path / "checkout")
    with contextlib.closing(user.server):
        for command in LAUNCHED:
            code, output = user.types(command, launches=True)
            assert code == 0, f"{command}\n{output[-3000:]}"


def test_readme_shows_demo_on_first_screen():
    """The README has at most 200 lines and names `bin/demo` in the first 25."""
    lines = (runs.ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "bin/demo" in lines[:25]
    assert len(lines) <= 200


def every_document() -> list[Path]:
    """All of the project, wherever git has any."""
    folders = [
        runs.ROOT / name for name in ("bin", "tests", "model_configs", "ds_configs", "tiekd")
    ]
    return [*runs.ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))]


def test_all_documents_have_their_commands_run():
    """Every Markdown file is listed among the documents whose commands are run."""
    names = {str(path.relative_to(runs.ROOT)) for path in every_document()}
    assert names == {*commands.DOCUMENTS, *commands.OF_TESTS}


def test_documents_links_and_images_exist():
    """Every link, anchor and file name in the documents exists, and so does the demo's image."""
    for document in every_document():
        text = document.read_text(encoding="utf-8")
        for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
            if link.startswith("http"):
                continue
            target = document.parent / link if link else document
            assert target.exists(), f"{document}: {link}"
            assert not anchor or anchor in anchors(target), f"{document}: {link}#{anchor}"
        for name in re.findall(
            r"`((?:bin|tests|tiekd|ds_configs|model_configs)/[\w./]+\.\w+)`", text
        ):
            assert (runs.ROOT / name).exists(), f"{document}: {name}"
    image = runs.ROOT / "bin" / "demo.jpg"
    assert image.stat().st_size <= 150_000
    assert Image.open(image).width > 500


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_documented_extras_are_in_setup():
    """Every extra in a documented `pip install` is defined in `setup.py`."""
    lists = [
        re.findall(r"\[(.*)\]", command)
        for command in COMMANDS
        if command.startswith("pip install")
    ]
    extras = set(",".join(names for names in sum(lists, [])).split(","))
    setup = (runs.ROOT / "setup.py").read_text(encoding="utf-8")
    assert extras >= {"test"}
    assert all(f'"{extra}":' in setup for extra in extras)


def test_bin_readme_names_every_program():
    """`bin/README.md` names every program of `bin/`."""
    told = (runs.ROOT / "bin" / "README.md").read_text(encoding="utf-8")
    programs = [
        path.name for path in (runs.ROOT / "bin").iterdir() if path.suffix not in (".md", ".jpg")
    ]
    programs = [name for name in programs if name != "__pycache__"]
    assert len(programs) >= 16
    assert [name for name in programs if f"`{name}`" not in told] == []
