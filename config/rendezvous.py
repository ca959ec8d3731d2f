"""Which rank this process is, from the environment of whatever launched it; known before any slow import."""

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
        if not {"MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
            raise ConfigError(
                "srun started several tasks but MASTER_ADDR and MASTER_PORT are not set: export both in the batch script"
            )
        return {
            "RANK": environ["SLURM_PROCID"],
            "LOCAL_RANK": environ["SLURM_LOCALID"],
            "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        }
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    return {**single, "MASTER_PORT": str(free_port)}


def rank_and_size(environ: Mapping[str, str]) -> tuple[int, int]:
    """Rank of this process and number of ranks, as launched."""
    settled = {**environ, **rendezvous_environment(environ, 0)}
    return int(settled["RANK"]), int(settled["WORLD_SIZE"])


def world_size(environ: Mapping[str, str]) -> int:
    """Number of ranks, as launched."""
    return rank_and_size(environ)[1]
