"""Rendered scenes that the tests of this folder share."""

from pathlib import Path

import pytest
from support import small_experiment

from tiekd.tools.experiment import runs


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """The folder of rendered scenes, which tests only read or add lists to."""
    folder = tmp_path_factory.mktemp("experiment")
    runs.plan(small_experiment.write(folder))
    return folder / "scenes"
