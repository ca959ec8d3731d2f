"""Which rank a process is, under each launcher's environment."""

import pytest

from config import ConfigError
from config.rendezvous import rank_and_size, rendezvous_environment

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
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT are not set"):
        rank_and_size(task)


def test_a_batch_script_around_srun_is_one_process():
    assert rank_and_size({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}) == (0, 1)


def test_half_a_rendezvous_is_refused():
    with pytest.raises(ConfigError, match="MASTER_PORT is not"):
        rank_and_size({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1"})
    with pytest.raises(ConfigError, match="LOCAL_RANK is not"):
        rank_and_size({"RANK": "1", "WORLD_SIZE": "2", **ADDRESS})
