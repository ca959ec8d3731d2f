"""Tokens whose input embeddings are nearest to a token's, by cosine: what a model takes for similar words."""

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from config import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from data.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run, of a checkpoint, or Hugging Face's")
    parser.add_argument(
        "tokens", nargs="+", metavar="TOKEN", help="a word that is one token, or a special token's name"
    )
    parser.add_argument("--count", type=int, default=10, help="neighbours of each (default 10)")


def run(options: argparse.Namespace) -> int:
    import torch

    from tasks.checkpoints import load_model

    if options.count < 1:
        raise ConfigError(f"--count {options.count}: give at least 1")
    trained = load_model(options.model, torch.device("cpu"))
    tokenizer, weight_VD = trained.tokenizer, trained.model.embed_tokens.weight[: trained.tokenizer.vocab_size]
    for token, number in [(token, token_id(tokenizer, token)) for token in options.tokens]:
        found = neighbours(weight_VD, number, options.count)
        print(f"{token}: " + ", ".join(f"{tokenizer.decode([other])!r} {cosine:.3f}" for other, cosine in found))
    return 0


def neighbours(weight_VD: "Tensor", number: int, count: int) -> list[tuple[int, float]]:
    """Ids and cosines of the `count` rows of an embedding nearest to the row `number`, the nearest first."""
    from torch.nn.functional import cosine_similarity

    cosine_V = cosine_similarity(weight_VD.detach().float(), weight_VD[number].detach().float(), dim=1)
    cosine_V[number] = -2
    best = cosine_V.topk(min(count, len(cosine_V) - 1))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def token_id(tokenizer: "Tokenizer", token: str) -> int:
    """Id of a token: of the word inside a sentence, else at its beginning, else of the special token of this name.

    Raises ConfigError that says what the word is made of and names similar tokens.
    """
    for text in (f" {token}", token):
        ids = tokenizer.encode(text)
        if len(ids) == 1:
            return ids[0]
    special = {tokenizer.decode([number]): number for number in tokenizer.special_ids}
    if token in special:
        return special[token]
    pieces = ", ".join(repr(tokenizer.decode([number])) for number in tokenizer.encode(token))
    words = {tokenizer.decode([number]).strip() for number in range(tokenizer.vocab_size)}
    similar = get_close_matches(token, sorted(word for word in words if word and REPLACEMENT not in word), 5, 0.5)
    hint = f"; similar tokens: {', '.join(similar)}" if similar else ""
    raise ConfigError(f"{token!r} is not one token of this vocabulary, but {pieces or 'none'}{hint}")
