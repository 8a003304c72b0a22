"""The teacher's section: a network, cached maps, a module from outside, or the ground truth."""

from pathlib import Path

import pytest

from tiekd.config.teacher_node import TeacherNode, kinds, without_teacher
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
    assert TeacherNode.of({"teacher": node}).is_given == (node is not None)


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
        *("depth_anything_3", "exported", "huggingface", "moge", "stereo", "unidepth"),
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
    assert not TeacherNode.of({}).is_given
    assert not TeacherNode.of(without_teacher({"teacher": {"maps": "m"}, "data": {}})).is_given
    assert without_teacher({"data": {}})["data"] == {}


@pytest.mark.parametrize(
    ("node", "own"),
    [(None, True), ({"flip": False}, True), ({"maps": "m"}, False), ({"recipe": "r"}, False)],
)
def test_teacher_node_without_a_teacher_stands_for_the_recipe_s_network(node, own):
    """How a flip is averaged is said of the recipe's own network, too."""
    assert TeacherNode(node).is_the_recipes_network is own


def test_lending_recipe_is_needed_until_the_network_is_whole(tmp_path):
    """A saved recipe has the network whole, or the other recipe's file is gone."""
    path = tmp_path / "big.yaml"
    path.touch()
    part = {"recipe": str(path), "network": {"head": {}}}
    assert TeacherNode({"recipe": str(path)}).lending_recipe() == path
    assert TeacherNode(part).lending_recipe() == path
    assert TeacherNode(part | {"network": NETWORK}).lending_recipe() is None
    path.unlink()
    assert TeacherNode(part).lending_recipe() is None
    assert TeacherNode({"recipe": str(path)}).lending_recipe() == path
    assert TeacherNode({"name": "mine.teacher", "recipe": str(path)}).lending_recipe() is None
    assert TeacherNode(None).lending_recipe() is None


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
