"""The teacher's section: a network, cached maps, a module from outside, or the ground truth."""

from pathlib import Path

import pytest

from tiekd.config.teacher_node import TeacherList, TeacherNode, errors_of, kinds, without_teacher
from tiekd.errors import RecipeError

NETWORK = {"encoder": {}, "decoder": {}, "head": {}}


def answers(node: dict | None) -> tuple:
    teacher = TeacherNode(node)
    return (
        teacher.module,
        teacher.maps,
        teacher.network,
        teacher.recipe,
        teacher.checkpoint,
    )


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (None, (None, None, None, None, None)),
        ({"maps": "gt_kd"}, (None, "gt_kd", None, None, None)),
        (
            {"network": NETWORK, "recipe": "big.yaml", "checkpoint": "x.pth"},
            (None, None, NETWORK, Path("big.yaml"), Path("x.pth")),
        ),
        # All other keys of a module are arguments of its own.
        (
            {
                "name": "mine.teacher",
                "maps": "m",
                "checkpoint": "x.pth",
                "recipe": "r",
                "network": {},
            },
            ("mine.teacher", None, None, None, None),
        ),
        # So are those of a kind.
        ({"name": "moge", "maps": "m", "checkpoint": "x.pth"}, (None, None, None, None, None)),
        # Maps that were made with this network: it isn't asked.
        ({"maps": "gt_kd", "network": NETWORK}, (None, "gt_kd", None, None, None)),
    ],
)
def test_teacher_node_names_what_its_kind_has(node, expected):
    """A section answers for its own kind of teacher alone."""
    assert answers(node) == expected
    assert TeacherList.of({"teacher": node}).is_given == (node is not None)


@pytest.mark.parametrize(
    ("node", "name", "kind", "module"),
    [
        (None, None, None, None),
        ({"maps": "m"}, None, None, None),
        ({"name": "moge", "model": "m"}, "moge", "moge", None),
        ({"name": "mine.teacher"}, "mine.teacher", None, "mine.teacher"),
    ],
)
def test_teacher_node_name_is_a_kind_or_a_module(node, name, kind, module):
    """A dot tells a module of the user's from a kind of the project."""
    teacher = TeacherNode(node)
    assert (teacher.name, teacher.kind, teacher.module) == (name, kind, module)


def test_kinds_are_the_teachers_that_a_section_names():
    """What other keys ask for isn't among them."""
    assert kinds() == [
        *("average", "depth_anything_3", "exported", "huggingface", "moge", "stereo", "unidepth"),
    ]


def test_model_files_of_a_folder_of_a_file_and_of_an_id(tmp_path):
    """Files that say what the teacher computes are named; a hub ID and a network have none."""
    (tmp_path / "sub").mkdir()
    for name in ("config.json", "model.safetensors", "sub/other.json"):
        (tmp_path / name).touch()
    files = [tmp_path / "config.json", tmp_path / "model.safetensors"]
    assert TeacherNode({"name": "moge", "model": str(tmp_path)}).model_files == files
    assert TeacherNode({"name": "exported", "file": str(files[0])}).model_files == files[:1]
    assert TeacherNode({"name": "moge", "model": "owner/name"}).model_files == []
    assert TeacherNode({"name": "mine.teacher", "model": str(tmp_path)}).model_files == []
    assert TeacherNode({"maps": str(tmp_path)}).model_files == []
    assert TeacherNode(None).model_files == []


def test_teacher_node_of_a_recipe_without_the_section():
    """The ground truth teaches; so it does where an override took the section away."""
    assert not TeacherList.of({}).is_given
    for given in ({"teacher": {"maps": "m"}}, {"teachers": [{"maps": "m"}]}):
        assert TeacherList.of(given).is_given
        assert not TeacherList.of(without_teacher(given)).is_given
    assert without_teacher({"data": {}})["data"] == {}


def test_recipe_without_teacher_is_evaluated_on_ground_truth():
    """`evaluation.against: teacher` goes with the teacher; all else of the section stays."""
    evaluation = {"against": "teacher", "crop": "none"}
    recipe = {"teacher": {"maps": "m"}, "evaluation": evaluation}
    assert without_teacher(recipe)["evaluation"] == {"crop": "none"}
    assert evaluation["against"] == "teacher"


@pytest.mark.parametrize(
    ("node", "own"),
    [(None, True), ({"flip": False}, True), ({"maps": "m"}, False), ({"recipe": "r"}, False)],
)
def test_teacher_node_without_a_teacher_stands_for_the_recipe_s_network(node, own):
    """How a flip is averaged is said of the recipe's own network, too."""
    assert TeacherNode(node).is_the_recipes_network is own


