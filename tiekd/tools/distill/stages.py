"""The record of finished stages, OUT/stages.json, and what to do when a stage's inputs change.

A stage has a key: a digest of what it reads and of the key of the stage before it. A stage whose
record has the same key, and whose outputs are there, is skipped. If something has changed, the
stages from there on are run again, unless the training has begun: then the change is refused, since
the run would be of two recipes.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tiekd.errors import LaunchError
from tiekd.files import check_readable, replace_text

FILE = "stages.json"
TRAIN = "train"


@dataclass(frozen=True)
class Stage:
    """One stage of a distillation.

    Attributes:
        name: Its name.
        run: Does its work.
        reads: Returns a text that changes whenever something that it reads changes.
        inputs: What it reads, for messages.
        outputs: Files and folders that are there when it has finished.
    """

    name: str
    run: Callable[[], None]
    reads: Callable[[], str]
    inputs: str
    outputs: Sequence[Path] = ()


class Records:
    """The records of finished stages, and of the start of the training.

    Args:
        out: The folder of the distillation.
    """

    def __init__(self, out: Path):
        self.path = out / FILE
        check_readable(self.path, "record of stages", LaunchError)
        self.kept: dict[str, dict] = {}
        if self.path.exists():
            try:
                self.kept = dict(json.loads(self.path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                raise LaunchError(
                    f"{self.path}: can't be read as a record of stages; remove it, and finished "
                    "stages are run again"
                ) from None

    def key(self, name: str) -> str | None:
        """Returns the key with which a stage has finished; None if it hasn't.

        Args:
            name: The stage.
        """
        record = self.kept.get(name, {})
        return record.get("key") if record.get("finished") else None

    def last_key(self, name: str) -> str | None:
        """Returns the key with which a stage has begun, or finished; None before.

        Args:
            name: The stage.
        """
        return self.kept.get(name, {}).get("key")

    @property
    def begun(self) -> str | None:
        """The key with which the training has begun; None before."""
        return self.last_key(TRAIN)

    def seconds(self, name: str) -> float:
        """Returns how long a stage has taken, all its attempts together.

        Args:
            name: The stage.
        """
        return self.kept.get(name, {}).get("seconds", 0.0)

    def begin(self, name: str, key: str) -> None:
        """Records that a stage has begun, atomically.

        Args:
            name: The stage.
            key: Its key.
        """
        self._put(name, {"key": key, "finished": False, "seconds": self.seconds(name)})

    def finish(self, name: str, key: str, seconds: float) -> None:
        """Records that a stage has finished, atomically.

        Args:
            name: The stage.
            key: Its key.
            seconds: How long this attempt has taken.
        """
        record = {"key": key, "finished": True, "seconds": self.seconds(name) + round(seconds, 2)}
        self._put(name, record | {"time": time.strftime("%Y-%m-%dT%H:%M:%S")})

    def _put(self, name: str, record: dict) -> None:
        self.kept[name] = record
        replace_text(self.path, json.dumps(self.kept, indent=1) + "\n")


def key_of(stage: Stage, before: str) -> str:
    """Returns the key of a stage: a digest of what it reads, and of the stages before it.

    Args:
        stage: The stage.
        before: The key of the stage before it; "" for the first.
    """
    text = "\0".join((before, stage.name, stage.reads()))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def run(
    stages: Sequence[Stage], records: Records, tell: Callable[[str], None], until: str | None = None
) -> None:
    """Runs the stages that aren't finished, in order.

    Args:
        stages: All stages.
        records: Their records.
        tell: Prints a line.
        until: The last stage to run; None for all.

    Raises:
        LaunchError: What a stage before the training reads has changed since the training began.
    """
    key = ""
    for place, stage in enumerate(stages, 1):
        title = f"[{place}/{len(stages)}] {stage.name}"
        before, key = key, key_of(stage, key)
        kept = records.key(stage.name)
        # A training that has begun is resumed, but only with all that it began with.
        has_begun = records.begun is not None and stage.name in _until_training(stages)
        # A stage that has lost its output, and was killed while it made that again, has no record
        # of its end either.
        if has_begun and records.last_key(stage.name) != key:
            raise LaunchError(
                f"{records.path.parent}: {stage.inputs} changed since the training began; put that "
                "back, or give another --out"
            )
        missing = next((path for path in stage.outputs if not path.exists()), None)
        if kept == key and missing is None:
            tell(f"{title}: finished before, in {duration(records.seconds(stage.name))}")
        else:
            if kept is not None:
                why = f"{missing} is gone" if kept == key else f"{stage.inputs} changed"
                tell(f"{title}: {why}; it is run again")
            else:
                tell(f"{title}: begins")
            records.begin(stage.name, key)
            started = time.monotonic()
            stage.run()
            # A stage may complete the plan that it reads.
            key = key_of(stage, before)
            records.finish(stage.name, key, time.monotonic() - started)
            tell(f"{title}: finished in {duration(records.seconds(stage.name))}")
        if stage.name == until:
            return


def duration(seconds: float) -> str:
    """Returns a duration as text, such as 0:12:00, or 3.2 s below a minute.

    Args:
        seconds: The duration.
    """
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _until_training(stages: Sequence[Stage]) -> list[str]:
    names = [stage.name for stage in stages]
    return names[: names.index(TRAIN) + 1] if TRAIN in names else []
