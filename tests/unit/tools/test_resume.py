"""What bin/resume refuses before it looks for a run."""

import argparse

import pytest

from tiekd.errors import LaunchError
from tiekd.tools import resume


def test_run_negative_restarts_refused(tmp_path):
    """A negative --restarts is refused, also where the run is finished."""
    args = argparse.Namespace(work_dir=tmp_path, restarts=-1)
    with pytest.raises(LaunchError, match="^--restarts -1: give how often, from 0$"):
        resume.run([], [], args, "bin/resume")
