"""Writing tar shards: the same members give the same bytes, and nothing half-written stays."""

import tarfile

import pytest

from tiekd.data.shards.writing import write_shard

MEMBERS = [("a/1.png", b"image"), (f"{'x' * 120}/ü.json", b"{}")]


def test_write_shard_depends_on_members_alone(tmp_path):
    """Two shards of the same members are equal byte by byte, and hold what was written."""
    for name in ("a.tar", "b.tar"):
        positions = write_shard(tmp_path / name, MEMBERS)
    content = (tmp_path / "b.tar").read_bytes()
    assert [(name, content[at : at + size]) for name, (at, size) in positions.items()] == MEMBERS
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [(m.name, archive.extractfile(m).read(), m.mtime) for m in archive] == [
            (name, content, 0) for name, content in MEMBERS
        ]


def test_write_shard_that_fails_leaves_the_old_one(tmp_path):
    """An error while members are read leaves no part of the new shard, and the old one whole."""
    (tmp_path / "a.tar").write_bytes(b"old")

    def members():
        yield MEMBERS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", members())
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert (tmp_path / "a.tar").read_bytes() == b"old"
