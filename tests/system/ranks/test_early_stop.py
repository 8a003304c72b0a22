"""All ranks stop after the same evaluation, even if their metrics differ."""

from support import two_ranks
from support.some_state import SomeState

from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.training.hooks import early_stop


def a_rank(rank: int) -> tuple[int, str]:
    hook = early_stop.build(2, evaluation=EvaluationSettings())
    state = SomeState(iteration=0, total_iterations=9, stopped_early=False)
    while state.stop_reason is None and not state.is_last:
        state.iteration += 1
        improving = 1 / state.iteration
        hook.after_evaluation(state, {"abs_rel": improving if rank else 0.25})
    return state.iteration, state.stop_reason


def test_early_stop_ranks_end_together(tmp_path):
    """Rank 0 decides, and each rank gives the same reason."""
    first, second = two_ranks.run(a_rank, tmp_path)
    assert first == second
    assert first[0] == 3
    assert first[1].endswith("in 2 evaluations; its best is 0.2500, of iteration 1")
