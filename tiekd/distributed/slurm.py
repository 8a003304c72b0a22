"""Sets the environment variables of a launcher for `srun python bin/train.py RECIPE`.

Each task of the job step is one rank. Its rank, the address of rank 0 and the port are derived from
SLURM's environment variables. No other program is called, and the user needn't set anything. Not
covered: jobs of several components (`srun a : b`).
"""

import os
import re


def adopt_task() -> None:
    """Sets RANK, WORLD_SIZE and the other variables of a launcher for a task of a SLURM job step.

    The others are LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and OMP_NUM_THREADS; the
    last three are kept if they are set. Does nothing in three cases: another launcher has set RANK;
    the job step has a single task; or this process is the batch script itself, which also has task
    number 0 in SLURM.
    """
    environment = os.environ
    tasks = environment.get("SLURM_STEP_NUM_TASKS")
    if tasks is None and environment.get("ENVIRONMENT") != "BATCH":
        tasks = environment.get("SLURM_NTASKS")
    if "RANK" in environment or "SLURM_PROCID" not in environment or int(tasks or 1) == 1:
        return
    nodes = (
        environment.get("SLURM_STEP_NODELIST")
        or environment.get("SLURM_JOB_NODELIST")
        or environment["SLURM_NODELIST"]
    )
    on_each = tasks_per_node(
        environment.get("SLURM_STEP_TASKS_PER_NODE")
        or environment.get("SLURM_TASKS_PER_NODE")
        or tasks
    )
    # If SLURM gives each task a single GPU in CUDA_VISIBLE_DEVICES, that GPU is device 0 for the
    # task, so its LOCAL_RANK is 0.
    own_gpu = (
        len(environment.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1
        and "CUDA_VISIBLE_DEVICES" in environment
    )
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = tasks
    environment["LOCAL_RANK"] = "0" if own_gpu else environment["SLURM_LOCALID"]
    environment["LOCAL_WORLD_SIZE"] = str(
        on_each[min(int(environment.get("SLURM_NODEID", 0)), len(on_each) - 1)]
    )
    environment.setdefault("MASTER_ADDR", first_node(nodes))
    environment.setdefault(
        "MASTER_PORT", str(port(environment["SLURM_JOB_ID"], environment.get("SLURM_STEP_ID", "0")))
    )
    if "SLURM_CPUS_PER_TASK" in environment:
        environment.setdefault("OMP_NUM_THREADS", environment["SLURM_CPUS_PER_TASK"])


def first_node(nodes: str) -> str:
    """Returns the name of the first machine in SLURM's short form of a list of machines.

    Args:
        nodes: The list in short form. For `node[01-03,07],other` the result is `node01`.
    """
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).split(",")[0]


def tasks_per_node(counts: str) -> list[int]:
    """Returns the number of tasks on each machine from SLURM's short form.

    Args:
        counts: The short form. For `2(x2),1` the result is [2, 2, 1].
    """
    return [
        int(n)
        for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
        for _ in range(int(times or 1))
    ]


def port(job: str, step: str) -> int:
    """Returns the TCP port on which rank 0 of a job step listens, from 10000 to 29999.

    All tasks of the job step compute the same port. Higher ports may be taken, since the system
    assigns them to outgoing connections.

    Args:
        job: SLURM's job ID.
        step: SLURM's step ID.
    """
    return 10000 + (int(job) * 7 + int(step)) % 20000
