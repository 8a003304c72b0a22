"""Figures against the teacher: what they are computed with, and that they always say so."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tiekd.config.teacher_node import TeacherList
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.sample import Sample
from tiekd.data.target import Target
from tiekd.errors import DataError, LaunchError, RecipeError
from tiekd.evaluation import agreement, compare, floors, per_frame, report
from tiekd.evaluation.agreement import LABEL, Reference
from tiekd.evaluation.evaluate import EvaluationProtocol, EvaluationSettings, evaluate
from tiekd.evaluation.metrics import depth_metrics
from tiekd.teachers.average import Average
from tiekd.teachers.maps import CachedMaps
from tiekd.teachers.mixture import Member, Mixture
from tiekd.teachers.network import FrozenTeacher
from tiekd.teachers.outputs.teacher import FoundationTeacher, RunOptions
from tiekd.tools import evaluate as evaluate_program
from tiekd.training.evaluation_hook import Evaluation
from tiekd.training.reference import reference_of
from tiekd.training.settings import Recipe

CPU = torch.device("cpu")
SETTINGS = EvaluationSettings(crop="none", flip=False, against="teacher")
RESIZE = Resize(height=6, width=10, mode="stretch")


class Frames(torch.utils.data.Dataset):
    """Three images of 12x20 without ground truth; the maps have a step from 4 m to 9 m."""

    frames = ()

    def __init__(self, has_maps: bool = True):
        self.has_maps = has_maps

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        image = torch.full((3, 12, 20), 60 * index, dtype=torch.uint8)
        nothing, inside = torch.zeros(1, 12, 20), torch.ones(1, 12, 20, dtype=torch.bool)
        teacher = torch.full((1, 12, 20), 4.0 + index)
        teacher[..., 10:] = 9.0
        teacher = teacher if self.has_maps else None
        return Sample(image, nothing, inside, teacher, torch.eye(3), f"{index}.png")


class CountedFrames(Frames):
    """The same, with the number of images that were read."""

    read = 0

    def __getitem__(self, index: int) -> Sample:
        self.read += 1
        return super().__getitem__(index)


def protocol(**options) -> EvaluationProtocol:
    options = {"depth": lambda batch: batch.teacher_depth, "resize": None, "name": "maps"} | options
    return EvaluationProtocol(SETTINGS, 1e-3, 80.0, reference=Reference(**options))


def one_of(node: dict) -> TeacherList:
    return TeacherList.of({"teacher": node})


def constant(image: Tensor) -> Tensor:
    return torch.full_like(image[:, :1], 6.0)


def test_evaluate_against_maps_needs_no_ground_truth():
    """The nine metrics are those against the maps, at their own size."""
    found = evaluate(constant, Frames(), protocol(), CPU, resize=RESIZE)
    maps = torch.stack([sample.teacher_depth for sample in map(Frames().__getitem__, range(3))])
    rows = depth_metrics(torch.full_like(maps, 6.0), maps, 1e-3, 80.0, "none")
    assert list(found.values()) == pytest.approx(rows.mean(0).tolist(), rel=1e-12)
    assert 0 < found["abs_rel"] < 1


def test_evaluate_against_online_teacher_sees_its_own_size():
    """A teacher that needs another size gets it, and its depth is brought to the images' size."""
    seen = []

    def teacher(batch):
        seen.append(tuple(batch.image.shape[-2:]))
        return batch.image[:, :1] * 0 + 3.0

    whole = Resize(height=24, width=40, mode="stretch")
    for resize, size in ((whole, (24, 40)), (RESIZE, (6, 10))):
        seen.clear()
        online = protocol(depth=teacher, resize=resize)
        found = evaluate(constant, Frames(), online, CPU, resize=RESIZE)
        assert seen == [size] * 3
        assert found["abs_rel"] == pytest.approx(1.0)


def test_evaluate_without_maps_says_so():
    """A frame without a map ends the evaluation with its name."""
    with pytest.raises(DataError, match=r"^evaluation.against: 0.png has no map of the teacher"):
        evaluate(constant, Frames(has_maps=False), protocol(), CPU)


