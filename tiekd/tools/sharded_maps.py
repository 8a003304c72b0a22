"""The teacher maps of frames in tar shards, as a caching job writes them: whole shards at a time.

A rank writes whole shards, so an interrupted job continues at its first unfinished shard, and ranks
beyond the number of shards have nothing to do. Maps that a shard has already are copied when it is
written again, also those of frames that this job doesn't have. Not covered: writing a shard by
several ranks.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from tiekd.data import teacher_maps
from tiekd.data.frames import Frames
from tiekd.data.image_io import is_whole_depth_content
from tiekd.data.shards import maps
from tiekd.data.shards.maps import MapShard, Record
from tiekd.data.shards.members import Members
from tiekd.data.shards.scan import key_of
from tiekd.distributed import comm
from tiekd.errors import DataError, TeacherError


class ShardedMaps:
    """The shards of maps of one caching job.

    Args:
        frames: The frames, whose images are in tar shards.
        folder: The folder of the maps.
        with_sigma: True if there are maps of sigma beside those of depth.
    """

    def __init__(self, frames: Frames, folder: Path, with_sigma: bool):
        self.frames = frames
        self.num_maps = 2 if with_sigma else 1
        self.shards = maps.shards_of(frames.frames.images, frames.source, folder)
        self.folder = folder
        # Number of maps that this rank has made for the shard that it is writing.
        self._made = 0

    def problem(self, manifest: dict | None, pattern: str) -> str | None:
        """Returns an error message if this job can't use the folder; None if it can.

        Args:
            manifest: The folder's manifest; None for a new folder.
            pattern: The pattern of the shards of images, below the data set's root.
        """
        is_sharded = manifest is None or teacher_maps.SHARDS in manifest
        if is_sharded and maps.are_read_as_images(self.shards, self.frames.source, pattern):
            return (
                f"{self.folder}: the data set would read the maps there as shards of images "
                f"(data.shards: {pattern}); give another --out"
            )
        # Without a manifest, tar files of the same names may be shards of other images, which this
        # job would replace, or maps of another teacher.
        held = (shard.path for shard in self.shards if shard.path.exists() or shard.record.exists())
        path = next(held, None) if manifest is None else None
        if path is not None:
            return (
                f"{self.folder}: holds {path.name}, and no manifest says that it has maps; give "
                "another --out"
            )
        if manifest is None:
            return None
        return maps.mixed_forms(self.folder, self.shards, is_sharded)

    def missing(self) -> list[str]:
        """Returns the file names of maps that are missing or damaged. Collective.

        Each rank reads some of the shards; all ranks return the same list.

        Raises:
            TeacherError: The folder has maps of other images of the same names, or a shard can't be
                read; raised on all ranks.
        """
        missing, problem = [], None
        try:
            for shard in self.shards[comm.rank() :: comm.world_size()]:
                record = _record_of(shard)
                self._check_images(shard, record)
                whole = set(self._whole(shard, record))
                lacking = (row for row in shard.rows.tolist() if row not in whole)
                missing += map(self.frames.map_name, lacking)
        except (DataError, OSError) as error:
            problem = str(error)
        found = comm.gather_objects((missing, problem))
        problem = next((theirs for _, theirs in found if theirs is not None), None)
        if problem is not None:
            raise TeacherError(f"{problem}, or another --out")
        return [name for names, _ in found for name in names]

    def share(self, missing: Collection[str]) -> list[str]:
        """Returns the file names of the missing maps that this rank makes, shard by shard.

        Args:
            missing: The file names of all missing maps.
        """
        return [
            self.frames.map_name(row)
            for shard, is_missing in self._unfinished(missing)
            for row, makes in zip(shard.rows.tolist(), is_missing, strict=True)
            if makes
        ]

    def write(self, missing: Collection[str], made: Iterator[Sequence[bytes]]) -> None:
        """Writes this rank's shards.

        Args:
            missing: The file names of all missing maps.
            made: The contents of the maps that `share` names, in its order: those of depth and, if
                there is one, of sigma.

        Raises:
            DataError: A shard can't be written.
        """
        for shard, is_missing in self._unfinished(missing):
            record = _record_of(shard)
            names = [self._name(row) for row in shard.rows.tolist()]
            sizes = self.frames.frames.images.sizes[shard.rows].tolist()
            # Copy the maps that the shard has already, also those of frames that this job lacks.
            old = [] if record is None else sorted(record.images.keys() - set(names))
            images = [
                *zip(names, sizes, strict=True),
                *((name, record.images[name][0]) for name in old),
            ]
            kept = [name for name, new in zip(names, is_missing, strict=True) if not new] + old
            copied = iter(()) if record is None else maps.contents(shard, record, kept)
            sources = [made if new else copied for new in [*is_missing, *[False] * len(old)]]
            maps.write(shard, images, self._counted(sources))
            self._made = 0

    def count(self) -> int:
        """Returns the number of maps in finished shards and in the shard that this rank writes."""
        finished = sum(len(shard.rows) for shard in self.shards if shard.record.exists())
        return finished + self._made

    def remove_partial(self) -> None:
        """Removes shards that a killed job has left half-written."""
        for folder in {shard.path.parent for shard in self.shards}:
            for partial in folder.glob(".*.partial"):
                partial.unlink(missing_ok=True)

    def _unfinished(self, missing: Collection[str]) -> list[tuple[MapShard, list[bool]]]:
        """Returns the shards that this rank writes: its part of those that lack a map.

        Args:
            missing: The file names of all missing maps.

        Returns:
            For each shard, in order, itself and for each of its frames True if the map is missing.
        """
        wanted = set(missing)
        found = [
            (shard, [self.frames.map_name(row) in wanted for row in shard.rows.tolist()])
            for shard in self.shards
        ]
        lacking = [(shard, is_missing) for shard, is_missing in found if any(is_missing)]
        return lacking[comm.rank() :: comm.world_size()]

    def _whole(self, shard: MapShard, record: Record | None) -> Iterator[int]:
        """Yields the indices of the frames whose maps a shard has, complete and undamaged.

        Args:
            shard: The shard.
            record: Its record; None if it is unfinished.
        """
        if record is None:
            return
        rows = [row for row in shard.rows.tolist() if self._name(row) in record.images]
        found = maps.contents(shard, record, map(self._name, rows))
        for row, contents in zip(rows, found, strict=True):
            if len(contents) == self.num_maps and all(map(is_whole_depth_content, contents)):
                yield row

    def _check_images(self, shard: MapShard, record: Record | None) -> None:
        """Raises DataError if a shard has maps of other images of the same names.

        Args:
            shard: The shard.
            record: Its record; None if it is unfinished.
        """
        images = self.frames.frames.images
        recorded = {} if record is None else {key_of(name)[0]: name for name in record.images}
        for row in () if record is None else shard.rows.tolist():
            name = self._name(row)
            # Images of one key have one map, so `a/1.png` must not replace that of `a/1.jpg`.
            other = recorded.get(key_of(name)[0], name)
            if other != name:
                raise DataError(
                    f"the maps in {self.folder} were made of other shards: {other} there is {name} "
                    f"in {images[row].shard}; give the maps of these shards"
                )
            known = record.images.get(name)
            if known is not None and known[0] != images.sizes[row]:
                raise DataError(maps.other_images(self.folder, name, known[0], images, row))

    def _counted(self, sources: Iterable[Iterator[Sequence[bytes]]]) -> Iterator[Sequence[bytes]]:
        """Yields the next item of each source in turn, and counts them for the progress."""
        for source in sources:
            yield next(source)
            self._made += 1

    def _name(self, row: int) -> str:
        return self.frames.frames.names[row]


def for_job(
    frames: object, folder: Path, with_sigma: bool, manifest: dict | None, pattern: str
) -> ShardedMaps | None:
    """Returns the shards of maps that a caching job writes; None if it writes each map as a file.

    It writes shards if the frames are in tar shards, unless the folder has maps as files already.

    Args:
        frames: The data set.
        folder: The folder of the maps.
        with_sigma: True if there are maps of sigma beside those of depth.
        manifest: The folder's manifest; None for a new folder.
        pattern: The pattern of the shards of images, below the data set's root.

    Raises:
        TeacherError: The job can't use the folder.
    """
    if not isinstance(frames, Frames) or not isinstance(frames.frames.images, Members):
        return None
    shards = ShardedMaps(frames, folder, with_sigma)
    problem = shards.problem(manifest, pattern)
    if problem is not None:
        raise TeacherError(problem)
    is_of_files = manifest is not None and teacher_maps.SHARDS not in manifest
    return None if is_of_files else shards


def _record_of(shard: MapShard) -> Record | None:
    """Returns a shard's record; None if the shard is unfinished or damaged, and is made again.

    Args:
        shard: The shard.

    Raises:
        DataError: The permission to read it is missing.
    """
    try:
        return maps.read_record(shard)
    except DataError as error:
        if error.kind == maps.NOT_ACCESSIBLE:
            raise
        return None
