"""Initial weights, the same on every rank, at every ZeRO stage and in every order of construction."""

import hashlib
import math

import torch
from torch import Tensor, nn

from config import TransformerConfig

OUTPUTS = ("output_proj.weight", "down_proj.weight")
CHUNK = 1 << 20
"""Numbers drawn by one generator."""


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
    numel = math.prod(shape)
    return initial_elements(name, numel, config, seed, 0, numel).view(shape)


def initial_elements(name: str, numel: int, config: TransformerConfig, seed: int, start: int, stop: int) -> Tensor:
    """Elements [start, stop) of the flattened `initial_weight` of `numel` elements, at the cost of little more than these.

    Drawn in chunks that each have a generator of their own, so that a rank can draw the shard it owns.
    """
    constant = _constant(name)
    if constant is not None:
        return torch.full((stop - start,), constant)
    first = start // CHUNK
    chunks = [_draw(f"{seed} {name}", i, min(CHUNK, numel - i * CHUNK)) for i in range(first, -(-stop // CHUNK))]
    normal = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
    return normal[start - first * CHUNK : stop - first * CHUNK] * _std(name, config)


@torch.no_grad()
def init_weights(model: nn.Module, config: TransformerConfig, seed: int) -> None:
    """Fill every parameter in place; the shards of ZeRO 3 are filled by the engine."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_weight(name, parameter.shape, config, seed))


def _constant(name: str) -> float | None:
    if name.endswith(".bias"):
        return 0.0
    return 1.0 if name.endswith("norm.weight") else None


def _std(name: str, config: TransformerConfig) -> float:
    if not name.endswith(OUTPUTS):
        return config.init_std
    return 0.0 if config.zero_init_outputs else config.init_std / math.sqrt(2 * config.num_layers)


def _draw(key: str, chunk: int, numel: int) -> Tensor:
    """Standard normal numbers that depend on `key` and the number of the chunk alone."""
    digest = hashlib.sha256((f"{key} {chunk}" if chunk else key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.empty(numel).normal_(generator=generator)
