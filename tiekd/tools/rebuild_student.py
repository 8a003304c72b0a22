"""Trains the student that comes with tiekd, and stores its weights in fp16 with a record.

    python -m tiekd.tools.rebuild_student [--threads N] [--work-dir DIR] [--out FILE] [--check]

It renders the scenes of the recipe students/baseline_lite0_scenes.yaml into the current folder's
data/, trains on one rank with N threads (some 20 minutes on two cores; the same command resumes a
killed training), and writes FILE.pth and FILE.json. The record has the digest of the stored
weights, the errors on rendered validation scenes before they were stored in fp16, the CPU, the
threads and the versions of the packages: on the same kind of CPU, with the same threads and
versions, the weights are the same bit for bit. So a training that was begun with others is refused.

With --check nothing is written. The new weights are compared with the stored ones; the exit code is
1 if neither the digests are equal nor the errors within 2 %.

Weights of convolutions are stored in fp16, those of norms in fp32, because a small variance would
be lost. Not covered: errors on real images, which bin/evaluate.py measures.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tiekd import paths
from tiekd.config import shipped
from tiekd.distributed import entrypoint
from tiekd.errors import CheckpointError, LaunchError
from tiekd.files import check_output, replace_text
from tiekd.inference import released
from tiekd.models.weights import state_dicts
from tiekd.tools import arguments
from tiekd.tools.experiment.runs import code_digest
from tiekd.tools.supervise import run_once
from tiekd.workdir import checkpoints, weights_file, workdir
from tiekd.workdir.environment import environment

MAX_BYTES = 10_000_000
TOLERANCE = 0.02  # relative difference of the errors on another machine
_COMPARED = ("abs_rel", "silog")
_BEGUN = "rebuild.json"  # in the work dir: what the training is made with
_DIFFERS = 1


def main() -> int:
    """Trains the student, and stores or compares its weights; returns the exit code."""
    args = _parse_arguments()
    out = args.out or released.weights_file()
    stored = {}
    if args.check:
        stored = _read_record(out)
        outcome = workdir.read_outcome(args.work_dir)
        if outcome is not None and outcome.is_complete:
            # Comparing the stored weights with those that they were made from proves nothing.
            raise LaunchError(
                f"--check: {args.work_dir} holds a finished training; give another --work-dir, in "
                "which it is made again"
            )
    check_output("--out", None if args.check else out, ".pth")
    started = time.monotonic()
    made_with = {
        "overrides": list(args.overrides),
        "threads": args.threads,
        "machine": environment(),
        "code": code_digest(),
    }
    _claim(args.work_dir, made_with)
    _train(args.work_dir, args.threads, args.overrides)
    weights = checkpoints.find_weights(args.work_dir)
    content = state_dicts.read_checkpoint(weights)
    content = {**content, "state_dict": in_half(content["state_dict"])}
    record = {
        "recipe": released.NAME,
        **made_with,
        "digest": digest_of(content["state_dict"]),
        "iterations": content["iteration"],
        "validation": _errors(args.work_dir),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    if args.check:
        line, equal = compared(record, stored)
        print(line)
        return 0 if equal else _DIFFERS
    # Write beside the stored weights first, so that these stay if the new ones are too large. A
    # hidden file that a kill leaves isn't part of a wheel.
    new = out.with_name(f".{out.name}.new")
    weights_file.write_with(weights, content, new)
    size = new.stat().st_size
    if size > MAX_BYTES:
        new.unlink()
        raise CheckpointError(f"{out}: would have {size / 1e6:.1f} MB; allowed: 10 MB")
    new.replace(out)
    replace_text(out.with_suffix(".json"), json.dumps(record | {"bytes": size}, indent=1) + "\n")
    print(f"Written: {out} ({size / 1e6:.1f} MB) {out.with_suffix('.json')}")
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = arguments.new_parser(__doc__)
    add = parser.add_argument
    cores = len(os.sched_getaffinity(0))
    add("--threads", type=int, default=cores, help=f"threads of the training, default {cores}")
    add(
        "--work-dir",
        type=paths.path_argument,
        default=Path("work_dirs") / released.NAME,
        help="folder of the training",
    )
    add("--out", metavar="FILE", type=paths.path_argument, help="default: where predict finds it")
    add("--check", action="store_true", help="compare with the stored weights, write nothing")
    arguments.add_overrides(parser)
    args = parser.parse_args()
    if args.threads < 1:
        parser.error(f"--threads: got {args.threads}; it must be 1 or more")
    if args.out is not None and args.out.suffix != ".pth":
        parser.error(f"--out: got {args.out}; it must end in .pth")
    return args


def _claim(work_dir: Path, made_with: Mapping) -> None:
    """Writes into a work dir what its training is made with, or compares it with what is there.

    Otherwise the record would state, say, the threads of the call that stored the weights, and not
    those of the training, which an earlier call or bin/train.py may have made.

    Args:
        work_dir: the folder of the training.
        made_with: the overrides, the threads, the machine and the digest of the code.

    Raises:
        LaunchError: the folder holds a training that was made with something else.
    """
    check_output("--work-dir", work_dir, None)
    path = work_dir / _BEGUN
    # If there is nothing else, a training was refused, and nothing was learned with these inputs.
    if {each.name for each in work_dir.iterdir()} <= {_BEGUN}:
        replace_text(path, json.dumps(made_with, indent=1) + "\n")
        return
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        other = _differing(made_with, begun)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise LaunchError(
            f"--work-dir: {work_dir} isn't empty, and this program didn't begin a training there; "
            "give another folder"
        ) from None
    if other:
        raise LaunchError(
            f"--work-dir: the training in {work_dir} was begun with other {', '.join(other)}; give "
            "another folder, or delete it"
        )


def _differing(made_with: Mapping, other: Mapping) -> list[str]:
    """Returns the names of what differs between two records of what weights are made with."""
    machine, its = made_with["machine"], other["machine"]
    found = [key for key, value in machine.items() if value != its.get(key)]
    return found + [
        key for key in ("threads", "overrides", "code") if made_with.get(key) != other.get(key)
    ]


def _train(work_dir: Path, threads: int, overrides: Sequence[str]) -> None:
    """Trains the student in a process of its own, or resumes its training.

    Args:
        work_dir: the folder of the training.
        threads: the threads of the training.
        overrides: overrides of the recipe, as for `--set`.

    Raises:
        LaunchError: the training didn't finish.
        Stopped: a signal has stopped it.
    """
    program = shipped.folder(shipped.PROGRAMS) / "train.py"
    command = [sys.executable, str(program), str(released.recipe_file())]
    command += ["--work-dir", str(work_dir), "--resume-from", "auto"]
    command += ["--set", *overrides] if overrides else []
    # Compute on the CPU, whatever the machine has: only there a training is the same bit for bit.
    os.environ.update({"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""})
    # Forward signals to the training, which then saves a checkpoint. It would outlive this process.
    received: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in signals
    }
    try:
        code = run_once(command, work_dir, received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    outcome = workdir.read_outcome(work_dir)
    if code == entrypoint.STOPPED_CODE:
        raise entrypoint.Stopped(f"{work_dir}: stopped; the same command resumes the training")
    # Refuse any failure: the outcome of a refused command is that of an earlier one.
    if code != 0 or outcome is None or not outcome.is_complete:
        raise LaunchError(
            f"the training in {work_dir} ended with code {code} before its end, see above; if it "
            "was stopped, the same command resumes it"
        )


def in_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a network's tensors with the weights of convolutions in fp16.

    Args:
        tensors: parameters and buffers by name, float32.

    Raises:
        CheckpointError: a weight is beyond the range of fp16.
    """
    found = {}
    for name, tensor in tensors.items():
        is_weight = tensor.is_floating_point() and tensor.dim() > 1
        found[name] = tensor.half() if is_weight else tensor
        if not found[name].isfinite().all():
            raise CheckpointError(f"{name}: has values beyond fp16, up to {tensor.abs().max():g}")
    return found


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of tensors: their names, dtypes, shapes and bytes.

    Args:
        tensors: the tensors by name.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def compared(record: Mapping, stored: Mapping) -> tuple[str, bool]:
    """Compares new weights with the stored ones.

    Args:
        record: the record of the new weights.
        stored: that of the stored ones.

    Returns:
        A line that states the comparison, and True if the digests are equal or all errors are
        within TOLERANCE of the stored ones.
    """
    if record["digest"] == stored["digest"]:
        return f"Equal bit for bit: {record['digest']}", True
    pairs = {key: (record["validation"][key], stored["validation"][key]) for key in _COMPARED}
    is_near = all(abs(new - old) <= TOLERANCE * abs(old) for new, old in pairs.values())
    told = ", ".join(f"{key} {new:.4f}, stored {old:.4f}" for key, (new, old) in pairs.items())
    other = _differing(record, stored)
    why = f"; made with other {', '.join(other)}" if other else ""
    return f"Not equal bit for bit: {told}{why}", is_near


def _errors(work_dir: Path) -> dict[str, float]:
    """Returns the errors of the last evaluation that a work dir's log has.

    Args:
        work_dir: the folder of the training.

    Raises:
        LaunchError: the log has none.
    """
    for log in sorted(work_dir.glob("*.log.json"), reverse=True):
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line]
        found = [line for line in lines if line.get("mode") == "val"]
        if found:
            return {key: found[-1][key] for key in _COMPARED}
    raise LaunchError(f"{work_dir}: its logs have no evaluation; delete the folder, and train anew")


def _read_record(out: Path) -> dict:
    """Returns the record beside stored weights.

    Args:
        out: the weights' file.

    Raises:
        LaunchError: there is none, or it is damaged.
    """
    path = out.with_suffix(".json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _ = record["digest"], record["threads"], record["machine"]
        _ = [record["validation"][key] for key in _COMPARED]
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaunchError(
            f"--check: {path} is no record of stored weights ({error!r:.80}); leave --check out"
        ) from None


if __name__ == "__main__":
    entrypoint.program(main)
