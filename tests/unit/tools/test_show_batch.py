"""Which iterations of a run bin/show_batch.py shows."""

import pytest

from tiekd.errors import LaunchError
from tiekd.tools import show_batch
from tiekd.training.settings import Recipe


@pytest.mark.parametrize("length", [{"epochs": 2}, {"iterations": 6}])
def test_check_iteration_outside_the_run_refused(length):
    """Iterations from 1 to the run's last are shown; any other is refused with both ends named."""
    recipe = Recipe({"train": {"batch_size": 3, **length}, "data": {}})
    dataset = range(9)
    for iteration in (1, 6):
        show_batch.check_iteration(iteration, dataset, recipe)
    for iteration in (-1, 0, 7, 999999):
        with pytest.raises(LaunchError) as error:
            show_batch.check_iteration(iteration, dataset, recipe)
        told = f"--iteration {iteration}: the run has iterations 1 to 6"
        assert str(error.value) == told
