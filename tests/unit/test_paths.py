"""`~` is a home at every door, and `$NAME` is nothing but itself.

A printed command can be typed as it stands.
"""

import argparse
import ast
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from tiekd import paths
from tiekd.config.recipe import load_recipe
from tiekd.config.teacher_node import TeacherNode
from tiekd.distributed import entrypoint
from tiekd.errors import CheckpointError, DataError, LaunchError, RecipeError, TeacherError
from tiekd.evaluation import compare
from tiekd.inference.student import as_pixels, load_student
from tiekd.models.load import load_network
from tiekd.teaching import teacher_checkpoint
from tiekd.tools.arguments import add_arguments, recipe_argument, recipe_from_arguments
from tiekd.tools.benchmarks import COMMANDS
from tiekd.workdir.workdir import _problem

ROOT = Path(__file__).parents[2]
SHEBANG = b"#!/usr/bin/env python"
PROGRAMS = sorted(
    p for p in (ROOT / "bin").iterdir() if p.is_file() and p.read_bytes().startswith(SHEBANG)
)
# Options whose text is no path, or a path among other things that the program itself takes apart.
NO_PATHS = {
    *("overrides", "keys", "size", "cap", "focal", "depth_unit", "readout", "device"),
    *("num_gpus", "num_nodes", "include", "exclude", "master_port", "master_addr", "launcher"),
    *("against", "words", "restarts", "only"),
    *("data_set", "teacher_set", "student", "max_latency", "until"),
}
PATH_TYPES = (
    *(paths.path_argument, paths.path_text_argument),
    *(paths.checkpoint_argument, recipe_argument),
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a space in its name; the current folder is another one."""
    (tmp_path / "my home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "my home"


def test_expanded_home_only(home):
    """Only a leading `~` is expanded; an unknown home is an error that says what to do."""
    assert paths.expanded("~/a b/c") == f"{home}/a b/c"
    assert paths.expanded("~") == str(home)
    for text in ("a/~/b", "./~/b", "a~", "$HOME/x", "/~", "", "*~", "~a\0b"):
        assert paths.expanded(text) == text
    with pytest.raises(LaunchError) as error:
        paths.expanded("~nobody here/x", "--out ")
    assert str(error.value) == (
        "--out ~nobody here/x: no home folder is known for ~nobody here; for a name that begins "
        "with ~ write ./~nobody here/x"
    )
    Path("~backup.png").touch()
    assert paths.expanded("~backup.png") == "~backup.png"


def test_expanded_without_home_is_launch_error(monkeypatch):
    """Without a home folder `~` raises a LaunchError."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # as where the user has no entry either
    with pytest.raises(LaunchError, match="no home folder is known for ~;"):
        paths.expanded("~/x")


def test_path_option_rejects_variables(home):
    """A path option with $NAME or empty text is rejected, unless such a path exists."""
    told = r"nothing is called .*\$.*; a \$NAME in a path isn't expanded"
    for text in ("$HOME/x", "a/${DATA}/x", "$X"):
        with pytest.raises(argparse.ArgumentTypeError, match=told):
            paths.path_argument(text)
    Path("$X").mkdir()
    for text in ("$X", "$X/new", "a$", "$1/x", "US$/x", "~/x"):
        assert paths.path_argument(text) == Path(text).expanduser()
    with pytest.raises(argparse.ArgumentTypeError, match="is empty; give a path"):
        paths.path_argument("")
    assert paths.checkpoint_argument("auto") == "auto"
    assert paths.checkpoint_argument("~/c") == home / "c"
    assert paths.path_text_argument("~/c") == f"{home}/c"


def test_entrypoint_missing_path_explains_variables(capsys, monkeypatch):
    """An error about a missing path with $NAME says that variables aren't expanded."""
    for name in ("TIEKD_DEBUG", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    cases = {
        "data.root: no folder at $DATA/kitti; put KITTI there": True,
        "${DATA}/x.png: can't be read": True,
        "$DATA/x.png: torn": False,
        "no parameter fits 'head$'": False,
        "data.root: no folder at /x": False,
    }
    for message, hinted in cases.items():

        def mistaken(message=message):
            raise DataError(message)

        assert entrypoint.run(mistaken) == 2
        assert (
            capsys.readouterr().err
            == f"DataError: {message}" + (f"; {paths.VARIABLES}" if hinted else "") + "\n"
        )


def test_entrypoint_message_keeps_blanks_of_path(capsys, monkeypatch):
    """An error message keeps double blanks of a path and joins its lines."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def mistaken():
        raise DataError("/x/two  blanks.png: torn,\n  by somebody")

    entrypoint.run(mistaken)
    assert capsys.readouterr().err == "DataError: /x/two  blanks.png: torn, by somebody\n"


def parser_of(program: Path, monkeypatch, *words: str) -> list[argparse.ArgumentParser]:
    """The parsers that a program makes, before one of them reads anything."""
    parsers = []

    class Enough(Exception):
        pass

    def parse(parser, *_):
        parsers.append(parser)
        raise Enough

    def parse_known(parser, *_):
        parsers.append(parser)
        return argparse.Namespace(), []

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(program), *words])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known)
        with pytest.raises(Enough):
            runpy.run_path(str(program))["parse_arguments"]()
    for parser in list(parsers):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return parsers


CALLS = [(program, ()) for program in PROGRAMS] + [
    (ROOT / "bin/benchmark.py", (name,)) for name in COMMANDS
]


@pytest.mark.parametrize(
    ("program", "words"), CALLS, ids=lambda value: value.name if isinstance(value, Path) else None
)
def test_program_path_options_use_path_types(program, words, monkeypatch):
    """Each program's options that take a path have one of the path types."""
    actions = [
        action for parser in parser_of(program, monkeypatch, *words) for action in parser._actions
    ]
    assert len(actions) > 1
    for action in actions:
        takes_text = action.nargs != 0 and action.choices is None and action.type in (None, str)
        assert action.type is not Path, action.dest
        assert not takes_text or action.dest in NO_PATHS, (
            f"{action.dest}: a path? then type=paths.path_argument"
        )
    names = {action.dest for action in actions if action.type in PATH_TYPES}
    assert names or program.name == "benchmark.py"


@pytest.mark.parametrize(
    "words",
    [
        ("print_config.py", "~/r.yaml"),
        ("print_config.py", "r.yaml"),
        (
            "train.py",
            "~/r.yaml",
            "--work-dir=~/w",
            "--load-from=~/c",
            "--deepspeed_config=~/d.json",
        ),
        ("evaluate.py", "~/r.yaml", "~/c", "--out=~/o.json", "--panel=~/p.png"),
        ("predict.py", "~/r.yaml", "~/c.pth", "~/rides/**/*.jpg", "--out=~/o"),
        ("resume", "~/w", "--hostfile=~/h"),
        ("plot_log.py", "~/l", "--out=~/o.png"),
    ],
    ids=lambda words: words[0],
)
def test_program_arguments_expand_home(words, home, monkeypatch):
    """`~` is expanded in every path that a program parses."""
    program, *arguments = words
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    parsed = runpy.run_path(str(ROOT / "bin" / program))["parse_arguments"]()
    given = repr(parsed if not isinstance(parsed, tuple) else (parsed[0], vars(parsed[2])))
    assert "~" not in given
    assert given.count(str(home)) == sum("~" in word for word in arguments)


RECIPE = """
_base_: ~/bases/base.yaml
data:
  {name: folder, root: ~/d, images: ~/i, depths: ~/m, train_split: ~/t.txt, val_split: ~/v.txt,
   decoded: ~/a}
network:
  encoder: {name: resnet, depth: 18, pretrained: ~/e.pth}
  decoder: {name: bts}
  head: {name: sigmoid}
load: {checkpoint: ~/l.pth, ignore: ["~*"]}
work_dir: ~/runs/x
log: {exp_name: ~/no path}
"""


def test_recipe_paths_expand_home(home):
    """`~` is expanded in each path of a recipe and its bases, and in no other text."""
    (home / "bases").mkdir()
    (home / "bases/base.yaml").write_text("teacher: {maps: ~/maps}\nevaluation: {crop: none}\n")
    (home / "r.yaml").write_text(RECIPE)
    recipe = load_recipe("~/r.yaml")
    at = str(home)
    assert recipe["data"] == {
        "name": "folder",
        **{"root": f"{at}/d", "images": f"{at}/i", "depths": f"{at}/m", "decoded": f"{at}/a"},
        **{"train_split": f"{at}/t.txt", "val_split": f"{at}/v.txt"},
    }
    assert recipe["network"]["encoder"]["pretrained"] == f"{at}/e.pth"
    assert recipe["work_dir"] == f"{at}/runs/x"
    assert recipe["load"] == {"checkpoint": f"{at}/l.pth", "ignore": ["~*"]}
    assert recipe["teacher"] == {"maps": f"{at}/maps"}
    assert recipe["log"]["exp_name"] == "~/no path"


def test_teacher_and_overrides_expand_home(home):
    """`~` is expanded in teacher recipes, checkpoints and overrides."""
    (home / "t.yaml").write_text("network: {encoder: {name: resnet, pretrained: ~/e.pth}}\n")
    Path("r.yaml").write_text(
        "teacher: {recipe: ~/t.yaml, checkpoint: ~/t.pth}\ndata: {name: kitti, root: x}\n"
    )
    at = str(home)
    recipe = load_recipe(
        "r.yaml", ["data.root=~", "data.image_folder=~/i", "work_dir=~/w", "load={checkpoint: ~/c}"]
    )
    assert recipe["teacher"]["recipe"] == str((home / "t.yaml").resolve())
    assert recipe["teacher"]["checkpoint"] == f"{at}/t.pth"
    assert recipe["teacher"]["network"]["encoder"]["pretrained"] == f"{at}/e.pth"
    assert (recipe["data"]["root"], recipe["data"]["image_folder"]) == (at, f"{at}/i")
    assert (recipe["work_dir"], recipe["load"]["checkpoint"]) == (f"{at}/w", f"{at}/c")
    other = load_recipe(
        "r.yaml", ["teacher.recipe=~/t.yaml", "teacher.network.encoder.pretrained=~/f.pth"]
    )
    assert other["teacher"]["network"]["encoder"]["pretrained"] == f"{at}/f.pth"


@pytest.mark.usefixtures("home")
def test_recipe_unknown_home_is_one_line_error():
    """An unknown home in a recipe raises a RecipeError and creates no folder."""
    told = r"~nosuchuser/x: no home folder is known for ~nosuchuser; .*write \./~nosuchuser/x$"
    for text in ("work_dir: PATH", "_base_: PATH", "teacher: {recipe: PATH}", "data: {root: PATH}"):
        Path("r.yaml").write_text(text.replace("PATH", "~nosuchuser/x") + "\n")
        with pytest.raises(RecipeError, match=told):
            load_recipe("r.yaml")
    with pytest.raises(RecipeError, match="~nosuchuser"):
        load_recipe("~nosuchuser/r.yaml")
    assert [path.name for path in Path().iterdir()] == ["r.yaml"]


def test_python_functions_expand_home(home):
    """Functions called from Python expand `~` in the paths they get."""
    (home / "r.yaml").write_text("network: {}\n")
    assert load_recipe("~/r.yaml") == {"network": {}}
    with pytest.raises(CheckpointError, match=f"^{home}/x.pth"):
        load_student("~/x.pth")
    Image.new("RGB", (3, 2)).save(home / "x.png")
    assert as_pixels("~/x.png").shape == (3, 2, 3)
    assert compare.recipe_and_checkpoint("~/r.yaml") == (f"{home}/r.yaml", None)
    assert compare.recipe_and_checkpoint("~/r.yaml:~/c.pth") == (
        f"{home}/r.yaml",
        f"{home}/c.pth",
    )


@pytest.mark.usefixtures("home")
def test_recipe_variables_are_not_expanded():
    """A $NAME in a recipe stays as it is; in work_dir it is an error."""
    Path("r.yaml").write_text("work_dir: $HOME/x\ndata: {root: $HOME/d}\n")
    assert load_recipe("r.yaml") == {"work_dir": "$HOME/x", "data": {"root": "$HOME/d"}}
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(
        RecipeError, match=r"^work_dir: nothing is called \$HOME; a \$NAME in a path"
    ):
        recipe_from_arguments("r.yaml", parser.parse_args([]))


def typed(message: str, program: str) -> list[str]:
    """The words of a printed command, as a shell reads them, up to what ends it."""
    command = re.search(rf"{re.escape(program)} (.*)", message)[1]
    return shlex.split(re.split(r"[,;](?= )", command)[0])


def test_printed_commands_are_shell_quoted(tmp_path):
    """Commands in messages are quoted, so a shell reads back the path."""
    folder = tmp_path / "it's my data #2"
    (folder / "work" / "checkpoints" / "iter_3").mkdir(parents=True)
    (folder / "r.yaml").write_text(f"network: {{}}\nwork_dir: {tmp_path}/none\n")
    with pytest.raises(CheckpointError) as error:
        load_network(str(folder / "r.yaml"), None)
    assert typed(str(error.value), "bin/train.py") == [str(folder / "r.yaml")]
    assert typed(_problem(folder / "work", folder / "r.yaml", False), "bin/resume") == [
        str(folder / "work")
    ]
    for node in (
        {"recipe": str(folder / "r.yaml")},
        {"recipe": str(folder / "r.yaml"), "checkpoint": "none.pth"},
    ):
        with pytest.raises(TeacherError) as error:
            teacher_checkpoint(TeacherNode(node))
        assert typed(str(error.value), "bin/train.py")[:1] == [str(folder / "r.yaml")]


BEHIND = re.compile(
    r"bin/[\w.]+ $|.(--set|--resume-from|--load-from|--checkpoint) ([\w.=]+ )?[\w.]*=?$"
)


def unquoted(file: Path) -> list[str]:
    """Returns the values behind a program or option of a command that aren't quoted for a shell.

    They are looked for in the texts of a file.
    """
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for place, (before, value) in enumerate(zip(parts, parts[1:], strict=False)):
            text = before.value if isinstance(before, ast.Constant) else ""
            in_front = parts[place - 1] if place else None
            if isinstance(in_front, ast.FormattedValue):
                is_program = ast.unparse(in_front.value).startswith("console.command(")
                text = f"bin/program{text}" if is_program else text
            # A text that begins with an option is about it, as in "--out x: exists already".
            behind = BEHIND.search(text)
            if behind and isinstance(value, ast.FormattedValue):
                code = ast.unparse(value.value)
                if not code.startswith("shlex.") and code not in ("_recipe_of(teacher)", "options"):
                    found.append(f"{file.name}:{node.lineno}: {code}")
    return found


def test_printed_command_values_are_quoted_in_source():
    """In the source, each value put into a printed command is quoted."""
    files = [*(ROOT / "tiekd").rglob("*.py"), *PROGRAMS]
    assert [each for file in files for each in unquoted(file)] == []
    assert "options = shlex.join(" in (ROOT / "tiekd/tools/check_data.py").read_text(
        encoding="utf-8"
    )
