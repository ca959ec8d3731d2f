"""Tensor parallelism through DeepSpeed's AutoTP: neighbouring ranks compute the same rows with slices of the matrices.

As in Megatron-LM (arXiv:1909.08053, section 3): the projections into heads and feed-forward units are sliced by their
outputs, those back into the residual stream by their inputs, so that each branch needs one sum over the ranks.
Everything else is whole on each rank.
"""

import re
from typing import Any

SLICED_BY_OUTPUT = r".*\.(q_proj|k_proj|v_proj|gate_proj|up_proj)\.(weight|bias)$"
SLICED_BY_INPUT = r".*\.(output_proj|down_proj)\.weight$"
WHOLE_ON_SLICES = r".*\.(q_norm|k_norm)\.weight$"
"""Each rank applies them to its heads, so their gradients have to be summed."""


def tensor_parallel_json(size: int) -> dict[str, Any]:
    """DeepSpeed's `tensor_parallel` section."""
    specs = [
        {"patterns": [SLICED_BY_OUTPUT], "partition_type": "column"},
        {"patterns": [SLICED_BY_INPUT], "partition_type": "row"},
        {"patterns": [WHOLE_ON_SLICES], "partition_type": "skip", "grad_allreduce": True},
    ]
    return {"autotp_size": size, "partition_config": {"use_default_specs": False, "layer_specs": specs}}


def sliced_dimension(name: str) -> int | None:
    """The dimension in which a parameter is sliced; None if each rank has it whole."""
    if re.match(SLICED_BY_OUTPUT, name):
        return 0
    return 1 if re.match(SLICED_BY_INPUT, name) else None


def slice_index(engine: Any) -> tuple[int, int]:
    """Which of how many slices this rank has."""
    if engine.autotp_size() < 2:
        return 0, 1
    from deepspeed.utils import groups

    return groups.get_tensor_model_parallel_rank(), engine.autotp_size()
