"""Ranks that share rows instead of reading their own: which share of the data each rank reads."""

from typing import TYPE_CHECKING

from config.contrastive_schema import Similarity
from config.errors import ConfigError
from config.objective_schema import MaskedLM

if TYPE_CHECKING:
    from config.schema import EngineSection, RunConfig


def ranks_per_row(engine: "EngineSection") -> int:
    """Ranks that work on the same rows."""
    return engine.sequence_parallel * engine.tensor_parallel


def data_rank_and_size(engine: "EngineSection", rank: int, world_size: int) -> tuple[int, int]:
    """Place of this rank among those that read different rows, and their number: neighbours share their rows.

    Raises ConfigError if the ranks do not divide into groups.
    """
    together = ranks_per_row(engine)
    if world_size % together:
        below = world_size // together * together
        raise ConfigError(
            f"{setting(engine)} {together} does not divide {world_size} rank{'s' if world_size > 1 else ''}: start "
            f"{f'{below} or ' if below else ''}{below + together} of them, or change the setting"
        )
    return rank // together, world_size // together


def setting(engine: "EngineSection") -> str:
    """The setting that makes ranks share rows."""
    return "engine.tensor_parallel" if engine.tensor_parallel > 1 else "engine.sequence_parallel"


def check_parallel(config: "RunConfig") -> None:
    """Raise ValueError if the model or the objective cannot be shared among ranks as the recipe asks."""
    if config.engine.sequence_parallel > 1 and config.engine.tensor_parallel > 1:
        raise ValueError(
            f"engine.sequence_parallel {config.engine.sequence_parallel} does not work with engine.tensor_parallel "
            f"{config.engine.tensor_parallel}: DeepSpeed's tensor parallelism wants the same tokens on its ranks; set one "
            "of them to 1"
        )
    if config.engine.tensor_parallel > 1:
        _check_tensor_parallel(config, config.engine.tensor_parallel)
    if config.engine.sequence_parallel > 1:
        _check_sequence_parallel(config, config.engine.sequence_parallel)


def _check_sequence_parallel(config: "RunConfig", size: int) -> None:
    model, objective, asked = config.model, config.objective, f"engine.sequence_parallel {size}"
    if model.family == "t5":
        raise ValueError(
            f"{asked} does not work with model.family t5, whose relative bias and cross-attention need whole rows on "
            "each rank: set it to 1"
        )
    if isinstance(objective, Similarity) or (isinstance(objective, MaskedLM) and objective.pairs != "none"):
        what = (
            f"objective.pairs {objective.pairs}"
            if isinstance(objective, MaskedLM)
            else f"objective.name {objective.name}"
        )
        raise ValueError(f"{asked} does not work with {what}, which reads one vector of a whole row: set it to 1")
    if model.num_heads % size:
        raise ValueError(f"{asked} does not divide model.num_heads {model.num_heads}: each rank attends with its heads")
    if config.data.row_length % size:
        raise ValueError(f"{asked} does not divide data.row_length {config.data.row_length}: set one of them to fit")


def _check_tensor_parallel(config: "RunConfig", size: int) -> None:
    model, asked = config.model, f"engine.tensor_parallel {size}"
    if model.family == "t5":
        raise ValueError(
            f"{asked} does not work with model.family t5, whose relative bias belongs to all heads at once: set it to 1"
        )
    if isinstance(config.objective, Similarity):
        raise ValueError(
            f"{asked} does not work with objective.name {config.objective.name}, whose negatives would come twice, from each rank that "
            "computes the same rows: set it to 1"
        )
    if config.optimizer.name == "muon":
        raise ValueError(
            f"{asked} does not work with optimizer.name muon, which orthogonalises whole matrices, not slices: set it to 1"
        )
    if config.engine.activation_checkpointing == "selective":
        raise ValueError(
            f"{asked} does not work with engine.activation_checkpointing selective: DeepSpeed adds up the ranks' products in "
            "place, so that kept ones would be added twice; set it to full or none"
        )
    if config.engine.compile == "on":
        raise ValueError(f"{asked} has not been tried with engine.compile on: set it to auto or off")
    for what, count in (
        ("num_heads", model.num_heads),
        ("num_kv_heads", model.kv_heads),
        ("ffn_size", model.ffn_width),
    ):
        if count % size:
            raise ValueError(f"{asked} does not divide model.{what} {count}: each rank takes as many of them")
