"""Checks the hostfile and the device options for DeepSpeed's launcher, before it is started.

A hostfile has one line `NAME slots=N` for each machine, with its number of devices. If the hostfile
doesn't exist, the launcher trains on this machine alone without an error. Other mistakes end in a
traceback of the launcher. Not covered: whether the machines can be reached.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tiekd.errors import LaunchError
from tiekd.files import instead_of_file

DEFAULT = Path("/job/hostfile")  # the hostfile that DeepSpeed reads if --hostfile isn't given
_FORM = "give a file with a line `NAME slots=N` for each machine"
_LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?", re.ASCII)


def read(path: str | Path) -> dict[str, int]:
    """Reads a hostfile, in which each line `NAME slots=N` is a machine with N devices.

    Args:
        path: The hostfile.

    Returns:
        A dict from each machine's name to its number of devices.

    Raises:
        LaunchError: The file doesn't exist, can't be read or has an invalid line.
    """
    path = Path(path)
    check_is_file(path)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"--hostfile {path}: can't be read ({error}); {_FORM}") from None
    # Parse the lines as the launcher does. An error names the line that is wrong.
    hosts: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise LaunchError(f"--hostfile {path}: line {number} is {line[:200]!r}; {_FORM}")
        name = found[1]
        slots = int(found[2])
        if name in hosts:
            raise LaunchError(
                f"--hostfile {path}: line {number} names {name} again; give each machine one line"
            )
        if slots < 1:
            raise LaunchError(
                f"--hostfile {path}: line {number} gives {name} no slots; give it one, or leave it "
                "out"
            )
        hosts[name] = slots
    if not hosts:
        raise LaunchError(f"--hostfile {path}: no machine is in it; {_FORM}")
    return hosts


def check_is_file(path: Path) -> None:
    """Raises LaunchError if a hostfile doesn't exist or is no file.

    Without this check, DeepSpeed's launcher would use this machine alone.

    Args:
        path: The hostfile.
    """
    if path.is_file():
        return
    kind = instead_of_file(path) or "no such file"
    raise LaunchError(f"--hostfile {path}: {kind}; {_FORM}")


def check_options(options: Sequence[str]) -> None:
    """Checks the machine and device options of a `deepspeed` command.

    Args:
        options: The options, each as `--name=value`.

    Raises:
        LaunchError: Two options exclude each other; or an option names a machine or device that
            isn't in the hostfile, or a number that isn't positive.
    """
    # Check that the numbers of GPUs and nodes and the port are positive integers.
    given = dict(option.removeprefix("--").split("=", 1) for option in options)
    for name in ("num_gpus", "num_nodes", "master_port"):
        if name in given and not re.fullmatch(r"[1-9]\d{0,4}", given[name], re.ASCII):
            raise LaunchError(f"--{name}: got {given[name]!r}; it must be a whole number from 1")
    # Refuse options that exclude each other.
    filters = [name for name in ("include", "exclude") if given.get(name)]
    if len(filters) > 1:
        raise LaunchError("--include and --exclude can't be combined; give one of them")
    if filters and {"num_gpus", "num_nodes"} & set(given):
        raise LaunchError(
            f"--{filters[0]} can't be combined with --num_gpus or --num_nodes; give one of them"
        )
    # Refuse machines and devices that aren't in the hostfile. Without a hostfile there is only this
    # machine.
    hosts = of_options(options)
    if int(given.get("num_nodes", 1)) > len(hosts or "1"):
        there = (
            f"{given.get('hostfile', DEFAULT)} has {len(hosts)}"
            if hosts
            else "without --hostfile there is one"
        )
        raise LaunchError(
            f"--num_nodes {given['num_nodes']}: {there}; give that many or less, or another "
            "--hostfile"
        )
    for name in filters:
        _check_filter(name, given[name], hosts)


def of_options(options: Sequence[str]) -> dict[str, int] | None:
    """Reads the hostfile that a `deepspeed` command with these options would read.

    Args:
        options: The options, each as `--name=value`.

    Returns:
        A dict from each machine's name to its number of devices; None if no hostfile is given and
        DeepSpeed's default hostfile doesn't exist.

    Raises:
        LaunchError: The hostfile doesn't exist, can't be read or has an invalid line.
    """
    given = [option.partition("=")[2] for option in options if option.startswith("--hostfile=")]
    # Without --hostfile, DeepSpeed's launcher reads the file DEFAULT, if it exists.
    return read(given[-1] if given else DEFAULT) if given or DEFAULT.is_file() else None


def _check_filter(name: str, value: str, hosts: dict[str, int] | None) -> None:
    """Checks the value of --include or --exclude, such as `node1@node2:0,2`.

    Args:
        name: The option's name, without `--`.
        value: The option's value: machines separated by @, each with or without device numbers.
        hosts: The number of devices of each machine, by the machine's name; None if there is no
            hostfile. Then only this machine is allowed, and its device numbers aren't checked.

    Raises:
        LaunchError: The value names a machine or device that isn't in `hosts`.
    """
    known = hosts or {"localhost": None}
    # Machines are separated by @. After a machine's name, a colon and its devices may follow.
    for part in value.split("@"):
        host, colon, slots = part.partition(":")
        if host not in known:
            raise LaunchError(
                f"--{name} {value}: no machine is called {host!r}; there are {', '.join(known)}"
            )
        for slot in slots.split(",") if colon else ():
            if not re.fullmatch(r"\d+", slot, re.ASCII):
                raise LaunchError(
                    f"--{name} {value}: {slot!r} is no device; give numbers from 0 on, as in "
                    f"{host}:0,1"
                )
            if known[host] is not None and int(slot) >= known[host]:
                raise LaunchError(
                    f"--{name} {value}: {host} has {known[host]} devices, 0 to {known[host] - 1}"
                )
