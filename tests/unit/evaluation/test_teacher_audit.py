"""The rules of the teacher's audit, on rendered scenes whose depth is known everywhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tiekd.data.datasets.scenes import render
from tiekd.evaluation.teacher_audit import edges, grid, report, shape, truth, verdict
from tiekd.evaluation.teacher_audit.grid import AuditFrame

MAX_DEPTH_M = 80.0
SIZE = (48, 160)


@pytest.fixture(scope="module")
def frames() -> list[AuditFrame]:
    """Twelve rendered scenes, with their exact depth as a teacher's map."""
    return [_frame(index) for index in range(12)]


def _frame(index: int) -> AuditFrame:
    scene = render(3, index, 96, 320)
    image = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
    # A teacher gives the sky, which has no depth, its largest one.
    depth = torch.from_numpy(np.where(scene.depth > 0, scene.depth, MAX_DEPTH_M)).float()
    return AuditFrame(
        index=index,
        name=f"scene {index}",
        image=grid.on_grid(image, SIZE),
        depth=grid.depth_on_grid(depth, SIZE),
        truth=grid.depth_on_grid(torch.from_numpy(scene.sparse_depth), SIZE),
        intrinsics=grid.intrinsics_on_grid(torch.from_numpy(scene.intrinsics), (96, 320), SIZE),
        levels=30000,
        pixels=30720,
        beyond=0.0,
        at_top=0.1,
        valid=1.0,
        focals={"listed": 200.0, "exif": 205.0},
    )


def _with_maps(frames: list[AuditFrame], change, **fields) -> list[AuditFrame]:
    return [replace(frame, depth=change(frame.depth), **fields) for frame in frames]


def _foreign(frames: list[AuditFrame]) -> list[AuditFrame]:
    return [
        replace(frame, depth=other.depth)
        for frame, other in zip(frames, frames[1:] + frames[:1], strict=True)
    ]


FAULTS = {
    "unit": lambda frames: _with_maps(frames, lambda depth: 100 * depth, beyond=1.0),
    "inverse": lambda frames: _with_maps(frames, lambda depth: 1 / depth),
    "mirrored": lambda frames: _with_maps(frames, lambda depth: depth[:, ::-1].copy()),
    "foreign": _foreign,
    "focal": lambda frames: _with_maps(
        frames, lambda depth: 1.5 * depth, focals={"listed": 300.0, "exif": 205.0}
    ),
    "levels": lambda frames: [replace(frame, levels=200) for frame in frames],
    "empty": lambda frames: _with_maps(frames, np.zeros_like, valid=0.0),
}
WAYS = {"with truth": True, "without truth": False}


def _judge(frames: list[AuditFrame], with_truth: bool) -> verdict.Verdict:
    measured = verdict.measure(frames, MAX_DEPTH_M)
    if not with_truth:
        measured.truth = None
    return verdict.decide(measured, MAX_DEPTH_M)


