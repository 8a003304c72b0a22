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


def test_a_task_is_a_rank_of_its_step(adopted):
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


def test_without_a_step_those_of_the_job_count(adopted):
    job = {key: value for key, value in TASK.items() if "STEP" not in key and key != "ENVIRONMENT"}
    rank = adopted(**job)
    assert (rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"], rank["MASTER_ADDR"]) == (
        "8",
        "2",
        "gpu05",
    )


def test_what_is_given_stays(adopted):
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert given.items() <= adopted(**TASK, **given).items()
    assert adopted(**TASK, SLURM_CPUS_PER_TASK="6")["OMP_NUM_THREADS"] == "6"
    assert adopted(**TASK, SLURM_CPUS_PER_TASK="6", OMP_NUM_THREADS="2")["OMP_NUM_THREADS"] == "2"


def test_a_task_with_a_gpu_of_its_own_calls_it_the_first(adopted):
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
def test_other_processes_are_no_ranks_of_a_step(adopted, change):
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
def test_the_first_node_of_a_list(nodes, first):
    assert slurm.first_node(nodes) == first


def test_steps_that_run_at_the_same_time_have_ports_of_their_own():
    ports = [
        slurm.port(str(job), str(step))
        for job in (1, 123456, 123457, 99999999)
        for step in range(5)
    ]
    assert len(set(ports)) == len(ports)
    assert all(10000 <= port < 30000 for port in ports)
