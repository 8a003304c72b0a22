"""The record of a student's teachers and their licences.

It stands in weights, manifests and exported files, and an export tells what restricts its use.
"""

import json
import pathlib
import types

import pytest
import torch
from support import small_student
from support.cached_teacher import CPU, cache, make_ground, recipe_of

from tiekd.config.teacher_node import TeacherList, TeacherNode
from tiekd.data import learned_from, teacher_maps
from tiekd.evaluation import compare
from tiekd.models.build import build_network
from tiekd.teachers.average import Average
from tiekd.teachers.external import OutsideTeacher
from tiekd.teachers.ground_truth import GroundTruth
from tiekd.teachers.maps import CachedMaps
from tiekd.teachers.mixture import Member, Mixture
from tiekd.teaching import build_teacher, record_of, records_of
from tiekd.tools import export
from tiekd.training import input_changes
from tiekd.workdir.weights_file import write_weights

DEPTH_PRO = {
    "name": "huggingface",
    "model": "DepthPro-hf",
    "architecture": "depth_pro",
    "revision": "0123456789abcdef",
    "licence": "apple-amlr",
    "package": "transformers 5.24.0",
    "output": "metres",
    "digest": "f" * 64,
}
ANCHORED = {
    "name": "exported",
    "model": "any.onnx",
    "licence": None,
    "output": "inverse",
    "digest": "a" * 64,
    "anchor": DEPTH_PRO,
}
OURS = {"name": "network", "model": "bts_r50", "licence": None, "digest": "b" * 64, "ours": True}
NETWORK = {"encoder": {}, "max_depth": 80.0}


def weights(path: pathlib.Path, iteration: int = 3, **facts) -> pathlib.Path:
    write_weights(path, {"w": torch.ones(2)}, NETWORK, iteration, **facts)
    return path


def test_record_has_the_anchor():
    """A relative teacher's anchor is a teacher of its own; each is described in one line."""
    record = learned_from.of_description(ANCHORED)
    assert [each["model"] for each in record] == ["any.onnx", "DepthPro-hf"]
    assert record[1] == DEPTH_PRO
    assert learned_from.lines(record) == [
        "Learned from: exported any.onnx, output inverse, licence not stated, digest aaaaaaaaaaaa",
        "Learned from: huggingface DepthPro-hf (depth_pro), revision 0123456789ab, output metres, "
        "licence apple-amlr, digest ffffffffffff",
    ]
    assert learned_from.lines(None) == learned_from.lines([]) == []


def test_record_round_trip_in_weights(tmp_path):
    """The record is plain data that weights_only reads; a wrong or missing one reads as None."""
    record = learned_from.of_description(ANCHORED)
    path = weights(tmp_path / "a.pth", teachers=record)
    assert learned_from.read(path) == record
    assert learned_from.read(weights(tmp_path / "b.pth")) is None
    assert learned_from.read(weights(tmp_path / "c.pth", teachers=[])) == []
    for wrong in ("x", [1], [{"model": "m"}], [{"name": "m", "digest": 5}], [{"name": ["m"]}]):
        assert learned_from.from_plain({"teachers": wrong}) is None
    assert learned_from.from_plain({"teachers": json.dumps(record)}) == record
    assert learned_from.read(tmp_path / "none.pth") is None
    assert learned_from.read(None) is None


def test_network_brings_its_own_teachers(tmp_path):
    """A student of this project that teaches adds its own teachers; published weights are others'.

    Imported weights and those of older versions have no record.
    """
    digest = OURS["digest"]
    path = weights(tmp_path / "a.pth", teachers=[DEPTH_PRO])
    assert learned_from.of_network(digest, path, "bts_r50") == [OURS, DEPTH_PRO]
    exported = weights(tmp_path / "b.pth", 0, teachers=[DEPTH_PRO])
    assert learned_from.of_network(digest, exported, "bts_r50") == [OURS, DEPTH_PRO]
    imported = weights(tmp_path / "c.pth", 0)
    torch.save({"state_dict": {}, "iteration": 9}, tmp_path / "published.pth")
    older = weights(tmp_path / "d.pth", 9)
    for other in (imported, older, tmp_path / "published.pth", None):
        (found,) = learned_from.of_network(digest, other, "bts_r50")
        assert found == OURS | {"ours": False}
    assert learned_from.describe(OURS) == "the network of bts_r50, digest bbbbbbbbbbbb"
    assert "licence not stated" in learned_from.describe(found)


def test_union_keeps_each_teacher_once():
    """The teachers of a resumed and of a fine-tuned run add up, each once."""
    assert learned_from.union([OURS], None, [DEPTH_PRO, OURS]) == [OURS, DEPTH_PRO]