@pytest.fixture(scope="module")
def result() -> compare.Result:
    predictor = compare.EvaluatedPredictor(constant)
    return compare.evaluate(predictor, Frames(), protocol(), CPU, Loading(workers=0), None)


def test_edges_of_maps_are_compared(result):
    """Near the step of the maps, the errors are those of the predicted 6 m."""
    pixels, abs_rel, mid_air = result.edges
    # A square of 5x5 contains both sides of the step in 4 columns.
    assert pixels == 3 * 4 * 12
    errors = [abs(6 - near) / near for near in (4, 5, 6)] + [3 / 9] * 3
    assert abs_rel == pytest.approx(sum(errors) / 6)
    # 6 m is between the two sides of 4 m and 9 m, and of 5 m and 9 m, but on the side of 6 m.
    assert mid_air == pytest.approx(2 / 3)
    figures = agreement.errors_by_name(result.ranges, result.edges)
    assert figures["abs_rel_at_edges"] == abs_rel
    assert figures.keys() == {
        "abs_rel_0-20m",
        "rmse_0-20m",
        "abs_rel_at_edges",
        "mid_air_at_edges",
    }


def test_report_against_teacher_is_labelled(result, tmp_path):
    """Report, JSON and CSV say that the figures are agreement, and name the teacher."""
    label = f"{LABEL}; same sequence, optimistic"
    scored = protocol(name="cached maps in x", label=label)
    text = "\n".join(report.report_texts({"student": result}, scored))
    assert text.startswith(f"{label.upper()}: compared with cached maps in x\n3 val frames, ")
    assert "By range of the teacher's depth" in text
    assert "near edges of the teacher's depth: abs_rel" in text
    assert "ground truth" not in text
    node = json.loads(json.dumps(compare.as_json({"student": result}, scored)))
    assert node["protocol"]["figures_are"] == label
    assert node["protocol"]["frames_with_teacher_depth"] == 3
    assert "ground" not in json.dumps(node)
    assert node["networks"]["student"]["at_edges"]["pixels"] == 144
    per_frame.write_csv(tmp_path / "x.csv", {"student": result.frames}, label)
    head, first, *_ = (tmp_path / "x.csv").read_text().splitlines()
    assert head.endswith("network,figures_are")
    assert first.endswith(f'student,"{label}"')


def test_report_against_ground_truth_is_unchanged(result):
    """Without a reference nothing speaks of agreement."""
    plain = replace(protocol(), reference=None)
    text = "\n".join(report.report_texts({"student": result._replace(edges=None)}, plain))
    assert "agreement" not in text.lower()
    assert "figures_are" not in json.dumps(compare.as_json({"student": result}, plain))


class Constant(nn.Module):
    """Predicts 6 m everywhere."""

    min_depth, max_depth, canonical = 1e-3, 80.0, None

    def forward(self, image: Tensor, *_) -> SimpleNamespace:
        return SimpleNamespace(depth=constant(image))


def test_evaluation_hook_labels_agreement(tmp_path):
    """The state, the log's line about the best weights, and their file say what they are."""
    told = []
    hook = Evaluation(SETTINGS, Frames(), Constant(), CPU, Loading(workers=0), told.append)
    hook.reference = protocol(label="agreement; optimistic").reference
    state = SimpleNamespace(
        weights=dict,
        hooks=[],
        work_dir=tmp_path,
        average=None,
        training_record={},
        recipe={"network": {}},
        iteration=7,
    )
    hook._evaluate(state)
    assert state.teacher_comparison.label == "agreement; optimistic"
    assert state.teacher_comparison.figures["abs_rel_at_edges"] > 0
    assert "near edges of the teacher's depth" in state.teacher_comparison.text
    assert told[-1].endswith("saved as best_abs_rel.pth (agreement; optimistic)")
    file = torch.load(tmp_path / "best_abs_rel.pth", weights_only=True)
    assert file["against"] == "teacher"
    assert file["metrics_are"] == "agreement; optimistic"
    # With ground truth, of which these frames have none, nothing is labelled.
    hook.reference = None
    hook._evaluate(state)
    assert state.teacher_comparison is None


