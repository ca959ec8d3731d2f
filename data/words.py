"""Where words begin, as far as single tokens tell."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.tokenizer import Tokenizer, byte_alphabet

BEGINS_INSIDE, ENDS_INSIDE = 1, 2
"""Flags: the token begins (ends) with a letter, a digit or a part of one, and no space before (after) it."""

IDEOGRAPHS = ((0x3040, 0x3100), (0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32000))
"""Written without spaces: each character is a word (as in BERT's tokenizer)."""


def word_table(tokenizer: Tokenizer, vocab_size: int) -> NDArray[np.uint8]:
    """Flags of each id, uint8 [V]. A token continues the word of the one before it if that one ends inside a word and it
    begins inside one."""
    spec = json.loads(tokenizer.spec)
    text_of = _speller(spec)
    flags = np.zeros(vocab_size, np.uint8)
    model = spec["model"]["vocab"]
    pieces = model.items() if isinstance(model, dict) else ((piece, number) for number, (piece, _) in enumerate(model))
    for piece, number in pieces:
        text = text_of(piece)
        if text:
            flags[number] = BEGINS_INSIDE * _inside(text[0]) | ENDS_INSIDE * _inside(text[-1])
    flags[list(tokenizer.special_ids)] = 0
    return flags


def _speller(spec: dict[str, Any]) -> Callable[[str], str]:
    """From a piece of the vocabulary to its text, with a space where a word begins."""
    if spec["model"].get("type") == "WordPiece":
        prefix = spec["model"]["continuing_subword_prefix"]
        return lambda piece: piece.removeprefix(prefix) if piece.startswith(prefix) else " " + piece
    if '"ByteLevel"' in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")]):
        byte_of = {char: byte for byte, char in byte_alphabet().items()}
        return lambda piece: bytes(byte_of.get(char, 0x20) for char in piece).decode(errors="replace")
    return lambda piece: piece.replace("\u2581", " ")


def _inside(char: str) -> bool:
    """U+FFFD stands for a part of a character."""
    return char == "\ufffd" or (char.isalnum() and not any(low <= ord(char) < high for low, high in IDEOGRAPHS))
