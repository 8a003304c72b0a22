"""Writes tar shards without timestamps, users or permissions, so equal members give equal bytes."""

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tiekd.files import sync


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> dict[str, tuple[int, int]]:
    """Writes a shard atomically, and returns the positions of its members.

    Args:
        path: The shard, which is replaced if it exists.
        members: (name, content) of each member, in order.

    Returns:
        name -> (offset in the shard of the content's first byte, number of its bytes).

    Raises:
        OSError: The shard can't be written; an existing file at `path` stays unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    positions = {}
    try:
        with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                # The content ends at the archive's offset, padded to whole blocks.
                padded = -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                positions[name] = archive.offset - padded, member.size
        sync(partial)
        os.replace(partial, path)
    except BaseException:  # also Ctrl-C
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return positions
