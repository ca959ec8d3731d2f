"""Which rank this process is, from the environment of whatever launched it; known before any slow import."""

import re
import socket
from collections.abc import Mapping

from config.errors import ConfigError


def rendezvous_environment(environ: Mapping[str, str], free_port: int) -> dict[str, str]:
    """The five rendezvous variables a launcher did not set: from SLURM_* under srun, else those of one process."""
    if "RANK" in environ:
        needed = {"WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} - environ.keys()
        if needed:
            raise ConfigError(
                f"RANK is set but {', '.join(sorted(needed))} is not: set all of them, or none for one process"
            )
        if "LOCAL_RANK" not in environ and environ["WORLD_SIZE"] != "1":
            raise ConfigError("RANK is set but LOCAL_RANK is not: set it to the number of this rank on its node")
        return {} if "LOCAL_RANK" in environ else {"LOCAL_RANK": "0"}
    # Set by srun for its tasks; SLURM_NTASKS would be set in the batch script around them too.
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return {
            "RANK": environ["SLURM_PROCID"],
            "LOCAL_RANK": environ["SLURM_LOCALID"],
            "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
            "MASTER_ADDR": environ.get("MASTER_ADDR") or _slurm_address(environ),
            "MASTER_PORT": environ.get("MASTER_PORT") or _slurm_port(environ),
        }
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    return {**single, "MASTER_PORT": str(free_port)}


def _slurm_address(environ: Mapping[str, str]) -> str:
    """Where rank 0 listens: srun places it on the step's first node. Raises ConfigError if that name does not resolve."""
    if environ.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return "127.0.0.1"
    first = first_host(environ.get("SLURM_STEP_NODELIST", ""))
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        raise ConfigError(
            f"srun started tasks on {environ.get('SLURM_STEP_NODELIST')} and the name {first!r} does not resolve here: export "
            "MASTER_ADDR in the batch script, as `python -m launch slurm` does, with the NodeAddr that `scontrol show node "
            f"{first or 'NODE'}` prints"
        ) from None
    return first


def first_host(nodes: str) -> str:
    """First name of a SLURM host list: `gpu[007-12,20],login1` starts with gpu007."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _slurm_port(environ: Mapping[str, str]) -> str:
    """A port of this step's own, below those that the kernel gives out."""
    return str(20_000 + (int(environ["SLURM_JOB_ID"]) + int(environ.get("SLURM_STEP_ID", 0))) % 10_000)


def device_index(environ: Mapping[str, str], visible: int) -> int:
    """Which of the `visible` GPUs is this rank's. Raises ConfigError if its node has more ranks than GPUs."""
    local_rank = int(environ["LOCAL_RANK"])
    if local_rank < visible:
        return local_rank
    if visible == 1 and "SLURM_STEP_ID" in environ:
        return 0  # under --gpus-per-task each task sees only its own
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    raise ConfigError(
        f"rank {environ['RANK']} has LOCAL_RANK {local_rank}, so its node runs {local_rank + 1} ranks or more, but only {visible} "
        f"GPU(s) are visible there{'' if shown is None else f' (CUDA_VISIBLE_DEVICES={shown})'}: start at most {visible} rank(s) on "
        "a node (deepspeed --num_gpus, torchrun --nproc-per-node, srun --ntasks-per-node), or show it more GPUs"
    )


def rank_and_size(environ: Mapping[str, str]) -> tuple[int, int]:
    """Rank of this process and number of ranks, as launched."""
    settled = {**environ, **rendezvous_environment(environ, 0)}
    return int(settled["RANK"]), int(settled["WORLD_SIZE"])


def world_size(environ: Mapping[str, str]) -> int:
    """Number of ranks, as launched."""
    return rank_and_size(environ)[1]
