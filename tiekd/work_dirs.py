"""Whose a work dir is, and what of a run is written down in it besides logs and checkpoints.

    config.yaml ds_config.json    the recipe and the engine config, resolved; the run can be repeated from these two
    launch.json environment.txt   how it was started (tiekd/launch.py), and on what machine and software

All of them are replaced whole at every start, never written over.
"""

import json
import socket
import time
from pathlib import Path

from tiekd import checkpoint, distributed, launch
from tiekd.config import dump_recipe, load_recipe
from tiekd.engine import EngineConfig
from tiekd.environment import environment
from tiekd.errors import LaunchError

RECIPE, ENGINE_CONFIG, ENVIRONMENT = "config.yaml", "ds_config.json", "environment.txt"
_SHARED_FILES_APPEAR_S = 10.0  # a network file system may remember for a while that a file was not there


def check(work_dir: Path, recipe_path: Path, resuming: bool) -> None:
    """Refuses a work dir that another recipe or run owns. Collective."""
    problem = distributed.broadcast_object(_problem(work_dir, recipe_path, resuming))
    if problem:
        raise LaunchError(problem)


def check_shared(work_dir: Path) -> None:
    """Refuses a work dir that the main rank wrote and another rank's machine doesn't see. Collective."""
    distributed.barrier()
    end = time.monotonic() + _SHARED_FILES_APPEAR_S
    while not (seen := (work_dir / launch.RECORD).is_file()) and time.monotonic() < end:
        time.sleep(0.1)
    blind = [host for host, saw in distributed.gather_objects((socket.gethostname(), seen)) if not saw]
    if blind:
        raise LaunchError(f"{work_dir} isn't shared: {blind[0]} doesn't see it; give a --work-dir on a shared disk")


def write(work_dir: Path, recipe: dict, recipe_path: Path, config: EngineConfig) -> None:
    """Makes the work dir and writes down the run in it, when nothing can be refused any more. Main rank only."""
    work_dir.mkdir(parents=True, exist_ok=True)
    checkpoint.replace_text(work_dir / RECIPE, dump_recipe(recipe))
    checkpoint.replace_text(work_dir / ENGINE_CONFIG, json.dumps(config.values, indent=2) + "\n")
    facts = "".join(f"{name}: {value}\n" for name, value in environment().items())
    checkpoint.replace_text(work_dir / ENVIRONMENT, facts)
    launch.write_record(work_dir, recipe_path)


def changed_keys(work_dir: Path, recipe: dict) -> list[str]:
    """Dotted names of the values in which a recipe differs from the one that the run was last started with."""
    if not (work_dir / RECIPE).is_file():
        return []
    return [key for key in _differences(load_recipe(work_dir / RECIPE), recipe) if key != "work_dir"]


def _problem(work_dir: Path, recipe_path: Path, resuming: bool) -> str | None:
    if (work_dir / launch.RECORD).exists():
        maker = launch.read_record(work_dir).recipe
        if maker != str(recipe_path):
            return f"{work_dir} belongs to {maker}; give this run another --work-dir"
    elif (work_dir / RECIPE).exists():
        return f"{work_dir} holds a config.yaml that no run made; give this run another --work-dir"
    held = [*(work_dir / checkpoint.FOLDER).glob("iter_*"), *work_dir.glob("best_*.pth")]
    if held and not resuming:
        return (
            f"{work_dir} already holds a run ({held[0].name}); go on with bin/resume {work_dir}, "
            "or start anew in another --work-dir"
        )
    return None


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Dotted names of the values that differ between two recipes."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changed.append(prefix + key)
    return changed
