"""Initial weights, the same on every rank, at every ZeRO stage and in every order of construction."""

import hashlib
import math

import torch
from torch import Tensor, nn

from config import TransformerConfig

OUTPUTS = ("output_proj.weight", "down_proj.weight")


def initial_weight(name: str, shape: torch.Size | tuple[int, ...], config: TransformerConfig, seed: int) -> Tensor:
    """Initial value, float32 on the CPU, a function of the seed and the parameter's name alone.

    | weight                                     | value                                                             |
    |--------------------------------------------|-------------------------------------------------------------------|
    | embed_tokens, embed_positions              | normal, init_std                                                  |
    | lm_head, unless tied to embed_tokens       | normal, init_std                                                  |
    | q_proj, k_proj, v_proj, gate_proj, up_proj | normal, init_std                                                  |
    | output_proj, down_proj                     | normal, init_std / sqrt(2 x num_layers); 0 with zero_init_outputs |
    | weights of norms                           | 1                                                                 |
    | biases                                     | 0                                                                 |

    The smaller spread of the two projections into the residual stream is GPT-2's (Radford et al. 2019, section 2.3).
    """
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    std = config.init_std
    if name.endswith(OUTPUTS):
        std = 0.0 if config.zero_init_outputs else std / math.sqrt(2 * config.num_layers)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@torch.no_grad()
def init_weights(model: nn.Module, config: TransformerConfig, seed: int) -> None:
    """Fill every parameter in place. Parameters partitioned by ZeRO-3 have to be gathered by the caller."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_weight(name, parameter.shape, config, seed))
