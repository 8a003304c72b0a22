"""Overrides of folds: what each sets, and which contradictions with rows are refused."""

import pytest

from tiekd.errors import RecipeError
from tiekd.tools.experiment import overrides
from tiekd.tools.experiment.spec import Fold


def check(folds, rows):
    folds = [Fold(f"t{place}", f"v{place}", **each) for place, each in enumerate(folds)]
    overrides.check_folds("sets.rooms.folds", folds, rows)


def maps(*folders, row=None):
    given = [[f"teacher.maps={folder}"] for folder in folders]
    return [{"rows": {row: each}} if row else {"set": each} for each in given]


def test_keys_of_names_values_inside_mappings():
    """An override sets the keys of its mapping; null and text set the key itself."""
    assert overrides.keys_of("train={seed: 3, a: {b: 1}}") == ["train.seed", "train.a.b"]
    assert overrides.keys_of("teacher=null") == ["teacher"]
    assert overrides.keys_of("data.root=a: [") == ["data.root"]


def test_check_folds_accepts_a_teacher_for_each_fold():
    """Folds may set a key for all rows or one, and a row may do without the teacher."""
    rows = {"new": ["losses.dpm.weight=2"], "old": ["teacher=null"]}
    check(maps("m0", "m1"), rows)
    check(maps("m0", "m1", row="new"), rows | {"old": ["teacher.maps=other"]})
    check([{}, {}], rows)
    check([], rows)


@pytest.mark.parametrize("other", ["teachers=[{maps: m}]", "teacher.recipe=r", "teacher={name: x}"])
def test_check_folds_refuses_one_teacher_for_all_folds(other):
    """A row that removes the folds' teacher mustn't have another, which is that of every fold."""
    with pytest.raises(RecipeError) as error:
        check(maps("m0", "m1"), {"new": ["teacher=null", other]})
    told = "gives a teacher in place of that of sets.rooms.folds.0, and would be that of every"
    assert told in str(error.value)
    assert str(error.value).endswith("and give it in sets.rooms.folds.0.rows.new")
    # Without a teacher of the folds, that of the row is no surprise.
    check([{}, {}], {"new": ["teacher=null", other]})


@pytest.mark.parametrize("other", ["teacher.recipe=r", "teacher.name=x", "teacher={name: x}"])
def test_check_folds_refuses_a_row_that_selects_another_teacher(other):
    """Another recipe or kind of teacher drops the fold's checkpoint, and would be every fold's."""
    folds = [{"set": [f"teacher.checkpoint=t{place}.pth"]} for place in (0, 1)]
    with pytest.raises(RecipeError, match="^rows.new.set: teacher.* gives a teacher in place of"):
        check(folds, {"new": [other]})
    check(folds, {"new": ["teacher.flip=true"]})
    # Nor may a row give the weights of a fold's recipe; but a fold that gives no teacher is no bar.
    recipes = [{"set": [f"teacher.recipe=t{place}.yaml"]} for place in (0, 1)]
    with pytest.raises(RecipeError, match="^rows.new.set: teacher.checkpoint gives a teacher in"):
        check(recipes, {"new": ["teacher.checkpoint=x.pth"]})
    check([{"set": [f"teacher.sigma.calibration=c{n}"]} for n in (0, 1)], {"new": [other]})
    # What a fold sets for the row alone comes after the row's overrides.
    check([{"rows": {"new": each["set"]}} for each in folds], {"new": [other]})


@pytest.mark.parametrize(
    ("folds", "given", "told"),
    [
        (
            maps("m0", "m1"),
            "teacher.maps=m",
            "rows.new.set: teacher.maps is set by sets.rooms.folds",
        ),
        (maps("m0", "m1"), "teacher={maps: m}", "rows.new.set: teacher.maps is set by"),
        (
            maps("m0", "m1", row="new"),
            "teacher.maps=m",
            "of its own in sets.rooms.folds.0.rows.new",
        ),
        ([{"set": ["teacher={}"]}], "teacher.maps=m", None),
        ([{"set": ["a=1"]}], "a.b=m", "rows.new.set: a.b is set by sets.rooms.folds.0 too"),
        (
            [*maps("m0"), {}],
            "a=1",
            "folds.1: teacher.maps of new is set in only one of folds 0 and 1; set the same keys",
        ),
        ([{"rows": {"nwe": ["a=1"]}}], "b=1", "folds.0.rows: got 'nwe'; it must be one of: new"),
        (
            [{"set": ["data={val_split: x}"]}],
            "b=1",
            "folds.0: sets data.val_split for new, which comes from the fold's train and val",
        ),
    ],
)
def test_check_folds_refuses_contradictions(folds, given, told):
    """A row that would replace a fold's value in every fold is refused, in any spelling."""
    if told is None:
        check(folds, {"new": [given]})
        return
    with pytest.raises(RecipeError) as error:
        check(folds, {"new": [given]})
    assert told in str(error.value)
    assert "\n" not in str(error.value)
