"""Writes tar shards without timestamps, users or permissions, so equal members give equal bytes."""

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tiekd.files import sync


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes a shard atomically.

    Args:
        path: The shard, which is replaced if it exists.
        members: (name, content) of each member, in order.

    Raises:
        OSError: The shard can't be written; an existing file at `path` stays unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        sync(partial)
        os.replace(partial, path)
    except BaseException:  # also Ctrl-C
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
