"""The variables by which a task of a SLURM job step knows its rank."""

import os

import pytest

from tiekd.distributed import slurm

TASK = {  # the last of five on three nodes
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "gpu[07-08,11]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_NTASKS": "8",
    "SLURM_NODELIST": "gpu[05-11]",
    "SLURM_TASKS_PER_NODE": "2(x4)",
    "ENVIRONMENT": "BATCH",
}
SET = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
)


@pytest.fixture
def adopted(monkeypatch):
    def adopted(**environment) -> dict[str, str]:
        monkeypatch.setattr(os, "environ", environment)
        slurm.adopt_task()
        return {name: value for name, value in environment.items() if name in SET}

    return adopted


def test_adopt_task_sets_rank_of_step(adopted):
    """A task of a job step gets rank, world size and master from the step's variables."""
    assert adopted(**TASK) == {
        **{
            "RANK": "4",
            "WORLD_SIZE": "5",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "gpu07",
        },
        "MASTER_PORT": str(slurm.port("123456", "2")),
    }


def test_adopt_task_without_step_uses_job(adopted):
    """Without variables of a step, those of the job are used."""
    job = {key: value for key, value in TASK.items() if "STEP" not in key and key != "ENVIRONMENT"}
    rank = adopted(**job)
    assert (rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"], rank["MASTER_ADDR"]) == (
        "8",
        "2",
        "gpu05",
    )


def test_adopt_task_keeps_given_variables(adopted):
    """MASTER_ADDR, MASTER_PORT and OMP_NUM_THREADS that are set are kept."""
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert given.items() <= adopted(**TASK, **given).items()
    assert adopted(**TASK, SLURM_CPUS_PER_TASK="6")["OMP_NUM_THREADS"] == "6"
    assert adopted(**TASK, SLURM_CPUS_PER_TASK="6", OMP_NUM_THREADS="2")["OMP_NUM_THREADS"] == "2"


def test_adopt_task_one_visible_gpu_is_local_rank_0(adopted):
    """A task that sees exactly one GPU has LOCAL_RANK 0."""
    second = TASK | {"SLURM_LOCALID": "1"}
    assert adopted(**second, CUDA_VISIBLE_DEVICES="3")["LOCAL_RANK"] == "0"
    assert adopted(**second, CUDA_VISIBLE_DEVICES="2,3")["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    "change",
    [
        {"RANK": "0"},  # below another launcher
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": None},  # the batch script itself
        {"SLURM_PROCID": None},  # salloc
    ],
)
def test_adopt_task_ignores_other_processes(adopted, change):
    """A process below another launcher, of one task or of no step is left alone."""
    environment = {key: value for key, value in (TASK | change).items() if value is not None}
    assert adopted(**environment).items() <= change.items()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[01-03,07]", "node01"),
        ("node[07,09]", "node07"),
        ("a,b[1-2]", "a"),
        ("rack[2-3]n[10-20]-ib,x", "rack2n10-ib"),
        ("dgx-a100-[3,5]", "dgx-a100-3"),
    ],
)
def test_first_node_of_list(nodes, first):
    """`first_node` expands the first name of SLURM's node list."""
    assert slurm.first_node(nodes) == first


def test_port_differs_between_steps():
    """Different jobs and steps get different ports from 10000 to 29999."""
    ports = [
        slurm.port(str(job), str(step))
        for job in (1, 123456, 123457, 99999999)
        for step in range(5)
    ]
    assert len(set(ports)) == len(ports)
    assert all(10000 <= port < 30000 for port in ports)
