"""Which rank a process is, under each launcher's environment."""

import pytest

from config import ConfigError
from config.rendezvous import device_index, first_host, rank_and_size, rendezvous_environment

ADDRESS = {"MASTER_ADDR": "node1", "MASTER_PORT": "20123"}


def test_plain_python_is_one_process():
    assert rank_and_size({}) == (0, 1)
    assert rendezvous_environment({}, 4711)["MASTER_PORT"] == "4711"


def test_a_launcher_that_sets_everything_is_left_alone():
    environ = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", **ADDRESS}
    assert rendezvous_environment(environ, 0) == {}
    assert rank_and_size(environ) == (3, 4)


def test_srun_tasks_are_mapped():
    task = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
    assert rank_and_size({**task, **ADDRESS}) == (9, 16)
    assert rendezvous_environment({**task, **ADDRESS}, 0)["LOCAL_RANK"] == "1"


def test_srun_without_a_batch_script_finds_rank_0_on_the_first_node():
    task = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}
    one_node = rendezvous_environment(task, 0)
    assert (one_node["MASTER_ADDR"], one_node["MASTER_PORT"]) == ("127.0.0.1", "23456")
    several = {**task, "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "localhost,other"}
    settled = rendezvous_environment(several, 0)
    assert (settled["MASTER_ADDR"], settled["MASTER_PORT"]) == ("localhost", "23458")
    with pytest.raises(
        ConfigError, match=r"'n01' does not resolve here: export MASTER_ADDR .* `scontrol show node n01`"
    ):
        rendezvous_environment({**several, "SLURM_STEP_NODELIST": "n[01-02]"}, 0)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[007-12,20],login1", "gpu007"),
        ("rack[1-2]node[03-04]", "rack1node03"),
        ("b2,a1", "b2"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


def test_a_batch_script_around_srun_is_one_process():
    assert rank_and_size({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}) == (0, 1)


def test_half_a_rendezvous_is_refused():
    with pytest.raises(ConfigError, match="MASTER_PORT is not"):
        rank_and_size({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1"})
    with pytest.raises(ConfigError, match="LOCAL_RANK is not"):
        rank_and_size({"RANK": "1", "WORLD_SIZE": "2", **ADDRESS})


def test_each_rank_of_a_node_has_a_gpu_of_its_own():
    rank = {"RANK": "9", "LOCAL_RANK": "1"}
    assert device_index(rank, 8) == 1
    assert device_index({**rank, "SLURM_STEP_ID": "0"}, 1) == 0  # under --gpus-per-task
    with pytest.raises(
        ConfigError, match=r"LOCAL_RANK 1, so its node runs 2 ranks .* only 1 GPU.*CUDA_VISIBLE_DEVICES=3"
    ):
        device_index({**rank, "CUDA_VISIBLE_DEVICES": "3"}, 1)
