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

    | weight                               | value                                              | T5: init_std x |
    |--------------------------------------|----------------------------------------------------|----------------|
    | embed_tokens, other embedding tables | normal, init_std                                   | 1              |
    | lm_head, unless tied to embed_tokens | normal, init_std                                   | 1 / sqrt(D)    |
    | lm_head: transform, pooler, pairs    | normal, init_std                                   |                |
    | lm_head of a task: dense, output     | normal, init_std                                   |                |
    | q_proj                               | normal, init_std                                   | 1 / sqrt(D E)  |
    | k_proj, v_proj, gate_proj, up_proj   | normal, init_std                                   | 1 / sqrt(D)    |
    | output_proj                          | normal, init_std / sqrt(2 L); 0: zero_init_outputs | 1 / sqrt(H E)  |
    | down_proj                            | normal, init_std / sqrt(2 L); 0: zero_init_outputs | 1 / sqrt(F)    |
    | both of them in post-norm blocks     | normal, init_std;             0: zero_init_outputs |                |
    | relative_embed                       |                                                    | 1 / sqrt(D)    |
    | weights of norms                     | 1                                                  |                |
    | biases                               | 0                                                  |                |

    L num_layers, D hidden_size, H num_heads, E head_size, F ffn_size. The smaller spread of the two projections into the
    residual stream is GPT-2's (Radford et al. 2019, section 2.3); a post-norm stream, normalised after each of them, has
    no use for it (BERT, arXiv:1810.04805). T5's spreads are one over the root of the fan-in, as in t5x
    (examples/t5/network.py), and q_proj's replaces the missing scale of the scores. Hugging Face starts T5's untied
    head at 1, which makes the first loss about sqrt(2 D ln V) nats instead of ln V.
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
    output = name.endswith(OUTPUTS)
    if output and config.zero_init_outputs:
        return 0.0
    if config.family == "t5":
        return config.init_std / math.sqrt(_t5_fan_in(name, config))
    if not output or config.post_norm:
        return config.init_std
    return config.init_std / math.sqrt(2 * config.num_layers)


def _t5_fan_in(name: str, config: TransformerConfig) -> int:
    match name.split(".")[-2]:
        case "embed_tokens":
            return 1
        case "q_proj":
            return config.hidden_size * config.head_width
        case "output_proj":
            return config.num_heads * config.head_width
        case "down_proj":
            return config.ffn_width
    return config.hidden_size


def _draw(key: str, chunk: int, numel: int) -> Tensor:
    """Standard normal numbers that depend on `key` and the number of the chunk alone."""
    digest = hashlib.sha256((f"{key} {chunk}" if chunk else key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.empty(numel).normal_(generator=generator)
