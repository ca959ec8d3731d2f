"""From a config to a model, whatever its family."""

from typing import Any

import torch

from config import Choice, Recompute, TransformerConfig
from model.bert import Bert
from model.block import Block
from model.gpt import GPT
from model.head import Head
from model.kernels import Kernel, choose_kernel
from model.t5 import T5

FAMILIES: dict[str, Any] = {"gpt": GPT, "bert": Bert, "t5": T5}
Model = GPT | Bert | T5


def build(
    config: TransformerConfig,
    *,
    kernel: Choice[Kernel] | str = "auto",
    loss_chunk_tokens: int = 1024,
    activation_checkpointing: Recompute = "none",
) -> Model:
    """The family's model on the default device in the default dtype. Its weights still have to be filled
    (`init_weights` or a file).

    `kernel` is what `choose_kernel` returned, or a name from which it chooses for the default device and dtype.
    Raises ConfigError when a kernel asked for by name cannot work.
    """
    if isinstance(kernel, str):
        device, dtype = torch.get_default_device(), torch.get_default_dtype()
        kernel = choose_kernel(config, device, dtype, document_masking=True, wanted=kernel)
    return FAMILIES[config.family](
        config,
        kernel.value,
        loss_chunk_tokens=loss_chunk_tokens,
        activation_checkpointing=activation_checkpointing,
    )


def compile_blocks(model: Model, **options: Any) -> None:
    """torch.compile each block and the loss in place: names in the state dict stay, and equal blocks share one
    compilation."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(**options)
        elif isinstance(module, Head):
            module.compile_chunks(**options)
