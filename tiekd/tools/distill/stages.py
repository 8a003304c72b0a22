"""Runs the stages of a distillation, skips finished ones, and records them in OUT/stages.json.

OUT is the folder of --out. Each stage has a key: a digest of its inputs and of the key of the stage
before it. A stage is skipped if it is recorded as finished with the same key and its outputs exist.
If an input has changed, its stage and all later ones run again. Once training has begun, such a
change of an earlier stage's input is an error, since the weights would come from two different
recipes.
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
        name: The stage's name.
        run: Function that runs the stage.
        fingerprint_inputs: Function that returns a text, such as a digest, that differs if an input
            of the stage has changed.
        inputs: Name of the inputs in messages, such as "recipe.yaml".
        outputs: Files and folders that exist once the stage has finished.
    """

    name: str
    run: Callable[[], None]
    fingerprint_inputs: Callable[[], str]
    inputs: str
    outputs: Sequence[Path] = ()


class Records:
    """The content of OUT/stages.json: each stage's key, seconds, and if it has finished.

    A stage's key is a digest of its inputs and of the key of the stage before it.

    Args:
        out: The folder of --out, called OUT here.
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
        """Returns the key (a digest of the inputs) of a finished stage; None if it hasn't finished.

        Args:
            name: The stage's name.
        """
        record = self.kept.get(name, {})
        return record.get("key") if record.get("finished") else None

    def last_key(self, name: str) -> str | None:
        """Returns the key (a digest of the inputs) of a stage's last run, finished or not.

        The result is None if the stage has never begun.

        Args:
            name: The stage's name.
        """
        return self.kept.get(name, {}).get("key")

    @property
    def training_key(self) -> str | None:
        """The key (a digest of the inputs) with which training last began; None if it never has."""
        return self.last_key(TRAIN)

    def seconds(self, name: str) -> float:
        """Returns the seconds that a stage has run, summed over all finished attempts; 0 if none.

        Args:
            name: The stage's name.
        """
        return self.kept.get(name, {}).get("seconds", 0.0)

    def begin(self, name: str, key: str) -> None:
        """Writes to OUT/stages.json that a stage has begun, atomically.

        Args:
            name: The stage's name.
            key: The stage's key, as `key_of` returns it.
        """
        self._put(name, {"key": key, "finished": False, "seconds": self.seconds(name)})

    def finish(self, name: str, key: str, seconds: float) -> None:
        """Writes to OUT/stages.json that a stage has finished, atomically.

        Args:
            name: The stage's name.
            key: The stage's key, as `key_of` returns it.
            seconds: Duration of this attempt, which is added to that of earlier ones.
        """
        record = {"key": key, "finished": True, "seconds": self.seconds(name) + round(seconds, 2)}
        self._put(name, record | {"time": time.strftime("%Y-%m-%dT%H:%M:%S")})

    def _put(self, name: str, record: dict) -> None:
        self.kept[name] = record
        replace_text(self.path, json.dumps(self.kept, indent=1) + "\n")


def key_of(stage: Stage, before: str) -> str:
    """Returns a stage's key: the SHA-256 of its inputs and of the key of the stage before it.

    Args:
        stage: The stage.
        before: The key of the stage before it; "" for the first.
    """
    text = "\0".join((before, stage.name, stage.fingerprint_inputs()))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def run(
    stages: Sequence[Stage],
    records: Records,
    print_line: Callable[[str], None],
    until: str | None = None,
) -> None:
    """Runs the stages that haven't finished with their present inputs, in order, and records each.

    Args:
        stages: All stages.
        records: The records of earlier calls, to which this call adds.
        print_line: Function that prints a line.
        until: Name of the last stage to run; None for all.

    Raises:
        LaunchError: An input of the training or of an earlier stage has changed since training
            began.
    """
    key = ""
    for place, stage in enumerate(stages, 1):
        title = f"[{place}/{len(stages)}] {stage.name}"
        before, key = key, key_of(stage, key)
        kept = records.key(stage.name)
        # Once training has begun, allow no change of the inputs of the stages up to it.
        has_begun = records.training_key is not None and stage.name in _until_training(stages)
        # Compare with the key of the last run, even if it hasn't finished: the stage may have been
        # killed while it made lost outputs again.
        if has_begun and records.last_key(stage.name) != key:
            raise LaunchError(
                f"{records.path.parent}: {stage.inputs} changed since the training began; put that "
                "back, or give another --out"
            )
        missing = next((path for path in stage.outputs if not path.exists()), None)
        if kept == key and missing is None:
            print_line(f"{title}: finished before, in {duration(records.seconds(stage.name))}")
        else:
            if kept is not None:
                why = f"{missing} is gone" if kept == key else f"{stage.inputs} changed"
                print_line(f"{title}: {why}; it is run again")
            else:
                print_line(f"{title}: begins")
            records.begin(stage.name, key)
            started = time.monotonic()
            stage.run()
            # Compute the key again, because a stage that reads the plan may also have changed the
            # plan.
            key = key_of(stage, before)
            records.finish(stage.name, key, time.monotonic() - started)
            print_line(f"{title}: finished in {duration(records.seconds(stage.name))}")
        if stage.name == until:
            return


def duration(seconds: float) -> str:
    """Returns a duration as text, such as "0:12:00"; below a minute in seconds, such as "3.2 s".

    Args:
        seconds: The duration.
    """
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _until_training(stages: Sequence[Stage]) -> list[str]:
    names = [stage.name for stage in stages]
    return names[: names.index(TRAIN) + 1] if TRAIN in names else []
