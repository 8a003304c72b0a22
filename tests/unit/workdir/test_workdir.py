"""Work dirs that a run can't take."""

import pytest

from tiekd.errors import LaunchError
from tiekd.workdir import workdir


def test_lock_broken_link_named(tmp_path):
    """A work dir that is a link to nothing is refused as such, with the link's target."""
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(LaunchError) as error:
        workdir.lock(link)
    assert str(error.value) == (
        f"{link}: is a link to {tmp_path / 'gone'}, which isn't there; make that folder, or give "
        "another --work-dir"
    )
    assert not (tmp_path / "gone").exists()


def test_missing_work_dir_is_not_in_use(tmp_path):
    """A work dir that a run ended before making isn't in use, and isn't made."""
    assert not workdir.is_in_use(tmp_path / "run")
    assert not (tmp_path / "run").exists()
