"""The plan: defaults, what is kept, and what contradicts it."""

import pytest

from tiekd.errors import LaunchError
from tiekd.tools.distill import plan as plans

ASKED = {"images": "/rides", "teacher": {"teacher": {"name": "stereo"}}, "epochs": 3}


def test_plan_has_defaults():
    """Without --student and --max-latency the student is the default; threads are recorded."""
    plan = plans.new(ASKED, threads=2)
    assert (plan.student, plan.rank_threads, plan.max_depth) == ("lite0", 2, 80.0)
    assert (plan.iterations, plan.size) == (None, None)


def test_plan_leaves_student_open_for_latency():
    """With --max-latency the student is chosen later."""
    assert plans.new(ASKED | {"max_latency_ms": 20.0}, threads=1).student is None


@pytest.mark.parametrize(
    ("missing", "told"), [("teacher", "--teacher: not given"), ("epochs", "--hours or --epochs")]
)
def test_plan_needs_teacher_and_length(missing, told):
    """A new plan isn't made without a teacher and a length."""
    asked = {key: value for key, value in ASKED.items() if key != missing}
    with pytest.raises(LaunchError, match=told):
        plans.new(asked, threads=1)


def test_plan_is_read_as_written(tmp_path):
    """All values survive the file, also those that are measured."""
    plan = plans.new(ASKED | {"max_latency_ms": 20.0}, threads=1)
    plan.size, plan.student = [96, 320], "lite1"
    plan.measured = {"latency_ms": {"lite1": 12.5}}
    plans.write(plan, tmp_path)
    assert plans.read(tmp_path) == plan
    assert plans.read(tmp_path / "other") is None


@pytest.mark.parametrize(
    "text", ["student: 3", "colour: red", "- a list", "images: [", "images: /rides"]
)
def test_plan_that_is_damaged_is_one_line(tmp_path, text):
    """A plan with another type, an unknown key, a missing one or no YAML is refused."""
    (tmp_path / plans.FILE).write_text(text)
    with pytest.raises(LaunchError, match=r"plan\.yaml: can't be used as a plan") as error:
        plans.read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epochs": 4}, "--epochs: got 4, but .*plan.yaml says epochs: 3"),
        ({"hours": 1.0}, "--hours: got 1.0, but .*says hours: None"),
        ({"student": "lite2"}, "--student: got lite2, but .*says student: lite0"),
        ({"ranks": 2}, "--num_gpus: got 2, but .*says ranks: 1"),
        ({"max_latency_ms": 5.0}, "--max-latency: got 5.0"),
        ({"images": "/other"}, "IMAGES: got /other"),
        ({"latency_threads": 2}, "--threads: got 2"),
    ],
)
def test_plan_refuses_contradiction(tmp_path, change, told):
    """An option with another value than the plan's is one line that names both."""
    with pytest.raises(LaunchError, match=told):
        plans.check_agreement(plans.new(ASKED, threads=1), ASKED | change, tmp_path)


def test_plan_agrees_with_first_command(tmp_path):
    """The first command, and one that leaves options out, agree with what was chosen since."""
    plan = plans.new(ASKED, threads=1)
    plan.size, plan.batch_size = [96, 320], 8
    plans.check_agreement(plan, ASKED, tmp_path)
    plans.check_agreement(plan, {"images": "/rides"}, tmp_path)


def test_plan_takes_over_what_is_open(tmp_path):
    """Until the student is chosen and the length measured, both may be asked for anew."""
    asked = {"images": "/rides", "teacher": ASKED["teacher"], "hours": 0.1, "max_latency_ms": 1.0}
    plan = plans.new(asked, threads=1)
    again = asked | {"hours": 3.0, "max_latency_ms": 20.0, "audit": False}
    plans.update_unused(plan, again, has_begun=False)
    plans.check_agreement(plan, again, tmp_path)
    assert (plan.hours, plan.max_latency_ms, plan.audit) == (3.0, 20.0, False)
    # Once they are chosen, they are kept.
    plan.student, plan.iterations = "lite1", 500
    for change in ({"hours": 4.0}, {"max_latency_ms": 30.0}):
        plans.update_unused(plan, again | change, has_begun=False)
        with pytest.raises(LaunchError, match="says"):
            plans.check_agreement(plan, again | change, tmp_path)


def test_plan_threads_follow_environment(monkeypatch):
    """OMP_NUM_THREADS counts; without it a rank has its share of the cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert plans.threads_of_rank(2) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: range(8))
    assert plans.threads_of_rank(2) == 4
    assert plans.threads_of_rank(16) == 1
