"""What a folder laid out for sentence-transformers says beside the model: pooling and longest text."""

import json
from pathlib import Path
from typing import Any, Literal

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


def read_pooling(folder: Path) -> Pooling | None:
    """The pooling of modules.json, None where there is no such file.

    Raises ConfigError for modules other than a transformer, one pooling of `Pooling` and a normalisation, and for a
    prompt that is put before every text.
    """
    if not (folder / "modules.json").is_file():
        return None
    path = folder / "config_sentence_transformers.json"
    if path.is_file() and (prompt := read_json(path).get("default_prompt_name")):
        raise ConfigError(
            f"{path}: a default prompt ({prompt}) is not supported: put it before the texts, and set default_prompt_name "
            "to null"
        )
    pooling = None
    for module in read_json(folder / "modules.json"):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(folder / module["path"] / "config.json")
        elif kind not in ("Transformer", "Normalize") or (kind == "Transformer" and module["path"]):
            raise ConfigError(
                f"{folder}/modules.json: a {kind} in {module['path'] or 'the folder itself'} is not supported, only a "
                "Transformer in the folder itself, Pooling and Normalize; remove modules.json to use the model without them"
            )
    return pooling


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


def read_json(path: Path) -> Any:
    """Raises ConfigError if there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy the folder again") from None
