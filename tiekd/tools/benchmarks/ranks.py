"""Times a training step with DeepSpeed on several ranks of this machine.

Each rank is a process with a batch of its own. On a CPU each rank has one thread, whatever the
number of ranks, so that the times of one and of several ranks are comparable. Not covered: several
machines.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tiekd.config.recipe import load_recipe
from tiekd.distributed import comm, entrypoint, memory, process_group
from tiekd.engine.build import build_engine
from tiekd.engine.config import read_engine_config, resolve
from tiekd.engine.step import Step
from tiekd.errors import LaunchError
from tiekd.models.build import build_network
from tiekd.tools.benchmarks.training import CLIP_NORM, DTYPES, BatchShape, noise
from tiekd.training import criterion as criteria
from tiekd.training.optimizer import build_optimizer

_RANK_S = 600


def measure_step(
    count: int,
    recipe_path: str,
    shape: tuple[int, int, int],
    dtype: str,
    rounds: int,
    device: str = "cpu",
) -> tuple[float, float]:
    """Measures the time and memory of a training step with DeepSpeed on several ranks.

    Args:
        count: the number of ranks.
        recipe_path: path of the student's recipe.
        shape: (batch size per rank, height, width); height and width in pixels.
        dtype: the precision, a key of `training.DTYPES`.
        rounds: number of timed steps.
        device: "cpu" or "cuda".

    Returns:
        Seconds of the fastest step on the slowest rank, and the sum of all ranks' peak memory in
        MB.

    Raises:
        LaunchError: there are fewer GPUs than ranks, or a rank fails.
    """
    rows = run_ranks(__name__, count, device, [recipe_path, shape, dtype, rounds])
    return max(seconds for seconds, _ in rows), sum(peak for _, peak in rows) / 1e6


def run_ranks(module: str, count: int, device: str, arguments: list) -> list:
    """Runs a module on several ranks of this machine, and returns the results that they write.

    Each rank runs `python -m MODULE JSON`. JSON is a list: the arguments, then the path of the file
    to which the rank writes its result.

    Args:
        module: dotted name of the module.
        count: number of ranks.
        device: "cpu" or "cuda".
        arguments: values that can be written as JSON.

    Returns:
        Each rank's result, read from its JSON file, in rank order.

    Raises:
        LaunchError: there are fewer GPUs than ranks, or a rank fails.
    """
    if device == "cuda" and count > torch.cuda.device_count():
        raise LaunchError(
            f"--ranks {count}: each needs a GPU, and there are {torch.cuda.device_count()}; ask "
            "for less"
        )
    # Find a free port for the process group of the ranks.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    with tempfile.TemporaryDirectory() as folder:
        answers = [Path(folder) / f"{rank}.json" for rank in range(count)]
        try:
            for rank, answer in enumerate(answers):
                asked = json.dumps([*arguments, str(answer)])
                started.append(_start(module, rank, count, port, device, asked))
            for process in started:
                _, told = process.communicate(timeout=_RANK_S)
                if process.returncode:
                    raise LaunchError(
                        f"{count} ranks: one ended with code {process.returncode}: "
                        f"{told.strip()[-500:]}"
                    )
        finally:
            # Kill the ranks that still run after an error, since they would wait for the failed
            # one.
            for process in started:
                process.kill()
                process.wait()
        return [json.loads(answer.read_text()) for answer in answers]


def _start(
    module: str, rank: int, count: int, port: int, device: str, asked: str
) -> subprocess.Popen:
    # Set the environment variables that a launcher would set, because a launcher itself takes
    # seconds to start.
    places = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
    }
    places |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
        "DS_ACCELERATOR": device,
    }
    environment = os.environ | {key: str(value) for key, value in places.items()}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    # Run the benchmark's module on the rank. It passes the JSON list `asked` on to its `main`.
    command = [sys.executable, "-m", module, asked]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def main(
    recipe_path: str, shape: tuple[int, int, int], dtype: str, rounds: int, answer: str
) -> None:
    """Times training steps on this rank, and writes [seconds of the fastest, peak bytes] as JSON.

    Args:
        recipe_path: path of the student's recipe.
        shape: (batch size per rank, height, width); height and width in pixels.
        dtype: the precision, a key of `training.DTYPES`.
        rounds: number of timed steps.
        answer: path of the file to write.
    """
    device = process_group.start_rank()
    recipe = load_recipe(recipe_path)
    ranks = comm.world_size()
    engine_config = read_engine_config(None)
    if DTYPES[dtype] is not None:
        engine_config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    config = resolve(engine_config, shape[0] * ranks, CLIP_NORM, ranks)
    torch.manual_seed(0)
    network = build_network(recipe["network"])
    engine = build_engine(
        network, build_optimizer(recipe["optimizer"], network, shape[0] * ranks, "none"), config
    )
    # Make a batch of noise, because the time of a step doesn't depend on what the images show.
    criterion = criteria.build(recipe["losses"], has_teacher=True).to(device)
    batch = noise(BatchShape(*shape), network.max_depth, device)
    step = Step(engine, config, CLIP_NORM)
    engine.train()
    times = []
    # Run two steps to warm up, then the timed ones. The barrier makes all ranks start each step
    # together.
    for _ in range(2 + rounds):
        comm.barrier()
        memory.wait(device)
        started = time.perf_counter()
        target = criterion.divergence_target(batch.teacher_depth)
        prediction = step.forward(batch.image, target)
        step.backward(criterion(prediction, batch, batch.teacher_depth)["loss"])
        memory.wait(device)
        times.append(time.perf_counter() - started)
    Path(answer).write_text(json.dumps([min(times[2:]), memory.peak_bytes(device)]))


if __name__ == "__main__":
    entrypoint.program(lambda: main(*json.loads(sys.argv[1])))
