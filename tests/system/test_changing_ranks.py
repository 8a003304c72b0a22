"""One run on two ranks, one, and two again, at ZeRO stages 1, 0, 3 and 2.

It equals the run that never changed, and so does the moving average of its weights.
"""

import json
from pathlib import Path

import pytest
import torch
from support import programs, recipes

LEGS = [(5, 2, "fp32_zero1"), (10, 1, "fp32"), (15, 2, "zero3_sharded"), (20, 2, "fp32_zero2")]


def recipe(ground: Path) -> dict:
    """A recipe without kinks (see smooth_encoder), so that rounding stays rounding.

    It evaluates where a leg ends.
    """
    node = recipes.recipe(ground, validate=True)
    node["network"] = {**node["network"], "encoder": {"name": "support.parts.smooth_encoder"}}
    node["schedule"] = {"name": "constant"}
    node["evaluation"] |= {"interval": 5, "by": "iteration"}
    node["tensorboard"] = {"image_interval": 0}
    node["checkpoint"] = {"interval": 5, "by": "iteration", "keep_last": 9}
    node["hooks"] = [recipes.RECORDER, {"name": "support.parts.entry"}, {"name": "ema"}]
    return node


@pytest.fixture(scope="module")
def work_dirs(ground, tmp_path_factory) -> tuple[Path, Path]:
    """The work dirs of the run that never changed, and of the one in four legs."""
    folder = tmp_path_factory.mktemp("changing")
    path = recipes.write_recipe(folder / "recipe.yaml", recipe(ground))
    train = programs.ROOT / "bin" / "train.py"
    commands = [(2, [train, path, "--work-dir", folder / "straight"])]
    for i, (end, ranks, engine) in enumerate(LEGS):
        options = [
            *(["--resume-from", "auto"] if i else []),
            "--deepspeed_config",
            programs.DS_CONFIGS / f"{engine}.json",
            "--set",
            f"train.iterations={end}",
        ]
        commands.append((ranks, [train, path, "--work-dir", folder / "legs", *options]))
    for ranks, command in commands:
        result = programs.finish(command, ranks=ranks)
        assert result.code == 0, result.stderr[-3000:]
    return folder / "straight", folder / "legs"


def trained(work_dir: Path, iteration: int = 20) -> dict[str, torch.Tensor]:
    """Returns the newest weights, not the averaged ones, in the checkpoint of an iteration."""
    path = work_dir / "checkpoints" / f"iter_{iteration}" / "trained.pth"
    return torch.load(path, weights_only=True)["state_dict"]


def test_changing_ranks_keeps_losses_and_weights(work_dirs):
    """Losses and weights over four legs equal those of the run that never changed."""
    straight, legs = work_dirs
    assert [row["iteration"] for row in programs.recorded(legs)] == list(range(1, 21))
    assert programs.losses(legs) == pytest.approx(programs.losses(straight), rel=2e-6)
    for weights in (trained, programs.student):
        for name, tensor in weights(straight).items():
            assert (tensor - weights(legs)[name]).abs().max() <= 1e-5, name


def test_changing_ranks_averages_every_iteration(work_dirs):
    """The average of four legs counts 20 iterations, and isn't the newest weights.

    The weights files of checkpoints and of the best evaluation say that they are of the average.
    """
    folder = work_dirs[1]
    for path in (folder / "checkpoints" / "iter_20" / "student.pth", folder / "best_abs_rel.pth"):
        file = torch.load(path, weights_only=True)
        of_all = {"decay": 0.999, "warms_up": True, "num_updates": file["iteration"]}
        assert file["averaged"] == of_all, path
    # The file of the newest weights says as much of them as student.pth of the average.
    student, newest = (
        torch.load(folder / "checkpoints" / "iter_20" / name, weights_only=True)
        for name in ("student.pth", "trained.pth")
    )
    assert student.keys() - newest.keys() == {"averaged"}
    assert newest["network"] == student["network"]
    averaged, newest = programs.student(folder), trained(folder)
    for name, tensor in newest.items():
        if tensor.is_floating_point():
            assert 1e-6 < (averaged[name] - tensor).abs().max() < 1, name
        else:
            assert torch.equal(averaged[name], tensor), name
    told = "EMA: evaluations, best weights and student.pth are of the moving average"
    assert programs.log_text(folder).count(told) == 4


def test_changing_ranks_legs_have_given_layout(work_dirs):
    """The checkpoint of each leg records the world size and ZeRO stage that it was given."""
    states = [
        (work_dirs[1] / "checkpoints" / f"iter_{end}" / "state.json").read_text()
        for end, *_ in LEGS
    ]
    made_by = [json.loads(state)["made_by"] for state in states]
    assert [(m["world_size"], m["zero_stage"]) for m in made_by] == [(2, 1), (1, 0), (2, 3), (2, 2)]


def test_resume_evaluation_equals_one_before(work_dirs):
    """An evaluation right after a resume equals the evaluation right before it."""
    rows = [json.loads(line) for line in (work_dirs[1] / "entered.jsonl").read_text().splitlines()]
    before = {row["ends_after"]: row["metrics"] for row in rows if "ends_after" in row}
    after = {row["begins_after"]: row for row in rows if "begins_after" in row}
    assert list(before) == [5, 10, 15, 20]
    assert list(after) == [0, 5, 10, 15]
    for iteration in (5, 10, 15):
        assert after[iteration]["metrics"] == pytest.approx(before[iteration], abs=1e-6)
        saved = trained(work_dirs[1], iteration)
        statistics = after[iteration]["statistics"]
        assert len(statistics) == 6
        assert {name: saved[name].tolist() for name in statistics} == statistics
