"""A tokenizer and the places of its special tokens, as AutoTokenizer and generation read them."""

import json
from pathlib import Path

import tokenizers
from tokenizers.processors import TemplateProcessing

from config.contrastive_schema import Similarity
from data.specials import BERT, T5
from data.tokenizer import Tokenizer
from tasks.checkpoints import Trained

SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
"""What `tasks generate` draws with unless it is told otherwise; top_k 0 is no limit."""


def row_kind(trained: Trained) -> str:
    """Whose special tokens a model's rows have: those of its family, or BERT's after contrastive training."""
    if trained.recipe is not None and isinstance(trained.objective, Similarity):
        return "bert"
    return trained.config.family


def special_tokens(tokenizer: Tokenizer, kind: str) -> dict[str, str]:
    """The tokens that have a role in rows of a kind, by role."""
    if kind == "bert":
        return dict(zip(("pad_token", "cls_token", "sep_token", "mask_token"), BERT, strict=True))
    end = {"eos_token": tokenizer.eod_token}
    return {"pad_token": T5[0], **end} if kind == "t5" else {"bos_token": tokenizer.eod_token, **end}


def templates(kind: str, tokens: dict[str, str]) -> tuple[str, str] | None:
    """What surrounds a text and a pair of texts in training; the number after a colon is the token type."""
    if kind == "bert":
        single = f"{tokens['cls_token']}:0 $A:0 {tokens['sep_token']}:0"
        return single, f"{single} $B:1 {tokens['sep_token']}:1"
    if kind == "t5":
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
    spec = json.loads(tokenizer.spec)
    if (spec.get("post_processor") or {}).get("type") != "ByteLevel":
        spec["post_processor"] = None  # it added special tokens that training did not
    model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    if template := templates(kind, tokens):
        numbers = [(tokens[role], ids[role]) for role in tokens]
        model.post_processor = TemplateProcessing(single=template[0], pair=template[1], special_tokens=numbers)
    folder.mkdir(parents=True)
    model.save(str(folder / "tokenizer.json"))
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
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", tokens)
    token_ids = {f"{role}_id": number for role, number in ids.items() if role != "mask_token"}
    if kind == "bert":
        token_ids |= {"bos_token_id": ids["cls_token"], "eos_token_id": ids["sep_token"]}
    elif kind == "t5":
        token_ids["decoder_start_token_id"] = ids["pad_token"]
    if kind != "bert":
        sampling = SAMPLING if kind == "gpt" else {}
        write_json(folder / "generation_config.json", {"pad_token_id": ids["eos_token"], **token_ids, **sampling})
    return token_ids


def write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
