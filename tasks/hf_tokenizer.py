"""A tokenizer and the places of its special tokens, as AutoTokenizer and generation read them."""

import json
from pathlib import Path

import tokenizers
from tokenizers.processors import TemplateProcessing

from config import TransformerConfig
from data.specials import BERT, T5
from data.tokenizer import Tokenizer


def special_tokens(tokenizer: Tokenizer, family: str) -> dict[str, str]:
    """The tokens that have a role in models of a family, by role."""
    if family == "bert":
        return dict(zip(("pad_token", "cls_token", "sep_token", "mask_token"), BERT, strict=True))
    end = {"eos_token": tokenizer.eod_token}
    return {"pad_token": T5[0], **end} if family == "t5" else {"bos_token": tokenizer.eod_token, **end}


def templates(family: str, tokens: dict[str, str]) -> tuple[str, str] | None:
    """What surrounds a text and a pair of texts in training; the number after a colon is the token type."""
    if family == "bert":
        single = f"{tokens['cls_token']}:0 $A:0 {tokens['sep_token']}:0"
        return single, f"{single} $B:1 {tokens['sep_token']}:1"
    if family == "t5":
        return f"$A {tokens['eos_token']}", f"$A {tokens['eos_token']} $B {tokens['eos_token']}"
    return None


def save_tokenizer(folder: Path, tokenizer: Tokenizer, config: TransformerConfig) -> dict[str, int]:
    """Write the tokenizer's files and, for a decoder, generation_config.json; returns the token ids of config.json."""
    family = config.family
    tokens = special_tokens(tokenizer, family)
    ids = dict(zip(tokens, tokenizer.ids_of(tuple(tokens.values())), strict=True))
    spec = json.loads(tokenizer.spec)
    if (spec.get("post_processor") or {}).get("type") != "ByteLevel":
        spec["post_processor"] = None  # it added special tokens that training did not
    model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    if template := templates(family, tokens):
        numbers = [(tokens[role], ids[role]) for role in tokens]
        model.post_processor = TemplateProcessing(single=template[0], pair=template[1], special_tokens=numbers)
    folder.mkdir(parents=True)
    model.save(str(folder / "tokenizer.json"))
    types = ["token_type_ids"] if getattr(config, "token_types", 0) else []
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "model_input_names": ["input_ids", *types, "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", tokens)
    token_ids = {f"{role}_id": number for role, number in ids.items() if role != "mask_token"}
    if family == "bert":
        token_ids |= {"bos_token_id": ids["cls_token"], "eos_token_id": ids["sep_token"]}
    elif family == "t5":
        token_ids["decoder_start_token_id"] = ids["pad_token"]
    if family != "bert":
        write_json(folder / "generation_config.json", {"pad_token_id": ids["eos_token"], **token_ids})
    return token_ids


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
