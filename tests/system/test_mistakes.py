"""A user's mistake ends in one line that says what to do, and exit code 2.

Nothing is changed by it.

Each mistake (mistakes.py) is tried in one process, through the programs' own mains (mains.py); six
again under the launcher.
"""

import json
import sys
from pathlib import Path

import pytest
from support import mistakes, programs, recipes, spoiling
from support.mistakes import Mistake

ALL = {
    "undivisible batch": mistakes.UNDIVISIBLE,
    **mistakes.RECIPES,
    **mistakes.ENGINES,
    **mistakes.SPLITS,
    **mistakes.IMAGES,
    **mistakes.DEPTHS,
    **mistakes.CHECKPOINTS,
    **mistakes.COMMANDS,
}
WITH_TWO_RANKS = [
    "misspelt key",
    "misspelt json key",
    "missing image",
    "unfitting teacher",
    "undivisible batch",
    "missing split",
]


def arguments(place: Path, mistake: Mistake) -> list[str]:
    recipe = spoiling.good(place)
    command = mistake.make(place, recipe) or ["{}/recipe.yaml", "--work-dir", "{}/work"]
    recipes.write_recipe(place / "recipe.yaml", recipe)
    if (place / "engine.json").exists():
        command += ["--deepspeed_config", "{}/engine.json"]
    return [word.replace("{}", str(place)) for word in command]


@pytest.fixture(scope="module")
def outcomes(ground, tmp_path_factory) -> dict[str, tuple[programs.Result, list[str]]]:
    """Per mistake: how the program ended, and what became of the files of before."""
    folder = tmp_path_factory.mktemp("mistakes")
    places = {name: spoiling.place_for(ground, folder / name.replace(" ", "_")) for name in ALL}
    commands = [arguments(place, ALL[name]) for name, place in places.items()]
    before = [programs.files_of(place) for place in places.values()]
    (folder / "arguments.json").write_text(json.dumps(commands))
    result = programs.finish(
        [sys.executable, programs.HERE / "mains.py", folder / "arguments.json"]
    )
    assert result.code == 0, result.stderr[-3000:]
    results = [programs.Result(**row) for row in json.loads((folder / "arguments.out").read_text())]
    lost = [list_lost(place, files) for place, files in zip(places.values(), before, strict=True)]
    return dict(zip(places, zip(results, lost, strict=True), strict=True))


def test_mistakes_table_has_sixty_rows():
    """The table has at least sixty mistakes."""
    assert len(ALL) >= 60


@pytest.mark.parametrize("name", ALL)
def test_mistake_is_one_line_on_one_rank(outcomes, name):
    """Each mistake ends with code 2 and its one line, and changes no file."""
    result, lost = outcomes[name]
    check(result, ALL[name])
    assert lost == []


@pytest.mark.parametrize("name", WITH_TWO_RANKS)
def test_mistake_is_one_line_under_launcher(ground, tmp_path, name):
    """A mistake under the launcher ends with code 2 and one line for both ranks."""
    place = spoiling.place_for(ground, tmp_path / "place")
    command = arguments(place, ALL[name])
    before = programs.files_of(place)
    result = programs.finish([*programs.deepspeed(2), programs.ROOT / "bin" / "train.py", *command])
    check(result, ALL[name])
    assert list_lost(place, before) == []


def check(result: programs.Result, mistake: Mistake) -> None:
    assert result.code == 2, (result.code, result.stderr[-3000:])
    assert "Traceback" not in result.stderr + result.stdout, result.stderr[-3000:]
    (line,) = result.our_lines()
    assert line.startswith(f"{mistake.kind}: "), line
    assert mistake.text in line, line
    assert len(line) < 2100, line


def list_lost(place: Path, before: dict[str, str]) -> list[str]:
    """Returns the files that changed or went, and those that came outside the work dir.

    A frame's mistake is met in training, so a work dir is there.
    """
    after = programs.files_of(place)
    changed = [name for name in before if after.get(name) != before[name]]
    return changed + [name for name in after.keys() - before.keys() if not name.startswith("work/")]
