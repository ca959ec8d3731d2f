"""Text from a trained model: continues a prompt, writes what fills <extra_id_0> in it, or names what [MASK] hides.
Without --prompt at a terminal it asks for prompts; --input and --out write a file of many."""

import argparse
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import ConfigError
from tasks.dtype import add_dtype

if TYPE_CHECKING:
    from tasks.checkpoints import Trained

SAMPLING = {"temperature": 0.8, "top_k": None, "top_p": 0.95, "min_p": None, "repetition_penalty": 1.0, "seed": None}
"""Options that say how tokens are drawn and their defaults, by the names of model.sampling.Sampling."""
DEFAULTS: dict[str, Any] = {
    **SAMPLING,
    "prompt": None,
    "tokens": 200,
    "stop": [],
    "samples": 1,
    "beams": None,
    "logprobs": False,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run, of a checkpoint, or Hugging Face's")
    parser.add_argument("--prompt", help="text to continue or to fill in; - reads it from standard input")
    parser.add_argument("--tokens", type=int, help="most new tokens (default 200)")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, help="draw from the K likeliest tokens only")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest P of probability (0.95)")
    parser.add_argument("--min-p", type=float, help="draw from tokens at least P times as probable as the likeliest")
    parser.add_argument("--repetition-penalty", type=float, help="above 1: repeat less (default 1)")
    parser.add_argument("--stop", action="append", help="text that ends the continuation; repeatable")
    parser.add_argument("--seed", type=int, help="makes the draw repeatable; that of a file is 0 unless given")
    add_dtype(parser)
    files = parser.add_argument_group("many prompts")
    files.add_argument("--input", type=Path, help='jsonl with a "prompt" in each line, or a text file of one a line')
    files.add_argument(
        "--out", type=Path, help="jsonl to write, in the order of the input; a stopped command continues"
    )
    files.add_argument("--batch-size", type=int, default=32, help="texts written at a time; does not change them (32)")
    files.add_argument("--samples", type=int, help="texts for each prompt (default 1)")
    files.add_argument("--beams", type=int, help="search the most probable text with this many beams; nothing is drawn")
    files.add_argument("--logprobs", action="store_true", help="write the log-probability of each token as well")
    parser.set_defaults(**DEFAULTS)


def run(options: argparse.Namespace) -> int:
    import torch

    from tasks.checkpoints import load_model

    check(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_model(options.model, device, getattr(torch, options.dtype))
    if options.input:
        from tasks.generate_batch import write_file

        write_file(trained, options)
    elif options.prompt is None and sys.stdin.isatty() and sys.stdout.isatty():
        from tasks.generate_interactive import converse

        converse(trained, options)
    else:
        text = sys.stdin.read() if options.prompt == "-" else options.prompt or ""
        stream_text(trained, text, options)
    return 0


def check(options: argparse.Namespace) -> None:
    """Raises ConfigError for options that contradict each other, or would have no effect."""
    if (options.input is None) != (options.out is None):
        raise ConfigError("--input and --out belong together: the file of prompts and the file of texts")
    for name in ("tokens", "samples", "beams", "batch_size"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {number} leaves nothing to write: use at least 1")
    if options.input is None:
        refuse(options, ("samples", "beams", "logprobs"), "is for a file of prompts: give --input and --out as well")
    else:
        refuse(options, ["prompt"], "is for a single text, and --input has many: leave one of them out")
    if options.beams is not None:
        without = (*SAMPLING, "samples", "stop", "logprobs")
        refuse(options, without, "has no effect on --beams, which find one text: leave it out")


def refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raises ConfigError if one of the options is given."""
    for name in names:
        if getattr(options, name) != DEFAULTS[name]:
            raise ConfigError(f"--{name.replace('_', '-')} {why}")


def stream_text(trained: "Trained", text: str, options: argparse.Namespace) -> None:
    """Print the prompt and, token by token, what the model makes of it."""
    from data.prompt import encode_prompt
    from engine.sample import fill_masks, write
    from tasks.embedding import frame
    from tasks.text_stream import StopText, TextStream

    model, tokenizer, objective = trained.model, trained.tokenizer, trained.objective
    prompt = encode_prompt(text, objective, tokenizer, frame(trained)[0])
    if objective.name == "masked_lm":
        refuse(
            options,
            ("tokens", *SAMPLING, "stop"),
            "has no effect on a model that names what [MASK] hides: leave it out",
        )
        print(fill_masks(model, prompt, tokenizer, model.embed_tokens.weight.device))
        return
    settings = {name: getattr(options, name) for name in SAMPLING}
    sys.stdout.write(prompt.text)
    stream = TextStream(tokenizer, sys.stdout, options.stop)
    try:
        with suppress(StopText):
            generation = write(
                model,
                prompt,
                max_new_tokens=options.tokens,
                stop_ids=prompt.stop_ids,
                on_token=stream.add,
                **settings,
            )
            if generation.reasons == ["context"]:
                print(f"\n[the context of {model.config.max_positions} tokens is full]", file=sys.stderr)
    finally:
        stream.close()