def test_network_recipe_is_needed_until_the_network_is_whole(tmp_path):
    """A saved recipe has the network whole, or the other recipe's file is gone."""
    path = tmp_path / "big.yaml"
    path.touch()
    part = {"recipe": str(path), "network": {"head": {}}}
    assert TeacherNode({"recipe": str(path)}).network_recipe() == path
    assert TeacherNode(part).network_recipe() == path
    assert TeacherNode(part | {"network": NETWORK}).network_recipe() is None
    path.unlink()
    assert TeacherNode(part).network_recipe() is None
    assert TeacherNode({"recipe": str(path)}).network_recipe() == path
    assert TeacherNode({"name": "mine.teacher", "recipe": str(path)}).network_recipe() is None
    assert TeacherNode(None).network_recipe() is None


def test_with_checkpoint_changes_a_copy():
    """The given section stays as it is."""
    node = {"network": NETWORK}
    assert TeacherNode(node).with_checkpoint(Path("x.pth")).node == node | {"checkpoint": "x.pth"}
    assert node == {"network": NETWORK}


@pytest.mark.parametrize(
    ("node", "line"),
    [
        ({"checkpiont": "x"}, "^teacher: unknown key 'checkpiont'; did you mean 'checkpoint'"),
        ({"flip": "yes"}, "^teacher.flip: got 'yes'; it must be true or false"),
        ({"name": "hugingface"}, "^teacher.name: got 'hugingface'; allowed: huggingface, "),
        ({"name": "mogge"}, "^teacher.name: got 'mogge'; allowed: moge, "),
        ({"name": "network"}, "^teacher.name: got 'network'; allowed: .*, or a module of yours"),
        ({"name": "maps"}, "^teacher.name: got 'maps'; allowed: "),
        ({"name": 3}, "^teacher.name: got 3; allowed: "),
    ],
)
def test_check_refuses_what_no_teacher_has(node, line):
    """The line names the key."""
    with pytest.raises(RecipeError, match=line):
        TeacherNode(node).check()


def test_check_leaves_a_module_its_arguments():
    """Only the module knows which arguments it takes."""
    TeacherNode({"name": "mine.teacher", "anything": object}).check()
    TeacherNode(None).check()


def test_teachers_of_a_recipe_in_order():
    """One teacher, several of a mixture and those of a mean are each listed by their places."""
    entries = [{"maps": "a", "weight": 2.0, "sigma": 0.5}, {"name": "moge"}, {"maps": "b"}]
    one = TeacherList.of({"teacher": {"maps": "a"}})
    assert [(node.where, node.weight, node.sigma) for node in one.nodes] == [("teacher", 1.0, None)]
    assert one.several is None
    several = TeacherList.of({"teachers": entries})
    places = [(node.where, node.weight, node.sigma) for node in several.nodes]
    assert places == [
        ("teachers[0]", 2.0, 0.5),
        ("teachers[1]", 1.0, None),
        ("teachers[2]", 1.0, None),
    ]
    assert several.maps == {"teachers[0].maps": "a", "teachers[2].maps": "b"}
    assert [several.map_index_of(index) for index in range(3)] == [0, 1, 1]
    mean = TeacherList.of({"teacher": {"name": "average", "teachers": entries, "audit": "off"}})
    assert mean.nodes[0].where == "teacher.teachers[0]"
    assert (mean.several, mean.weights, mean.is_audited) == ("teacher.teachers", "given", False)


def test_part_of_several_leaves_out_weight_and_constant_sigma():
    """A teacher gets neither; a sigma that is no number is its own affair."""
    node = {"name": "mine.teacher", "weight": 2.0, "sigma": 0.5, "audit": "off"}
    assert TeacherNode(node, "teachers[0]").own_section == {"name": "mine.teacher"}
    own = node | {"sigma": {"from": "flip"}}
    assert TeacherNode(own, "teachers[0]").own_section == {
        "name": "mine.teacher",
        "sigma": {"from": "flip"},
    }
    # They are arguments of the only teacher's module.
    assert TeacherNode(node).own_section == {"name": "mine.teacher", "weight": 2.0, "sigma": 0.5}
    assert (TeacherNode(node).weight, TeacherNode(node).sigma) == (1.0, None)


