"""Records how a run was launched, so that bin/resume starts it on the same ranks and devices.

The record is the file launch.json in the run's work dir.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tiekd import console
from tiekd.config.external import LAUNCH_RECORD
from tiekd.distributed import launcher_watch
from tiekd.distributed.process_group import ranks_on_this_machine
from tiekd.errors import CheckpointError, LaunchError
from tiekd.files import check_readable, replace_text

RECORD = LAUNCH_RECORD
HOSTFILE = "hostfile"
_CHOICES = {"--num_gpus", "--include", "--exclude", "--hostfile", "--num_nodes"}


@dataclass(frozen=True)
class LaunchRecord:
    """How a run was launched: recipe, launcher, ranks, devices and machines.

    Attributes:
        recipe: The recipe's path.
        launcher: "deepspeed" or "python".
        world_size: The number of ranks.
        ranks_per_node: The number of ranks on rank 0's machine.
        visible_devices: The value of CUDA_VISIBLE_DEVICES that the launcher gave to a rank, such as
            "0,1"; None if it was not set.
        master_port: Rank 0's port.
        folder: The current folder at the start, to which the recipe's relative paths refer.
        nodes: A dict from each machine's name to a list of its device numbers; None if there was
            only one machine. The work dir's hostfile lists the machines, too.
        master_addr: Rank 0's address.
    """

    recipe: str
    launcher: str
    world_size: int
    ranks_per_node: int
    visible_devices: str | None
    master_port: int
    folder: str
    nodes: dict[str, list[int]] | None = None
    master_addr: str | None = None

    def launcher_options(self, given: Sequence[str], work_dir: Path) -> list[str]:
        """Returns options for `deepspeed` that start the recorded ranks on the recorded devices.

        Args:
            given: The user's own options for `deepspeed`, each as --NAME=VALUE, which take
                precedence. Options that select machines, such as --include, select among the run's
                machines; --exclude leaves the devices that the run had on the others.
            work_dir: The run's work dir, which holds its hostfile.

        Returns:
            A list of options, each as --NAME=VALUE; `given` is included.

        Raises:
            LaunchError: The record doesn't say enough to start the run again, so the user has to
                give options.
        """
        # If srun or torchrun started the ranks, the record doesn't have their options, so the user
        # has to give some.
        if self.launcher != "deepspeed" and self.world_size > 1 and not given:
            raise LaunchError(
                f"the run had {self.world_size} ranks of another launcher; give the number of "
                "ranks to resume on, with --num_gpus N, or start that launcher with "
                f"{console.command('resume')} as its program"
            )
        # If the run had several machines, use its hostfile, unless the user's options name another
        # hostfile, a number of GPUs, or localhost.
        names = {option.split("=")[0] for option in given}
        port = [] if "--master_port" in names else [f"--master_port={self.master_port}"]
        if (
            self.nodes
            and not names & {"--num_gpus", "--hostfile"}
            and "localhost" not in " ".join(given)
        ):
            given = self._with_excluded(given)
            names = {option.split("=")[0] for option in given}
            return [*self._machines(names, work_dir), *port, *given]
        if self.world_size != self.ranks_per_node and not names & _CHOICES:
            raise LaunchError(
                f"the run had {self.world_size} ranks on several machines; give the machines to "
                "resume on, with --hostfile FILE"
            )
        # On one machine, give the number of devices if the run used the first devices; otherwise
        # give the devices' numbers.
        default = ",".join(str(i) for i in range(self.ranks_per_node))
        if self.visible_devices in (None, "", default):
            devices = f"--num_gpus={self.ranks_per_node}"
        else:
            devices = f"--include=localhost:{self.visible_devices}"
        return [*([] if names & _CHOICES else [devices]), *port, *given]

    def _with_excluded(self, given: Sequence[str]) -> list[str]:
        """Returns options for `deepspeed` with `--include` in place of `--exclude`.

        The launcher would take all devices of a machine that isn't excluded, up to the largest one
        in the hostfile, also those that the run didn't have.

        Args:
            given: The user's options, each as --NAME=VALUE. They are returned unchanged if nothing
                is excluded, all is, or a machine is that the run didn't have, which is an error.
        """
        value = next((o.partition("=")[2] for o in given if o.startswith("--exclude=")), "")
        if {option.split("=")[0] for option in given} & {"--include", "--num_nodes"}:
            return list(given)
        left = dict(self.nodes)
        for part in value.split("@") if value else ():
            name, colon, slots = part.partition(":")
            excluded = slots.split(",") if colon else []
            # Leave a wrong option as it is, since the launcher's options are checked later.
            if name not in left or not all(slot.isdecimal() for slot in excluded):
                return list(given)
            gone = set(map(int, excluded)) if colon else set(left[name])
            if max(gone, default=0) > max(self.nodes[name]):
                return list(given)
            left[name] = [slot for slot in left[name] if slot not in gone]
        devices = "@".join(
            f"{name}:{','.join(map(str, slots))}" for name, slots in left.items() if slots
        )
        if not value or not devices:
            return list(given)
        others = [option for option in given if not option.startswith("--exclude=")]
        return [*others, f"--include={devices}"]

    def _machines(self, names: set[str], work_dir: Path) -> list[str]:
        """Returns options for `deepspeed` that select the run's machines and devices.

        Args:
            names: The names of the options that the user gave, such as --include. If one of them
                selects machines or devices, only the hostfile is added.
            work_dir: The run's work dir, which holds its hostfile.

        Returns:
            A list of options, each as --NAME=VALUE, without the user's own.

        Raises:
            LaunchError: The hostfile is gone.
        """
        hostfile = work_dir / HOSTFILE
        if not hostfile.is_file():
            raise LaunchError(
                f"{hostfile}, with the run's machines, is gone; give the machines to resume on, "
                "with --hostfile FILE"
            )
        if names & _CHOICES:
            return [f"--hostfile={hostfile}"]
        devices = "@".join(
            f"{name}:{','.join(map(str, slots))}" for name, slots in self.nodes.items()
        )
        address = [] if "--master_addr" in names else [f"--master_addr={self.master_addr}"]
        return [f"--hostfile={hostfile}", f"--include={devices}", *address]


def write(work_dir: Path, recipe_path: Path) -> None:
    """Writes how this run was launched to launch.json in its work dir. Rank 0 only.

    If there are several machines, a hostfile with their names is also written.

    Args:
        work_dir: The run's folder.
        recipe_path: The path of the user's recipe.
    """
    record = LaunchRecord(
        recipe=str(recipe_path),
        launcher="deepspeed" if "CROSS_RANK" in os.environ else "python",
        world_size=int(os.environ["WORLD_SIZE"]),
        ranks_per_node=ranks_on_this_machine(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        master_port=int(os.environ["MASTER_PORT"]),
        folder=os.getcwd(),
        nodes=launcher_watch.nodes(),
        master_addr=os.environ["MASTER_ADDR"],
    )
    if record.nodes:
        # A hostfile can state only how many devices a machine has. launch.json contains the numbers
        # of the devices that the run uses.
        lines = [f"{name} slots={max(slots) + 1}\n" for name, slots in record.nodes.items()]
        replace_text(work_dir / HOSTFILE, "".join(lines))
    replace_text(work_dir / RECORD, json.dumps(asdict(record), indent=2) + "\n")


def read(work_dir: Path) -> LaunchRecord:
    """Reads a `LaunchRecord`, i.e. how a run was launched, from launch.json in its work dir.

    Args:
        work_dir: The run's folder.

    Raises:
        CheckpointError: No run was started in the work dir, or the record can't be read.
    """
    path = work_dir / RECORD
    check_readable(path, "record of a run's launch", CheckpointError)
    try:
        record = LaunchRecord(**json.loads(path.read_text()))
        if not isinstance(record.world_size, int) or not isinstance(record.folder, str):
            raise TypeError
        return record
    except (OSError, ValueError, TypeError) as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        if is_missing and not (work_dir / "config.yaml").exists():
            raise CheckpointError(
                f"{work_dir}: no run to resume here; give the work dir that "
                f"{console.command('train')} made"
            ) from None
        what = "is missing" if is_missing else "can't be read as the record of a run's launch"
        raise CheckpointError(
            f"{path}: {what}; put the run's own file back, or start a new run in another "
            f"--work-dir with {console.command('train')} --resume-from and the newest checkpoint "
            "here"
        ) from None


def replace_by_launcher(options: Sequence[str], script: str, arguments: Sequence[str]) -> None:
    """Replaces this process by `deepspeed OPTIONS SCRIPT ARGUMENTS`; doesn't return.

    Args:
        options: Options for `deepspeed`, such as --num_gpus.
        script: The path of the Python program that every rank runs.
        arguments: The program's arguments.
    """
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *options, script, *arguments]
    os.execv(sys.executable, command)
