"""A tokenizer and the places of its special tokens, as AutoTokenizer and generation read them."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from config.contrastive_schema import Similarity
from config.supervised_schema import HEADED, SequenceToSequence
from data.prompt import MASK, hides_spaces
from data.specials import BERT, T5
from data.tokenizer import Tokenizer
from tasks.checkpoints import Trained

SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
"""What `tasks generate` draws with unless it is told otherwise; top_k 0 is no limit."""


def row_kind(trained: Trained) -> str:
    """Whose special tokens a model's rows have: those of its family, BERT's after contrastive training, or those of a
    decoder that reads whole texts to label them."""
    if isinstance(trained.objective, Similarity) and trained.trained_by:
        return "bert"
    if trained.config.family == "gpt" and isinstance(trained.objective, HEADED):
        return "labelled"
    return trained.config.family


def special_tokens(tokenizer: Tokenizer, kind: str) -> dict[str, str]:
    """The tokens that have a role in rows of a kind, by role."""
    if kind == "bert":
        return dict(zip(("pad_token", "cls_token", "sep_token", "mask_token"), BERT, strict=True))
    end = {"eos_token": tokenizer.eod_token}
    padding = {"t5": {"pad_token": T5[0]}, "labelled": {"pad_token": BERT[0]}}
    return {**padding.get(kind, {"bos_token": tokenizer.eod_token}), **end}


def templates(kind: str, tokens: dict[str, str]) -> tuple[str, str] | None:
    """What surrounds a text and a pair of texts in training; the number after a colon is the token type."""
    if kind == "bert":
        single = f"{tokens['cls_token']}:0 $A:0 {tokens['sep_token']}:0"
        return single, f"{single} $B:1 {tokens['sep_token']}:1"
    if kind in ("t5", "labelled"):
        return f"$A {tokens['eos_token']}", f"$A {tokens['eos_token']} $B {tokens['eos_token']}"
    return None


def save_tokenizer(folder: Path, trained: Trained, *, padded: bool = False) -> dict[str, int]:
    """Write the tokenizer's files and, for a model that writes, generation_config.json.

    `padded`: the rows of an embedding model get padding where the vocabulary has none for it. Returns the token ids of
    config.json.
    """
    tokenizer, kind = trained.tokenizer, row_kind(trained)
    tokens = special_tokens(tokenizer, kind)
    ids = dict(zip(tokens, tokenizer.ids_of(tuple(tokens.values())), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_with_template(tokenizer, kind, tokens, ids), encoding="utf-8")
    types = ["token_type_ids"] if getattr(trained.config, "token_types", 0) else []
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": trained.config.max_positions,
        "model_input_names": ["input_ids", *types, "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    if padded:
        settings.setdefault("pad_token", tokenizer.eod_token)
    if trained.chat_template:
        settings["chat_template"] = trained.chat_template
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", tokens)
    token_ids = {f"{role}_id": number for role, number in ids.items() if role != "mask_token"}
    if kind == "bert":
        token_ids |= {"bos_token_id": ids["cls_token"], "eos_token_id": ids["sep_token"]}
    elif kind == "t5":
        token_ids["decoder_start_token_id"] = ids["pad_token"]
    if kind in ("gpt", "t5"):
        write_json(
            folder / "generation_config.json", {"pad_token_id": ids["eos_token"], **token_ids, **_writing(trained)}
        )
    return token_ids


def _with_template(tokenizer: Tokenizer, kind: str, tokens: dict[str, str], ids: dict[str, int]) -> str:
    """A tokenizer.json that puts around texts what training did, and in which holes take the space before them as in
    training."""
    spec = json.loads(tokenizer.spec)
    if (spec.get("post_processor") or {}).get("type") != "ByteLevel":
        spec["post_processor"] = None  # it added special tokens that training did not
    for added in spec["added_tokens"]:
        added["lstrip"] |= added["content"] in (MASK, *T5[1:]) and hides_spaces(tokenizer)
    model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    if template := templates(kind, tokens):
        numbers = [(tokens[role], ids[role]) for role in tokens]
        model.post_processor = TemplateProcessing(single=template[0], pair=template[1], special_tokens=numbers)
    return model.to_str(pretty=True)


def _writing(trained: Trained) -> dict[str, Any]:
    """How a model writes unless it is told otherwise."""
    if isinstance(trained.objective, SequenceToSequence):
        return {"max_new_tokens": trained.objective.target_length}
    return SAMPLING if trained.config.family == "gpt" else {}


def write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
