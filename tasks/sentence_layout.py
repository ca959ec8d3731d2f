"""What a folder laid out for sentence-transformers says beside the model: how token states become a vector, longest text."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from config import ConfigError

Pooling = Literal["cls", "mean", "last"]
THEIR_POOLING: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
LEGACY = {
    f"pooling_mode_{mode}{tokens}": mode
    for mode, tokens in {
        "cls": "_token", "max": "_tokens", "mean": "_tokens", "mean_sqrt_len_tokens": "", "weightedmean": "_tokens",
        "lasttoken": "",
    }.items()
}  # fmt: skip
"""Switches of older files, and the values of the one setting that replaced them."""


@dataclass(frozen=True)
class SentenceLayout:
    """How a vector is made."""

    pooling: Pooling | None = None
    """None where the folder does not say."""
    dimensions: int | None = None
    """The first so many numbers of it; None is all."""
    normalize: bool = True
    """To length 1."""


def read_layout(folder: Path) -> SentenceLayout:
    """What modules.json says, or else nothing.

    Raises ConfigError for modules other than a transformer, one pooling of `Pooling`, a dense layer that keeps the first
    numbers (Matryoshka) and a normalisation, in this order, and for a prompt that is put before every text.
    """
    if not (folder / "modules.json").is_file():
        return SentenceLayout()
    path = folder / "config_sentence_transformers.json"
    if path.is_file() and (prompt := read_json(path).get("default_prompt_name")):
        raise ConfigError(
            f"{path}: a default prompt ({prompt}) is not supported: put it before the texts, and set default_prompt_name "
            "to null"
        )
    layout = SentenceLayout(normalize=False)
    for module in read_json(folder / "modules.json"):
        kind, place = module["type"].rpartition(".")[2], folder / module["path"]
        if kind == "Pooling":
            layout = replace(layout, pooling=_pooling(place / "config.json"))
        elif kind == "Dense" and not layout.normalize and (kept := _first_numbers(place)):
            layout = replace(layout, dimensions=kept)
        elif kind == "Normalize":
            layout = replace(layout, normalize=True)
        elif kind != "Transformer" or module["path"]:
            raise ConfigError(
                f"{folder}/modules.json: a {kind} in {module['path'] or 'the folder itself'} is not supported, only a "
                "Transformer in the folder itself, Pooling, a Dense that keeps the first numbers of a vector, and Normalize; "
                "remove modules.json to use the model without them"
            )
    return layout


def _first_numbers(folder: Path) -> int | None:
    """How many numbers a dense layer keeps, if it keeps the first ones as they are and does nothing else."""
    settings, path = read_json(folder / "config.json"), folder / "model.safetensors"
    if settings.get("bias") or not settings.get("activation_function", "").endswith("Identity") or not path.is_file():
        return None
    weight_ED = load_file(path)["linear.weight"]
    return len(weight_ED) if torch.equal(weight_ED.float(), torch.eye(*weight_ED.shape)) else None


def _pooling(path: Path) -> Pooling:
    settings = read_json(path)
    modes = settings.get("pooling_mode") or [theirs for switch, theirs in LEGACY.items() if settings.get(switch)]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in THEIR_POOLING:
        raise ConfigError(
            f"{path}: pooling {' and '.join(modes)} is not supported, only one of {', '.join(THEIR_POOLING)}"
        )
    return THEIR_POOLING[modes[0]]


def read_max_tokens(folder: Path) -> int | None:
    """The longest text in tokens that the folder's files allow, special tokens included; None if they do not say."""
    limits = [
        read_json(folder / name).get(setting)
        for name, setting in (
            ("sentence_bert_config.json", "max_seq_length"),
            ("tokenizer_config.json", "model_max_length"),
        )
        if (folder / name).is_file()
    ]
    return min((int(limit) for limit in limits if limit), default=None)


def lowers_case(folder: Path) -> bool:
    """Whether texts lose their capitals before they are tokenised."""
    path = folder / "sentence_bert_config.json"
    return path.is_file() and bool(read_json(path).get("do_lower_case"))


def read_json(path: Path) -> Any:
    """Raises ConfigError if there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy the folder again") from None