@pytest.mark.parametrize("with_truth", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_judge_good_teacher(frames, with_truth, scale):
    """A good teacher passes, also with a scale that is off by a quarter."""
    assert _judge(_with_maps(frames, lambda depth: scale * depth), with_truth).kinds == []


@pytest.mark.parametrize("with_truth", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("kind", FAULTS)
def test_judge_planted_fault(frames, kind, with_truth):
    """Each planted fault is the first suspicion, and the only one."""
    assert _judge(FAULTS[kind](frames), with_truth).kinds == [kind]


def _half_occluded(depth: np.ndarray) -> np.ndarray:
    """Returns a map as a stereo camera's: without depth at the left of near objects, and far up."""
    known = depth.copy()
    for shift in range(1, 5):
        nearer = depth[:, shift:] < 0.8 * depth[:, :-shift]
        known[:, :-shift][nearer] = 0
    known[:6] = 0
    return known


@pytest.mark.parametrize("kind", ["mirrored", "foreign", None])
def test_judge_maps_with_holes_at_edges(frames, kind):
    """Maps without depth beside near objects are judged by the objects' edges all the same."""
    holed = _with_maps(frames, _half_occluded)
    assert 0.05 < np.mean([frame.depth == 0 for frame in holed]) < 0.5
    changed = FAULTS[kind](holed) if kind else holed
    assert _judge(changed, with_truth=False).kinds == [kind] * (kind is not None)


def test_edges_of_holes_are_those_of_the_background(frames):
    """Filling holes restores the edges: they fit as well as those of the complete maps."""
    whole = edges.EdgeFigures(frames)
    holed = edges.EdgeFigures(_with_maps(frames, _half_occluded))
    assert holed.own.mean() > 0.8 * whole.own.mean()


@pytest.mark.parametrize(
    ("factor", "unit"),
    [
        (1000, "millimetres taken"),
        (100, "centimetres taken"),
        (0.01, "hundreds of metres taken"),
        (0.001, "kilometres taken"),
    ],
)
def test_judge_names_the_unit(frames, factor, unit):
    """With ground truth the unit is named by the scale, within a factor of 1.6."""
    for off in (0.7, 1.5):
        judged = _judge(_with_maps(frames, lambda depth, by=factor * off: by * depth), True)
        assert judged.suspicions[0].message.startswith(unit)


def test_judge_scale_without_another_focal(frames):
    """A scale of 1.5 has no known cause unless another source of the focal length says so."""
    scaled = _with_maps(frames, lambda depth: 1.5 * depth, focals={"listed": 300.0})
    assert _judge(scaled, True).suspicions[0].message == "scale off by 1.50, cause unknown"
    agreeing = _with_maps(
        frames, lambda depth: 1.5 * depth, focals={"listed": 300.0, "exif": 290.0}
    )
    assert _judge(agreeing, True).kinds == ["scale"]


@pytest.mark.parametrize("with_truth", WAYS.values(), ids=WAYS.keys())
def test_judge_focal_by_the_teachers_estimate(frames, with_truth):
    """A teacher's own estimate alone is a warning; with a scale of that ratio it is certain."""
    for teacher, kinds in ((290.0, []), (240.0, []), (200.0, ["estimate"])):
        focals = {"listed": 300.0, "teacher": teacher}
        judged = _judge([replace(frame, focals=focals) for frame in frames], with_truth)
        assert (judged.kinds, judged.certain) == (kinds, [])
    assert judged.suspicions[0].message == (
        "perhaps a wrong focal length: the listed one is 1.50 times the teacher's own estimate"
    )
    scaled = _with_maps(frames, lambda depth: 1.5 * depth, focals=focals)
    judged = _judge(scaled, with_truth)
    assert judged.kinds == ["focal" if with_truth else "estimate"]
    assert bool(judged.certain) == with_truth
    # Another source comes before the estimate, and isn't mixed with it.
    judged = _judge([replace(f, focals=focals | {"exif": 150.0}) for f in frames], with_truth)
    assert judged.kinds == ["focal"]
    assert judged.figures["focal_ratio"] == 2


def test_undecided_names_what_isnt_seen(frames):
    """The table and the JSON say which mistakes can't be detected, and why."""

    def told(changed, with_truth: bool) -> str:
        judged = _judge(changed, with_truth)
        found = report.undecided(judged)
        assert report.as_json(judged)["undecided"] == found
        assert all(f"Can't be detected: {text}\n" in report.table(judged) + "\n" for text in found)
        return "; ".join(found)

    assert "stored maps can't show it" in told(frames, True)
    blind = [replace(frame, swapped=1.01 * frame.depth) for frame in frames]
    assert "(BGR); the teacher's depth changes by 1.0% only and so it seldom shows" in told(
        blind, True
    )
    assert told(blind, False).startswith(
        "red and blue exchanged (BGR); the teacher's depth changes by 1.0% only;"
    )
    seeing = [replace(frame, swapped=1.2 * frame.depth) for frame in frames]
    assert "BGR" not in told(seeing, True)
    assert "(BGR); without ground truth it shows in some teachers only" in told(seeing, False)
    noisy = [replace(f, noise_change=(0.06 + 0.001 * f.index, 0.04)) for f in seeing]
    assert "BGR" not in told(noisy, False)  # it is suspected
    assert "an affine error" in told(seeing, False)
    assert "an affine error" not in told(seeing, True)
    assert "focal length" not in told(seeing, True)
    estimated = [replace(f, focals={"listed": 200.0, "teacher": 190.0}) for f in seeing]
    assert "focal length" not in told(estimated, True)
    lone = [replace(f, focals={"listed": 200.0}) for f in seeing]
    assert "a wrong focal length; there is no second source" in told(lone, True)


def test_judge_affine_map(frames):
    """A map that lacks a shift is named with ground truth, with the scale and shift to apply."""
    affine = _with_maps(frames, lambda depth: (depth + 12) / 2)
    judged = _judge(affine, True)
    assert judged.kinds[0] == "affine"
    assert judged.figures["fit_scale"] == pytest.approx(2, rel=0.05)
    assert judged.figures["fit_shift"] == pytest.approx(-12, rel=0.05)


def test_judge_exchanged_channels(frames):
    """A teacher that is better with exchanged channels is suspected, with ground truth."""
    noise = np.random.default_rng(0)
    worse = [
        replace(
            frame,
            swapped=frame.depth,
            depth=frame.depth * np.exp(0.1 * noise.standard_normal(SIZE)).astype(np.float32),
        )
        for frame in frames
    ]
    assert _judge(worse, True).kinds == ["bgr"]
    better = [replace(frame, depth=frame.swapped, swapped=frame.depth) for frame in worse]
    assert _judge(better, True).kinds == []


def test_judge_noise_with_exchanged_channels(frames):
    """Noise that disturbs less with exchanged channels tells them without ground truth.

    It doesn't if the teacher's depth hardly changes when they are exchanged.
    """

    def kinds(change: float, noise: float, swapped_noise: float, with_truth: bool = False) -> list:
        changed = [
            replace(
                frame,
                swapped=(1 + change) * frame.depth,
                noise_change=(noise + 0.001 * frame.index, swapped_noise + 0.001 * frame.index),
            )
            for frame in frames
        ]
        return _judge(changed, with_truth).kinds

    assert kinds(0.08, 0.06, 0.04) == ["bgr"]
    assert kinds(0.08, 0.06, 0.04, with_truth=True) == []
    assert kinds(0.08, 0.04, 0.06) == []
    assert kinds(0.04, 0.06, 0.04) == []


def test_judge_covered_side(frames):
    """A map that changes opposite to what was covered is mirrored; the same side is right."""
    assert _judge([replace(f, response=-1.0) for f in frames], False).kinds == ["mirrored"]
    assert _judge([replace(f, response=1.0) for f in frames], False).kinds == []
    # A teacher that responds to its image gives no other frame's map, however blurred it is.
    responding = [replace(f, response=1.0) for f in _foreign(frames)]
    assert _judge(responding, False).kinds == []
    assert "foreign" not in _judge(responding, True).kinds


def test_certain_leaves_out_what_edges_alone_say(frames):
    """Maps of other frames stop a run by ground truth, or if the teacher itself could be asked."""
    foreign = _foreign(frames)
    assert [cause.kind for cause in _judge(foreign, True).certain] == ["foreign"]
    judged = _judge(foreign, False)
    assert (judged.kinds, judged.certain) == (["foreign"], [])
    asked = _judge([replace(frame, response=0.0) for frame in foreign], False)
    assert [cause.kind for cause in asked.certain] == ["foreign"]
    assert [cause.kind for cause in _judge(FAULTS["unit"](frames), False).certain] == ["unit"]


def test_judge_camera_height(frames):
    """Without ground truth a camera 4.9 m above the ground tells a wrong scale or focal length."""
    judged = _judge(_with_maps(frames, lambda depth: 3 * depth), False)
    assert judged.figures["camera_height_m"] == pytest.approx(3 * 1.65, rel=0.1)
    assert judged.kinds == ["scale"]


def test_judge_sparse_maps(frames):
    """Sparse maps have no edges to be judged by; with ground truth others' maps are still found."""
    kept = np.random.default_rng(0).random(SIZE) < 0.2
    sparse = _with_maps(frames, lambda depth: np.where(kept, depth, 0), valid=0.2)
    for with_truth in WAYS.values():
        assert _judge(sparse, with_truth).kinds == []
    assert _judge(_foreign(sparse), True).kinds == ["foreign"]


@pytest.mark.parametrize("with_truth", WAYS.values(), ids=WAYS.keys())
def test_judge_camera_that_stands_still(frames, with_truth):
    """Frames that all show the same scene have no map that fits one of them better."""
    assert _judge([frames[0]] * 12, with_truth).kinds == []


def test_judge_too_few_with_ground_truth(frames):
    """Seven frames with ground truth are too few to judge by it."""
    blind = np.zeros(SIZE, np.float32)
    some = [replace(f, truth=blind) if i >= 7 else f for i, f in enumerate(frames)]
    assert verdict.measure(some, MAX_DEPTH_M).truth is None
    none = [replace(frame, truth=blind) for frame in frames]
    assert verdict.judge(none, MAX_DEPTH_M).kinds == []
    some[7] = frames[7]
    assert verdict.measure(some, MAX_DEPTH_M).truth.count == 8


def test_compare_ranges(frames):
    """Bias is by range of the ground truth, below 0 where the teacher is too near."""
    near = _with_maps(frames, lambda depth: np.where(depth > 40, depth - 10, depth))
    ranges = truth.compare(near, MAX_DEPTH_M).ranges
    assert [(low, high) for low, high, *_ in ranges] == [(0, 20), (20, 40), (40, 80)]
    assert abs(ranges[0][3]) < 1
    assert ranges[2][3] < -7


def test_camera_height_plane():
    """The height of a plane that is rendered from its formula is exact; a wall has none."""
    rows = np.arange(SIZE[0])[:, None] + np.zeros(SIZE)
    matrix = np.array([[100.0, 0, 79.5], [0, 100.0, 10.0], [0, 0, 1]])
    ground = (1.5 * 100 / np.maximum(rows - 10, 1)).astype(np.float32)
    frame = replace(_flat(matrix), depth=ground)
    assert shape.camera_height(frame) == pytest.approx(1.5, rel=1e-3)
    assert np.isnan(shape.camera_height(replace(frame, depth=np.full(SIZE, 5, np.float32))))
    assert np.isnan(shape.camera_height(replace(frame, intrinsics=np.full((3, 3), np.nan))))


def _flat(matrix: np.ndarray) -> AuditFrame:
    blank = np.zeros(SIZE, np.float32)
    return AuditFrame(0, "plane", blank, blank, blank, matrix, 1, 1, 0.0, 0.0, 1.0)


def test_plane_preference_inverse():
    """A slanted plane is linear in 1 / depth: below 0 for its depth, above 0 for the inverse."""
    depth = 10 / (1 + 0.05 * (np.arange(48)[:, None] + np.zeros((48, 48))))
    assert shape.plane_preference(depth) < -3
    assert shape.plane_preference(1 / depth) > 3
    assert np.isnan(shape.plane_preference(np.full((48, 48), 5.0)))


def test_rank_z_of_chance():
    """Ranks at chance give 0, the best rank of 12 frames gives 6 standard errors; ties half."""
    assert edges.rank_z(np.full(12, 0.5)) == 0
    assert edges.rank_z(np.ones(12)) == pytest.approx(6)
    assert edges.own_shares(np.ones((4, 4))).tolist() == [0.5] * 4
    assert edges.own_shares(np.eye(3)).tolist() == [1.0] * 3


def test_depth_on_grid_invalid():
    """Invalid pixels don't count in a cell, and a cell with too few valid ones is invalid."""
    depth = torch.tensor([[1.0, 4.0, 0.0, 0.0], [float("nan"), -1.0, 0.0, 9.0]])
    assert grid.depth_on_grid(depth, (1, 2)).tolist() == [[pytest.approx(2), pytest.approx(9)]]
    assert grid.depth_on_grid(depth, (1, 2), 0.5).tolist() == [[pytest.approx(2), 0]]


def test_intrinsics_on_grid_centre():
    """The middle of an image is the middle of the grid, and focal lengths scale with it."""
    matrix = torch.tensor([[200.0, 0, 99.5], [0, 200.0, 49.5], [0, 0, 1]])
    scaled = grid.intrinsics_on_grid(matrix, (100, 200), (50, 50))
    assert scaled.tolist() == [[50, 0, 24.5], [0, 100, 24.5], [0, 0, 1]]


def test_table_names_zoom(frames):
    """The table says where depth follows the zoom, and JSON has null for what isn't known."""
    asked = [replace(frame, zoom=(np.log(0.8), 0.02)) for frame in frames]
    judged = _judge(asked, True)
    assert "2.0%  not scale-equivariant: depth times 0.80" in report.table(judged)
    assert report.table(judged).endswith("Nothing is above its limit.")
    assert report.as_json(judged)["figures"]["flip"] is None
    faulty = report.table(_judge(FAULTS["unit"](frames), False))
    assert "\nSUSPICION: centimetres taken for metres: median depth" in faulty
