"""Kills a run (SIGKILL) at random moments from a seed, resumes it each time, and counts the kills.

A moment is in a training step, in a save (while its unfinished folder exists) or in an evaluation
(while validation frames are read). One rank, the launcher or all processes are killed. The moments
are detected from outside, by the work dir and the processes.
"""

import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
from support import programs, recipes

MOMENTS, VICTIMS = ("step", "save", "evaluation"), ("rank", "launcher", "all")
_ALL_GONE_S = 240.0


def recipe(ground: Path, mark: Path, iterations: int) -> dict:
    """Returns a recipe that saves every 3 and evaluates every 4 iterations."""
    node = recipes.recipe(ground, batch_size=2, iterations=iterations, validate=True)
    node["checkpoint"] = {"interval": 3, "by": "iteration", "keep_last": 2}
    node["evaluation"] |= {"interval": 4, "by": "iteration"}
    node["tensorboard"] = {"image_interval": 0}
    node["data"] |= {"name": "support.parts.watched_scenes", "mark": str(mark)}
    return node


def engine_config(stage: int) -> dict:
    """Returns an engine config for a ZeRO stage; stage 3 shards small parameters, too."""
    zero = {"stage": stage}
    if stage == 3:
        zero |= dict.fromkeys(
            (
                "stage3_param_persistence_threshold",
                "stage3_max_live_parameters",
                "stage3_max_reuse_distance",
            ),
            0,
        )
    return {"zero_optimization": zero}


class Torture:
    """A run that is killed and resumed with `bin/train.py` and `bin/resume`.

    Attributes:
        count: counts of kills, by moment and by victim, of resumes and of unfinished saves.
    """

    def __init__(self, work_dir: Path, recipe_path: Path, engine_path: Path, mark: Path, seed: int):
        self.work_dir, self.recipe_path, self.engine_path, self.mark = (
            work_dir,
            recipe_path,
            engine_path,
            mark,
        )
        self.random = random.Random(seed)
        self.count = Counter()

    def command(self) -> list:
        port = programs.free_port()
        if (self.work_dir / "launch.json").is_file():
            self.count["resumes"] += 1
            return [programs.ROOT / "bin" / "resume", self.work_dir, f"--master_port={port}"]
        options = ["--work-dir", self.work_dir, "--deepspeed_config", self.engine_path]
        return [
            *programs.deepspeed(2, port),
            programs.ROOT / "bin" / "train.py",
            self.recipe_path,
            *options,
        ]

    def strike(self, moment: str, victim: str) -> None:
        """Starts or resumes the run; kills the victim at the moment, unless the run ends first."""
        with programs.Program(self.command()) as program:
            if not self._came(moment, program):
                return
            everything = program.processes()
            victims = {
                "rank": [self.random.choice(program.ranks())],
                "launcher": everything[:1],
                "all": everything,
            }
            for process in victims[victim]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            inside = bool(self._unfinished())
            program.result(
                _ALL_GONE_S
            )  # waits until no process has the output open, so all ranks and workers have ended
        self.count.update(["kills", moment, victim])
        self.count["inside a save"] += inside
        self.count["torn checkpoints"] += bool(self._unfinished())

    def finish(self) -> None:
        """Resumes the run to its end."""
        result = programs.finish(self.command())
        assert result.code == 0, result.stderr[-4000:]

    def _came(self, moment: str, program: programs.Program) -> bool:
        """Waits for the moment, plus a random delay; returns False if the run ends first."""
        pick = self.random.uniform
        if moment == "step":
            goal = self._iterations() + self.random.randint(1, 4)
            came, delay = self._wait(lambda: self._iterations() >= goal, program), pick(0, 0.3)
        elif moment == "save":
            before = self._unfinished()
            came, delay = self._wait(lambda: self._unfinished() - before, program), pick(0, 0.05)
        else:
            self.mark.unlink(missing_ok=True)
            came, delay = self._wait(self.mark.exists, program), pick(0, 0.1)
        time.sleep(delay)
        return came and program.process.poll() is None

    def _wait(self, condition: Callable[[], object], program: programs.Program) -> bool:
        end = time.monotonic() + programs.TIMEOUT_S
        while not condition():
            if program.process.poll() is not None:
                assert program.process.returncode == 0, program.process.communicate()[1][-4000:]
                return False
            assert time.monotonic() < end, "the program did not come so far"
            time.sleep(0.003)  # a save takes ten times as long
        return True

    def _iterations(self) -> int:
        path = self.work_dir / "recorded.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def _unfinished(self) -> set[int]:
        """Returns the inodes of unfinished saves' folders, also of those left by earlier kills."""
        found = set()
        for path in (self.work_dir / "checkpoints").glob(".iter_*.partial"):
            with contextlib.suppress(FileNotFoundError):
                found.add(path.stat().st_ino)
        return found


def mismatches(work_dir: Path, unbroken: Path) -> list[str]:
    """Compares a killed and resumed run with an uninterrupted one, and returns the differences.

    All recorded losses (also those of repeated iterations), the log and the weights are compared.
    """
    found = []
    expected = {row["iteration"]: row for row in programs.recorded(unbroken)}
    seen = set()
    for line in (work_dir / "recorded.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a partly written line
            continue
        seen.add(row["iteration"])
        if row != expected[row["iteration"]]:
            found.append(f"iteration {row['iteration']}: {row} is not {expected[row['iteration']]}")
    found += [f"iteration {i} is missing" for i in sorted(expected.keys() - seen)]
    if logged(work_dir) != logged(unbroken):
        found.append(".log.json differs")
    for name in ("student.pth", "moments.pth"):
        ours, theirs = (
            folder / "checkpoints" / f"iter_{max(expected)}" / name
            for folder in (work_dir, unbroken)
        )
        if ours.read_bytes() != theirs.read_bytes():
            found.append(f"{name} differs")
    return found


def logged(work_dir: Path) -> list[dict]:
    """Returns the rows of all .log.json files, without the times in them."""
    rows = []
    for path in sorted(work_dir.glob("*.log.json")):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    times = ("time", "data_time", "images_per_s")
    return [{k: v for k, v in row.items() if k not in times} for row in rows if "mode" in row]
