"""Parts whose many options are one dataclass are built from a recipe as those with keywords are."""

import importlib
import inspect

import pytest

from tiekd.config import kinds
from tiekd.config.build import build, check, parameters_of
from tiekd.errors import RecipeError

PARTS = {
    "grouped": """
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiekd import RecipeError


@dataclass(frozen=True)
class BlurOptions:
    width: int
    sigma: float = 1.0
    borders: Sequence[int] = field(default_factory=list)
    mask: Path | None = None
    radius: float = field(init=False, default=2.0)

    def __post_init__(self):
        if self.sigma <= 0:
            raise RecipeError(f"sigma: got {self.sigma}; it must be above 0")


def build(in_channels: int, options: BlurOptions, flip: bool = False):
    return in_channels, options, flip
""",
    # The options of a class, which it takes from the program and the recipe alike.
    "of_class": """
import dataclasses


@dataclasses.dataclass
class BlurOptions:
    in_channels: int
    width: int = 3


class Blur:
    def __init__(self, options: BlurOptions):
        self.options = options


build = Blur
""",
    # A part that takes a mapping by the same name, and a dataclass by another.
    "plain": """
from dataclasses import dataclass


@dataclass
class Blur:
    width: int = 3


def build(options: dict, blur: Blur = None):
    return options, blur
""",
    "without_init": """
from torch import nn


class Plain(nn.Module):
    pass


build = Plain
""",
}


@pytest.fixture(autouse=True)
def parts(tmp_path, monkeypatch):
    """A package of the parts in an own folder."""
    package = f"parts_{tmp_path.name}"
    (tmp_path / package).mkdir()
    for name, text in PARTS.items():
        (tmp_path / package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return package


def made(parts: str, part: str, context: dict, **node):
    return build({"name": f"{parts}.{part}"} | node, "tiekd.losses", "here", **context)


def test_build_fills_options_with_a_nodes_keys(parts):
    """Fields come from the node, are converted, and keep their defaults where it says nothing."""
    channels, options, flip = made(
        parts, "grouped", {"in_channels": 8}, width=3, mask="a", flip=True
    )
    assert (channels, flip) == (8, True)
    assert (options.width, options.sigma, options.borders) == (3, 1.0, [])
    assert str(options.mask) == "a" != options.mask


def test_check_refuses_as_build_does(parts):
    """A node is checked without a build: unknown and missing keys, types, and options' values."""
    name = f"{parts}.grouped"
    check({"name": name, "width": 3}, "tiekd.losses", "here", ("in_channels",))
    for node, told in (
        ({"width": 3, "colour": 1}, "unknown key 'colour'"),
        ({}, "needs width"),
        ({"width": "wide"}, "here.width: got 'wide'"),
        ({"width": 3, "sigma": 0.0}, "sigma: got 0.0; it must be above 0"),
    ):
        with pytest.raises(RecipeError, match=told):
            check({"name": name} | node, "tiekd.losses", "here", ("in_channels",))
    with pytest.raises(RecipeError, match="needs in_channels"):
        check({"name": name, "width": 3}, "tiekd.losses", "here")


def test_build_fills_options_with_the_programs_values(parts):
    """A field of the program's is filled by it, and no recipe can set it."""
    blur = made(parts, "of_class", {"in_channels": 8, "max_depth": 80.0}, width=5)
    assert (blur.options.in_channels, blur.options.width) == (8, 5)
    with pytest.raises(RecipeError, match=r"unknown key 'in_channels'; allowed: width$"):
        made(parts, "of_class", {"in_channels": 8}, in_channels=3)


def test_build_takes_other_dataclasses_and_options_as_before(parts):
    """Only a dataclass by the name `options` is filled; a mapping by that name stays one."""
    assert made(parts, "plain", {}, options={"a": 1}, blur={"width": 5}) == ({"a": 1}, {"width": 5})


@pytest.mark.parametrize(
    ("node", "line"),
    [
        ({"widht": 3}, "here ({}): unknown key 'widht'; did you mean 'width'? allowed: borders, "),
        ({"options": {}}, "unknown key 'options'; allowed: borders, flip, mask, sigma, width"),
        ({"radius": 3}, "unknown key 'radius'; allowed: borders, flip, mask, sigma, width"),
        ({"sigma": 2}, "here ({}): needs width"),
        ({"width": "3"}, "here.width: got '3'; it must be a whole number; write numbers without"),
        (
            {"width": 3, "borders": [1.5]},
            "here.borders: got [1.5]; it must be a list, each a whole",
        ),
        ({"width": 3, "sigma": 0}, "here.sigma: got 0; it must be above 0"),
    ],
)
def test_build_refuses_a_bad_option_in_one_line(parts, node, line):
    """The line is that of a part with plain keyword arguments."""
    with pytest.raises(RecipeError) as error:
        made(parts, "grouped", {"in_channels": 8}, **node)
    assert line.format(f"{parts}.grouped") in str(error.value)
    assert "\n" not in str(error.value)


def test_parameters_of_a_plain_build_are_its_signature(parts):
    """A build without `options` is read as it stands."""
    factory = importlib.import_module(f"{parts}.plain").build
    assert parameters_of(factory) == dict(inspect.signature(factory).parameters)


@pytest.mark.parametrize("part", list(PARTS))
def test_kinds_of_options_are_read_from_the_source(parts, part):
    """`--set` sees the same names and annotations as the factory, before the part is imported."""
    read = kinds._parameters_of_build("", f"{parts}.{part}")
    found = parameters_of(importlib.import_module(f"{parts}.{part}").build)
    # A field that no caller sets is read, too, and an annotation that isn't known is Any.
    left_out = {"radius", "blur"}
    assert [key for key in read if key != "radius"] == list(found)
    assert {key: read[key] for key in read.keys() - left_out} == {
        key: found[key].annotation for key in found.keys() - left_out
    }


def test_build_ignores_variadic_parameters(parts):
    """A class without an `__init__` of its own, which has nn.Module's, needs no arguments."""
    assert type(made(parts, "without_init", {})).__name__ == "Plain"
    with pytest.raises(RecipeError, match="unknown key 'args'"):
        made(parts, "without_init", {}, args=1)
