"""`deepspeed --launcher slurm` inside an allocation of a real SLURM: srun starts the ranks and train.py finds its place."""

import pytest

from tests.conftest import losses, train
from tests.launch.slurm_cluster import cluster
from tests.launch.two_hosts import BIN
from tests.ranks import free_port

__all__ = ["cluster"]


@pytest.mark.slow
def test_deepspeed_starts_its_ranks_through_srun(cluster, recipe, tmp_path):
    slots = tmp_path / "hosts.txt"
    slots.write_text("n1 slots=1\nn2 slots=1\nn3 slots=1\n")
    options = ["--launcher", "slurm", "--no_ssh_check", "--master_addr", "n1", "--include", "n1@n2"]
    result = cluster.run(
        "salloc", "--nodes=2", "--ntasks-per-node=1", "--nodelist=n1,n2",
        BIN / "deepspeed", "--hostfile", slots, *options, "train.py", recipe, "run.name=slurm",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "accumulation × 2 ranks;" in result.stdout
    assert train(recipe, "run.name=plain").returncode == 0
    assert losses(tmp_path / "runs/slurm") == pytest.approx(losses(tmp_path / "runs/plain"), abs=1e-5)
