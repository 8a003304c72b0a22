"""Translates CUDA_VISIBLE_DEVICES and a number of ranks to options of DeepSpeed's launcher.

This is the program behind bin/dist_train.sh. DeepSpeed ignores CUDA_VISIBLE_DEVICES if it is called
with a number of GPUs, and accepts no UUIDs. So this program passes device numbers as `--include`,
after translating UUIDs to numbers with the help of nvidia-smi. As in CUDA, an empty value or -1
hides all GPUs; the ranks then run on the CPU. Only Python's standard library is imported, so the
program starts without delay.

Not covered: ranks on several MIG instances (slices of a GPU), between which NCCL doesn't work.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

HIDDEN = ("", "-1", "NoDevFiles", "none", "void")  # values that hide all GPUs
_LIST_TIMEOUT_S = 20.0
_OF_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # device files of NVIDIA, of AMD and of WSL
_ASK = "give numbers from 0 on, such as CUDA_VISIBLE_DEVICES=0,1"


class Refused(ValueError):
    """A user's mistake; the message is one line that says what is wrong and what to change."""


def command(
    launcher: Sequence[str], environment: Mapping[str, str], arguments: Sequence[str]
) -> tuple[list, dict]:
    """Returns the command that `bin/dist_train.sh RECIPE GPUS [options]` has to run.

    Args:
        launcher: The words of a command that start DeepSpeed's launcher, such as ["deepspeed"].
        environment: The environment variables of this process.
        arguments: The path of train.py, then the arguments of dist_train.sh: RECIPE, GPUS and
            options of train.py.

    Returns:
        (words, variables): the words of the command, a list; and all its environment variables, a
        dict.

    Raises:
        Refused: An argument or a variable is wrong, or they contradict each other.
    """
    if len(arguments) < 3:
        raise Refused(
            "bin/dist_train.sh needs RECIPE and GPUS, for example: sh bin/dist_train.sh RECIPE 2"
        )
    train, recipe, gpus, *options = arguments
    count = _whole(gpus, "GPUS", 1024, "how many ranks to start")
    port = _whole(environment.get("PORT") or "29500", "PORT", 65535, "a free port")
    environment = dict(environment)
    visible = environment.pop("CUDA_VISIBLE_DEVICES", None)
    # The launcher can't select a MIG instance (a slice of a GPU). A single rank doesn't need the
    # launcher, so it is started directly.
    if visible is not None and _is_mig(visible):
        _check_one_mig(visible, count)
        return [sys.executable, train, recipe, *options], environment | {
            "CUDA_VISIBLE_DEVICES": visible.strip(" ,")
        }
    devices, changes = select(visible, count, environment)
    return [
        *launcher,
        *devices,
        "--master_port",
        str(port),
        train,
        recipe,
        *options,
    ], environment | changes


def select(
    visible: str | None, count: int, environment: Mapping[str, str], called: str = "GPUS"
) -> tuple[list[str], dict[str, str]]:
    """Returns options for DeepSpeed's launcher that select devices, and variables to set with them.

    Args:
        visible: The value of CUDA_VISIBLE_DEVICES; None if it isn't set.
        count: The number of ranks, one per device.
        environment: The environment variables of this process.
        called: The name of the argument that gave the number of ranks, for errors.

    Returns:
        (options, variables): a list of options; and a dict of the environment variables that must
        be set or changed for the launcher.

    Raises:
        Refused: The devices don't exist, or their number isn't `count`.
    """
    listed = visible if visible is None else visible.strip()
    if listed in HIDDEN:
        return ["--num_gpus", str(count)], {"DS_ACCELERATOR": "cpu"}
    there = _uuids()
    if listed is None:
        if there and count > len(there):
            raise Refused(
                f"{called} is {count}, but this machine has {len(there)}; give {len(there)} or less"
            )
        return ["--num_gpus", str(count)], {}
    # Translate UUIDs to device numbers, since the launcher accepts only numbers.
    names = [name.strip() for name in listed.rstrip(" ,").split(",")]
    if len(names) != count:
        raise Refused(
            f"{called} is {count}, but CUDA_VISIBLE_DEVICES={listed} lists {len(names)}; make them "
            "agree"
        )
    numbers = [_number(name, listed, there) for name in names]
    if len(set(numbers)) < len(numbers):
        raise Refused(f"CUDA_VISIBLE_DEVICES={listed} lists a device twice; list each once")
    slots = len(there) or int(environment.get("LOCAL_SIZE") or 0)
    if there and max(numbers) >= slots:
        raise Refused(
            f"CUDA_VISIBLE_DEVICES={listed}: this machine has {slots} GPUs, 0 to {slots - 1}"
        )
    # Without a GPU the ranks run on the CPU, and device numbers have no meaning. Return only the
    # number of ranks.
    if not slots and not any(map(os.path.exists, _OF_GPUS)):
        return ["--num_gpus", str(count)], {}
    # The device numbers of UUIDs are nvidia-smi's, which sorts devices by PCI bus. CUDA's default
    # order is fastest first, so set CUDA's order to nvidia-smi's.
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if not all(map(str.isdecimal, names)) else {}
    return ["--include", f"localhost:{','.join(map(str, numbers))}"], order