def test_put_replaces_each_section():
    """The sections of one teacher, of several and of a mean are replaced where they stand."""
    for recipe in (
        {"teacher": {"maps": "a"}},
        {"teachers": [{"maps": "a"}, {"maps": "b"}]},
        {"teacher": {"name": "average", "teachers": [{"maps": "a"}]}},
    ):
        teachers = TeacherList.of(recipe)
        replaced = teachers.replace_in(recipe, lambda node: node.node | {"audit": node.where})
        found = TeacherList.of(replaced)
        assert [n.node["audit"] for n in found.nodes] == [n.where for n in teachers.nodes]
        assert found.several == teachers.several
    assert TeacherList.of({}).replace_in({"data": {}}, None) == {"data": {}}


MEAN = {"name": "average", "teachers": [{"maps": "a"}]}


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        ({"teachers": []}, r"^teachers: got \[\]; it must be a list of one teacher or more"),
        ({"teachers": [{}]}, r"^teachers: got \[{}\]; it must be a list"),
        ({"teachers": {"maps": "a"}}, "^teachers: got {'maps': 'a'}; it must be a list"),
        (
            {"teacher": {"maps": "a"}, "teachers": [{"maps": "b"}]},
            "^teachers: got a `teacher`, too",
        ),
        ({"teachers": [{"maps": "a", "weight": 0}]}, r"^teachers\[0\].weight: got 0; it must be a"),
        (
            {"teachers": [{"maps": "a"}, {"name": "moge", "weight": -1}]},
            r"^teachers\[1\].weight: got",
        ),
        ({"teachers": [{"maps": "a", "weight": "x"}]}, r"^teachers\[0\].weight: got 'x'; it must"),
        (
            {"teachers": [{"maps": "a", "sigma": 0.0}]},
            r"^teachers\[0\].sigma: got 0.0; it must be m",
        ),
        ({"teachers": [{"maps": "a", "flop": 1}]}, r"^teachers\[0\]: unknown key 'flop'; did you"),
        ({"teachers": [{"maps": "a", "audit": "no"}]}, r"^teachers\[0\].audit: got 'no'; allowed"),
        ({"teachers": [MEAN]}, r"^teachers\[0\].name: got 'average'; allowed: "),
        ({"teacher": MEAN | {"teachers": None}}, r"^teacher.teachers: got None; it must be a list"),
        (
            {"teacher": MEAN | {"weights": "best"}},
            "^teacher.weights: got 'best'; allowed: given, pr",
        ),
        ({"teacher": MEAN | {"sigmas": 1.0}}, "^teacher: unknown key 'sigmas'"),
        ({"teacher": MEAN | {"teachers": [MEAN]}}, r"^teacher.teachers\[0\].name: got 'average'"),
        ({"teacher": {"maps": "a", "weight": 1.0}}, "^teacher: unknown key 'weight'"),
    ],
)
def test_several_teachers_that_mean_nothing_are_refused(recipe, line):
    """One line names the entry."""
    with pytest.raises(RecipeError, match=line):
        TeacherList.of(recipe).check()


def test_empty_section_is_refused():
    """teacher.maps=null leaves a section without a teacher, which isn't taken for none."""
    for others in ({}, {"teachers": [{"maps": "m"}]}):
        with pytest.raises(RecipeError, match="^teacher: is empty; give .* section to null for no"):
            TeacherList.of({"teacher": {}} | others)
    assert not TeacherList.of({}).is_given


def test_mean_is_no_anchor():
    """An anchor is one metric teacher."""
    with pytest.raises(RecipeError, match="^teacher.anchor.name: got 'average'; allowed: "):
        TeacherNode(MEAN, "teacher.anchor").check()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("teacher.device: got 3", "teachers[2].device: got 3"),
        ("teacher (mine.t): returned None", "teachers[2] (mine.t): returned None"),
        ("teacher: no", "teachers[2]: no"),
        ("teacher.teachers[0]: no", "teacher.teachers[0]: no"),
        ("teachers are many", "teachers are many"),
    ],
)
def test_errors_of_a_teacher_name_its_place(told, expected):
    """Only the beginning of a message is changed, and its kind stays."""
    with pytest.raises(RecipeError) as error, errors_of("teachers[2]"):
        raise RecipeError(told, ("a.b",))
    assert str(error.value) == expected
    assert error.value.keys == ("a.b",)


def test_calibration_is_the_path_in_sigma():
    """The file of a calibration is named by a source of sigma; a number names none."""
    node = TeacherNode({"name": "moge", "sigma": {"from": "flip", "calibration": "~/sigma.json"}})
    assert node.calibration == Path.home() / "sigma.json"
    for sigma in (0.5, {"from": "flip"}, {"from": "flip", "calibration": 3}):
        assert TeacherNode({"name": "moge", "sigma": sigma}).calibration is None
    assert TeacherNode(None).calibration is None