@pytest.mark.parametrize(
    ("licence", "remark"),
    [
        ("apache-2.0", None),
        ("MIT", None),
        ("cc-by-4.0", None),
        ("cc-by-sa-4.0", None),
        ("bsd-3-clause", None),
        (None, "licence not stated"),
        ("", "licence not stated"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0, non-commercial or for research"),
        ("CC BY-NC-SA 4.0", "CC BY-NC-SA 4.0, non-commercial or for research"),
        ("fair-noncommercial-research-license", "for research"),
        ("non-commercial", "non-commercial, non-commercial or for research"),
        ("apple-amlr", "apple-amlr, non-commercial or for research"),
        ("cc-by-nd-4.0", "cc-by-nd-4.0, of unknown terms"),
        ("other", "other, of unknown terms"),
        ("permit-1.0", "permit-1.0, of unknown terms"),
        ("\u6728", "\u6728, of unknown terms"),
    ],
)
def test_licence_notice_names_restricted_and_unknown(licence, remark):
    """A licence that is non-commercial or unknown is told in one line; others aren't."""
    notice = learned_from.licence_notice([OURS, DEPTH_PRO | {"licence": licence}])
    if remark is None:
        assert notice is None
    else:
        assert notice.startswith("Licence: ")
        told = notice.split("huggingface DepthPro-hf (depth_pro) (")[1]
        assert told.split("); read")[0].endswith(remark)
        assert "bts_r50" not in notice
        assert "\n" not in notice


def test_licence_notice_without_teacher_or_record():
    """Ground truth alone needs no notice; weights without a record are told of."""
    assert learned_from.licence_notice([]) is None
    assert "don't say from which teacher" in learned_from.licence_notice(None)
    assert "\x1b" not in learned_from.licence_notice([DEPTH_PRO | {"licence": "\x1b[2J"}])


def test_manifest_of_cached_maps_has_the_teacher(tmp_path):
    """Maps of a network record its recipe and digest; the log and the next student name them."""
    recipe = recipe_of(make_ground(tmp_path / "ground"))
    told = cache(recipe, tmp_path / "maps")
    manifest = teacher_maps.read_manifest(tmp_path / "maps")
    (own,) = manifest["teachers"]
    assert own["digest"] == manifest["teacher_digest"]
    assert f"Teacher: {learned_from.describe(own)}\n" in told
    record = record_of(CachedMaps(), TeacherNode({"maps": "x"}), tmp_path / "maps")
    assert record == [own]
    # Maps of an older version have no such entry, and are filled up all the same.
    del manifest["teachers"]
    teacher_maps.write_manifest(tmp_path / "maps", manifest)
    assert "0 to make" in cache(recipe, tmp_path / "maps")
    (older,) = learned_from.of_manifest(manifest, tmp_path / "maps")
    assert (older["name"], older["digest"]) == ("network", own["digest"])
    assert "licence not stated" in learned_from.describe(older)


def test_maps_without_manifest_are_of_an_unknown_teacher(tmp_path):
    """Nothing says who made them, so their licence is unknown; without maps there is no teacher."""
    (found,) = record_of(CachedMaps(), TeacherNode({"maps": "x"}), tmp_path)
    assert learned_from.describe(found).startswith(f"cached maps {tmp_path.name} of an unknown")
    assert "licence not stated" in learned_from.licence_notice([found])
    assert record_of(GroundTruth(), TeacherNode(None)) == []


def test_records_of_several_teachers_are_those_of_each(tmp_path):
    """Each folder of maps is that of its teacher, and a teacher that is there twice counts once."""
    for name, teacher in (("a", OURS), ("b", DEPTH_PRO)):
        manifest = teacher_maps.make_manifest(80.0, None, {"name": name}, None, False)
        (tmp_path / name).mkdir()
        teacher_maps.write_manifest(tmp_path / name, manifest | {"teachers": [teacher]})
    outside = OutsideTeacher("mine.oracle", lambda batch: batch.depth, CPU)
    teachers = TeacherList.of({"teachers": [{"maps": "b"}, {"name": "mine.x"}, {"maps": "a"}]})
    members = [Member(CachedMaps(0)), Member(outside), Member(CachedMaps(1))]
    folders = [tmp_path / "b", tmp_path / "a"]
    for teacher in (Mixture(members, CPU), Average(Mixture(members, CPU))):
        record = records_of(teacher, teachers, folders)
        assert [each["name"] for each in record] == ["huggingface", "mine.oracle", "network"]
        assert record[::2] == [DEPTH_PRO, OURS]
    twice = Mixture(members[:1] * 2, CPU)
    maps = TeacherList.of({"teachers": [{"maps": "b"}] * 2})
    assert records_of(twice, maps, folders) == [DEPTH_PRO]
    # A single teacher is the only one, and ground truth none.
    assert records_of(CachedMaps(), TeacherList.of({"teacher": {"maps": "a"}}), folders[1:]) == [
        OURS
    ]
    assert records_of(GroundTruth(), TeacherList()) == []


def test_record_of_network_names_recipe_and_digest(tmp_path):
    """The teacher's record has its recipe's name, and its digest is of the weights alone."""
    recipe = recipe_of(make_ground(tmp_path / "ground"))
    node = TeacherNode(recipe["teacher"] | {"recipe": "configs/bts.yaml"})
    (own,) = record_of(build_teacher(recipe["teacher"], CPU), node)
    assert own["model"] == "bts"
    changed = torch.load(node.checkpoint, weights_only=True)
    for tensor in changed["state_dict"].values():
        if tensor.is_floating_point():
            tensor += 1
    torch.save(changed, node.checkpoint)
    (other,) = record_of(build_teacher(recipe["teacher"], CPU), node)
    assert other["digest"] != own["digest"]


def test_changed_hub_teacher_is_refused():
    """A model on the hub has no files to compare at a resume, so its digest is compared."""
    record = {key: {} for key in ("recipe", "engine", "files", "recipe_files", "splits")}
    started = record | {"teachers": [DEPTH_PRO, OURS]}
    now = record | {"teachers": [DEPTH_PRO | {"digest": "c" * 64}]}
    (text,) = input_changes.compare(started, now).refused
    assert text.startswith("teacher huggingface DepthPro-hf (depth_pro), ")
    assert text.endswith("digest cccccccccccc: its digest was ffffffffffff")
    for same in ([], [DEPTH_PRO], [OURS]):
        assert input_changes.compare(started, record | {"teachers": same}).refused == []
    assert input_changes.compare(record, now).refused == []  # an older version's record


def test_two_networks_of_one_name_are_unchanged_teachers():
    """Networks whose recipes aren't known have one name; a third digest among them is refused."""
    record = {key: {} for key in ("recipe", "engine", "files", "recipe_files", "splits")}
    first, second, third = (OURS | {"model": None, "digest": letter * 64} for letter in "abc")
    started = record | {"teachers": [first, second]}
    for same in ([first, second], [second], [second, first]):
        assert input_changes.compare(started, record | {"teachers": same}).refused == []
    now = record | {"teachers": [first, third]}
    (text,) = input_changes.compare(started, now).refused
    assert text.endswith("digest cccccccccccc: its digest was aaaaaaaaaaaa or bbbbbbbbbbbb")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> types.SimpleNamespace:
    """A student's recipe, and its weights with a record of DEPTH_PRO."""
    folder = tmp_path_factory.mktemp("student")
    recipe = small_student.write_recipe(folder)
    weights = build_network(small_student.NETWORK).state_dict()
    write_weights(folder / "w.pth", weights, small_student.NETWORK, 3, teachers=[DEPTH_PRO])
    return types.SimpleNamespace(recipe=recipe, weights=folder / "w.pth", state=weights)


def exported(student, out: pathlib.Path) -> types.SimpleNamespace:
    values = {"recipe": student.recipe, "checkpoint": str(student.weights), "overrides": []}
    values |= {"out": out, "overwrite": False, "format": None, "size": "64x64", "input": "uint8"}
    values |= {"dynamic": False, "half": False, "confidence": False, "readout": "mean"}
    return types.SimpleNamespace(**values, focal=None, focal_input=False)


def test_export_tells_of_the_licence(student, tmp_path, capsys):
    """The export prints teachers and restricted licences; the exported weights say the same."""
    export.run(exported(student, tmp_path / "a.pth"), "1.0")
    told = capsys.readouterr().out.splitlines()
    assert learned_from.lines([DEPTH_PRO])[0] in told
    assert learned_from.licence_notice([DEPTH_PRO]) in told
    assert learned_from.read(tmp_path / "a.pth") == [DEPTH_PRO]
    # Weights of an older version say nothing, and that is said.
    old = types.SimpleNamespace(**vars(student) | {"weights": tmp_path / "old.pth"})
    write_weights(old.weights, student.state, small_student.NETWORK, 3)
    export.run(exported(old, tmp_path / "b.pth"), "1.0")
    told = capsys.readouterr().out
    assert f"{learned_from.licence_notice(None)}\n" in told
    assert "Learned from" not in told
    assert learned_from.read(tmp_path / "b.pth") is None


def test_evaluation_reads_the_record(student):
    """A network that is to be evaluated has the record of its weights."""
    (found,) = compare.load_networks(
        [(student.recipe, str(student.weights))], [], False, CPU
    ).values()
    assert found.teachers == [DEPTH_PRO]