def in_options(
    options: Sequence[str], environment: Mapping[str, str], takes_first: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Returns options of DeepSpeed's launcher with the devices of CUDA_VISIBLE_DEVICES in them.

    DeepSpeed's launcher ignores the variable if it is given a number of GPUs, and would start the
    ranks on the first GPUs of the machine.

    Args:
        options: The launcher's options, each as `--NAME=VALUE`.
        environment: The environment variables of this process.
        takes_first: True to use the first devices if CUDA_VISIBLE_DEVICES lists more than there are
            ranks; False to refuse this.

    Returns:
        (options, variables): a list of options; and a dict of the environment variables that must
        be set or changed for the launcher. The options are unchanged if CUDA_VISIBLE_DEVICES isn't
        set, if they have no number of GPUs, or with several machines, on which the variable means
        nothing.

    Raises:
        Refused: The variable doesn't agree with the number of GPUs, or names no device.
    """
    numbers = [option for option in options if option.startswith("--num_gpus=")]
    several = any(option.startswith(("--hostfile=", "--num_nodes=")) for option in options)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if not numbers or several or visible is None:
        return list(options), {}
    count = int(numbers[0].partition("=")[2])
    if _is_mig(visible):
        raise Refused(
            f"CUDA_VISIBLE_DEVICES={visible}: DeepSpeed's launcher can't select a MIG device; "
            "unset the variable, so that it takes the first one, or train without a launcher"
        )
    if takes_first and visible.strip() not in HIDDEN:
        visible = ",".join(visible.strip(" ,").split(",")[:count])
    devices, changes = select(visible, count, environment, "--num_gpus")
    return [*devices, *(option for option in options if option not in numbers)], changes


def _number(name: str, listed: str, there: Sequence[str]) -> int:
    """Converts an entry of CUDA_VISIBLE_DEVICES to a device number, an int from 0.

    Args:
        name: The entry: a number, or the beginning of a UUID.
        listed: The whole value of the variable, for errors.
        there: The UUIDs of this machine's GPUs, in the order of their numbers.

    Raises:
        Refused: The entry is neither a number nor a UUID; or no GPU, or more than one, has a UUID
            that begins with it.
    """
    if re.fullmatch(r"\d+", name, re.ASCII):
        return int(name)
    if not name.startswith("GPU-"):
        raise Refused(
            f"CUDA_VISIBLE_DEVICES={listed}: {name or 'an empty name'} is no device; {_ASK}"
        )
    if not there:
        raise Refused(
            f"CUDA_VISIBLE_DEVICES={listed}: nvidia-smi, which numbers {name}, finds no GPUs here; "
            f"{_ASK}"
        )
    found = [number for number, uuid in enumerate(there) if uuid.startswith(name)]
    if len(found) != 1:
        which = "none" if not found else "several"
        reason = f"{name} is {which} of this machine's GPUs (nvidia-smi -L)"
        raise Refused(f"CUDA_VISIBLE_DEVICES={listed}: {reason}; {_ASK}")
    return found[0]


def _is_mig(visible: str) -> bool:
    return any(name.strip().startswith("MIG-") for name in visible.split(","))


def _check_one_mig(visible: str, count: int) -> None:
    if count != 1 or len(visible.strip(" ,").split(",")) != 1:
        raise Refused(
            f"CUDA_VISIBLE_DEVICES={visible}: ranks on several devices don't work with MIG, for "
            "NCCL doesn't; list one MIG device, with GPUS 1"
        )


def _uuids() -> list[str]:
    """Returns a list of the UUIDs of this machine's GPUs, in nvidia-smi's order.

    It is empty if nvidia-smi is missing, times out or lists no GPU.
    """
    try:
        said = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_LIST_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = re.findall(r"^GPU (\d+):.*\(UUID: (GPU-[\w-]+)\)", said.stdout, re.M)
    return [uuid for _, uuid in sorted(found, key=lambda each: int(each[0]))]


def _whole(value: str, name: str, most: int, meaning: str) -> int:
    if not re.fullmatch(r"\d+", value, re.ASCII) or not 1 <= int(value) <= most:
        raise Refused(
            f"{name}: got {value!r}; it must be a whole number from 1 to {most}, {meaning}"
        )
    return int(value)


def main() -> int:
    """Replaces this process by DeepSpeed's launcher (`exec`), and doesn't return if that succeeds.

    After a user's mistake it reports the mistake in one line on stderr and returns exit code 2.
    """
    try:
        words, environment = command(["deepspeed"], os.environ, sys.argv[1:])
        os.execvpe(words[0], words, environment)
    except Refused as error:
        sys.stderr.write(f"LaunchError: {error}\n")
    except FileNotFoundError:
        sys.stderr.write(
            "LaunchError: deepspeed is not on PATH; activate the environment that it is installed "
            "in\n"
        )
    return 2


if __name__ == "__main__":
    sys.exit(main())