@pytest.mark.parametrize("resize", [None, RESIZE])
def test_floors_against_teacher_are_of_its_maps(resize):
    """The median map is that of the teacher's depth of training frames, also if it is run there."""

    def teacher(batch):
        if resize is None:
            return batch.teacher_depth
        near = batch.image[:, :1] * 0 + 4.0
        near[..., near.shape[-1] // 2 :] = 9.0
        return near

    scored = protocol(depth=teacher, resize=resize)
    found = floors.build(
        Frames, Frames(), scored, lambda name: name, CPU, reference_of=lambda _: scored.reference
    )
    assert found.left_out == {}
    depth = found.predictors["median map"].predict(torch.zeros(1, 3, 48, 64))
    near = 5.0 if resize is None else 4.0  # 4, 5 and 6 m in the three maps
    # The images have 12 x 20 pixels, so their pixel (5, 5) is in the cell (20, 16) of 48 x 64.
    assert depth[0, 0, 20, 16] == pytest.approx(near, rel=4e-3)
    assert depth[0, 0, 20, 60] == pytest.approx(9.0, rel=4e-3)
    # The best constant minimises the error on the maps, too.
    assert found.predictors["best constant"].predict(torch.zeros(1, 3, 2, 2))[0, 0, 0, 0] < 9.1


def test_reference_sees_what_maps_are_made_of():
    """A network sees images as when it was trained; the one of the run keeps its own resize."""
    network = Constant()
    teacher = FrozenTeacher(network, CPU, resize=RESIZE)
    teacher.seen_at = OWN_SIZE
    reference = reference_of(teacher, one_of({"checkpoint": "t.pth"}), Frames())
    assert reference.resize == reference.depth.seen_at == RESIZE
    assert reference.depth.network is network
    assert teacher.seen_at == OWN_SIZE
    assert reference.name == "the network of t.pth"
    cached = reference_of(CachedMaps(), one_of({"maps": "x"}), Frames())
    assert (cached.resize, cached.name, cached.label) == (None, "cached maps in x", LABEL)


def network_of(depth_m: float, resize: Resize, seen: list) -> FrozenTeacher:
    """A frozen network that predicts one depth, and records the sizes of its images."""

    class Flat(Constant):
        def forward(self, image: Tensor, *_) -> SimpleNamespace:
            seen.append(tuple(image.shape[-2:]))
            return SimpleNamespace(depth=torch.full_like(image[:, :1], depth_m))

    return FrozenTeacher(Flat(), CPU, resize=resize)


@pytest.mark.parametrize(
    ("weights", "shares"), [("mixture", (1, 3)), ("given", (1, 3)), ("precision", (1, 3 / 4))]
)
def test_reference_of_several_is_their_mean(weights, shares):
    """Each teacher sees whole images at its own size; the mean is at that of the maps."""
    seen = []
    network = network_of(8.0, Resize(height=24, width=40, mode="stretch"), seen)
    network.seen_at = OWN_SIZE
    members = [
        Member(CachedMaps(), "teachers[0]", 1.0, 1.0),
        Member(network, "teachers[1]", 3.0, 2.0),
    ]
    teacher = mixture = Mixture(members, CPU)
    if weights != "mixture":
        teacher = Average(mixture, weights)
    nodes = [{"maps": "near", "weight": 1.0}, {"checkpoint": "t.pth", "weight": 3.0}]
    reference = reference_of(teacher, TeacherList.of({"teachers": nodes}), Frames())
    assert reference.name == "the mean of 2 teachers: cached maps in near; the network of t.pth"
    scored = EvaluationProtocol(SETTINGS, 1e-3, 80.0, reference=reference)
    found = evaluate(constant, Frames(), scored, CPU, resize=RESIZE)
    assert seen == [(24, 40)] * 3
    maps = torch.stack([sample.teacher_depth for sample in map(Frames().__getitem__, range(3))])
    mean = (shares[0] * maps + shares[1] * 8.0) / sum(shares)
    rows = depth_metrics(torch.full_like(maps, 6.0), mean, 1e-3, 80.0, "none")
    assert list(found.values()) == pytest.approx(rows.mean(0).tolist(), rel=1e-5)
    # The teachers of the run stay as they were.
    assert network.seen_at == OWN_SIZE
    assert mixture.members[1].teacher is network


def test_reference_of_several_reads_each_size_once():
    """Two teachers of one size share the images that are read, and the student's are not read anew.

    Without a map of one teacher the frame is named.
    """
    seen = []
    sizes = (RESIZE, RESIZE, Resize(height=24, width=40, mode="stretch"))
    members = [Member(network_of(4.0 + i, size, seen)) for i, size in enumerate(sizes)]
    nodes = TeacherList.of({"teachers": [{"checkpoint": "t.pth"}] * 3})
    reference = reference_of(Mixture(members, CPU), nodes, Frames())
    frames = CountedFrames()
    scored = EvaluationProtocol(SETTINGS, 1e-3, 80.0, reference=reference)
    evaluate(constant, frames, scored, CPU, resize=RESIZE)
    assert seen == [(6, 10), (6, 10), (24, 40)] * 3
    assert frames.read == 2 * 3
    nodes = TeacherList.of({"teachers": [{"maps": "m"}, {"checkpoint": "t.pth"}]})
    several = Mixture([Member(CachedMaps()), members[0]], CPU)
    scored = replace(scored, reference=reference_of(several, nodes, Frames(has_maps=False)))
    with pytest.raises(DataError, match=r"^evaluation.against: 0.png has no map of the teacher"):
        evaluate(constant, Frames(has_maps=False), scored, CPU, resize=RESIZE)


def test_reference_with_sigma_is_its_depth():
    """The sigma of a teacher has no part in the agreement with its depth."""

    def teacher(batch):
        depth = batch.image[:, :1] * 0 + 3.0
        return Target(depth, torch.ones_like(depth))

    for resize in (None, Resize(height=24, width=40, mode="stretch")):
        found = evaluate(
            constant, Frames(), protocol(depth=teacher, resize=resize), CPU, resize=OWN_SIZE
        )
        assert found["abs_rel"] == pytest.approx(1.0)


def test_reference_names_a_foundation_teacher():
    """A network from outside the project sees images at their own size, and is named in reports."""
    predictor = SimpleNamespace(output_kind="metres", max_depth_m=None, needs_focal=False)
    predictor.description = {"name": "moge", "model": "m", "licence": "mit", "digest": "0" * 64}
    teacher = FoundationTeacher(predictor, RunOptions(CPU, 80.0))
    nodes = TeacherList.of({"teacher": {"name": "moge", "model": "m"}})
    reference = reference_of(teacher, nodes, Frames())
    assert (reference.depth, reference.resize) == (teacher, OWN_SIZE)
    assert reference.name == "moge m, output metres, licence mit, digest 000000000000"


@pytest.mark.parametrize("option", ["mean_map", "panel"])
def test_evaluate_refuses_what_needs_ground_truth(option):
    """An option that shows ground truth is refused in a run that has only the teacher."""
    given = SimpleNamespace(mean_map=False, panel=None)
    evaluate_program._refuse_what_needs_truth(given)
    setattr(given, option, "x.png")
    told = f"^--{option.replace('_', '-')}: needs ground truth, and evaluation.against is teacher"
    with pytest.raises(LaunchError, match=told):
        evaluate_program._refuse_what_needs_truth(given)


def test_settings_refuse_unknown_reference():
    """A value of `against` other than the two is refused with both."""
    told = "^evaluation.against: got 'depth'; allowed: ground_truth, teacher$"
    with pytest.raises(RecipeError, match=told):
        EvaluationSettings(against="depth")


def test_recipe_against_teacher_needs_one():
    """Without a teacher there is nothing to compare with."""
    node = {"evaluation": {"against": "teacher"}, "network": {"max_depth": 80.0}}
    node["data"] = {"name": "folder", "images": "x"}
    assert Recipe(node | {"teacher": {"maps": "m"}}).dataset.scores_teacher
    with pytest.raises(RecipeError, match="^evaluation.against: got teacher, but"):
        Recipe(node).dataset  # noqa: B018
