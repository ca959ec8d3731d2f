"""Text from a model in training."""

import torch

from data.tokenizer import Tokenizer
from engine.engine import Engine, seed_everything
from model.generation import generate


def continue_prompt(engine: Engine, tokenizer: Tokenizer, step: int) -> str:
    """The recipe's prompt and `monitor.sample_tokens` tokens drawn after it; all ranks call it together.

    Every rank draws the same tokens, because under ZeRO 3 each forward pass gathers weights from all of them.
    """
    config, device = engine.config, engine.world.device
    room = config.model.max_positions - config.monitor.sample_tokens
    prompt = [tokenizer.eod_id, *tokenizer.encode(config.monitor.sample_prompt)][-room:]
    seed_everything(config.run.seed, step, 0)
    # Eager: a compiled block would be compiled anew for each length of the context.
    with torch.compiler.set_stance("force_eager"), engine.autocast():
        tokens = generate(
            engine.deepspeed.module,
            torch.tensor([prompt], device=device),
            max_new_tokens=config.monitor.sample_tokens,
            temperature=0.8,
            top_p=0.95,
            stop_ids=(tokenizer.eod_id,),
        )
    return tokenizer.decode([token for token in tokens[0].tolist() if token != tokenizer.eod_id])
