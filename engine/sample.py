"""Text from a model, in training or after it."""

from dataclasses import replace
from typing import Any

import torch
from torch.profiler import record_function

from data.prompt import MASK, Prompt, encode_prompt
from data.tokenizer import Tokenizer
from engine.engine import Engine
from model.generation import Generation, generate, likely_tokens

CANDIDATES = 5


@record_function("sample")
def sample_text(engine: Engine, tokenizer: Tokenizer, step: int) -> str:
    """What the model makes of the recipe's prompt, in `monitor.sample_tokens` tokens; all ranks call it together.

    Every rank draws the same tokens, because under ZeRO 3 each forward pass gathers weights from all of them.
    """
    config, model, device = engine.config, engine.deepspeed.module, engine.world.device
    prompt = encode_prompt(config.monitor.sample_prompt, config.objective, tokenizer)
    longest = config.model.max_positions
    with engine.autocast():
        if config.objective.name == "masked_lm":
            return fill_masks(model, replace(prompt, tokens=prompt.tokens[-longest:]), tokenizer, device)
        room = max(1, longest - config.monitor.sample_tokens)
        source = None if prompt.source is None else prompt.source[-longest:]
        generation = write(
            model,
            replace(prompt, tokens=prompt.tokens[-room:], source=source),
            max_new_tokens=config.monitor.sample_tokens,
            temperature=0.8,
            top_p=0.95,
            seed=config.run.seed + step,
        )
    # Cut here, not by a stop token: a rank that stopped alone would leave the others waiting.
    tokens = generation.new_tokens[0]
    end = next((place for place, token in enumerate(tokens) if token in prompt.stop_ids), None)
    return prompt.text + tokenizer.decode(tokens[:end])


def write(model: Any, prompt: Prompt, **options: Any) -> Generation:
    """`generate` for one prompt."""
    sources = None if prompt.source is None else [prompt.source]
    return generate(model, [prompt.tokens], sources=sources, **options)


def fill_masks(model: Any, prompt: Prompt, tokenizer: Tokenizer, device: torch.device) -> str:
    """The prompt, and for each [MASK] in it the most probable tokens with their probabilities."""
    (mask_id,) = tokenizer.ids_of([MASK])
    probabilities_BTC, ids_BTC = likely_tokens(model, torch.tensor([prompt.tokens], device=device), CANDIDATES)
    lines = [prompt.text]
    for place, token in enumerate(prompt.tokens):
        if token == mask_id:
            candidates = zip(ids_BTC[0, place].tolist(), probabilities_BTC[0, place].tolist(), strict=True)
            named = (f"{tokenizer.decode([candidate])!r} {100 * share:.0f}%" for candidate, share in candidates)
            lines.append(f"{MASK}: {', '.join(named)}")
    return "\n".join(lines)
