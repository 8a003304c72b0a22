"""Reports of two made-up runs, with and without ground truth, for the tests of this folder."""

import pytest
import torch
from support import reported_run

from tiekd.tools.report import page, place, program
from tiekd.workdir import workdir


def collected(work_dir, exports=()):
    """Returns the content of a report of a work dir."""
    where = place.find(work_dir, exports, False)
    with program._in_folder_of(where.work_dir):
        recipe = where.work_dir / workdir.RECIPE
        return program.collect(where, recipe, [], torch.device("cpu"))


@pytest.fixture(scope="session")
def accurate(tmp_path_factory):
    """The content of the report of a run with ground truth and a teacher."""
    return collected(reported_run.make(tmp_path_factory.mktemp("accurate")))


@pytest.fixture(scope="session")
def agreeing(tmp_path_factory):
    """The content of the report of a run that compares with its teacher."""
    return collected(reported_run.make(tmp_path_factory.mktemp("agreeing"), against="teacher"))


@pytest.fixture(scope="session")
def html(accurate) -> str:
    """The document of the run with ground truth."""
    return page.document(accurate)
