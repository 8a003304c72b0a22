"""`srun python bin/train.py RECIPE`: one rank a task, from the variables that SLURM gives each.

Ranks, the main rank's machine and a port follow from the job alone, so nothing is called and nothing else is needed.
Left out: jobs of several components (`srun a : b`).
"""

import os
import re


def adopt_task() -> None:
    """Sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for a task of a job step.

    Does nothing below another launcher, for a single task, and in the batch script itself, which SLURM numbers 0 like
    the first task. MASTER_ADDR, MASTER_PORT and OMP_NUM_THREADS stay as they are given.
    """
    told = os.environ
    tasks = told.get("SLURM_STEP_NUM_TASKS")
    if tasks is None and told.get("ENVIRONMENT") != "BATCH":
        tasks = told.get("SLURM_NTASKS")
    if "RANK" in told or "SLURM_PROCID" not in told or int(tasks or 1) == 1:
        return
    nodes = (
        told.get("SLURM_STEP_NODELIST") or told.get("SLURM_JOB_NODELIST") or told["SLURM_NODELIST"]
    )
    on_each = tasks_per_node(
        told.get("SLURM_STEP_TASKS_PER_NODE") or told.get("SLURM_TASKS_PER_NODE") or tasks
    )
    # A task that was given one GPU of its own knows it as the first.
    own_gpu = (
        len(told.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and "CUDA_VISIBLE_DEVICES" in told
    )
    told["RANK"], told["WORLD_SIZE"] = told["SLURM_PROCID"], tasks
    told["LOCAL_RANK"] = "0" if own_gpu else told["SLURM_LOCALID"]
    told["LOCAL_WORLD_SIZE"] = str(on_each[min(int(told.get("SLURM_NODEID", 0)), len(on_each) - 1)])
    told.setdefault("MASTER_ADDR", first_node(nodes))
    told.setdefault("MASTER_PORT", str(port(told["SLURM_JOB_ID"], told.get("SLURM_STEP_ID", "0"))))
    if "SLURM_CPUS_PER_TASK" in told:
        told.setdefault("OMP_NUM_THREADS", told["SLURM_CPUS_PER_TASK"])


def first_node(nodes: str) -> str:
    """The first name of a node list: `node[01-03,07],other` begins with node01."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).split(",")[0]


def tasks_per_node(counts: str) -> list[int]:
    """`2(x3),1` is 2, 2, 2, 1."""
    return [
        int(n)
        for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
        for _ in range(int(times or 1))
    ]


def port(job: str, step: str) -> int:
    """A port for a step of a job, below those that systems give away by themselves: 10000 to 29999."""
    return 10000 + (int(job) * 7 + int(step)) % 20000
