"""Text from a trained model: it continues a prompt, writes what fills <extra_id_0> in it, or names what [MASK] hides."""

import argparse
import sys
from contextlib import suppress
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run, of a checkpoint, or Hugging Face's")
    parser.add_argument("--prompt", default="", help="text to continue or to fill in; - reads it from standard input")
    parser.add_argument("--tokens", type=int, default=200, help="most new tokens (default 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, help="draw from the K likeliest tokens only")
    parser.add_argument("--top-p", type=float, default=0.95, help="draw from the likeliest P of probability (0.95)")
    parser.add_argument("--stop", action="append", default=[], help="text that ends the continuation; repeatable")
    parser.add_argument("--seed", type=int, help="makes the draw repeatable")


def run(options: argparse.Namespace) -> int:
    import torch

    from data.prompt import encode_prompt
    from engine.sample import fill_masks, write
    from tasks.checkpoints import load_model
    from tasks.text_stream import StopText, TextStream

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_model(options.model, device)
    model, tokenizer, objective = trained.model, trained.tokenizer, trained.objective
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    prompt = encode_prompt(text, objective, tokenizer)
    if objective.name == "masked_lm":
        print(fill_masks(model, prompt, tokenizer, device))
        return 0
    sys.stdout.write(prompt.text)
    stream = TextStream(tokenizer, sys.stdout, options.stop)
    with suppress(StopText):
        generation = write(
            model,
            prompt,
            device,
            max_new_tokens=options.tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop_ids=prompt.stop_ids,
            seed=options.seed,
            on_token=stream.add,
        )
        if generation.reasons == ["context"]:
            print(f"\n[the context of {model.config.max_positions} tokens is full]", file=sys.stderr)
    stream.close()
    return 0
