"""Text from a model in training."""

import torch

from data.prompt import EXTRA_TOKENS, prompt_for
from data.tokenizer import Tokenizer
from engine.engine import Engine
from model.generation import generate


def continue_prompt(engine: Engine, tokenizer: Tokenizer, step: int) -> str:
    """The recipe's prompt and `monitor.sample_tokens` tokens drawn after it; all ranks call it together.

    Every rank draws the same tokens, because under ZeRO 3 each forward pass gathers weights from all of them.
    """
    config, device = engine.config, engine.world.device
    room = max(1, config.model.max_positions - config.monitor.sample_tokens - EXTRA_TOKENS)
    prompt = prompt_for(config.objective, tokenizer, tokenizer.encode(config.monitor.sample_prompt)[-room:])
    with engine.autocast():
        generation = generate(
            engine.deepspeed.module,
            torch.tensor([prompt.tokens], device=device),
            source_BS=None if prompt.source is None else torch.tensor([prompt.source], device=device),
            max_new_tokens=config.monitor.sample_tokens,
            temperature=0.8,
            top_p=0.95,
            seed=config.run.seed + step,
        )
    # Cut here, not by a stop token: a rank that stopped alone would leave the others waiting.
    tokens = generation.new_tokens[0]
    end = next((place for place, token in enumerate(tokens) if token in prompt.stop_ids), None)
    return config.monitor.sample_prompt + tokenizer.decode(tokens[:end])
