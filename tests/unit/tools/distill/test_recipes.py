"""The recipes that are written from a plan."""

import pytest

from tiekd.config.recipe import load_recipe
from tiekd.tools.distill import plan as plans
from tiekd.tools.distill import recipes
from tiekd.training.settings import Recipe

MAPS = {"teacher": {"name": "stereo", "baseline": 0.5}}


def plan(**change) -> plans.Plan:
    """Returns a plan in which everything is chosen."""
    asked = {"images": "/rides", "teacher": MAPS, "epochs": 25, "max_depth": 10.0}
    made = plans.new(asked, threads=1)
    chosen = {"batch_size": 8, "size": [96, 320], "resize_mode": "stretch", "checkpoint_every": 50}
    for key, value in {**chosen, **change}.items():
        setattr(made, key, value)
    return made


def read(made: plans.Plan, folder) -> Recipe:
    """Writes the student's recipe, and loads it as bin/train.py does."""
    recipes.write(recipes.student_recipe(made, folder), folder / "recipe.yaml", "The student.")
    return Recipe(load_recipe(folder / "recipe.yaml"))


def test_recipes_student_learns_from_maps(tmp_path):
    """The student sees images at the working resolution, learns from the maps, and is audited."""
    recipe = read(plan(), tmp_path)
    assert recipe.teachers.maps == {"teacher.maps": str(tmp_path / "maps")}
    assert recipe.teachers.nodes[0].is_audited
    assert (recipe.resize.height, recipe.resize.width, recipe.resize.mode) == (96, 320, "stretch")
    assert (recipe.max_depth_m, recipe.network["encoder"]["variant"]) == (10.0, 0)
    assert recipe.augment.crop is None
    assert recipe.dataset.part["images"] == "images"
    assert "depths" not in recipe.data


def test_recipes_validate_against_teacher_without_flip(tmp_path):
    """The figures are those of the exported file's arithmetic, about ten times in a training."""
    recipe = read(plan(), tmp_path)
    assert recipe.scores_teacher
    assert recipe.evaluation.flip is False
    assert (recipe.evaluation.interval, recipe.evaluation.by) == (3, "epoch")
    assert recipe.train.epochs == 25


def test_recipes_of_hours_have_iterations(tmp_path):
    """A training of hours has the measured iterations, and no epochs of the base."""
    recipe = read(plan(epochs=None, hours=1.0, iterations=777, patience=4, seed=5), tmp_path)
    assert (recipe.train.iterations, recipe.train.epochs, recipe.train.seed) == (777, None, 5)
    assert (recipe.evaluation.interval, recipe.evaluation.by) == (77, "iteration")
    assert recipe.node["hooks"] == [
        {"name": "ema", "decay": 0.999},
        {"name": "early_stop", "patience": 4},
    ]


def test_recipes_take_depth_and_weights(tmp_path):
    """Measured depth may be there for some images only; weights to start from are loaded."""
    made = plan(depth="/depth", depth_unit=256.0, init="/w.pth", intrinsics="/cams.txt")
    recipe = read(made, tmp_path)
    assert recipe.data["intrinsics"] == "/cams.txt"
    assert (recipe.data["depths"], recipe.data["depth_unit"]) == ("/depth", 256.0)
    assert recipe.data["unmatched"] == "allow"
    assert recipe.load.checkpoint == "/w.pth"


def test_recipes_start_from_random_weights(tmp_path):
    """`--init random` reads no weights of ImageNet."""
    assert "pretrained" not in read(plan(init="random"), tmp_path).network["encoder"]
    assert read(plan(), tmp_path).network["encoder"]["pretrained"] == "packaged"


@pytest.mark.parametrize("several", ["teacher", "teachers"])
def test_recipes_without_audit(tmp_path, several):
    """An accepted audit is off for each teacher."""
    section = {"teacher": {"maps": "/a"}}
    if several == "teachers":
        section = {"teachers": [{"maps": "/a"}, {"maps": "/b"}]}
    made = recipes.teacher_recipe(plan(audit=False), tmp_path, section)
    entries = made["teachers"] if several == "teachers" else [made["teacher"]]
    assert {each["audit"] for each in entries} == {"off"}


def test_recipes_keep_constant_sigma(tmp_path):
    """A constant sigma isn't in cached maps, so the student's recipe repeats it."""
    teacher = {"teacher": MAPS["teacher"] | {"sigma": 0.25}}
    assert recipes.with_cached_maps(plan(teacher=teacher), tmp_path)["teacher"]["sigma"] == 0.25


def test_recipes_follow_from_plan(tmp_path):
    """The same plan gives the same file."""
    read(plan(), tmp_path)
    first = (tmp_path / "recipe.yaml").read_bytes()
    read(plan(), tmp_path)
    assert (tmp_path / "recipe.yaml").read_bytes() == first
    assert first.startswith(b"# The student.\n")


def test_recipes_name_maps_of_several_teachers(tmp_path):
    """Each teacher is replaced by the folder that bin/cache_teacher.py makes for it."""
    several = [
        {"name": "stereo", "baseline": 0.5, "weight": 2.0, "sigma": 0.25},
        {"name": "stereo", "baseline": 0.7},
        {"maps": "/maps"},
    ]
    made = plan(teacher={"teachers": several})
    written = recipes.teacher_recipe(made, tmp_path, made.teacher)
    recipes.write(written, tmp_path / recipes.TEACHER, "The teachers.")
    maps = tmp_path / "maps"
    assert recipes.with_cached_maps(made, tmp_path)["teachers"] == [
        {"maps": f"{maps}/gt_kd_stereo_0", "weight": 2.0, "sigma": 0.25},
        {"maps": f"{maps}/gt_kd_stereo_1"},
        {"maps": "/maps"},
    ]
